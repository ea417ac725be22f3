"""From a command line to a checked configuration; from an error to one sentence and an exit code.

Only this module uses Hydra and OmegaConf. It does not import torch, so that a typo is refused, and --help answers,
before anything slow is loaded. It creates no file; a folder is created only for a script that asks for one, after the
configuration has been checked.

Files in conf/ set the fields of `nin.config.Config` and the parameters of a sweeper, nothing else of Hydra's: a file or
an override that brings `_target_`, callbacks or a search path is refused before Hydra instantiates anything.
"""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nin import config, files
from nin.checks import one_line, printable
from nin.config import Config, pasted, quoted
from nin.errors import INTERRUPTED, CheckpointError, DataError, NINError, RunError, SettingError, UsageError
from nin.run import processes
from nin.run.started import in_this_form, spelled

if TYPE_CHECKING:
    from nin.studies.ablation import Point

CONF = files.shipped("conf")
ConfigStore.instance().store("schema", Config)

# Hydra does not wrap the last four: they come from a number too long to be read, or from a file that is not YAML
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError, OverflowError, yaml.YAMLError)
# the settings of Hydra's own that a command line may set, besides parameters of sweeper and launcher
OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra/sweeper", "hydra/launcher")
# errors of the disk or of a path: printed as a sentence, not as a traceback
DISK_ERRORS: tuple[int, ...] = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)
DISK_ERRORS += (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
ALIASES = {  # settings under the names that they have elsewhere, as far as these are not similar
    **dict.fromkeys(("device", "backend"), "trainer.accelerator"),
    **dict.fromkeys(("gpus", "num_gpus", "nproc", "world_size"), "trainer.devices"),
    **dict.fromkeys(("amp", "fp16", "bf16", "dtype"), "trainer.precision"),
    **dict.fromkeys(("clip", "grad_clip", "max_norm"), "trainer.gradient_clip_val"),
    **dict.fromkeys(("optimizer", "optim", "opt", "solver"), "recipe.optimiser"),
    **dict.fromkeys(("learning_rate", "base_lr", "eta"), "recipe.lr"),
    **dict.fromkeys(("wd", "decay", "l2"), "recipe.weight_decay"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "recipe.schedule"),
    **dict.fromkeys(("bs", "batch", "train_batch_size"), "data.batch_size"),
    **dict.fromkeys(("data_dir", "data_path", "folder", "path"), "data.root"),
    **dict.fromkeys(("num_workers", "n_workers"), "data.workers"),
    **dict.fromkeys(("out", "output", "output_dir", "save_dir", "log_dir"), "hydra.run.dir"),
    **dict.fromkeys(("ckpt", "pretrained", "pretrained_model", "init_from"), "checkpoint"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("dataset", "set"), "data"),
    **dict.fromkeys(("arch", "net", "network"), "model"),
    **dict.fromkeys(("pool", "pooling", "classifier"), "head"),
}


# commands -------------------------------------------------------------------------------------------------------------


def run_script(main: Callable[[list[str]], int | None]) -> None:
    """Runs a script without a configuration: calls `main(arguments)`, or prints the script's docstring for --help.

    Exit codes: 0; 2 for a setting or a usage that is not allowed; 1 for missing or damaged files; 3 for a dead net; 130
    after Ctrl-C, 143 after SIGTERM. Each but 0 comes with one sentence on stderr. A traceback is a bug.
    """

    def run() -> int | None:
        if not {"--help", "-h"} & set(sys.argv[1:]):
            return main(sys.argv[1:])
        print(in_this_form((main.__globals__["__doc__"] or "").strip()))
        return 0

    if code := _exit_code(run):
        sys.exit(code)


def command(
    main: Callable[[Config, Path], Any],
    *,
    check: Callable[[Config], None] | None = None,
    folder: Callable[[Config], str] | None = None,
    settings: Sequence[str] | None = None,
    gives_error: bool = False,
) -> None:
    """Runs a script with a configuration: composes and checks it, and calls `main(config, folder)`.

    Exit codes are those of `run_script`. If trainer.devices is above 1, the same command runs in as many processes,
    unless torchrun or srun launched them.

    Args:
        main: what the script does. --help prints its module's docstring, then the settings.
        check: builds what `main` will build, as far as that needs no memory; it runs before a folder is created.
        folder: proposes the name of a new folder. Without it `main` gets the current folder. hydra.run.dir=FOLDER
            replaces either. A folder in which nothing is written is removed again.
        settings: names of the only settings and groups that the script takes; by default all.
        gives_error: whether `main` returns the held-out error, by which a sweeper such as Optuna may choose values.
    """
    if code := _exit_code(processes.check_environment):
        sys.exit(code)
    several = processes.world_size() > 1
    if processes.rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the process ends

    def run() -> int | None:
        arguments = sys.argv[1:]
        if {"--help", "-h"} & set(arguments):
            print(help_text(main.__globals__["__doc__"] or "", settings))
            return 0
        overrides = [argument for argument in arguments if argument not in ("--multirun", "-m")]
        script = _Script(main, check, folder, settings, gives_error)
        return script.run(overrides, several) if overrides == arguments else script.sweep(overrides)

    with processes.ending_at_once() if several else nullcontext():  # now: Lightning changes the variables it reads
        if code := _exit_code(run):
            sys.exit(code)


def _exit_code(run: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code. Only here an error is printed, as one sentence."""
    before = sys.stdout, sys.stderr
    _open_closed_streams()
    with open(os.devnull, "w") as nowhere:  # in place of an output that the shell has closed, which is None in Python
        sys.stdout, sys.stderr = (_Lasting(stream or nowhere) for stream in before)
        try:
            with _heeding_ctrl_c() as interrupted:
                return _code_of(run, interrupted)
        finally:
            sys.stdout, sys.stderr = before


def _code_of(run: Callable[[], int | None], interrupted: list[int]) -> int:
    try:
        code = run() or 0
        sys.stdout.flush()
        return code
    except NINError as error:
        if processes.rank() == 0 or isinstance(error, CheckpointError | DataError):  # process 0 raises the others too
            _say(error)
        if processes.rank() and processes.STARTER not in os.environ:
            time.sleep(1)  # torchrun ends all processes when one ends; process 0 gets the time to print its error
        return error.exit_code
    except KeyboardInterrupt:
        _say("stopped")
        return INTERRUPTED[0]
    except Exception as error:
        if interrupted:  # a library turned KeyboardInterrupt into another error while it was imported
            _say("stopped")
            return INTERRUPTED[0]
        if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
            raise
        _say(f"{error.filename}: {error.strerror}" if error.filename else error)
        return 1


@contextmanager
def _heeding_ctrl_c() -> Iterator[list[int]]:
    """Makes Ctrl-C a KeyboardInterrupt in the block; yields a list that the signal is added to. Where it is ignored, as
    in a job in the background, it stays ignored."""
    heard: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        heard.append(number)
        signal.default_int_handler(number, frame)

    with suppress(ValueError):  # a thread
        if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(signal.SIGINT, interrupt)
    try:
        yield heard
    finally:
        with suppress(ValueError):
            if signal.getsignal(signal.SIGINT) is interrupt:
                signal.signal(signal.SIGINT, signal.default_int_handler)


class _Lasting:
    """An output whose reader may go away: a pipe that is closed, a terminal that is gone. Later output is discarded,
    and the command continues, so that a run of days still writes its files."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may have no × and no …

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self.surviving():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self.surviving():
            self.stream.flush()

    @contextmanager
    def surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                raise
            with suppress(OSError, ValueError):  # what is still buffered goes there too, as Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def _open_closed_streams() -> None:
    """Opens streams that a shell has closed (`>&-`) as /dev/null. Otherwise the first file that is opened gets the
    number of an output, and whatever a library or another process prints is written into that file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _say(error: object) -> None:
    print("error:", printable(" ".join(str(error).splitlines())), file=sys.stderr)


@dataclass
class _Script:
    """The arguments of `command`."""

    main: Callable[[Config, Path], Any]
    check: Callable[[Config], None] | None
    folder: Callable[[Config], str] | None
    settings: Sequence[str] | None
    gives_error: bool

    def run(self, overrides: list[str], several: bool) -> int:
        composed = _Composed(overrides)
        self.check_taken(composed)
        settings, given = composed.config(), composed.run_dir
        if settings.trainer.num_nodes > 1 and not several:
            raise SettingError(
                "trainer.num_nodes", settings.trainer.num_nodes, "start the processes by srun or torchrun"
            )
        if several and given is None:
            raise UsageError("hydra.run.dir=FOLDER is required: the processes of one run share their folder")
        if self.check:
            self.check(settings)
        with _folder(given, self.folder(settings) if self.folder else None) as folder:
            if settings.trainer.devices > 1 and settings.trainer.num_nodes == 1 and not several:
                again = [sys.executable, *sys.orig_argv[1:], f"hydra.run.dir={quoted(folder)}"]
                return processes.launch(settings.trainer.devices, again)
            self.main(settings, folder)
        return 0

    def sweep(self, overrides: list[str]) -> int:
        """Runs Hydra's --multirun: a job for each combination of values. A job that fails does not keep the others from
        running; the exit code is that of the last one that failed."""
        sweepers = [each.partition("=")[2] for each in overrides if each.startswith("hydra/sweeper=")]
        chooses = any(name != "basic" for name in sweepers)  # values by what runs return, as Optuna does
        if chooses:
            fixed = [each.input_line for each in _read(overrides) if not each.is_sweep_override()]
            self.check_held_out(_Composed(fixed).config())
        else:
            for point in sweep(overrides):
                self.check_taken(_Composed(point))
                self.check_one_process(compose(point))
        codes = [0]

        def job(composed: DictConfig) -> Any:
            results = []

            def run() -> None:
                _check_files(HydraConfig.instance().cfg.hydra)
                settings = _to_config(composed)
                self.check_one_process(settings)
                if chooses:
                    self.check_held_out(settings)
                if self.check:
                    self.check(settings)
                results.append(self.main(settings, folder))

            folder = Path(HydraConfig.get().runtime.output_dir)
            if code := _exit_code(run):
                codes.append(code)
                _remove_if_empty(folder)
            if code in INTERRUPTED:
                raise SystemExit(code)
            return results[0] if results else None

        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing
        sys.argv[1:] = ["--multirun", *overrides]
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
        except HYDRA_ERRORS as error:
            raise _explained(error) from error
        return codes[-1]

    def check_one_process(self, settings: Config) -> None:
        """Raises SettingError if a job of --multirun is to train in several processes."""
        if settings.trainer.processes > 1:
            raise SettingError(
                "trainer.devices",
                settings.trainer.devices,
                f"--multirun trains each net in one process; {spelled('ablate')} takes the same values and any number",
            )

    def check_held_out(self, settings: Config) -> None:
        """Raises UsageError or SettingError unless a run returns a held-out error, by which a sweeper may choose."""
        if not self.gives_error:
            raise UsageError("hydra/sweeper= requires a command that returns an error: nin train")
        if not settings.data.val:
            reason = "a sweeper chooses values by the held-out error, never by the test error; hold out some images"
            raise SettingError("data.val", 0, reason)

    def check_taken(self, composed: _Composed) -> None:
        """Raises SettingError if a setting is given that the script does not take."""
        for override in composed.parsed:
            name = override.key_or_group
            if self.settings is not None and not override.is_hydra_override() and not _is_among(name, self.settings):
                raise SettingError(
                    name,
                    _value_of(override),
                    f"has no effect on this command, whose settings are {', '.join(self.settings)}",
                )


def _is_among(name: str, settings: Sequence[str]) -> bool:
    """Whether a setting is one of these, or belongs to one of them that is a group."""
    return name in settings or name.partition(".")[0] in settings


# folders --------------------------------------------------------------------------------------------------------------


def new_folder(name: str | Path) -> Path:
    """Creates a folder of this name, or of the first of name_2, name_3, … that does not exist, and returns its path.

    No two processes get the same folder. Raises RunError if it cannot be created.
    """
    for number in itertools.count(1):
        folder = Path(name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not os.path.lexists(folder):  # one of its parents is a file
                raise RunError(f"{folder} cannot be created: one of its parents is a file") from None
            continue
        except OSError as error:
            raise RunError(f"{folder} cannot be created ({error.strerror})") from error
        return folder
    raise AssertionError


@contextmanager
def _folder(given: str | None, proposed: str | None) -> Iterator[Path]:
    """The folder of a command: the one that was given, else a new one if one is proposed, else the current one. What
    was created for it and is empty in the end is removed."""
    folder = Path(given if given is not None else proposed or ".")
    missing = [parent for parent in folder.parents if not parent.exists()]
    if given is None and proposed:
        folder = new_folder(proposed)
        missing.insert(0, folder)
    elif not folder.is_dir():
        missing.insert(0, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"hydra.run.dir={folder}: cannot be created ({error.strerror})") from error
    try:
        yield folder
    finally:
        for each in missing:
            _remove_if_empty(each)


def _remove_if_empty(folder: Path) -> None:
    """Removes a folder that contains nothing, or nothing but the lock of a run that never began."""
    from nin.run.folder import LOCK

    with suppress(OSError, RunError):  # it is not empty, or another process trains there
        if os.listdir(folder) == [LOCK]:
            with files.lock(folder / LOCK):
                (folder / LOCK).unlink()
        folder.rmdir()


# composing ------------------------------------------------------------------------------------------------------------


def compose(overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of these overrides, without a command line.

    Raises:
        SettingError: a setting that does not exist, or a value that is not allowed.
        UsageError: an override or a file in conf/ that cannot be read.
    """
    return _Composed(overrides).config()


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values that the overrides have in Hydra's sweep syntax: `seed=0,1`, `seed=range(5)` or
    `head=glob(fc*,exclude=*_article)`. Raises SettingError or UsageError."""
    axes = []
    with _hydra():
        for override in _read(overrides):
            override.config_loader = GlobalHydra.instance().config_loader()  # glob asks it for names
            axis = [override.input_line]
            if override.is_sweep_override():
                try:
                    axis = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
                except HYDRA_ERRORS as error:
                    raise UsageError(f"{override.input_line}: {_first_line(error)}") from error
            if not axis:
                known = ", ".join(_names(override.key_or_group))
                raise UsageError(f"{override.input_line}: nothing has such a name; there are {known}")
            axes.append(axis)
    return [list(point) for point in itertools.product(*axes)]


def points(overrides: Sequence[str]) -> list[Point]:
    """The points of a study: what `sweep` returns, each with its checked configuration and what it varies.

    Raises SettingError or UsageError.
    """
    with _files_unchanged():
        composed = [(point, compose(point)) for point in sweep(overrides)]  # a typo is refused before torch is loaded

        from nin.run.build import identified
        from nin.studies.ablation import Point

        made, variants = [], {}
        for point, settings in composed:
            alike = json.dumps(config.settings_of(replace(settings, seed=0)))  # a variant names no seed
            if alike not in variants:
                variants[alike] = variant_of(config.settings_of(settings))
            made.append(Point(tuple(point), identified(settings), variants[alike]))
        return made


class _Composed:
    """The composed settings of some overrides.

    Hydra composes the files that the overrides choose, once for each choice. The other overrides are applied here, one
    by one, so that the one that fails is known.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self.parsed = _read(overrides)
        for override in self.parsed:
            _check_override(override)
        hydras = [override for override in self.parsed if override.is_hydra_override()]
        choices = [override for override in self.parsed if override not in hydras and _is_choice(override)]
        self.values = [override for override in self.parsed if override not in hydras and override not in choices]
        self.files = _state(), *(tuple(override.input_line for override in part) for part in (choices, hydras))

    @cached_property
    def node(self) -> DictConfig:
        """The settings as a node of OmegaConf's."""
        node = copy.deepcopy(_settings_of_files(*self.files))
        for override in self.values:
            _apply(override, node)
        return node

    @property
    def run_dir(self) -> str | None:
        """hydra.run.dir, if it was given."""
        given = [override for override in self.parsed if override.key_or_group == "hydra.run.dir"]
        if not given:
            return None
        whole = copy.deepcopy(_of_files(*self.files))
        for override in self.values:
            _apply(override, whole)
        try:
            return whole.hydra.run.dir
        except OmegaConfBaseException as error:
            raise SettingError("hydra.run.dir", given[-1].value(), _first_line(error)) from error

    def config(self) -> Config:
        """The checked configuration. Raises SettingError or UsageError."""
        try:
            settings = config.from_settings(self.plain())
        except OmegaConfBaseException as error:
            raise _explained(error) from error
        config.check(settings)
        return settings

    def plain(self) -> dict[str, Any]:
        """The settings as a nested dictionary, unchecked. Raises OmegaConfBaseException or SettingError."""
        of_files = _plain_settings_of_files(*self.files)
        if of_files is None or not all(map(_is_plain, self.values)):
            return _plain(self.node)
        settings = copy.deepcopy(of_files)
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


def _to_config(composed: DictConfig) -> Config:
    """The checked dataclass of a composed configuration. Raises SettingError or UsageError."""
    try:
        settings = config.from_settings(_plain(composed))
    except OmegaConfBaseException as error:
        raise _explained(error) from error
    config.check(settings)
    return settings


def _plain(composed: DictConfig) -> dict[str, Any]:
    """The composed settings as a nested dictionary, without Hydra's own. Raises OmegaConfBaseException."""
    nodes = {str(name): composed[name] for name in composed if name != "hydra"}
    return {
        name: OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node
        for name, node in nodes.items()
    }


@contextmanager
def _hydra() -> Iterator[None]:
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


State = tuple[tuple[str, int], ...]  # paths and modification times of the files in conf/; the key of the caches below
_known_states: list[State] = []  # a state for each `_files_unchanged` block that is open


def _state() -> State:
    if _known_states:
        return _known_states[-1]
    return tuple(sorted((str(file), file.stat().st_mtime_ns) for file in CONF.rglob("*.yaml")))


@contextmanager
def _files_unchanged() -> Iterator[None]:
    """In the block edits of the files in conf/ are ignored, so that all points of a study have the same files."""
    _known_states.append(_state())
    try:
        yield
    finally:
        _known_states.pop()


@cache
def _of_files(state: State, choices: tuple[str, ...], of_hydra: tuple[str, ...] = ()) -> DictConfig:
    """The settings that Hydra composes of the files in conf/ for these choices, and Hydra's own settings.

    The result is shared: callers copy it."""
    _check_texts(state)
    try:
        with _hydra():
            composed = hydra.compose("config", [*choices, *of_hydra], return_hydra_config=True)
    except HYDRA_ERRORS as error:
        raise _explained(error) from error
    if choices:
        _check_files(composed.hydra, of_hydra)
    return composed


@cache
def _settings_of_files(state: State, choices: tuple[str, ...], of_hydra: tuple[str, ...] = ()) -> DictConfig:
    """The same without Hydra's own settings."""
    composed = copy.deepcopy(_of_files(state, choices, of_hydra))
    with open_dict(composed):
        del composed["hydra"]
    return composed


@cache
def _plain_settings_of_files(
    state: State, choices: tuple[str, ...], of_hydra: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """The same as a nested dictionary; None where a setting depends on another one. Shared: callers copy it."""
    settings: Any = OmegaConf.to_container(_of_files(state, choices, of_hydra))
    del settings["hydra"]
    text = json.dumps(settings)
    return None if "${" in text or '"???"' in text else settings


def _names(group: str) -> list[str]:
    """The names of the files in a group."""
    if group.startswith("hydra/"):
        with _hydra():
            return GlobalHydra.instance().config_loader().get_group_options(group)
    return _names_of_files(_state(), group)


@cache
def _names_of_files(state: State, group: str) -> list[str]:
    files_of_group = [path for path, _ in state if os.path.dirname(path) == str(CONF / group)]
    return sorted(Path(path).stem for path in files_of_group)


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
        raise SettingError(name, value, _first_line(error)) from error


# refusing -------------------------------------------------------------------------------------------------------------


def _read(overrides: Sequence[str]) -> list[Override]:
    """The overrides, read. Raises UsageError."""
    for place, override in enumerate(overrides):
        if override.startswith("-"):
            written = as_setting(override, overrides[place + 1 :], _named_or_meant)
            raise UsageError(f"{one_line(override)}: no such option; {written}")
    return [_parsed(override) for override in overrides]


def as_setting(option: str, following: Sequence[str], meant: Callable[[str], str]) -> str:
    """How to write what was given as an option, for people: `--head gap` is "write head=gap".

    Args:
        option: the argument that begins with a dash.
        following: the arguments after it.
        meant: returns the setting that a name means, or "".
    """
    name, equals, value = option.lstrip("-").replace("-", "_").partition("=")
    name = meant(name)
    if not name:
        return "a setting is written NAME=VALUE, --help lists them"
    if equals:
        value = option.partition("=")[2]
    elif following and not following[0].startswith("-") and "=" not in following[0]:
        value = following[0]
    return f"write {name}={one_line(value) or 'VALUE'}"


@cache
def _parsed(override: str) -> Override:
    """An override, read. Raises UsageError."""
    try:
        return OverridesParser.create().parse_overrides([override])[0]
    except OverrideParseException as error:
        if looks_like_checkpoint(override):
            reason = f"expected NAME=VALUE; did you mean {pasted('checkpoint', override)}?"
            raise UsageError(f"{one_line(override)}: {reason}") from error
        raise UsageError(
            f"{one_line(override)}: expected NAME=VALUE, with quotes around a value that contains one of , = : ~ ?"
        ) from error
    except HYDRA_ERRORS as error:  # a number of thousands of digits
        raise UsageError(f"{one_line(override)}: {_first_line(error)}") from error


def _check_override(override: Override) -> None:
    """Raises SettingError or UsageError for a setting that does not exist, or a choice that has no file."""
    name, line = override.key_or_group, override.input_line
    if "_target_" in line:
        raise UsageError(f"{one_line(line)}: settings are values and never name code: _target_ is not allowed")
    if override.is_hydra_override():
        if name not in OF_HYDRA and not name.startswith(("hydra.sweeper.", "hydra.launcher.")):
            reason = f"of Hydra's settings a command line takes {', '.join(OF_HYDRA)}"
            raise SettingError(name, _value_of(override), reason)
    elif override.package is not None:
        raise UsageError(f"{line}: a package cannot be chosen; write {name}=NAME")
    elif not _is_group(name) and _field(name) is None:
        written = override.input_line.partition("=")[2]
        raise SettingError(name, _value_of(override), f"unknown setting; {_suggestion(name, written)}")
    if override.is_sweep_override():
        study = f"{spelled('ablate')} {shlex.quote(line) if line.isprintable() and len(line) < 300 else '…'}"
        reason = f"several values require --multirun or {study}; a list is written [A,B]"
        raise SettingError(name, _value_of(override), reason)
    if override.is_add() and not _is_group(name):
        raise UsageError(f"{line}: {name} is a setting already; write it without +")
    if override.is_delete() and not _is_group(name):
        raise UsageError(f"{line}: a setting cannot be deleted")
    if _is_choice(override) and not override.is_delete():
        _check_choice(name, override.value())


def _check_choice(group: str, chosen: Any) -> None:
    """Raises SettingError for a choice that has no file."""
    several = isinstance(chosen, list) and group == "experiment"
    names = _names(group)
    if chosen is None and group == "experiment":
        return
    for each in chosen if several else [chosen]:
        if str(each) not in names:
            is_folder = group == "data" and ("/" in str(each) or os.path.isdir(str(each)))
            root = f"; pictures of your own are written data=folder data.root={one_line(each)}" if is_folder else ""
            raise SettingError(group, each, f"must be one of {', '.join(names)}{root}")


def _is_group(name: str) -> bool:
    return name in ("hydra/sweeper", "hydra/launcher") or (name.isidentifier() and (CONF / name).is_dir())


def _is_choice(override: Override) -> bool:
    """Whether an override chooses a file of a group, rather than setting values."""
    return _is_group(override.key_or_group) and not isinstance(override.value(), dict)


def _value_of(override: Override) -> Any:
    """The value of an override, as far as it has one that is not a sweep."""
    return override.get_value_string() if override.is_sweep_override() else override.value()


def _check_files(node: DictConfig, of_hydra: tuple[str, ...] | None = None) -> None:
    """Raises UsageError if a file has changed Hydra's own settings: those of callbacks, sweeper and launcher name code.

    Args:
        node: Hydra's settings of a composed configuration.
        of_hydra: the overrides of Hydra's settings that were given on the command line; by default those in `node`.
    """
    given = tuple(node.overrides.hydra) if of_hydra is None else of_hydra
    given = tuple(override for override in given if not override.startswith("hydra.mode="))
    expected, found = (_of_hydra(each) for each in (_of_files(_state(), (), given).hydra, node))
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            raise UsageError(f"a file in conf/ sets hydra.{name}; files set fields of the configuration only")


@cache
def _check_texts(state: State) -> None:
    """Raises UsageError for a file in conf/ that names code, belongs to Hydra, or includes a file from elsewhere. The
    files are looked at before Hydra composes them: what it composes, it may also import and call."""
    for path, _ in state:
        place = Path(path).relative_to(CONF)
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


def _explained(error: Exception) -> NINError:
    """An error of Hydra's or OmegaConf's as one of ours, which names the file in conf/ or the setting."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return SettingError(group, name, f"must be one of {', '.join(error.options)}")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        where = f"{error.problem_mark.name}, line {error.problem_mark.line + 1}"
        return UsageError(f"{where}: not YAML ({error.problem})")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    where = re.match(r"In '([^']+)'", str(error))  # for people: Hydra keeps the file's name in its message alone
    file = f"conf/{where[1]}.yaml: " if where else ""
    if cause is None:
        return UsageError(file + _first_line(error).partition("': ")[2] if where else _first_line(error))
    name = cause.full_key
    if name and not name.startswith("hydra") and _field(name) is None:
        return UsageError(f"{file}{name}: unknown setting; {_suggestion(name)}")
    return UsageError(f"{file}{name}{': ' * bool(name)}{_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    return one_line((str(error) or type(error).__name__).strip().splitlines()[0])


def _field(name: str) -> Any:
    """The field of the schema with this dotted name, or None."""
    return config.field_named(name)


def _suggestion(name: str, value: str = "") -> str:
    """What to write in place of a setting that does not exist: the setting that may have been meant, with this value or
    with its choices; else the settings that the group has."""
    if meant := _meant(name):
        choices = _names(meant) if _is_group(meant) else _field(meant).metadata["choices"] if _field(meant) else ()
        if choices and value not in choices:
            return f"did you mean {meant} ({', '.join(choices)})?"
        return f"did you mean {meant}{f'={one_line(value)}' * bool(value)}?"
    group = name.partition(".")[0]
    if _is_group(group) and _field(group) is not None and "." in name:
        known = fields(config.hints_of(Config)[group])
        return f"{group} has {', '.join(each.name for each in known)}"
    return "--help lists all settings"


def _named_or_meant(name: str) -> str:
    """The setting or group of this name, else the one that may have been meant; empty if none is similar."""
    return name if _is_group(name) or _field(name) is not None else _meant(name)


def _meant(name: str) -> str:
    """The setting that may have been meant: `lr` is recipe.lr, `device` is trainer.accelerator. Empty if none is
    similar."""
    last = name.rpartition(".")[2]
    if last in ALIASES:
        return ALIASES[last]
    known: dict[str, str] = {}
    for each in _defaults():
        known.setdefault(each.rpartition(".")[2], each)
    near = get_close_matches(last, known, n=1, cutoff=0.7)
    return known[near[0]] if near and near[0] != "name" else ""


def looks_like_checkpoint(text: str) -> bool:
    """Whether a text is a published name, a weights file or the folder of a run."""
    if not text or "=" in text:
        return False
    run, published = Path(text), files.shipped("checkpoints") / f"{text}.json"
    places = (published, run / "summary.json", run / "model.safetensors")
    return text.endswith((".safetensors", ".caffemodel")) or any(map(os.path.isfile, places))


# settings back to a command line --------------------------------------------------------------------------------------


def overrides_of(settings: dict[str, Any]) -> list[str]:
    """The shortest overrides that compose to these settings.

    First the choices of set, head, recipe or experiment, and net, then the seed, then each setting that differs from
    what these bring. What the trained net does not depend on is left out: where the images are, what the run prints,
    and the accelerator.

    Args:
        settings: a nested dictionary, as `nin.config.settings_of` and a run's record have them.
    """
    wanted = config.consequential(config.settings_of(config.from_settings(settings)))
    choices = _choices(wanted)
    return [*choices, f"seed={wanted['seed']}", *_differing(wanted, choices)]


def variant_of(settings: dict[str, Any]) -> str:
    """What was varied, for people: "model=plain recipe.drops=[]".

    Set, head, recipe, seed, epochs, precision, test curve and held-out images are not named."""
    named: tuple[str, ...] = (
        "data",
        "head",
        "recipe",
        "experiment",
        "seed",
        "data.name",
        "head.name",
        "recipe.name",
        "data.val",
    )
    named += ("eval_curve", "trainer.max_epochs", "trainer.precision")
    return " ".join(sorted(override for override in overrides_of(settings) if override.partition("=")[0] not in named))


def command_of(settings: dict[str, Any]) -> str:
    """The command that trains with these settings, as a shell reads it."""
    return shlex.join(["python", "scripts/train.py", *overrides_of(settings)])


def _choices(wanted: dict[str, Any]) -> list[str]:
    """The choices of files that bring most of these settings."""
    choices = [f"{group}={wanted[f'{group}.name']}" for group in ("data", "head") if _is_file(group, wanted)]
    recipes = [f"{group}={wanted['recipe.name']}" for group in ("recipe", "experiment") if _is_file(group, wanted)]
    choices += recipes[:1]
    if not any(override.startswith("model.") for override in _differing(wanted, choices)):
        return choices
    nets = [[], *([f"model={name}"] for name in _nets_that_may_bring(wanted, tuple(choices)))]
    return [*choices, *min(nets, key=lambda net: len(_differing(wanted, [*choices, *net])))]


def _nets_that_may_bring(wanted: dict[str, Any], choices: tuple[str, ...]) -> Iterator[str]:
    """The nets in conf/ that may bring a wanted setting which these choices do not bring: their file states it, or
    leaves the default that the file of the chosen net replaces. To compose every net takes a fifth of a second each."""
    state = _state()
    brought, before = _brought(state, choices), _stated_by_net(state, _chosen_net(state, choices))
    for name in _names("model"):
        stated = _stated_by_net(state, name)
        if stated is None or before is None:
            yield name
            continue
        changed = {each: stated.get(each, _defaults()[each]) for each in {**before, **stated}}
        if any(wanted[each] != brought[each] and wanted[each] == value for each, value in changed.items()):
            yield name


@cache
def _chosen_net(state: State, choices: tuple[str, ...]) -> str:
    """The name of the net's file that these choices compose."""
    return str(_of_files(state, choices, ()).hydra.runtime.choices.get("model"))


@cache
def _stated_by_net(state: State, name: str) -> dict[str, Any] | None:
    """The settings that a net's file in conf/ states; None where they depend on other files, or cannot be read."""
    try:
        text = files.read(CONF / "model" / f"{name}.yaml").decode()
        content = yaml.load(text, files.WithoutAliases)
        settings = config.flat(config.settings_of(config.from_settings({"model": content})))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):  # or a list of defaults
        return None
    return (
        None if "@package" in text or "${" in text else {f"model.{each}": settings[f"model.{each}"] for each in content}
    )


@cache
def _defaults() -> dict[str, Any]:
    """The schema's defaults by dotted name."""
    return config.flat(config.settings_of(Config()))


def _is_file(group: str, wanted: dict[str, Any]) -> bool:
    """Whether the settings' set, head or recipe has a file in this group."""
    name = wanted["recipe.name" if group == "experiment" else f"{group}.name"]
    return name in _names(group)


def _differing(wanted: dict[str, Any], stated: Sequence[str]) -> list[str]:
    """The overrides that these settings need besides those that are stated."""
    brought = _brought(_state(), tuple(stated))
    names = [name for name in wanted if name not in ("seed", "trainer.accelerator") and wanted[name] != brought[name]]
    return [f"{name}={_spelled_as(name, wanted[name])}" for name in names]


def _spelled_as(name: str, value: Any) -> str:
    """The value of a setting in Hydra's grammar. What is always a float is written 1, not 1.0."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value)) if is_whole and _kind(name) in ("float", "float | null") else _spelled(value)


@cache
def _brought(state: State, stated: tuple[str, ...]) -> dict[str, Any]:
    """The settings that these choices of files set, by dotted name; unchecked, as the run may be another machine's."""
    return config.flat(config.settings_of(config.from_settings(_Composed(stated).plain())))


def _spelled(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    if isinstance(value, str):
        keyword = value.lower() in ("true", "false", "null", "nan", "inf", "yes", "no", "on", "off")
        return value if re.fullmatch(r"[A-Za-z][\w-]*", value, re.ASCII) and not keyword else quoted(value)
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )


# help and plain settings ----------------------------------------------------------------------------------------------


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
            lines.append(f"  {group:<12}{', '.join(_names(group))}")
    lines += ["", "Settings, with the values that they have by default:", ""]
    for name, value in config.flat(config.settings_of(compose())).items():
        if settings is None or _is_among(name, settings):
            about_it = _field(name).metadata
            allowed = ", ".join(about_it["choices"]) or _kind(name)
            lines.append(f"  {f'{name}={_short(name, value)}':<38} {about_it['says']} ({allowed})")
    lines += ["", "hydra.run.dir=FOLDER is the folder for results; --multirun seed=0,1 runs one job for each value."]
    return "\n".join(lines)


def _kind(name: str) -> str:
    """The type of a setting: "float | null"."""
    kind: Any = Config
    for part in name.split("."):
        kind = config.hints_of(kind)[part]
    return kind.__name__ if type(kind) is type else str(kind).replace("None", "null").replace("typing.", "").lower()


def _short(name: str, value: Any) -> str:
    text = _spelled_as(name, value)
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
            reason = f"did you mean {meant}={one_line(value)}?" if meant else f"known are {known}"
            raise SettingError(name, value, f"unknown setting; {reason}")
        settings[name] = value
    return settings


def similar(name: str, known: Iterable[str]) -> str:
    """The known name that is most similar to this one; empty if none is."""
    return next(iter(get_close_matches(name, known, n=1)), "")
