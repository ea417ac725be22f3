"""Ablation studies: many runs of `nin train`, each recorded as a row (`nin.studies.rows`)."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nin import files
from nin.checks import cores, counted
from nin.config import Config, consequential, quoted, settings_of
from nin.errors import INTERRUPTED, CheckpointError, LockedError, RowsError, RunError, StudyStoppedError
from nin.run import record
from nin.run.folder import METRICS, contains_run, is_training_in
from nin.run.processes import STARTER
from nin.run.started import arguments_of
from nin.studies import rows

if TYPE_CHECKING:
    import pandas as pd

CLAIM = ".study"  # in a run's folder: locked while a study trains or records that run
GRACE = 60  # seconds in which the run of a killed study ends, after its current batch
ENDED = (0, 3)  # exit codes of a run that finished, and of one whose net died
RECORDED = (*ENDED, *INTERRUPTED)  # exit codes of a run that wrote its record; after others it may be an older run's


@dataclass(frozen=True)
class Point:
    """One run of a study.

    Attributes:
        overrides: for the command that trains it.
        config: the composition of the overrides.
        variant: the settings that vary besides head and seed, for people: "model=plain".
    """

    overrides: tuple[str, ...]
    config: Config
    variant: str = ""

    @cached_property
    def precision(self) -> str:
        """The precision that it is trained in on this machine."""
        from nin.run.trainer import precision_of

        return precision_of(self.config.trainer)

    @cached_property
    def settings(self) -> dict:
        return consequential(settings_of(self.config))

    @cached_property
    def start_sha256(self) -> str:
        """The sha256 of the weights that it starts from; empty if it starts from none, or if they cannot be loaded. In
        that case its run fails with the reason."""
        return _sha256_of(self.config.checkpoint) if self.config.checkpoint else ""

    @cached_property
    def identity(self) -> str:
        """The text by which its run is known: `nin.studies.rows.identity`."""
        return rows.identity(self.settings, self.precision, self.start_sha256)

    @property
    def command(self) -> str:
        """Its overrides as a command line has them."""
        return shlex.join(self.overrides)

    @property
    def folder(self) -> str:
        """Name of its run's folder. Points with the same name share a folder, and resume each other's run."""
        config, identity = self.config, json.dumps([self.settings, self.start_sha256])
        name = f"{config.data.name}_{config.head.name}_{config.recipe.name}_{config.seed}"
        return f"{name}-{files.sha256(identity.encode())[:8]}"

    def with_test_curve(self) -> Point:
        """The same point, which records a test curve, unless its configuration holds images out for tuning: then the
        test set is not looked at during training."""
        if self.config.data.val or self.config.eval_curve:
            return self
        overrides = (*self.overrides, "eval_curve=true")
        return replace(self, overrides=overrides, config=replace(self.config, eval_curve=True))


def study(points: Sequence[Point], file: Path, runs: Path, jobs: int = 1, command: Sequence[str] = ()) -> pd.DataFrame:
    """Trains every point that has no row in `file` yet, and adds its row.

    A point that has a row with status ok or dead is not trained again, unless it asks for a test curve and the row has
    none. Runs that were stopped resume. If a run fails, the others are trained all the same. Several studies may share
    a file: each waits for the runs that another one trains. If this process is killed, its runs end with their next
    batch.

    Args:
        points: the runs.
        file: the study's file of rows; created if need be.
        runs: the folder of the runs' folders.
        jobs: runs side by side, each with its share of the cores and a log.txt in its folder.
        command: trains one run; by default `nin train`. Called with a point's overrides, hydra.run.dir=FOLDER and,
            where a run has begun in that folder, resume=auto, it leaves a record there and returns the exit codes of
            `nin train`.

    Returns:
        the rows of all points, as returned by `nin.studies.rows.ended`.

    Raises:
        RowsError: the file is not a study's, or cannot be written.
        StudyStoppedError: runs failed, or the study was interrupted.
    """
    _sha256_of.cache_clear()  # checkpoints may have changed since an earlier study of this process
    distinct = _distinct(points)
    rows.append(file, [])
    recorded = rows.read(file)
    complete = _is_complete(recorded)
    todo = [point for point in distinct.values() if not _is_recorded(point, complete)]
    print(f"{counted(len(distinct), 'run')}, {len(distinct) - len(todo)} already recorded in {file}", flush=True)
    _print_other_precisions(todo, recorded)
    at_work = _Study(file, Path(runs), jobs, tuple(command or arguments_of("train")), todo)
    advice = f"the same command continues the study, {file} has the rows so far"
    try:
        at_work.work()
    except KeyboardInterrupt as error:
        raise StudyStoppedError(f"interrupted; {advice}", 130) from error
    if at_work.failed:
        raise StudyStoppedError(f"{'; '.join(at_work.failed)}; {advice}")
    ended = rows.ended(file)
    return ended[ended.identity.isin(list(distinct))]


def _distinct(points: Sequence[Point]) -> dict[str, Point]:
    """The points by identity: each once, with a test curve if any of its spellings asks for one."""
    distinct: dict[str, Point] = {}
    for point in points:
        if point.config.eval_curve or point.identity not in distinct:
            distinct[point.identity] = point
    return distinct


@cache
def _sha256_of(checkpoint: str) -> str:
    """The sha256 of a checkpoint's weights; empty if it cannot be loaded. The run that starts from it says why."""
    from nin import pretrained

    try:
        return pretrained.load(checkpoint).sha256 or ""
    except CheckpointError:
        return ""


def _is_complete(recorded: pd.DataFrame) -> dict[str, bool]:
    """For each recorded run that ended, by identity, whether it has a test curve or needs none, as its net died."""
    ended = recorded[recorded.status != "stopped"]
    has_all = ended.test_curve.map(bool) | (ended.status == "dead")
    return has_all.groupby(ended.identity).any().to_dict()


def _is_recorded(point: Point, complete: dict[str, bool]) -> bool:
    """Whether the row of this point is recorded, with a test curve if the point asks for one."""
    return point.identity in complete and (complete[point.identity] or not point.config.eval_curve)


def _print_other_precisions(todo: Sequence[Point], recorded: pd.DataFrame) -> None:
    """Prints that runs are recorded in another precision than trainer.precision=auto selects on this machine."""
    automatic = [point for point in todo if point.config.trainer.precision == "auto"]
    if not automatic or recorded.empty:
        return
    precisions: dict[str, set[str]] = {}  # by what the run is apart from its precision
    for row in recorded[recorded.status != "stopped"].itertuples():
        precisions.setdefault(rows.identity(row.settings, "", row.start_sha256), set()).add(row.precision)
    numbers: Counter[str] = Counter()  # of remaining runs, by the precision that they are recorded in
    for point in automatic:
        numbers.update(precisions.get(rows.identity(point.settings, "", point.start_sha256), ()))
    for precision, number in sorted(numbers.items()):
        print(
            f"{number} of the remaining runs {'is' if number == 1 else 'are'} recorded in {precision}; "
            f"trainer.precision=auto selects {automatic[0].precision} on this machine, and tables keep precisions "
            f"apart. trainer.precision={precision} takes the recorded ones",
            flush=True,
        )


@dataclass
class RunningRun:
    """A run in progress; `claim` keeps other studies from it."""

    point: Point
    folder: Path
    process: subprocess.Popen
    claim: ExitStack


@dataclass
class _Study:
    """A study in progress: the runs to do, those that are running, and sentences about those that failed."""

    file: Path
    runs: Path
    jobs: int
    command: tuple[str, ...]
    todo: list[Point]
    running: list[RunningRun] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    waited_for: int = 0  # runs of another study

    def work(self) -> None:
        """Trains and records all points; ends early if a run was interrupted."""
        try:
            while self.todo or self.running:
                self.start_runs()
                run = next((run for run in self.running if run.process.poll() is not None), None)
                if run is None:
                    self.wait()
                elif self.finish(run) in INTERRUPTED:
                    break
        finally:
            for run in self.running:
                run.process.terminate()
            for run in self.running:
                run.process.wait()
                run.claim.close()

    def start_runs(self) -> None:
        """Starts runs that no other study trains, until `jobs` of them are running."""
        for point in self.todo[:]:
            if len(self.running) == self.jobs:
                return
            folder = self.runs / point.folder
            if (claim := _claim(folder)) is None:
                continue
            self.todo.remove(point)
            if _is_recorded(point, _is_complete(rows.read(self.file))):  # meanwhile, by another study
                claim.close()
            else:
                self.running.append(RunningRun(point, folder, self.start(point, folder), claim))

    def start(self, point: Point, folder: Path) -> subprocess.Popen:
        """Starts or resumes one run. Alone it shows its progress, beside others it writes it to log.txt."""
        deadline = time.monotonic() + GRACE
        while is_training_in(folder) and time.monotonic() < deadline:  # the run of a killed study
            time.sleep(0.2)
        environment = {**os.environ, STARTER: str(os.getpid())}  # it ends when this process has exited
        command = [*self.command, *point.overrides, f"hydra.run.dir={quoted(folder)}"]
        command += ["resume=auto"] if contains_run(folder) else []
        if self.jobs == 1:
            print(f"\n{point.command}", flush=True)
            return subprocess.Popen(command, env=environment)
        environment["OMP_NUM_THREADS"] = str(max(1, cores() // self.jobs))
        with files.appending(folder / "log.txt") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait(self) -> None:
        """Waits a moment, and prints once that it waits for another study."""
        if not self.running and len(self.todo) != self.waited_for:
            self.waited_for = len(self.todo)
            remaining = counted(self.waited_for, "remaining run")
            print(f"waiting for another study to finish {remaining}", flush=True)
        time.sleep(0.2)

    def finish(self, run: RunningRun) -> int:
        """Records a run whose process has exited; returns its exit code."""
        self.running.remove(run)
        code = run.process.returncode
        with run.claim:
            if code in RECORDED:
                self.record(run)
        if code not in ENDED:
            log = f"; {run.folder / 'log.txt'} says why" if self.jobs > 1 else ""
            self.failed.append(f"the run {run.point.command} ended with exit code {code}{log}")
        return code

    def record(self, run: RunningRun) -> None:
        """Adds the row of a run."""
        try:
            recorded = record.read(run.folder)
        except RunError as reason:
            self.failed.append(f"the run {run.point.command} left a record that cannot be read: {reason}")
            return
        if recorded is None:
            if run.process.returncode not in INTERRUPTED:
                self.failed.append(f"the run {run.point.command} left no record in {run.folder}")
            return
        test_curve, curves = _curves(run.folder)
        row = rows.row_of(recorded, test_curve, run.point.variant, curves)
        rows.append(self.file, [row])
        if rows.identity(row["settings"], row["precision"], row["start_sha256"]) != run.point.identity:
            self.failed.append(
                f"the run {run.point.command} was trained with other settings than this study began with: conf/ or the "
                "checkpoint has changed meanwhile; its row has the settings that it was trained with"
            )
        error_name = "held-out error" if recorded.held_out else "test error"
        measured = row["val_error"] if recorded.held_out else row["test_error"]
        result = row["status"] if measured is None else f"{error_name} {measured:.2f} %"
        print(f"{run.point.command}: {result}, {len(self.todo) + len(self.running)} to go", flush=True)


def _claim(folder: Path) -> ExitStack | None:
    """Keeps other studies from a run until it is closed; None if another study has it.

    Raises:
        RowsError: the folder cannot be created.
    """
    claim = ExitStack()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claim.enter_context(files.lock(folder / CLAIM))
    except LockedError:
        return None
    except (OSError, RunError) as error:
        raise RowsError(f"{folder}: no run can be trained there ({error})") from error
    return claim


def _curves(folder: Path) -> tuple[tuple[float, ...], dict[str, list[float]]]:
    """Test error in % after each epoch, and the curves of `nin.studies.rows.CURVES`, from a run's metrics.csv. Both are
    empty if the run recorded no test errors, or if the file is missing or damaged. A curve ends before it is infinite
    or NaN, as the loss of a net that dies."""
    import pandas as pd

    column = "test_curve/error"
    try:
        table = pd.read_csv(io.BytesIO(files.read(folder / METRICS)))
        if column not in table:
            return (), {}
        columns = {name: each for name, each in rows.CURVES.items() if each in table}
        curves = {name: _while_finite(table[each]).round(4).tolist() for name, each in columns.items()}
        return tuple(_while_finite(table[column]).round(2)), curves
    except (OSError, ValueError, TypeError):
        return (), {}


def _while_finite(column: pd.Series) -> pd.Series:
    """The values of a column from the first one to the last before one that is missing, infinite or NaN."""
    values = column.loc[column.first_valid_index() :]
    return values[values.abs().lt(float("inf")).cummin()]
