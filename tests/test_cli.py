"""The command line: composing, refusing, spelling, folders and exit codes."""

import errno
import io
import os
import random
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import CONF
from nin import cli, errors
from nin.config import Config, flat, from_settings, pasted, settings_of
from nin.errors import NINError, SettingError, UsageError
from nin.plan import CLASS_MAP_HEADS, HEADS
from nin.run import build
from nin.run.record import Record
from nin.run.train import closing_lines


def choices(group):
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


# composing ------------------------------------------------------------------------------------------------------------


def test_every_recipe_composes_with_every_set():
    for recipe, data in product(choices("recipe"), choices("data")):
        config = cli.compose([f"recipe={recipe}", f"data={data}"])
        assert (config.recipe.name, config.data.name) == (recipe, data)


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_every_recipe_builds_every_head(recipe):
    for head in CLASS_MAP_HEADS:
        build.check(cli.compose([f"recipe={recipe}", "data=digits", f"head={head}"]))


def test_every_head_has_its_file():
    assert choices("head") == sorted(HEADS)
    for experiment, head in product(choices("experiment"), HEADS):
        config = cli.compose([f"experiment={experiment}", f"head={head}"])
        assert (config.head.name, config.data.name, config.recipe.name) == (head, "flowers17", experiment)


@pytest.mark.parametrize("group", ["model", "trainer", "logger"])
def test_every_other_choice_composes(group):
    for choice in choices(group):
        needed = {
            "inception_v3": ["data=flowers17", "data.size=96"],
            "nin_imagenet": ["data=flowers17", "data.size=224"],
        }
        config = cli.compose([f"{group}={choice}", *needed.get(choice, ())])
        if choice not in ("gpu", "ddp", "inception_v3", "vgg19"):  # what this machine need not have
            build.check(config)


def test_the_experiments_are_the_articles():
    config = cli.compose(["experiment=flowers17_vgg19"])
    assert (config.model.backbone, config.model.weights, config.data.size) == ("vgg19", "imagenet", 224)
    assert (config.recipe.optimiser, config.recipe.lr, config.recipe.momentum) == ("rmsprop", 1e-4, 0)
    assert (config.data.batch_size, config.trainer.max_epochs) == (32, 50)


def test_the_literal_paper_recipe_is_the_authors():
    config = cli.compose(["recipe=paper_literal"])
    net = build.build_net(config, classes=10, channels=3)
    assert sum(p.numel() for p in net.parameters()) == 966_986
    assert config.data.preprocessing == "whiten"
    assert (config.data.pad, config.data.flip, config.data.batch_size) == (0, False, 128)
    recipe = config.recipe
    assert (recipe.lr, recipe.bias_lr, recipe.last_lr, recipe.last_bias_lr) == (0.1, 2, 0.1, 0.2)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.9, False, 1e-4)
    assert config.trainer.max_epochs == 260
    assert [share * 260 for share in recipe.drops] == pytest.approx([200, 230])
    assert (config.model.last_pool, config.model.last_relu, config.model.dropout) == ("max", True, 0.5)
    assert (config.model.init, config.model.norm, config.trainer.gradient_clip_val) == ("gaussian", "none", None)


def test_the_paper_recipe_deviates_in_what_it_says_and_in_nothing_else():
    literal, paper = (flat(settings_of(cli.compose([f"recipe={name}"]))) for name in ("paper_literal", "paper"))
    differing = {f"{name}={value}" for name, value in paper.items() if literal[name] != value}
    mended = {"recipe.name=paper", "model.init=kaiming", "model.last_relu=False", "trainer.gradient_clip_val=1.0"}
    assert differing == mended
    caffe = cli.compose(["recipe=paper_caffe"])
    assert caffe.model.last_pool == "average"
    assert caffe.trainer.max_epochs == 307
    assert [share * 120_000 for share in caffe.recipe.drops] == pytest.approx([100_000], abs=1)


def test_an_override_beats_a_file():
    assert cli.compose().trainer.max_epochs <= 100
    assert cli.compose(["recipe=quick"]).trainer.max_epochs <= 8
    assert cli.compose(["data=digits"]).trainer.max_epochs != 3
    config = cli.compose(["data=digits", "trainer.max_epochs=3", "data.batch_size=16", "recipe={lr: 1, warmup: 0}"])
    assert (config.trainer.max_epochs, config.data.batch_size) == (3, 16)
    assert (config.recipe.lr, config.recipe.warmup, config.recipe.name) == (1, 0, "modern")
    assert cli.compose(["~recipe"]).recipe.name == "unnamed"


def test_blocks_from_the_command_line():
    config = cli.compose(["model.blocks=[{widths: 8, kernel_size: 5, dropout: true}, {widths: [8, 8, 10]}]"])
    assert build.build_net(config, classes=10, channels=3).blocks.block1.conv1.kernel_size == (5, 5)


def test_values_are_converted_and_interpolated(monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/a b")
    config = cli.compose(["data.root=${oc.env:SOMEWHERE}", "checkpoint=${data.name}", "recipe.name=7", "seed='3'"])
    assert (config.data.root, config.checkpoint, config.recipe.name, config.seed) == ("/a b", "cifar10", "7", 3)


# refusing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "setting", "value", "words"),
    [
        ("head=gpa", "head", "gpa", "must be one of fc, fc_article, fc_dropout, gap, gap_article, gmp"),
        ("head=[gap]", "head", ["gap"], "must be one of"),
        ("experiment=../../x", "experiment", "../../x", "must be one of flowers17_inception_v3"),
        ("experiment=[flowers17_vgg19,x]", "experiment", "x", "must be one of"),
        ("hydra/sweeper=x", "hydra/sweeper", "x", "must be one of basic"),
        ("recipe=null", "recipe", None, "must be one of article, modern"),
        ("trainer=null", "trainer", None, "must be one of auto, cpu"),
        ("nosuch=1", "nosuch", 1, "unknown setting; --help lists all settings"),
        ("lr=0.1", "lr", 0.1, "unknown setting; did you mean recipe.lr=0.1?"),
        ("epochs=3", "epochs", 3, "unknown setting; did you mean trainer.max_epochs=3?"),
        ("drops=[0.1,0.2]", "drops", [0.1, 0.2], "unknown setting; did you mean recipe.drops=[0.1,0.2]?"),
        ("dataset=digits", "dataset", "digits", "unknown setting; did you mean data=digits?"),
        ("dataset=nosuch", "dataset", "nosuch", "unknown setting; did you mean data (cifar10, cifar100, digits, "),
        ("recipe.nosuch=1", "recipe.nosuch", 1, "recipe has name, optimiser, lr"),
        ("+recipe.lrr=1", "recipe.lrr", 1, "did you mean recipe.lr=1?"),
        ("++nosuch.very.much=1", "nosuch.very.much", 1, "unknown setting"),
        ("recipe={lrr: 1}", "recipe.lrr", 1, "unknown"),
        ("seed.more=1", "seed.more", 1, "unknown setting"),
        ("seed=abc", "seed", "abc", "expected an integer"),
        ("seed=1e400", "seed", float("inf"), "expected an integer"),
        ("recipe.lr=-1", "recipe.lr", -1.0, "expected a number above 0"),
        ("recipe.drops=3", "recipe.drops", 3, "expected a list of numbers"),
        ("trainer.max_epochs=-3", "trainer.max_epochs", -3, "expected an integer from 1"),
        ("trainer.limit_test_batches=0", "trainer.limit_test_batches", 0, "expected a number of batches"),
        ("logger.name=mlflow", "logger.name", "mlflow", "must be one of csv, tensorboard, wandb"),
        ("seed=0,1", "seed", "0,1", "scripts/ablate.py"),
        ("seed=range(2)", "seed", "range(2)", "--multirun"),
        ("hydra.foo=1", "hydra.foo", 1, "hydra.run.dir"),
        ("hydra.searchpath=[pkg://evil]", "hydra.searchpath", ["pkg://evil"], "hydra.run.dir"),
        ("hydra.mode=MULTIRUN", "hydra.mode", "MULTIRUN", "hydra.run.dir"),
        ("hydra.job.chdir=true", "hydra.job.chdir", True, "hydra.run.dir"),
        ("+hydra.callbacks={x: {y: 1}}", "hydra.callbacks", {"x": {"y": 1}}, "hydra.run.dir"),
    ],
)
def test_a_refusal_carries_setting_value_and_reason(override, setting, value, words):
    with pytest.raises(SettingError) as refused:
        cli.compose([override])
    assert (refused.value.setting, refused.value.value) == (setting, value)
    assert words in refused.value.reason


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.urls=[https://a.b/~c]", "with quotes around a value"),
        ("head", "expected NAME=VALUE"),
        ("--head", "no such option"),
        ("--cfg", "no such option"),
        ("--experimental-rerun", "no such option"),
        (f"seed={'9' * 5000}", "seed=999"),
        ("+seed=1", "write it without +"),
        ("~seed", "cannot be deleted"),
        ("recipe@model=quick", "write recipe=NAME"),
        ("data.root=${nothing}", "data.root: "),
        ("model.blocks=[{_target_: os.system}]", "_target_ is not allowed"),
        ("hydra.launcher._target_=os.system", "_target_ is not allowed"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_sentence(override, words):
    with pytest.raises(UsageError) as refused:
        cli.compose([override])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


# files in conf/ -------------------------------------------------------------------------------------------------------


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of conf/ that the command line reads; returns what adds a file to it."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(cli, "CONF", tmp_path / "conf")

    def add(name, content):
        (tmp_path / "conf" / f"{name}.yaml").write_text(content)

    return add


def test_a_recipe_and_an_experiment_of_ones_own(conf):
    conf("recipe/mine", "# @package _global_\ndefaults: [quick]\nrecipe: {name: mine, lr: 1}\n")
    conf(
        "experiment/both",
        "# @package _global_\ndefaults: [override /recipe: mine]\nhydra: {sweeper: {params: {seed: 1}}}\n",
    )
    config = cli.compose(["experiment=both"])
    assert (config.recipe.name, config.recipe.lr, config.trainer.max_epochs) == ("mine", 1, 8)
    assert cli.overrides_of(settings_of(config)) == ["data=cifar10", "head=gap", "recipe=mine", "seed=0"]


def test_a_file_is_read_anew_once_it_was_edited(conf):
    conf("recipe/mine", "lr: 1\n")
    assert cli.compose(["recipe=mine"]).recipe.lr == 1
    conf("recipe/mine", "lr: 2\n")
    assert cli.compose(["recipe=mine"]).recipe.lr == 2


def test_hydras_folder_is_not_chosen_by_a_file(conf, run):
    conf("experiment/mine", "# @package _global_\nhydra: {run: {dir: elsewhere}}\n")
    seen = []
    assert run(cli.command, "experiment=mine", main=lambda config, folder: seen.append(str(folder)))[0] == 0
    assert seen == ["."] and tree() == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("hydra: {callbacks: {x: {_target_: builtins.print}}}", ["experiment/mine.yaml", "_target_ is not allowed"]),
        ("hydra: {callbacks: {x: {y: 1}}}", ["hydra.callbacks"]),
        ("hydra: {launcher: {_convert_: all}}", ["hydra.launcher"]),
        ("hydra: {sweeper: {max_batch_size: 3}}", ["hydra.sweeper"]),
        ("hydra: {job: {env_set: {PATH: x}}}", ["hydra.job"]),
        ("hydra: {searchpath: [pkg://evil]}", ["searchpath"]),
        ("recipe: {lrr: 1}", ["experiment/mine", "recipe.lrr", "did you mean recipe.lr?"]),
        ("recipe: {lr: {_target_: builtins.print}}", ["experiment/mine.yaml", "_target_"]),
        ("recipe: {lr: {a: 1}}", ["recipe.lr"]),
        ("nosuch: {a: builtins.print}", ["nosuch", "--help lists all settings"]),
        ("seed: abc", ["experiment/mine", "seed", "abc"]),
        ("seed: -1", ["seed=-1"]),
        ("recipe:\n\tlr: 1", ["mine.yaml", "line 3"]),
        ("defaults: [override /recipe: nosuch]", ["recipe=nosuch", "modern"]),
        ("[1, 2]", ["experiment/mine"]),
        ("recipe: 3", ["conf/experiment/mine.yaml"]),
        ("data: {root: '${nothing}'}", ["data.root"]),
    ],
)
def test_a_file_sets_fields_and_nothing_else(conf, content, words):
    conf("experiment/mine", f"# @package _global_\n{content}\n")
    with pytest.raises(NINError) as refused:
        cli.compose(["experiment=mine"])
    assert all(word in str(refused.value) for word in words), refused.value
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)


# settings back to a command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "shortest", "variant"),
    [
        ([], "data=cifar10 head=gap recipe=modern seed=0", ""),
        (["recipe=quick", "seed=3", "head=fc", "resume=auto"], "data=cifar10 head=fc recipe=quick seed=3", ""),
        (
            ["data=digits", "model.norm=none", "data.val=9", "trainer.precision=32-true"],
            "data=digits head=gap recipe=modern seed=0 model.norm=none data.val=9 trainer.precision='32-true'",
            "model.norm=none",
        ),
        (["recipe=paper", "recipe.drops=[]", "eval_curve=true"], None, "recipe.drops=[]"),
        (["model=equal", "checkpoint='a,b=c/d'", "trainer.limit_train_batches=0.5"], None, None),
        (["model.blocks=[{widths: [192], kernel_size: 5, dropout: true}]"], None, None),
        (["model=plain", "recipe.lr=1"], None, "model=plain recipe.lr=1"),
        (["experiment=flowers17_vgg19", "data.size=64", "model.weights=none"], None, "data.size=64 model.weights=none"),
        (["experiment=flowers17_inception_v3", "head=fc_article", "model.weights=none"], None, "model.weights=none"),
        (["recipe.name=mine", "checkpoint='a b'", "trainer.gradient_clip_val=1e-3"], None, None),
        (["trainer.limit_train_batches=1.0"], None, "trainer.limit_train_batches=1.0"),
    ],
)
def test_the_overrides_of_settings_compose_to_them_again(overrides, shortest, variant):
    config = cli.compose(overrides)
    found = cli.overrides_of(settings_of(config))
    if shortest is not None:
        assert " ".join(found) == shortest
    if variant is not None:
        assert cli.variant_of(settings_of(config)) == variant
    again = cli.compose(found)
    again.resume = config.resume
    assert again == config
    python, script, *pasted = shlex.split(cli.command_of(settings_of(config)))
    assert (python, script, pasted) == ("python", "scripts/train.py", found)


def test_settings_from_before_a_field_was_added_are_spelled_too():
    old = settings_of(cli.compose(["recipe=paper_literal"]))
    del old["recipe"]["label_smoothing"], old["freeze"]
    assert cli.overrides_of(old) == ["data=cifar10", "head=gap", "recipe=paper_literal", "seed=0"]
    with pytest.raises(SettingError, match="nosuch"):
        cli.overrides_of({**old, "nosuch": 1})


@pytest.mark.slow
def test_no_net_that_makes_a_command_shorter_is_left_out(conf, monkeypatch):
    """Most nets in conf/ are not composed to find the shortest command: the answer is that of composing all of them."""
    draws = random.Random(21)
    conf("model/mine", "defaults: [plain]\nnorm: batch\n")
    conf("experiment/mine", "# @package _global_\ndefaults: [override /model: plain]\nmodel: {norm: batch}\n")
    conf("experiment/none", "# @package _global_\ndefaults: [override /model: null]\nrecipe: {name: none}\n")
    for name in ("cifar100", "svhn", "equal", "nin_imagenet", "squeezenet1_1", "inception_v3"):
        (cli.CONF / "model" / f"{name}.yaml").unlink()
    choices = [("data=mnist", "recipe=paper"), ("experiment=mine",), ("experiment=none",)]
    plain = settings_of(cli.compose(["model=plain"]))["model"]["blocks"]
    values = {"blocks": ["cifar10", "mnist", "cnn", plain, [{"widths": [8, 8, 10]}]], "dropout": [0.5, 0.0, 0.2]}
    values |= {"backbone": [None, "vgg19"], "norm": ["none", "batch"], "weights": ["imagenet", "none"]}
    wanted = []
    for chosen in choices:
        for _ in range(40):
            made = settings_of(cli.compose(chosen))
            made["model"] |= {
                name: draws.choice(values[name]) for name in draws.sample(list(values), draws.randrange(4))
            }
            wanted.append(made)
    found = [cli.overrides_of(each) for each in wanted]
    assert len({tuple(overrides) for overrides in found}) > 40
    monkeypatch.setattr(cli, "_nets_that_may_bring", lambda wanted, choices: cli._names("model"))
    assert [cli.overrides_of(each) for each in wanted] == found


@settings(max_examples=200)
@given(
    st.text(min_size=1, max_size=12).filter(lambda text: "\0" not in text)
    | st.text("\\$'{}\"a ", min_size=1, max_size=9)
)
def test_any_path_is_quoted_so_that_hydra_reads_it(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert cli.compose([f"checkpoint={cli.quoted(text)}"]).checkpoint == text


ODD_PATHS = ["a b", "ä", "a=[b,{c", "$x", "${x}", "it's", '"', "#~;", "; touch x", "a\\", "a\nb", "a\tb", "\x1b[2J"]
ODD_PATHS += ["~", "-", "null", "!x", "`x`", "$(x)", "a&b|c", "a*?", "\\${x}", "x" * 200, "é\r\n", "'\\''\n", "$'x'"]
SEEDED = random.Random(11)
ODD_PATHS += ["".join(SEEDED.choices("ab =[]{},$'\"#~;&|<>()*?!\\\n\t`äß\u3042", k=9)) for _ in range(74)]


def pasted_into_bash(commands):
    """The words that bash makes of each command."""
    script = "python() { printf '%s\\0' \"$@\"; printf '\\1'; }\n" + "\n".join(commands)
    said = subprocess.run(["bash", "-c", script], capture_output=True, check=True, cwd="/").stdout.decode()
    return [command.split("\0")[:-1] for command in said.split("\1")[:-1]]


@pytest.mark.tries(100)
def test_what_is_printed_can_be_pasted(tried):
    """Into a shell, and Hydra reads the same path."""
    facts = {
        "parameters": 5,
        "precision": "32-true",
        "device": "cpu",
        "versions": {},
        "commit": "c" * 40,
        "clean": True,
    }
    errors = {"test_error": 9.0, "train_error": 1.0, "seconds": 3.0, "images_per_second": 3.0}
    record = Record("finished", settings_of(Config()), start=None, **facts, **errors)
    paths = [Path(text) for text in ODD_PATHS]
    commands = [closing_lines(record, path).partition("Evaluate it again: ")[2] for path in paths]
    assert all(command.isprintable() for command in commands)
    for path, words in zip(paths, pasted_into_bash(commands), strict=True):
        assert words[0] == "scripts/evaluate.py" and cli.compose(words[1:]).checkpoint == str(path)
        tried(path)
    plain = [f"python {pasted('study', path, in_quotes=False)}" for path in paths]
    assert pasted_into_bash(plain) == [[f"study={path}"] for path in paths]


@pytest.mark.parametrize(
    "text", ["a b", "ä", "a=[b,{c", "$x", "${x}", "it's", '"', "#~;", "a\\", "\\'", "a\\'", "null", "\\${x}"]
)
def test_an_odd_path_survives_hydra_and_shell(text):
    command = cli.command_of(settings_of(cli.compose([f"checkpoint={cli.quoted(text)}"])))
    assert cli.compose(shlex.split(command)[2:]).checkpoint == text


def test_a_sweep_is_every_combination():
    assert cli.sweep(["seed=0,1", "head=glob(fc*,exclude=*_article)"]) == [
        ["seed=0", "head=fc"],
        ["seed=0", "head=fc_dropout"],
        ["seed=1", "head=fc"],
        ["seed=1", "head=fc_dropout"],
    ]
    assert cli.sweep(["seed=range(3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert cli.sweep([]) == [[]]
    for wrong in ("head=glob(x*)", "head", "seed=range(1,2,0)"):
        with pytest.raises(UsageError):
            cli.sweep([wrong])


def test_the_points_of_a_study():
    found = cli.points(["head=gap,fc", "recipe=quick", "model.dropout=0,0.5"])
    assert [point.variant for point in found] == ["", "model.dropout=0.5"] * 2
    assert [(point.config.head.name, point.config.model.dropout) for point in found] == [
        *(("gap", 0), ("gap", 0.5), ("fc", 0), ("fc", 0.5))
    ]
    assert found[1].overrides == ("head=gap", "recipe=quick", "model.dropout=0.5")
    with pytest.raises(SettingError, match="head=gpa"):
        cli.points(["head=gap,gpa"])


def test_a_thousand_points_of_a_study_are_composed_of_few_files(monkeypatch):
    composed, compose = [], cli.hydra.compose
    monkeypatch.setattr(cli.hydra, "compose", lambda *given, **rest: composed.append(given) or compose(*given, **rest))
    cli._of_files.cache_clear()
    found = cli.points(["data=digits", "head=gap,fc", "recipe=quick", "model.dropout=0,0.5", "seed=range(250)"])
    assert len({(point.config.head.name, point.config.model.dropout, point.config.seed) for point in found}) == 1000
    assert len(composed) <= 3  # Hydra takes a fifth of a second for each


# commands -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command of `cli` with arguments in an empty folder; returns its exit code, output and errors."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(start, *arguments, **options):
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        capsys.readouterr()
        try:
            start(**options)
            code = 0
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SettingError("seed", -1, "expected more"), 2, "seed=-1: expected more"),
        (UsageError("two\nlines"), 2, "two lines"),
        (errors.DataError("no data"), 1, "no data"),
        (errors.DeadNetError("dead"), 3, "dead"),
        (errors.InterruptedRunError("stopped by SIGTERM", 143), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "FILE"), 1, "FILE: No space left on device"),
        (PermissionError(errno.EACCES, "no"), 1, "[Errno 13] no"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(run, error, code, said):
    def main(*_):
        raise error

    assert run(cli.run_script, main=main) == (code, "", f"error: {said}\n")
    assert run(cli.command, "seed=3", main=main) == (code, "", f"error: {said}\n")


def test_every_error_of_ours_has_an_exit_code():
    ours = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, NINError)]
    assert len(ours) > 10 and {each.exit_code for each in ours} == {1, 2, 3}


def raises_an_error_of_no_file(_):
    raise OSError("of no file")


def test_a_bug_is_a_traceback(run):
    def main(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(cli.run_script, main=main)
    with pytest.raises(ZeroDivisionError):
        run(cli.command, main=main)
    with pytest.raises(OSError, match="of no file"):
        run(cli.run_script, main=raises_an_error_of_no_file)


def test_help_is_made_of_the_schema(run):
    code, said, _ = run(cli.command, "seed=3", "--help", main=test_help_is_made_of_the_schema)
    for name in flat(settings_of(Config())):
        assert f"  {name}=" in said
    assert "recipe.lr=0.04 " in said and "rate of the weights" in said and "(sgd, muon, adamw, rmsprop)" in said
    assert all(f" {name}" in said for group in ("recipe", "head", "experiment") for name in choices(group))
    code, said, _ = run(cli.command, "-h", main=test_a_bug_is_a_traceback, settings=["seed", "data.root", "trainer"])
    assert "data.root=null" in said and "trainer.devices=1" in said and "seed=0" in said
    assert code == 0 and "recipe." not in said and "data.size" not in said


def test_only_its_own_settings_are_taken(run):
    taken = []
    options = {"main": lambda config, folder: taken.append(config), "settings": ("checkpoint", "data.root", "trainer")}
    assert run(cli.command, "checkpoint=a", "data.root=b", "trainer=cpu", "trainer.devices=1", **options)[0] == 0
    assert (taken[0].checkpoint, taken[0].data.root, taken[0].trainer.accelerator) == ("a", "b", "cpu")
    for wrong in ("head=fc", "data=digits", "data.size=9", "seed=3"):
        code, _, said = run(cli.command, wrong, **options)
        assert code == 2 and f"error: {wrong}: has no effect" in said and "data.root, trainer" in said
    assert len(taken) == 1


def test_plain_settings():
    assert cli.plain_settings(["a=1=2"], {"a": "", "b": "x"}) == {"a": "1=2", "b": "x"}
    with pytest.raises(SettingError, match="c=1: unknown setting; known are a, b"):
        cli.plain_settings(["c=1"], {"a": "", "b": ""})
    with pytest.raises(UsageError, match="a: expected NAME=VALUE"):
        cli.plain_settings(["a"], {"a": ""})


def test_a_terminal_of_ascii_and_a_closed_one_are_written_to(run, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run(cli.command, "--help", main=test_plain_settings)[0] == 0
    assert b"recipe.lr=0.04" in written.getvalue()
    for name in ("sys.stdout", "sys.stderr"):
        monkeypatch.setattr(name, None)
    assert run(cli.command, "--help", main=test_plain_settings)[0] == 0
    assert run(cli.command, "head=gpa", main=test_plain_settings)[0] == 2


def test_a_reader_that_leaves_is_no_bug(run, monkeypatch):
    class Left(io.StringIO):
        def flush(self):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Left())
    assert run(cli.run_script, "--help", main=test_plain_settings)[0] == 0


# folders --------------------------------------------------------------------------------------------------------------


def tree():
    return sorted(str(path) for path in Path().rglob("*"))


def test_a_folder_of_a_name_is_made_once(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: cli.new_folder(tmp_path / "runs" / "a"), range(24)))
    assert len(set(made)) == 24
    assert sorted(path.name for path in made) == sorted(["a", *(f"a_{number}" for number in range(2, 25))])
    assert all(path.is_dir() for path in made)
    (tmp_path / "file").touch()
    with pytest.raises(errors.RunError, match="cannot be created"):
        cli.new_folder(tmp_path / "file" / "x")


def test_a_command_gets_the_folder_that_it_asks_for(run):
    seen = []

    def main(config, folder):
        seen.append((str(folder), folder.is_dir()))
        (folder / "result").touch()

    run(cli.command, main=main)
    run(cli.command, main=main, folder=lambda config: f"runs/{config.head.name}")
    run(cli.command, "head=fc", main=main, folder=lambda config: f"runs/{config.head.name}")
    run(cli.command, main=main, folder=lambda config: f"runs/{config.head.name}")
    run(cli.command, "hydra.run.dir=mine/${data.name}", "data=digits", main=main, folder=lambda config: "runs/x")
    run(cli.command, "hydra.run.dir=.", main=main, folder=lambda config: "runs/x")
    assert [name for name, _ in seen] == [".", "runs/gap", "runs/fc", "runs/gap_2", "mine/digits", "."]
    assert all(there for _, there in seen)
    assert not Path("runs/x").exists()


def test_a_folder_that_cannot_be_resolved_or_is_not_shared_is_refused(run, monkeypatch):
    code, _, said = run(cli.command, "hydra.run.dir=${nothing}", "seed=3", main=lambda *_: 1 / 0)
    assert (code, said) == (2, "error: hydra.run.dir=${nothing}: Interpolation key 'nothing' not found\n")
    monkeypatch.setattr(cli.processes, "ending_at_once", nullcontext)  # it would end this process
    monkeypatch.setattr(cli.processes, "world_size", lambda: 2)
    code, _, said = run(cli.command, "seed=3", main=lambda *_: 1 / 0)
    assert code == 2 and "error: hydra.run.dir=FOLDER is required" in said
    assert tree() == []


@pytest.mark.parametrize("given", [[], ["hydra.run.dir=new/er"]])
def test_what_fails_leaves_no_folder(run, given):
    def fails(config, folder):
        assert folder.is_dir()
        raise errors.DataError("no data")

    def locks_and_fails(config, folder):
        from nin.run.folder import training_in

        with training_in(folder):
            raise errors.DataError("no data")

    def is_refused(config):
        assert tree() == []
        raise SettingError("seed", 0, "no")

    for options in ({"main": fails}, {"main": locks_and_fails}, {"main": fails, "check": is_refused}):
        assert run(cli.command, *given, folder=lambda config: "runs/x", **options)[0] in (1, 2)
        assert tree() == []
    assert run(cli.command, "seed=-1", *given, main=fails, folder=lambda config: "runs/x")[0] == 2
    assert tree() == []


def test_what_was_there_stays(run):
    Path("mine").mkdir()

    def main(config, folder):
        raise errors.DataError("no data")

    assert run(cli.command, "hydra.run.dir=mine", main=main)[0] == 1
    assert run(cli.command, "hydra.run.dir=.", main=main)[0] == 1
    assert tree() == ["mine"]
    Path("file").touch()
    for folder in ("file", "file/x"):
        code, _, said = run(cli.command, f"hydra.run.dir={folder}", main=main)
        assert code == 1 and f"error: hydra.run.dir={folder}: cannot be created" in said


# several runs ---------------------------------------------------------------------------------------------------------


def test_multirun_runs_a_job_for_each_value(run):
    seen = []

    def main(config, folder):
        seen.append((config.seed, config.head.name, folder.parent.name, folder.name))
        (folder / "result").touch()

    arguments = ("--multirun", "seed=0,1", "head=fc", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${seed}")
    assert run(cli.command, *arguments, main=main) == (0, "", "")
    assert seen == [(0, "fc", "sweep", "0"), (1, "fc", "sweep", "1")]
    assert {"sweep/0/result", "sweep/1/result"} <= set(tree())


def test_a_job_that_fails_does_not_keep_the_others_from_running(run):
    ran = []

    def main(config, folder):
        ran.append(config.seed)
        if config.seed == 1:
            raise errors.DeadNetError("dead")
        if config.seed == 3:
            raise errors.InterruptedRunError("stopped", 143)

    code, _, said = run(cli.command, "-m", "seed=0,1,2", "hydra.sweep.dir=s", main=main)
    assert (code, said, ran) == (3, "error: dead\n", [0, 1, 2])
    assert not Path("s/1").exists()
    code, _, said = run(cli.command, "-m", "seed=2,3,4", "hydra.sweep.dir=s", main=main)
    assert (code, said, ran) == (143, "error: stopped\n", [0, 1, 2, 2, 3])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["head=gap,gpa"], "head=gpa: must be one of"),
        (["seed=0,-1"], "seed=-1: expected an integer"),
        (["seed=0,1", "trainer.devices=2"], "trainer.devices=2: --multirun trains each net in one process"),
        (["seed=0,1", "+hydra.callbacks={x: {y: 1}}"], "hydra.callbacks"),
        (["seed=0,1", "hydra/launcher=nosuch"], "hydra/launcher=nosuch: must be one of basic"),
    ],
)
def test_a_refused_multirun_leaves_nothing(run, overrides, words):
    code, _, said = run(cli.command, "--multirun", *overrides, main=lambda *_: 1 / 0)
    assert code == 2 and said.count("\n") == 1 and words in said
    assert tree() == []


def test_a_file_that_a_sweep_chooses_sets_no_callbacks(run, conf, tmp_path):
    mark = f"hydra: {{callbacks: {{x: {{_target_: pathlib.Path.touch, self: {tmp_path / 'ran'}}}}}}}"
    conf("experiment/a", f"# @package _global_\n{mark}\n")
    for arguments in (["-m", "experiment=a,flowers17_vgg19"], ["-m", "experiment=a"], ["experiment=a"]):
        code, _, said = run(cli.command, *arguments, main=lambda *_: 1 / 0)
        assert code == 2 and "conf/experiment/a.yaml: settings are values" in said
    assert not (tmp_path / "ran").exists() and tree() == []


def test_a_configuration_is_data():
    assert from_settings(settings_of(cli.compose(["recipe=quick"]))) == cli.compose(["recipe=quick"])


# sweepers -------------------------------------------------------------------------------------------------------------

OPTUNA = ["--multirun", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
OPTUNA += ["recipe.lr=interval(0.001,0.1)", "data=digits"]


def optuna(monkeypatch, main, arguments, *, gives_error=True):
    """The exit code of a command of Optuna's, whose jobs call `main`."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    try:
        cli.command(main, gives_error=gives_error)
    except SystemExit as ended:
        return ended.code
    return 0


def test_optuna_gets_the_held_out_error(monkeypatch, tmp_path):
    """And calls the run with the least the best."""
    monkeypatch.chdir(tmp_path)
    seen = []

    def main(settings, folder):
        seen.append((settings.recipe.lr, 10 + 100 * settings.recipe.lr))
        return seen[-1][1]

    assert optuna(monkeypatch, main, [*OPTUNA, "data.val=100"]) == 0
    (file,) = tmp_path.rglob("optimization_results.yaml")
    best = yaml.safe_load(file.read_text())
    assert len(seen) == 2 and (best["best_params"]["recipe.lr"], best["best_value"]) == min(
        seen, key=lambda each: each[1]
    )


@pytest.mark.parametrize(
    ("arguments", "words", "gives_error"),
    [
        (OPTUNA, "data.val=0: a sweeper chooses values by the held-out error, never by the test error", True),
        ([*OPTUNA, "data.val=0"], "data.val=0: a sweeper", True),
        ([*OPTUNA, "data.val=100"], "requires a command that returns an error: nin train", False),
    ],
)
def test_no_sweeper_gets_a_test_error(monkeypatch, tmp_path, capsys, arguments, words, gives_error):
    """The refusal comes before the first run."""
    monkeypatch.chdir(tmp_path)

    def main(settings, folder):
        pytest.fail("a run has begun")

    assert optuna(monkeypatch, main, arguments, gives_error=gives_error) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_value_of_data_val_that_a_sweeper_chooses_is_checked_too(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    called = []

    def main(settings, folder):
        called.append(settings.data.val)
        return 1.0

    assert optuna(monkeypatch, main, [*OPTUNA, "data.val=choice(0,0)"]) == 2
    assert "data.val=0: a sweeper" in capsys.readouterr().err and not called
