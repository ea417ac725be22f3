"""Files of conf/ of one's own, and what they may set."""

import pytest

from builders import tree
from nin import cli
from nin.config import settings_of
from nin.errors import NINError


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
