"""Overrides to a checked configuration, and the refusals on the way."""

from itertools import product

import hydra
import pytest

from builders import choices
from nin import cli
from nin.cli import tree as composing
from nin.config import flat, settings_of
from nin.errors import SettingError, UsageError
from nin.plan import CLASS_MAP_HEADS, HEADS
from nin.run import build

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
        ("recipe=null", "recipe", None, "must be one of article, best, modern"),
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


def test_a_thousand_points_of_a_study_are_composed_of_few_files(monkeypatch):
    composed, compose = [], hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *given, **rest: composed.append(given) or compose(*given, **rest))
    composing.of_files.cache_clear()
    found = cli.points(["data=digits", "head=gap,fc", "recipe=quick", "model.dropout=0,0.5", "seed=range(250)"])
    assert len({(point.config.head.name, point.config.model.dropout, point.config.seed) for point in found}) == 1000
    assert len(composed) <= 3  # Hydra takes a fifth of a second for each
