"""The settings that Hydra composes of the files in conf/, checked before and after.

Files in conf/ set the fields of `nin.config.Config` and the parameters of a sweeper, nothing else of Hydra's: a file
that brings `_target_`, callbacks or a search path is refused before Hydra instantiates anything.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from nin import files
from nin.checks import one_line
from nin.cli import conf
from nin.cli.conf import HYDRA_ERRORS, State, current_state, hydra_at_conf
from nin.cli.refusals import explained
from nin.errors import UsageError


@cache
def of_files(state: State, choices: tuple[str, ...], of_hydra: tuple[str, ...] = ()) -> DictConfig:
    """The settings that Hydra composes of the files in conf/ for these choices, and Hydra's own settings.

    The result is shared: callers copy it."""
    _check_texts(state)
    try:
        with hydra_at_conf():
            composed = hydra.compose("config", [*choices, *of_hydra], return_hydra_config=True)
    except HYDRA_ERRORS as error:
        raise explained(error) from error
    if choices:
        check_files(composed.hydra, of_hydra)
    return composed


@cache
def settings_of_files(state: State, choices: tuple[str, ...], of_hydra: tuple[str, ...] = ()) -> DictConfig:
    """The same without Hydra's own settings."""
    composed = copy.deepcopy(of_files(state, choices, of_hydra))
    with open_dict(composed):
        del composed["hydra"]
    return composed


@cache
def plain_settings_of_files(
    state: State, choices: tuple[str, ...], of_hydra: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """The same as a nested dictionary; None where a setting depends on another one. Shared: callers copy it."""
    settings: Any = OmegaConf.to_container(of_files(state, choices, of_hydra))
    del settings["hydra"]
    text = json.dumps(settings)
    return None if "${" in text or '"???"' in text else settings


def check_files(node: DictConfig, of_hydra: tuple[str, ...] | None = None) -> None:
    """Raises UsageError if a file has changed Hydra's own settings: those of callbacks, sweeper and launcher name code.

    Args:
        node: Hydra's settings of a composed configuration.
        of_hydra: the overrides of Hydra's settings that were given on the command line; by default those in `node`.
    """
    given = tuple(node.overrides.hydra) if of_hydra is None else of_hydra
    given = tuple(override for override in given if not override.startswith("hydra.mode="))
    expected, found = (_of_hydra(each) for each in (of_files(current_state(), (), given).hydra, node))
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            raise UsageError(f"a file in conf/ sets hydra.{name}; files set fields of the configuration only")


@cache
def _check_texts(state: State) -> None:
    """Raises UsageError for a file in conf/ that names code, belongs to Hydra, or includes a file from elsewhere. The
    files are looked at before Hydra composes them: what it composes, it may also import and call."""
    for path, _ in state:
        place = Path(path).relative_to(conf.CONF)
        if place.parts[0] == "hydra":
            raise UsageError(f"conf/{place}: files set fields of the configuration only; delete the folder conf/hydra")
        text = files.read(path).decode(errors="replace")
        if not (place.name == "config.yaml" or any(each in text for each in ("_target_", "\\", "..", "//"))):
            continue
        try:
            words = [event.value for event in yaml.parse(text) if isinstance(event, yaml.ScalarEvent)]
            content = yaml.load(text, files.WithoutAliases)
        except (yaml.YAMLError, ValueError, RecursionError):  # Hydra names the place
            continue
        if any("_target_" in word for word in words):
            raise UsageError(f"conf/{place}: settings are values and never name code: _target_ is not allowed")
        if isinstance(content, dict):
            _check_content(place, content)


def _check_content(place: Path, content: dict[str, Any]) -> None:
    for entry in content.get("defaults") or ():
        for word in _words_of(entry):
            if ".." in word.split("/") or word.removeprefix("override ").startswith("//"):
                raise UsageError(f"conf/{place}: defaults: {one_line(word)}: expected the name of a file in conf/")
    of_hydra = content.get("hydra") if place == Path("config.yaml") else None
    for name in of_hydra if isinstance(of_hydra, dict) else ():
        if name not in ("output_subdir", "run", "sweep", "sweeper"):
            raise UsageError(f"conf/{place} sets hydra.{name}; files set fields of the configuration only")


def _words_of(entry: Any) -> Iterator[str]:
    """The texts of an entry of a defaults list."""
    if isinstance(entry, dict):
        for name, value in entry.items():
            yield from _words_of(name)
            yield from _words_of(value)
    elif isinstance(entry, list):
        for each in entry:
            yield from _words_of(each)
    else:
        yield str(entry)


def _of_hydra(node: DictConfig) -> dict[str, Any]:
    """Hydra's settings, without its folders, which conf/config.yaml sets last, without what it notes about the run
    itself, and without a sweeper's parameters."""
    settings: Any = OmegaConf.to_container(node)
    for name in ("overrides", "runtime", "mode", "run", "sweep"):
        settings.pop(name)
    for name in ("name", "override_dirname", "id", "num", "config_name"):
        settings["job"].pop(name)
    settings["sweeper"].pop("params", None)
    return settings
