"""The entry point `nin`, and what is printed to be typed next."""

import re
import sys
import tomllib
from importlib import metadata

import pytest

import nin
from builders import ROOT
from nin import commands, files
from nin.run import started

MODULES = sorted(file.stem for file in (ROOT / "nin" / "commands").glob("[a-z]*.py"))


@pytest.fixture
def entry(monkeypatch, capsys, tmp_path):
    """Runs `nin` with arguments in this process and in tmp_path; returns its exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/nin", *arguments])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        try:
            commands.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return call


def test_help_lists_every_command_and_each_has_its_script(entry):
    code, said, _ = entry("--help")
    assert code == 0 and sorted((*commands.ANYWHERE, *commands.OF_A_CHECKOUT)) == MODULES
    assert all(sum(line.startswith(f"nin {name} ") for line in said.splitlines()) == 1 for name in MODULES)
    assert sorted(file.stem for file in (ROOT / "scripts").glob("*.py")) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_help_is_in_the_form_of_the_start(entry, script, name):
    code, said, _ = entry(name, "--help")
    assert code == 0 and f"nin {name} " in said and ".py" not in said.replace("nin/studies/speed.py", "")
    assert len(re.findall(r"^nin \w+ ?.*$", said, re.M)) >= 3, "three examples"
    code, said, _ = script(f"{name}.py", "--help")
    assert code == 0 and f"python scripts/{name}.py" in said and f"nin {name}" not in said


def test_columns_of_a_help_text_stay_where_they_are(monkeypatch):
    text = "python scripts/report.py     prints\n                             tables\nsee scripts/ablate.py"
    assert started.in_this_form(text) == text
    monkeypatch.setattr(sys, "argv", ["nin", "report"])
    shorter = started.in_this_form(text)
    assert shorter == "nin report                   prints\n                             tables\nsee nin ablate"


@pytest.mark.parametrize(
    ("program", "checkout", "spelled", "arguments"),
    [
        ("scripts/train.py", True, "python scripts/train.py", [str(ROOT / "scripts" / "train.py")]),
        ("/usr/bin/pytest", True, "python scripts/train.py", [str(ROOT / "scripts" / "train.py")]),
        ("/venv/bin/nin", True, "nin train", ["-P", "-m", "nin", "train"]),
        ("/a/nin/__main__.py", True, "nin train", ["-P", "-m", "nin", "train"]),
        ("notebook", False, "nin train", ["-P", "-m", "nin", "train"]),
    ],
)
def test_the_form_of_the_start(monkeypatch, program, checkout, spelled, arguments):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(files, "CHECKOUT", ROOT if checkout else None)
    assert started.spelled("train") == spelled
    assert started.arguments_of("train") == [sys.executable, *arguments]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "error: nin: expected a command; must be one of train, evaluate"),
        (["nosuch"], "error: nin nosuch: expected a command; must be one of train, evaluate"),
        (["trian"], "did you mean nin train?"),
        (["trian", "--help"], "did you mean nin train?"),
        (["head=gap"], "error: nin head=gap: expected a command"),
    ],
)
def test_what_is_no_command_is_one_sentence(entry, arguments, words):
    code, said, errors = entry(*arguments)
    assert (code, said, errors.count("\n")) == (2, "", 1) and words in errors


@pytest.mark.parametrize("name", commands.OF_A_CHECKOUT)
def test_what_belongs_to_a_checkout_says_so_elsewhere(entry, monkeypatch, name):
    monkeypatch.setattr(files, "CHECKOUT", None)
    code, said, errors = entry(name)
    assert (code, said) == (2, "") and errors.count("\n") == 1
    assert errors.startswith(f"error: nin {name}: belongs to a checkout of the repository")
    code, said, errors = entry(name, "--help")
    assert (code, errors) == (0, "") and "belongs to a checkout of the repository" in said and f"nin {name} " in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "epochs=3"], "epochs=3: .* did you mean trainer.max_epochs=3?"),
        (["train", "lr=0.1"], "lr=0.1: .* did you mean recipe.lr=0.1?"),
        (["train", "batch_size=64"], "batch_size=64: .* did you mean data.batch_size=64?"),
        (["train", "device=cuda"], "device=cuda: .* did you mean trainer.accelerator=cuda?"),
        (["train", "device=tpu"], "device=tpu: .* did you mean trainer.accelerator (auto, cpu, gpu, cuda, mps)?"),
        (["train", "workers=4"], "workers=4: .* did you mean data.workers=4?"),
        (["train", "data.num_workers=4"], "data.num_workers=4: .* did you mean data.workers=4?"),
        (["train", "optimizer=adam"], "optimizer=adam: .* did you mean recipe.optimiser (sgd, muon, adamw, rmsprop)?"),
        (["train", "--head", "gap"], "--head: no such option; write head=gap"),
        (["train", "--head=gap"], "--head=gap: no such option; write head=gap"),
        (["train", "--learning-rate", "0.1"], "--learning-rate: no such option; write recipe.lr=0.1"),
        (["train", "--lr", "head=gap"], "--lr: no such option; write recipe.lr=VALUE"),
        (["train", "--nosuch"], "--nosuch: no such option; a setting is written NAME=VALUE, --help lists them"),
        (["train", "seed=1,2"], "seed=1,2: several values require --multirun or nin ablate seed=1,2; a list"),
        (["evaluate", "cifar10-gap"], "cifar10-gap: expected NAME=VALUE; did you mean checkpoint=cifar10-gap?"),
        (["train", "runs/a"], "runs/a: expected NAME=VALUE; did you mean checkpoint=runs/a?"),
        (["predict", "cifar10-gap", "a.png"], "cifar10-gap: did you mean checkpoint=cifar10-gap?"),
        (["predict", "--checkpoint", "cifar10-gap"], "--checkpoint: no such option; write checkpoint=cifar10-gap"),
        (["demo", "cifar10-gap"], "cifar10-gap: expected NAME=VALUE; did you mean checkpoint=cifar10-gap?"),
        (["cost", "--model", "vgg19"], "--model: no such option; write model=vgg19"),
        (["cost", "modle=vgg19"], "modle=vgg19: unknown setting; did you mean model=vgg19?"),
        (["cost", "nosuch=1"], "nosuch=1: unknown setting; must be one of model, checkpoint, head"),
        (["ablate", "--jobs", "2"], "--jobs: no such option; write jobs=VALUE"),
        (["train", "data=/my/images"], "data=/my/images: must be one of .* data=folder data.root=/my/images"),
        (["train", "data=runs"], "data=runs: must be one of .* data=folder data.root=runs"),
    ],
)
def test_what_people_type_is_answered_with_the_right_spelling(entry, tmp_path, arguments, words):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "summary.json").touch()
    code, said, errors = entry(*arguments)
    assert (code, said, errors.count("\n")) == (2, "", 1), errors
    first, _, then = words.partition(" .* ")
    assert errors.startswith(f"error: {first}") and then in errors and len(errors) < 200, errors
    assert [file.name for file in tmp_path.iterdir()] == ["runs"]


def test_the_version_is_that_of_the_project(entry, monkeypatch):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert entry("--version") == (0, f"{version}\n", "")

    def is_missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", is_missing)
    assert nin.__version__ == version and "__version__" in dir(nin)
