"""Ablation studies: many runs of `scripts/train.py`, of each of which a row is kept (`nin.studies.rows`)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from nin.command import compose, overrides_of, quoted
from nin.config import Config, ConfigError, consequential
from nin.folder import held
from nin.recovery import STARTER
from nin.run import precision
from nin.studies.rows import Row, append, last_of, read, row_of

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


class StoppedError(RuntimeError):
    """A study that did not come to its end."""


def study(points: Sequence[Sequence[str]], file: Path, runs: Path, jobs: int = 1) -> list[Row]:
    """Runs every point (its overrides) that `file` has no row of yet and adds its row; gives the rows of all points.

    A point whose configuration is recorded as ok or dead is not run again, however it was spelled; one that was stopped
    is, and one that asks for a test curve where none was recorded. With several `jobs` as many runs go on side by side,
    each with its share of the cores and a log in its folder. A run that fails does not keep the others from theirs, nor
    does another study at work in the same file: what it trains is waited for. Where this process is killed its runs end
    with their next batch.

    Raises:
        nin.config.ConfigError: a point that cannot be.
        nin.studies.rows.RowsError: a file that is none of a study, or to which no row can be added.
        StoppedError: runs that ended otherwise than by their end or their net's death, or that were told to stop.
    """
    asked: dict[str, tuple[str, Config]] = {}
    for point in points:
        config = compose(CONF, point)
        identity = _identity(config)
        if config.eval_curve or identity not in asked:
            asked[identity] = shlex.join(sorted(point, key=lambda override: override.split("=")[0])), config
    append(file)
    todo = _without_row(asked, file)
    print(f"{len(asked)} runs, {len(asked) - len(todo)} of them recorded already in {file}", flush=True)
    _tell_of_other_precisions(asked, todo, file)
    running: dict[subprocess.Popen, tuple[str, Config, Path, IO]] = {}
    failed: list[str] = []
    waited_for = 0  # runs
    try:
        while todo or running:
            for identity in todo[:]:
                if len(running) == jobs:
                    break
                overrides, config = asked[identity]
                folder = runs / _folder_name(config)
                if (claim := _claim(folder)) is None:
                    continue  # another study trains it
                todo.remove(identity)
                if _without_row({identity: asked[identity]}, file):
                    running[_start(overrides, folder, jobs)] = overrides, config, folder, claim
                else:
                    claim.close()
            process = next((process for process in running if process.poll() is not None), None)
            if process is None:
                if not running and len(todo) != waited_for:
                    waited_for = len(todo)
                    print(f"another study trains what is left ({waited_for}), and its end is waited for", flush=True)
                time.sleep(0.2)
                continue
            overrides, config, folder, claim = running.pop(process)
            trained = process.returncode in (0, 3, 130, 143)  # else the folder's summary is an older run's, if any
            if trained and (folder / "summary.json").exists():
                row = row_of(folder, _spelled(overrides, config), process.returncode)
                append(file, row)
                error = f"{row.condition.errors} {row.error:.2f} %" if row.status == "ok" else row.status
                print(f"{overrides}: {error}, {len(todo) + len(running)} to go", flush=True)
            claim.close()
            if process.returncode not in (0, 3):
                log = f", its last words are in {folder / 'log.txt'}" * (jobs > 1)
                failed.append(f"the run {overrides} ended with exit code {process.returncode}{log}")
                if trained:
                    break
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    if failed:
        raise StoppedError("; ".join(failed))
    return list(_recorded(asked, file).values())


def _identity(config: Config) -> str:
    """What a run depends on: equal for what is one run."""
    settings = consequential(asdict(config))
    return json.dumps({name: settings[name] for name in settings if name not in ("eval_curve", "trainer.accelerator")})


def _spelled(overrides: str, config: Config) -> str:
    """The overrides of a run as its row has them, by which tables know what was varied: choices of files, and the
    settings that differ from what these bring, in one spelling."""
    choices = [override for override in shlex.split(overrides) if (CONF / override.partition("=")[0]).is_dir()]
    return shlex.join(overrides_of(asdict(config), CONF, choices))


def _recorded(asked: dict[str, tuple[str, Config]], file: Path) -> dict[str, Row]:
    """The rows of those runs that have come to an end."""
    groups = {(c.data.name, c.head.name, c.recipe.name, c.seed) for _, c in asked.values()}

    def run(row: Row) -> str | None:
        if (row.data, row.head, row.recipe, row.seed) in groups:
            with suppress(ConfigError):  # what could be trained once, and cannot any more
                identity = _identity(compose(CONF, shlex.split(row.overrides)))
                return identity if identity in asked else None
        return None

    return last_of(read(file), run)


def _without_row(asked: dict[str, tuple[str, Config]], file: Path) -> list[str]:
    """Which of those runs are still to be made."""
    recorded = _recorded(asked, file)
    enough = {i for i, row in recorded.items() if row.test_curve or row.status == "dead" or not asked[i][1].eval_curve}
    return [identity for identity in asked if identity not in enough]


def _tell_of_other_precisions(asked: dict[str, tuple[str, Config]], todo: list[str], file: Path) -> None:
    """Says that "auto" was something else where the recorded runs were made: tables keep precisions apart."""
    left = {identity for identity, (_, config) in asked.items() if config.trainer.precision == "auto"}
    here = {precision(asked[identity][1]) for identity in left.intersection(todo)}
    recorded = _recorded({identity: asked[identity] for identity in left.difference(todo)}, file) if here else {}
    there = {row.precision for row in recorded.values()}
    if there - here:
        print(
            f"recorded in {' and '.join(sorted(there))}, still to come in {' and '.join(sorted(here))}, which is what "
            "trainer.precision=auto means on this machine: tables keep them apart",
            flush=True,
        )


def _folder_name(config: Config) -> str:
    """The same for what can be resumed, however it was spelled."""
    digest = hashlib.sha256(json.dumps(consequential(asdict(config))).encode()).hexdigest()
    return f"{config.data.name}_{config.head.name}_{config.recipe.name}_{config.seed}-{digest[:8]}"


def _claim(folder: Path) -> IO | None:
    """What keeps other studies from this run while it is open; None where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    claim = open(folder / ".study", "w")  # noqa: SIM115, open while the run goes on
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        claim.close()
        return None
    except OSError:  # a file system without locks
        pass
    return claim


def _start(overrides: str, folder: Path, jobs: int) -> subprocess.Popen:
    """Starts one run, or goes on with it; alone it shows its progress, beside others it writes it to log.txt."""
    patience = time.monotonic() + 60
    while held(folder) and time.monotonic() < patience:  # a study was killed, and its run ends with its next batch
        time.sleep(0.2)
    environment = {**os.environ, STARTER: str(os.getpid())}  # it ends when this process is gone
    script = str(ROOT / "scripts" / "train.py")
    command = [sys.executable, script, *shlex.split(overrides), f"hydra.run.dir={quoted(folder)}", "resume=auto"]
    if jobs == 1:
        print(f"\n{overrides}", flush=True)
        return subprocess.Popen(command, env=environment)
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)
