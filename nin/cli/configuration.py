"""Overrides to a checked configuration: `compose`, and `sweep` for several values."""

from __future__ import annotations

import copy
import itertools
import os
import shlex
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nin import config
from nin.checks import one_line
from nin.cli.conf import HYDRA_ERRORS, current_state, first_line, hydra_at_conf, is_group, names_in
from nin.cli.refusals import as_setting, explained, looks_like_checkpoint, named_or_meant, suggestion
from nin.cli.tree import of_files, plain_settings_of_files, settings_of_files
from nin.config import Config, pasted
from nin.errors import SettingError, UsageError
from nin.run.started import spelled

# the settings of Hydra's own that a command line may set, besides parameters of sweeper and launcher
OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra/sweeper", "hydra/launcher")


def compose(overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of these overrides, without a command line.

    Raises:
        SettingError: a setting that does not exist, or a value that is not allowed.
        UsageError: an override or a file in conf/ that cannot be read.
    """
    return Composed(overrides).config()


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values that the overrides have in Hydra's sweep syntax: `seed=0,1`, `seed=range(5)` or
    `head=glob(fc*,exclude=*_article)`. Raises SettingError or UsageError."""
    axes = []
    with hydra_at_conf():
        for override in read_overrides(overrides):
            override.config_loader = GlobalHydra.instance().config_loader()  # glob asks it for names
            axis = [override.input_line]
            if override.is_sweep_override():
                try:
                    axis = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
                except HYDRA_ERRORS as error:
                    raise UsageError(f"{override.input_line}: {first_line(error)}") from error
            if not axis:
                known = ", ".join(names_in(override.key_or_group))
                raise UsageError(f"{override.input_line}: nothing has such a name; there are {known}")
            axes.append(axis)
    return [list(point) for point in itertools.product(*axes)]


class Composed:
    """The composed settings of some overrides.

    Hydra composes the files that the overrides choose, once for each choice. The other overrides are applied here, one
    by one, so that the one that fails is known.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self.parsed = read_overrides(overrides)
        for override in self.parsed:
            _check_override(override)
        hydras = [override for override in self.parsed if override.is_hydra_override()]
        choices = [override for override in self.parsed if override not in hydras and _is_choice(override)]
        self.values = [override for override in self.parsed if override not in hydras and override not in choices]
        self.files = current_state(), *(tuple(override.input_line for override in part) for part in (choices, hydras))

    @cached_property
    def node(self) -> DictConfig:
        """The settings as a node of OmegaConf's."""
        node = copy.deepcopy(settings_of_files(*self.files))
        for override in self.values:
            _apply(override, node)
        return node

    @property
    def run_dir(self) -> str | None:
        """hydra.run.dir, if it was given."""
        given = [override for override in self.parsed if override.key_or_group == "hydra.run.dir"]
        if not given:
            return None
        whole = copy.deepcopy(of_files(*self.files))
        for override in self.values:
            _apply(override, whole)
        try:
            return whole.hydra.run.dir
        except OmegaConfBaseException as error:
            raise SettingError("hydra.run.dir", given[-1].value(), first_line(error)) from error

    def config(self) -> Config:
        """The checked configuration. Raises SettingError or UsageError."""
        return _checked(self.plain)

    def plain(self) -> dict[str, Any]:
        """The settings as a nested dictionary, unchecked. Raises OmegaConfBaseException or SettingError."""
        brought = plain_settings_of_files(*self.files)
        if brought is None or not all(map(_is_plain, self.values)):
            return _plain(self.node)
        settings = copy.deepcopy(brought)
        for override in self.values:
            group, _, name = override.key_or_group.rpartition(".")
            (settings[group] if group else settings)[name] = copy.deepcopy(_converted(override.input_line))
        return settings


def _is_plain(override: Override) -> bool:
    """Whether an override sets one field to a value that depends on no other setting."""
    has_value = not override.is_delete() and not isinstance(override.value(), dict)
    return has_value and "$" not in override.input_line and "???" not in override.input_line


@cache
def _converted(line: str) -> Any:
    """The value of a plain override with the type of its field. A study has thousands of points and few values.
    Raises SettingError."""
    override = _parsed(line)
    node = OmegaConf.structured(Config) if isinstance(override.value(), list) else _schema()
    _apply(override, node)
    value = OmegaConf.select(node, override.key_or_group)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@cache
def _schema() -> DictConfig:
    """The settings with their types, shared: OmegaConf takes a fortieth of a second to make them. A list is set in a
    schema of its own, as it may be merged with the one before; a single value replaces whatever was there."""
    return OmegaConf.structured(Config)


def to_config(composed: DictConfig) -> Config:
    """The checked configuration of a composed node. Raises SettingError or UsageError."""
    return _checked(lambda: _plain(composed))


def _checked(plain: Callable[[], dict[str, Any]]) -> Config:
    """The checked configuration of a nested dictionary that is still to be made. Raises SettingError or UsageError."""
    try:
        settings = config.from_settings(plain())
    except OmegaConfBaseException as error:
        raise explained(error) from error
    config.check(settings)
    return settings


def _plain(composed: DictConfig) -> dict[str, Any]:
    """The composed settings as a nested dictionary, without Hydra's own. Raises OmegaConfBaseException."""
    nodes = {str(name): composed[name] for name in composed if name != "hydra"}
    return {
        name: OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node
        for name, node in nodes.items()
    }


def _apply(override: Override, node: DictConfig) -> None:
    """Sets one value. Raises SettingError."""
    name, value = override.key_or_group, override.value()
    try:
        OmegaConf.update(node, name, value, merge=True)
    except HYDRA_ERRORS as error:
        nested: Any = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        config.from_settings(nested)  # raises with the type that the schema expects
        raise SettingError(name, value, first_line(error)) from error


def read_overrides(overrides: Sequence[str]) -> list[Override]:
    """The overrides, read. Raises UsageError."""
    for place, override in enumerate(overrides):
        if override.startswith("-"):
            written = as_setting(override, overrides[place + 1 :], named_or_meant)
            raise UsageError(f"{one_line(override)}: no such option; {written}")
    return [_parsed(override) for override in overrides]


@cache
def _parsed(override: str) -> Override:
    """An override, read. Raises UsageError."""
    try:
        return OverridesParser.create().parse_overrides([override])[0]
    except OverrideParseException as error:
        if looks_like_checkpoint(override):
            reason = f"expected NAME=VALUE; did you mean {pasted('checkpoint', override)}?"
            raise UsageError(f"{one_line(override)}: {reason}") from error
        reason = "expected NAME=VALUE, with quotes around a value that contains one of , = : ~ ?"
        home = "; write $HOME for ~, which a shell leaves as it is there" if "=~/" in override else ""
        raise UsageError(f"{one_line(override)}: {reason}{home}") from error
    except HYDRA_ERRORS as error:  # a number of thousands of digits
        raise UsageError(f"{one_line(override)}: {first_line(error)}") from error


def _check_override(override: Override) -> None:
    """Raises SettingError or UsageError for a setting that does not exist, or a choice that has no file."""
    name, line = override.key_or_group, override.input_line
    if "_target_" in line:
        raise UsageError(f"{one_line(line)}: settings are values and never name code: _target_ is not allowed")
    if override.is_hydra_override():
        if name not in OF_HYDRA and not name.startswith(("hydra.sweeper.", "hydra.launcher.")):
            reason = f"of Hydra's settings a command line takes {', '.join(OF_HYDRA)}"
            raise SettingError(name, value_of(override), reason)
    elif override.package is not None:
        raise UsageError(f"{line}: a package cannot be chosen; write {name}=NAME")
    elif not is_group(name) and config.field_named(name) is None:
        written = override.input_line.partition("=")[2]
        raise SettingError(name, value_of(override), f"unknown setting; {suggestion(name, written)}")
    if override.is_sweep_override():
        study = f"{spelled('ablate')} {shlex.quote(line) if line.isprintable() and len(line) < 300 else '…'}"
        reason = f"several values require --multirun or {study}; a list is written [A,B]"
        raise SettingError(name, value_of(override), reason)
    if override.is_add() and not is_group(name):
        raise UsageError(f"{line}: {name} is a setting already; write it without +")
    if override.is_delete() and not is_group(name):
        raise UsageError(f"{line}: a setting cannot be deleted")
    if _is_choice(override) and not override.is_delete():
        _check_choice(name, override.value())


def _check_choice(group: str, chosen: Any) -> None:
    """Raises SettingError for a choice that has no file."""
    several = isinstance(chosen, list) and group == "experiment"
    names = names_in(group)
    if chosen is None and group == "experiment":
        return
    for each in chosen if several else [chosen]:
        if str(each) not in names:
            is_folder = group == "data" and ("/" in str(each) or os.path.isdir(str(each)))
            root = f"; pictures of your own are written data=folder data.root={one_line(each)}" if is_folder else ""
            raise SettingError(group, each, f"must be one of {', '.join(names)}{root}")


def _is_choice(override: Override) -> bool:
    """Whether an override chooses a file of a group, rather than setting values."""
    return is_group(override.key_or_group) and not isinstance(override.value(), dict)


def value_of(override: Override) -> Any:
    """The value of an override, as far as it has one that is not a sweep."""
    return override.get_value_string() if override.is_sweep_override() else override.value()
