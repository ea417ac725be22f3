"""--help, and the settings of a script without a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from nin import config
from nin.checks import one_line
from nin.cli.conf import names_in
from nin.cli.configuration import compose
from nin.cli.overrides import spelled_as
from nin.cli.refusals import as_setting, looks_like_checkpoint, similar
from nin.config import Config, pasted
from nin.errors import SettingError, UsageError
from nin.run.started import in_this_form


def help_text(about: str, settings: Sequence[str] | None = None) -> str:
    """What a script does, then its settings: value by default, sentence, and choices or type.

    Args:
        about: the script's docstring.
        settings: names of the settings and groups that it takes; by default all.
    """
    groups = [each.name for each in fields(Config) if is_dataclass(config.hints_of(Config)[each.name])]
    lines = [in_this_form(about.strip()), "", "Files in conf/ to choose from:", ""]
    for group in [*groups, "experiment"]:
        if settings is None or group in settings:
            lines.append(f"  {group:<12}{', '.join(names_in(group))}")
    lines += ["", "Settings, with the values that they have by default:", ""]
    for name, value in config.flat(config.settings_of(compose())).items():
        if settings is None or is_among(name, settings):
            about_it = config.field_named(name).metadata
            allowed = ", ".join(about_it["choices"]) or config.type_in_words(config.flat_types()[name])
            lines.append(f"  {f'{name}={_short(name, value)}':<38} {about_it['says']} ({allowed})")
    lines += ["", "hydra.run.dir=FOLDER is the folder for results; --multirun seed=0,1 runs one job for each value."]
    return "\n".join(lines)


def is_among(name: str, settings: Sequence[str]) -> bool:
    """Whether a setting is one of these, or belongs to one of them that is a group."""
    return name in settings or name.partition(".")[0] in settings


def _short(name: str, value: Any) -> str:
    text = spelled_as(name, value)
    return text if len(text) <= 24 else f"{text[:23]}…"


def plain_settings(arguments: Sequence[str], defaults: dict[str, str]) -> dict[str, str]:
    """The settings NAME=VALUE of a script without a configuration. Raises SettingError or UsageError."""
    settings = dict(defaults)
    known = ", ".join(defaults)
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if argument.startswith("-"):
            written = as_setting(argument, arguments[place + 1 :], lambda each: similar(each, defaults))
            raise UsageError(f"{one_line(argument)}: no such option; {written}")
        if not equals:
            is_net = "checkpoint" in defaults and looks_like_checkpoint(argument)
            reason = (
                f"did you mean {pasted('checkpoint', argument, in_quotes=False)}?"
                if is_net
                else f"NAME is one of {known}"
            )
            raise UsageError(f"{one_line(argument)}: expected NAME=VALUE; {reason}")
        if name not in settings:
            meant = similar(name, defaults)
            reason = f"did you mean {meant}={one_line(value)}?" if meant else f"must be one of {known}"
            raise SettingError(name, value, f"unknown setting; {reason}")
        settings[name] = value
    return settings
