"""A configuration back to overrides, which a shell and Hydra read again."""

import random
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nin import cli
from nin.cli import conf as of_files
from nin.cli import overrides
from nin.config import Config, from_settings, pasted, quoted, settings_of
from nin.errors import SettingError
from nin.run.record import Record
from nin.run.train import closing_lines


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
        (of_files.CONF / "model" / f"{name}.yaml").unlink()
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
    monkeypatch.setattr(overrides, "_nets_that_may_bring", lambda wanted, choices: of_files.names_in("model"))
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
    assert cli.compose([f"checkpoint={quoted(text)}"]).checkpoint == text


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
    command = cli.command_of(settings_of(cli.compose([f"checkpoint={quoted(text)}"])))
    assert cli.compose(shlex.split(command)[2:]).checkpoint == text


def test_the_points_of_a_study():
    found = cli.points(["head=gap,fc", "recipe=quick", "model.dropout=0,0.5"])
    assert [point.variant for point in found] == ["", "model.dropout=0.5"] * 2
    assert [(point.config.head.name, point.config.model.dropout) for point in found] == [
        *(("gap", 0), ("gap", 0.5), ("fc", 0), ("fc", 0.5))
    ]
    assert found[1].overrides == ("head=gap", "recipe=quick", "model.dropout=0.5")
    with pytest.raises(SettingError, match="head=gpa"):
        cli.points(["head=gap,gpa"])


def test_a_configuration_is_data():
    assert from_settings(settings_of(cli.compose(["recipe=quick"]))) == cli.compose(["recipe=quick"])
