"""conf/ and the schema of settings: names of files and groups, defaults, and Hydra pointed at conf/."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from nin import config, files
from nin.checks import one_line
from nin.config import Config

CONF = files.shipped("conf")
ConfigStore.instance().store("schema", Config)

# Hydra does not wrap the last four: they come from a number too long to be read, or from a file that is not YAML
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError, OverflowError, yaml.YAMLError)

State = tuple[tuple[str, int], ...]  # paths and modification times of the files in conf/; the key of caches
_known_states: list[State] = []  # a state for each `files_unchanged` block that is open


def current_state() -> State:
    """The state of the files in conf/ now, or at the start of the `files_unchanged` block that is open."""
    if _known_states:
        return _known_states[-1]
    found = [file for file in CONF.rglob("*.yaml") if not file.name.startswith(".")]  # an editor's locks and copies
    return tuple(sorted((str(file), file.stat().st_mtime_ns) for file in found))


@contextmanager
def files_unchanged() -> Iterator[None]:
    """In the block edits of the files in conf/ are ignored, so that all points of a study have the same files."""
    _known_states.append(current_state())
    try:
        yield
    finally:
        _known_states.pop()


@contextmanager
def hydra_at_conf() -> Iterator[None]:
    """Hydra at conf/; also within a job of --multirun, whose own Hydra is put back afterwards."""
    running = GlobalHydra.instance()
    before = running.hydra
    running.clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        if before is not None:
            GlobalHydra.instance().clear()
            GlobalHydra.instance().initialize(before)


def names_in(group: str) -> list[str]:
    """The names of the files in a group."""
    if group.startswith("hydra/"):
        with hydra_at_conf():
            return GlobalHydra.instance().config_loader().get_group_options(group)
    return _names_of_files(current_state(), group)


@cache
def _names_of_files(state: State, group: str) -> list[str]:
    files_of_group = [path for path, _ in state if os.path.dirname(path) == str(CONF / group)]
    return sorted(Path(path).stem for path in files_of_group)


def is_group(name: str) -> bool:
    """Whether a name is a group of files to choose from."""
    return name in ("hydra/sweeper", "hydra/launcher") or (name.isidentifier() and (CONF / name).is_dir())


@cache
def default_values() -> dict[str, Any]:
    """The schema's defaults by dotted name."""
    return config.flat(config.settings_of(Config()))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for people."""
    return one_line((str(error) or type(error).__name__).strip().splitlines()[0])
