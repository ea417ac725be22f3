"""--help, and the settings of a script without a configuration."""

import pytest

from builders import choices
from nin import cli
from nin.config import Config, flat, settings_of
from nin.errors import SettingError, UsageError


def test_help_is_made_of_the_schema(run):
    code, said, _ = run(cli.command, "seed=3", "--help", main=test_help_is_made_of_the_schema)
    for name in flat(settings_of(Config())):
        assert f"  {name}=" in said
    assert "recipe.lr=0.04 " in said and "rate of the weights" in said and "(sgd, muon, adamw, rmsprop)" in said
    assert all(f" {name}" in said for group in ("recipe", "head", "experiment") for name in choices(group))
    code, said, _ = run(cli.command, "-h", main=test_plain_settings, settings=["seed", "data.root", "trainer"])
    assert "data.root=null" in said and "trainer.devices=1" in said and "seed=0" in said
    assert code == 0 and "recipe." not in said and "data.size" not in said


def test_plain_settings():
    assert cli.plain_settings(["a=1=2"], {"a": "", "b": "x"}) == {"a": "1=2", "b": "x"}
    with pytest.raises(SettingError, match="c=1: unknown setting; must be one of a, b"):
        cli.plain_settings(["c=1"], {"a": "", "b": ""})
    with pytest.raises(UsageError, match="a: expected NAME=VALUE"):
        cli.plain_settings(["a"], {"a": ""})
