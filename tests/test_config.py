import math
from dataclasses import fields, is_dataclass, replace
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Ended, anything
from nin import config
from nin.config import Config, DataConfig, RecipeConfig, TrainerConfig, check, from_settings, settings_of
from nin.errors import SettingError


def leaves(kind=Config, prefix=""):
    for each in fields(kind):
        hint = get_type_hints(kind)[each.name]
        yield from leaves(hint, f"{prefix}{each.name}.") if is_dataclass(hint) else [(f"{prefix}{each.name}", each)]


def with_value(settings_, name, value):
    """A nested dictionary of settings with one of them changed."""
    group, _, field = name.rpartition(".")
    changed = {**settings_, group: dict(settings_[group])} if group else dict(settings_)
    (changed[group] if group else changed)[field] = value
    return changed


def test_every_setting_has_a_sentence():
    for name, each in leaves():
        said = each.metadata["says"]
        assert 10 < len(said) < 110 and said[-1] != "." and "\n" not in said, name


def test_the_defaults_are_allowed_and_are_the_authors():
    check(Config())
    recipe = RecipeConfig()
    assert (recipe.lr, recipe.bias_lr, recipe.last_lr, recipe.last_bias_lr) == (0.1, 2.0, 0.1, 0.2)
    assert (recipe.momentum, recipe.weight_decay, recipe.schedule) == (0.9, 1e-4, "step")
    assert [share * 260 for share in recipe.drops] == pytest.approx([200, 230])


def test_a_configuration_survives_yaml():
    changed = Config(seed=3, recipe=RecipeConfig(lr=1e-4, drops=[]), trainer=TrainerConfig(limit_train_batches=0.5))
    assert from_settings(yaml.safe_load(config.to_yaml(changed))) == changed
    assert from_settings(settings_of(changed)) == changed


def test_settings_that_came_later_get_their_defaults():
    old = settings_of(Config(seed=3))
    del old["data"]["share"], old["freeze"], old["trainer"]
    assert from_settings(old) == Config(seed=3)


def test_a_number_may_be_written_as_yaml_misreads_it():
    assert from_settings({"recipe": {"lr": "1e-4", "warmup": 2}}).recipe == RecipeConfig(lr=1e-4, warmup=2.0)


def test_any_value_in_any_place_is_taken_or_refused_by_name():
    names, ended = [name for name, _ in leaves()], Ended()

    @settings(max_examples=600)
    @given(st.sampled_from(names), anything, st.booleans())
    def one(name, value, is_meant_well):
        value = config.flat(settings_of(Config()))[name] if is_meant_well else value
        try:
            made = from_settings(with_value(settings_of(Config()), name, value))
            check(made)
        except SettingError as error:
            ended["refused"] += 1
            assert error.setting.startswith(name) or name in (
                "data.batch_size",
                "trainer.devices",
                "trainer.num_nodes",
                "freeze",
            ), error
            assert len(str(error)) < 600 and "\n" not in str(error)
            return
        ended["built"] += 1

    one()
    ended.assert_both(40)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"recipe": {"lrr": 1}}, "recipe.lrr=1: unknown; must be one of name, optimiser, lr"),
        ({"nosuch": 1}, "nosuch=1: unknown; must be one of model, head, data"),
        ({"data": 3}, "data=3: expected a mapping"),
        ([], "settings=[]: expected a mapping"),
        (None, "settings=null: expected a mapping"),
        ({"recipe": {"drops": [0.5, "x"]}}, "recipe.drops=[0.5, 'x']: expected a list of numbers"),
        ({"seed": 1.5}, "seed=1.5: expected an integer"),
        ({"data": {"flip": 1}}, "data.flip=1: expected true or false"),
        ({"model": {"backbone": 3}}, "model.backbone=3: expected a string or null"),
    ],
)
def test_what_is_no_configuration_is_named(settings_, words):
    with pytest.raises(SettingError) as refused:
        from_settings(settings_)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"resume": "yes"}, "resume=yes: must be auto"),
        ({"freeze": True}, "freeze=true: requires checkpoint="),
        ({"seed": 2**32}, "seed=4294967296: expected an integer from 0 to"),
        ({"checkpoint": ""}, "checkpoint=: expected a path, or null"),
        (
            {"data": DataConfig(batch_size=7), "trainer": TrainerConfig(devices=2)},
            "data.batch_size=7: is not divisible by trainer.devices=2",
        ),
        ({"recipe": RecipeConfig(nesterov=True, momentum=0)}, "recipe.nesterov=true: requires a momentum above 0"),
        ({"recipe": RecipeConfig(drops=[0.5, 1])}, "recipe.drops=[0.5, 1]: expected a list"),
        ({"trainer": TrainerConfig(limit_test_batches=1.5)}, "trainer.limit_test_batches=1.5: expected a number of"),
        ({"trainer": TrainerConfig(gradient_clip_val=0.0)}, "trainer.gradient_clip_val=0.0: expected a number above 0"),
        ({"data": DataConfig(urls="http://a")}, "data.urls=http://a: expected a list of strings or null"),
        ({"recipe": RecipeConfig(lr=math.nan)}, "recipe.lr=nan: expected a number"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, words):
    with pytest.raises(SettingError) as refused:
        check(replace(Config(), **changed))
    assert words in str(refused.value)


def test_what_a_result_depends_on():
    flat = config.consequential(settings_of(Config()))
    assert flat["recipe.lr"] == 0.1 and flat["seed"] == 0
    assert not {"data.root", "data.urls", "resume", "trainer.progress_bar", "logger.name", "logger.project"} & set(flat)
    assert config.field_named("recipe.lr").metadata["says"] and config.field_named("recipe.lrr") is None
