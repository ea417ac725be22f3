"""Runs a script: its configuration, its folder; from an error to one sentence and an exit code.

No file is created here; a folder is created only for a script that asks for one, after its configuration has been
checked.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from nin import files
from nin.checks import printable
from nin.cli import conf
from nin.cli.conf import HYDRA_ERRORS
from nin.cli.configuration import Composed, compose, read_overrides, sweep, to_config, value_of
from nin.cli.help import help_text, is_among
from nin.cli.overrides import command_of
from nin.cli.refusals import explained
from nin.cli.tree import check_files
from nin.config import Config, pasted, quoted, settings_of
from nin.errors import (
    INTERRUPTED,
    CheckpointError,
    DataError,
    InterruptedRunError,
    NINError,
    RunError,
    SettingError,
    UsageError,
)
from nin.run import processes
from nin.run.started import in_this_form, spelled

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


def run_script(main: Callable[[list[str]], int | None]) -> None:
    """Runs a script without a configuration: calls `main(arguments)`, or prints the script's docstring for --help.

    Exit codes: 0; 2 for a setting or a usage that is not allowed; 1 for missing or damaged files; 3 for a dead net; 130
    after Ctrl-C, 143 after SIGTERM. Each but 0 comes with one sentence on stderr. A traceback is a bug.
    """

    def run() -> int | None:
        if not {"--help", "-h"} & set(sys.argv[1:]):
            return main(given_arguments())
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
        arguments = given_arguments()
        if {"--help", "-h"} & set(arguments):
            print(help_text(main.__globals__["__doc__"] or "", settings))
            return 0
        overrides = [argument for argument in arguments if argument not in ("--multirun", "-m")]
        script = _Script(main, check, folder, settings, gives_error)
        return script.run(overrides, several) if overrides == arguments else script.sweep(overrides)

    with processes.ending_at_once() if several else nullcontext():  # now: Lightning changes the variables it reads
        if code := _exit_code(run):
            sys.exit(code)


@dataclass
class _Script:
    """The arguments of `command`."""

    main: Callable[[Config, Path], Any]
    check: Callable[[Config], None] | None
    folder: Callable[[Config], str] | None
    settings: Sequence[str] | None
    gives_error: bool

    def run(self, overrides: list[str], several: bool) -> int:
        composed = Composed(overrides)
        self.check_taken(composed)
        settings, given = composed.config(), composed.run_dir
        if settings.trainer.num_nodes > 1 and not several:
            raise SettingError(
                "trainer.num_nodes", settings.trainer.num_nodes, "start the processes by srun or torchrun"
            )
        if several and given is None:
            raise UsageError("hydra.run.dir=FOLDER is required: the processes of one run share their folder")
        if settings.resume and given is None and self.folder:
            raise UsageError("resume=auto requires hydra.run.dir=FOLDER, the folder of the run to resume")
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
            fixed = [each.input_line for each in read_overrides(overrides) if not each.is_sweep_override()]
            self.check_held_out(Composed(fixed).config())
        else:
            for point in sweep(overrides):
                self.check_taken(Composed(point))
                self.check_one_process(compose(point))
        check_folders(overrides)
        codes = [0]

        def job(composed: DictConfig) -> Any:
            results = []

            def run() -> None:
                check_files(HydraConfig.instance().cfg.hydra)
                settings = to_config(composed)
                self.check_one_process(settings)
                if chooses:
                    self.check_held_out(settings)
                if self.check:
                    self.check(settings)
                with _resumed_alone(settings):
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
            hydra.main(version_base="1.3", config_path=str(conf.CONF), config_name="config")(job)()
        except HYDRA_ERRORS as error:
            raise explained(error) from error
        return codes[-1]

    def check_one_process(self, settings: Config) -> None:
        """Raises SettingError if a job of --multirun is to train in several processes."""
        if settings.trainer.processes > 1:
            raise SettingError(
                "trainer.devices",
                settings.trainer.devices,
                f"--multirun trains each net in one process; {spelled('ablate')} takes the same values and several",
            )

    def check_held_out(self, settings: Config) -> None:
        """Raises UsageError or SettingError unless a run returns a held-out error, by which a sweeper may choose."""
        if not self.gives_error:
            raise UsageError("hydra/sweeper= requires a command that returns an error: nin train")
        if not settings.data.val:
            reason = "a sweeper chooses values by the held-out error, never by the test error; hold out some images"
            raise SettingError("data.val", 0, reason)

    def check_taken(self, composed: Composed) -> None:
        """Raises SettingError if a setting is given that the script does not take."""
        for override in composed.parsed:
            name = override.key_or_group
            if self.settings is not None and not override.is_hydra_override() and not is_among(name, self.settings):
                raise SettingError(
                    name,
                    value_of(override),
                    f"has no effect on this command, whose settings are {', '.join(self.settings)}",
                )


def given_arguments() -> list[str]:
    """The command's arguments. In NAME=~/FOLDER, where few shells do it, ~ becomes the home folder."""
    home = os.path.expanduser("~")
    if not re.fullmatch(r"[\w./-]+", home):  # it would need quotes
        return sys.argv[1:]
    return [re.sub(r"(?<=[=,\[])~(?=/)", lambda _: home, argument) for argument in sys.argv[1:]]


def check_folders(overrides: Sequence[str]) -> None:
    """Raises UsageError if the jobs of --multirun would not stand where the overrides say."""
    given = {each.partition("=")[0].lstrip("+") for each in overrides}
    if "hydra.run.dir" in given:
        raise UsageError("hydra.run.dir has no effect on --multirun; set hydra.sweep.dir=FOLDER")
    if "resume" in given and "hydra.sweep.dir" not in given:
        raise UsageError("resume=auto requires hydra.sweep.dir=FOLDER, the folder of the jobs to resume")


@contextmanager
def _resumed_alone(settings: Config) -> Iterator[None]:
    """Says of a stopped job of --multirun how it alone is resumed."""
    try:
        yield
    except InterruptedRunError as error:
        folder = pasted("hydra.run.dir", Path(HydraConfig.get().runtime.output_dir))
        command = in_this_form(f"{command_of(settings_of(settings))} resume=auto {folder}")
        advice = f"stopped; to resume this job after its last whole epoch, run {command}; the jobs after it did not run"
        raise InterruptedRunError(advice, error.exit_code) from error


def _exit_code(run: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code. Only here an error is printed, as one sentence."""
    before, form = (sys.stdout, sys.stderr), warnings.formatwarning
    _open_closed_streams()
    warnings.formatwarning = _as_a_note  # type: ignore[assignment]
    with open(os.devnull, "w") as nowhere:  # in place of an output that the shell has closed, which is None in Python
        sys.stdout, sys.stderr = (_Lasting(stream or nowhere) for stream in before)
        try:
            with _heeding_ctrl_c() as interrupted:
                return _code_of(run, interrupted)
        finally:
            sys.stdout, sys.stderr = before
            warnings.formatwarning = form


def _as_a_note(message: Warning | str, *_: Any) -> str:
    """A warning for people, without the place in the code that it comes from."""
    return f"note: {printable(' '.join(str(message).split()))}\n"


def _code_of(run: Callable[[], int | None], interrupted: list[int]) -> int:
    try:
        code = run() or 0
        sys.stdout.flush()
        return code
    except NINError as error:
        if interrupted and error.exit_code not in INTERRUPTED:  # Hydra turned KeyboardInterrupt into this error
            _say("stopped")
            return INTERRUPTED[0]
        alone = isinstance(error, CheckpointError | DataError) or type(error.__cause__).__name__ == "OutOfMemoryError"
        if processes.rank() == 0 or alone:  # process 0 raises the others too
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
    in a job in the background, it stays ignored. One that arrives in a destructor, where Python drops exceptions, is
    raised again a moment later."""
    heard: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        heard.append(number)
        signal.default_int_handler(number, frame)

    def hook_unless_heard(lost: Any) -> None:
        if heard and issubclass(lost.exc_type, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        else:
            python_hook(lost)

    with suppress(ValueError):  # a thread
        if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(signal.SIGINT, interrupt)
    python_hook, sys.unraisablehook = sys.unraisablehook, hook_unless_heard
    try:
        yield heard
    finally:
        sys.unraisablehook = python_hook
        with suppress(ValueError):
            if signal.getsignal(signal.SIGALRM) is interrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
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
