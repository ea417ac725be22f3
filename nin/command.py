"""From a command line to a checked configuration, and to an exit code."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nin.backbones import WeightsError
from nin.bounds import shown
from nin.config import Config, ConfigError, consequential
from nin.data import DataError
from nin.pretrained import CheckpointError
from nin.processes import ending_at_once, rank, start, started
from nin.recovery import STARTER, InterruptedRunError, RunError
from nin.task import DeadNetError


def unused(name: str) -> str:
    """Makes a folder of this name, or of the first of name_2, name_3, … that is not there yet, and gives its name."""
    for number in itertools.count(1):
        folder = name if number == 1 else f"{name}_{number}"
        try:
            os.makedirs(folder)
        except FileExistsError:
            continue
        return folder


ConfigStore.instance().store("schema", Config)
OmegaConf.register_new_resolver("unused", unused, use_cache=True)  # for hydra.run.dir

# the last three come out of Hydra bare: a number too long or too large to be read, a group that is given a list
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError, OverflowError)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
OUR_ERRORS = (ConfigError, DataError, CheckpointError, WeightsError, DeadNetError, RunError, InterruptedRunError)


def command(config_folder: Path, run: Callable[[Config, Path], None], config_name: str = "config") -> None:
    """Runs a script: composes its configuration, checks it and calls `run(config, folder)`.

    Exit code 0; 2 for a configuration that cannot be, 1 for missing or damaged files, 3 for a net that died, 130 after
    Ctrl-C, 143 after SIGTERM: each with one sentence on stderr. A traceback is a bug.

    With several devices it runs the same command in as many processes, where torchrun or srun has not done so already.
    """
    several = started() > 1  # now: Lightning takes it back when a trainer has done
    with ending_at_once() if several else nullcontext():
        if code := _run(config_folder, run, config_name, several):
            sys.exit(code)


def _run(config_folder: Path, run: Callable[[Config, Path], None], config_name: str, several: bool) -> int:
    """The same, and gives the exit code; `several` tells whether this process is one of several."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, so that the sentence can be written here

    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the process ends
    began, composed_already, code = time.time(), False, 0
    failed: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(config_folder), config_name=config_name)
    def main(composed: DictConfig) -> None:
        nonlocal composed_already, code
        composed_already = True
        settings = hydra.core.hydra_config.HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        try:
            try:
                config = to_config(composed)
            except OmegaConfBaseException as error:
                raise ConfigError(explain(error, sys.argv[1:])) from error
            if config.trainer.devices > 1 and settings.mode == RunMode.MULTIRUN:
                raise ConfigError(
                    f"trainer.devices={config.trainer.devices}: --multirun is for one process a run; scripts/ablate.py "
                    "takes the same sweeps, for any number"
                )
            if config.trainer.devices > 1 and not several:
                again = [sys.executable, *sys.orig_argv[1:], f"hydra.run.dir={quoted(folder)}"]
                code = start(config.trainer.devices, again)
            elif several and not any(o.startswith("hydra.run.dir=") for o in settings.overrides.hydra):
                raise ConfigError("hydra.run.dir=FOLDER must be given, which the processes share")
            else:
                run(config, folder)
        except (*OUR_ERRORS, OSError) as error:
            if isinstance(error, OSError) and error.errno not in DISK_ERRORS:
                raise
            failed.append(error)  # raised through Hydra it would get a line of Hydra's own
        if failed or code:
            with suppress(FileNotFoundError):
                if not any(folder.iterdir()) and folder.stat().st_mtime >= began and folder.resolve() != Path.cwd():
                    folder.rmdir()  # Hydra has made it before anything could be checked

    try:
        main()
    except (*HYDRA_ERRORS, OSError) as error:
        if composed_already:
            raise
        failed.append(ConfigError(explain(error, sys.argv[1:])))
    for error in failed:
        if rank() == 0 or isinstance(error, DataError | CheckpointError):  # the others are process 0's, too
            print(f"error: {error}", file=sys.stderr)
    if failed and rank() and STARTER not in os.environ:
        time.sleep(1)  # torchrun ends all when the first ends, and process 0 is the one to speak
    if failed:
        codes = {ConfigError: 2, DeadNetError: 3}
        code = getattr(failed[-1], "exit_code", codes.get(type(failed[-1]), 1))
    return code


def to_config(composed: DictConfig) -> Config:
    """The checked dataclass of a composed configuration. Raises ConfigError."""
    if missing := OmegaConf.missing_keys(composed):
        raise ConfigError(f"{', '.join(sorted(missing))} must be given")
    for key in _keys(composed):  # Hydra lets +key through
        if _known(key) != key:
            raise ConfigError(f"+{key}: there is no such setting; {_choices(key)}")
    return OmegaConf.to_object(composed)


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        yield prefix + str(name)
        if isinstance(node._get_node(name), DictConfig) and is_dataclass(_type(prefix + str(name))):
            yield from _keys(node[name], f"{prefix}{name}.")


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """One sentence for what Hydra or OmegaConf refused: the value, and the choices."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, value = str(error.missing_cfg_file).partition("/")
        return f"{group}={value}: choose one of {', '.join(error.options)}"
    unknown = re.search(r"Could not override '([\w.]+)'", str(error))
    if unknown:
        given = next((a for a in overrides if a.lstrip("+~").split("=")[0] == unknown[1]), unknown[1])
        return f"{given}: there is no such setting; {_choices(unknown[1])}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read: it is NAME=VALUE, with quotes around a value that holds one of , = : ~ ?"
        )
    group = next((o for o in overrides if is_dataclass(_type(o.partition("=")[0]))), None)
    if group and type(error) in (TypeError, ValueError):
        name = group.partition("=")[0]
        return f"{shown(group)}: give the name of a file in conf/{name}, or set one of its fields; {_choices(name)}"
    reason = shown(str(error.__cause__ or error).splitlines()[0])
    given = shown(next((o for o in overrides if o in str(error)), " ".join(overrides)))
    return f"{given}: {reason}" if given else reason


def _known(key: str) -> str:
    """As much of a dotted key as the schema has."""
    node: Any = Config
    known: list[str] = []
    for name in key.split("."):
        hints = get_type_hints(node) if is_dataclass(node) else {}
        if name not in hints:
            break
        known.append(name)
        node = hints[name]
    return ".".join(known)


def _type(key: str) -> Any:
    """The type of a dotted key of the schema, None where it has none."""
    node: Any = Config
    for name in key.split(".") if key else ():
        node = get_type_hints(node).get(name) if is_dataclass(node) else None
    return node


def _choices(key: str) -> str:
    """The settings that stand where `key` was looked for."""
    where = _known(key)
    node = _type(where)
    return f"{where or 'the top level'} has {', '.join(f.name for f in fields(node)) if is_dataclass(node) else 'none'}"


def plain_settings(arguments: Sequence[str], defaults: dict[str, str]) -> dict[str, str]:
    """The settings NAME=VALUE of a command without a configuration. Raises ConfigError."""
    settings = dict(defaults)
    for argument in arguments:
        name, given, value = argument.partition("=")
        if not given or name not in settings:
            raise ConfigError(f"{argument}: give NAME=VALUE, one of {', '.join(settings)}")
        settings[name] = value
    return settings


def load_settings(file: Path) -> dict[str, Any]:
    """The configuration that a run has left in its folder, of the right form but otherwise unchecked: it may have been
    trained on a machine that has what this one has not. Raises ConfigError."""
    try:
        return OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(file)))
    except (OSError, ValueError, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not the configuration of a run ({str(error).splitlines()[0]})") from error


def compose(config_folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of these overrides, without a command line. Raises ConfigError."""
    try:
        with hydra.initialize_config_dir(str(config_folder), version_base="1.3"):
            composed = hydra.compose("config", list(overrides))
    except HYDRA_ERRORS as error:
        raise ConfigError(explain(error, overrides)) from error
    try:
        return to_config(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, overrides)) from error


def quoted(value: object) -> str:
    """A value as Hydra reads it, whatever is in it."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", str(value)) + "'"


def overrides_of(settings: dict[str, Any], config_folder: Path, choices: Sequence[str] | None = None) -> list[str]:
    """Overrides that compose to this configuration (`load_settings`, or `asdict` of one) again, the same however it was
    come by: `choices` of files, by default of set, head, recipe and backbone, the seed, then each setting that differs
    from what these bring. What the trained net does not depend on is left out: where the images are, what the run
    showed and which accelerator it took."""
    if choices is None:
        named = {group: settings[group]["name"] for group in ("data", "head", "recipe")}
        if settings["model"]["backbone"]:
            named["model"] = settings["model"]["backbone"]
        choices = [
            f"{group}={name}" for group, name in named.items() if (config_folder / group / f"{name}.yaml").exists()
        ]
    stated = [*choices, f"seed={settings['seed']}"]
    with hydra.initialize_config_dir(str(config_folder), version_base="1.3"):  # unchecked: it need not be possible
        brought = consequential(OmegaConf.to_container(hydra.compose("config", stated)))
    for name, value in consequential(settings).items():
        if name != "trainer.accelerator" and value != brought[name]:
            grammar = re.sub(r'"(\w+)": ', r"\1: ", json.dumps(value))  # JSON is Hydra's, but for quotes around keys
            stated.append(f"{name}={value if _is_word(value) else grammar}")
    return stated


def _is_word(value: Any) -> bool:
    """Whether Hydra reads it as this string without quotes."""
    keyword = str(value).lower() in ("true", "false", "null", "nan", "inf", "yes", "no", "on", "off")
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z][\w-]*", value)) and not keyword


def sweep(config_folder: Path, overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values that the overrides give in Hydra's sweep syntax: `seed=0,1`, `seed=range(5)` or
    `head=glob(fc*,exclude=*_article)`. Raises ConfigError."""
    try:
        with hydra.initialize_config_dir(str(config_folder), version_base="1.3"):
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            axes = [
                [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
                if o.is_sweep_override()
                else [o.input_line]
                for o in parser.parse_overrides(list(overrides))
            ]
    except HYDRA_ERRORS as error:
        raise ConfigError(explain(error, overrides)) from error
    for override, axis in zip(overrides, axes, strict=True):
        if not axis:
            raise ConfigError(f"{override}: there is nothing of such a name")
    return [list(point) for point in itertools.product(*axes)]
