"""What is recorded of runs: one row of a CSV file each, and what the rows say.

A row holds all that a table or a figure is made of, so that nothing has to be kept of a run but its row.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import os
import re
import shlex
import statistics
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from nin.bounds import one_of
from nin.config import OF_NO_CONSEQUENCE

ALL_HEADS = ("gap", "fc_dropout", "fc", "gmp", "gap_article", "fc_article", "gmp_article")  # in the order of tables
PAPER = {"gap": 10.41, "fc_dropout": 10.88, "fc": 11.59}  # the paper's Table 5: CIFAR-10, without augmentation
NAMED = (*OF_NO_CONSEQUENCE, "logger", "eval_curve", "head", "seed", "recipe", "data", "experiment", "data.val")
NAMED += ("trainer.max_epochs", "trainer.precision", "trainer.accelerator")
NOTHING = {  # as if the setting had not been given
    "freeze": ("false", "no", "off", "0"),
    "checkpoint": ("null", ""),
    "model": ("cifar10",),
    "trainer": ("auto", "cpu", "gpu"),
    "trainer.devices": ("1",),
}


class RowsError(RuntimeError):
    """A file that does not hold the rows of a study."""


class Condition(NamedTuple):
    """What runs have in common that can be compared; epochs are 0 where their number may differ."""

    data: str
    recipe: str
    epochs: int
    precision: str
    held_out: int  # training images

    @property
    def errors(self) -> str:
        """Which error its runs are compared by."""
        return "held-out error" if self.held_out else "test error"

    @property
    def title(self) -> str:
        parts = [self.data, f"recipe {self.recipe}", f"{self.epochs} epochs" * bool(self.epochs), self.precision]
        parts.append(f"{self.held_out:,} training images held out" * bool(self.held_out))
        return ", ".join(filter(None, parts))

    @property
    def stem(self) -> str:
        """The same for the name of a file."""
        held_out = f"val{self.held_out}" * bool(self.held_out)
        parts = [self.data, self.recipe, str(self.epochs) * bool(self.epochs), self.precision, held_out]
        return "-".join(filter(None, parts))


@dataclass(frozen=True)
class Row:
    """One run. Errors in %, `val_error` on training images that were held out, `test_curve` the test error after each
    epoch, separated by spaces."""

    overrides: str
    data: str
    head: str
    recipe: str
    seed: int
    epochs: int
    status: str  # ok, dead (the net died, which is a result) or stopped (the run was)
    test_error: float | None = None
    train_error: float | None = None
    val_error: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    precision: str = ""
    hardware: str = ""
    torch: str = ""
    commit: str = ""
    clean: bool = True  # whether the tree was the commit's
    test_curve: str = ""

    @property
    def error(self) -> float | None:
        """What the run is compared by: the error on the images that were held out, where some were, so that the test
        set chooses nothing."""
        return self.val_error if self.condition.held_out else self.test_error

    @property
    def given(self) -> dict[str, str]:
        """The overrides by name."""
        return _given(self.overrides)

    @property
    def varied(self) -> dict[str, str]:
        """What was varied besides head and seed: the settings but those that name the condition, or say nothing."""
        return {name: value for name, value in _telling(self.overrides) if name not in NAMED}

    @property
    def variant(self) -> str:
        """The same in words."""
        return " ".join(f"{name}={value}" for name, value in self.varied.items())

    @property
    def condition(self) -> Condition:
        return Condition(self.data, self.recipe, self.epochs, self.precision, int(self.given.get("data.val", 0)))


COLUMNS = [f.name for f in fields(Row)]


def row_of(folder: Path, overrides: str, exit_code: int) -> Row:
    """The row of the run that left `folder`."""
    summary = json.loads((folder / "summary.json").read_text())
    described = {name: summary[name] for name in ("data", "head", "recipe", "seed", "epochs", "precision")}
    described |= {
        "overrides": overrides,
        "status": {0: "ok", 3: "dead"}.get(exit_code, "stopped"),
        "hardware": summary["device"],
        "torch": summary["versions"]["torch"],
        "commit": summary["commit"].removesuffix("+changes"),
        "clean": not summary["commit"].endswith("+changes"),
    }
    if exit_code == 0:
        for name in ("test_error", "train_error", "val_error", "seconds", "images_per_second"):
            described[name] = summary.get(name)
    metrics = folder / "metrics.csv"
    if metrics.exists():
        with open(metrics, newline="") as opened:
            curve = [f"{float(r['test_curve/error']):.2f}" for r in csv.DictReader(opened) if r.get("test_curve/error")]
        described["test_curve"] = " ".join(curve)
    return Row(**described)


def ended(file: Path) -> list[Row]:
    """The rows of the runs that came to an end, one a run as tables know it. Raises RowsError."""
    return list(last_of(read(file), lambda row: (row.condition, row.variant, row.head, row.seed)).values())


def last_of(rows: Sequence[Row], run: Callable[[Row], Hashable]) -> dict[Any, Row]:
    """Of each `run` that came to an end the last row, or the last with a test curve; rows of None are left out."""
    found: dict[Any, Row] = {}
    for row in rows:
        if row.status == "stopped" or (key := run(row)) is None:
            continue
        if row.test_curve or key not in found or not found[key].test_curve:
            found[key] = row
    return found


def read(file: Path) -> list[Row]:
    """The rows of a study; none where the file is not there. Raises RowsError."""
    rows: list[Row] = []
    try:
        with open(file, newline="") as opened:
            for row in csv.DictReader(opened, strict=True):
                rows.append(_typed(row))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RowsError(f"{file}: it cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise RowsError(f"{file}: row {len(rows) + 1} is not a row of a study ({error})") from error
    return rows


def _typed(row: dict[str, str]) -> Row:
    if None in row or None in row.values():
        raise ValueError(f"it has not the {len(COLUMNS)} columns of one")
    values: dict = {name: row[name] for name in COLUMNS}
    for name in ("test_error", "train_error", "val_error", "seconds", "images_per_second"):
        values[name] = float(row[name]) if row[name] else None
    values |= {"seed": int(row["seed"]), "epochs": int(row["epochs"]), "clean": row["clean"] == "True"}
    read = Row(**values)
    one_of(ALL_HEADS, head=read.head)
    one_of(("ok", "dead", "stopped"), status=read.status)
    if read.status == "ok" and None in (read.error, read.train_error):
        raise ValueError("it is ok and has no errors")
    _given(read.overrides)  # whether they can be read
    for number in read.test_curve.split():
        float(number)
    return read


def append(file: Path, *rows: Row) -> None:
    """Adds rows, and the header where the file is new; without a row it shows whether one could be added. Raises
    RowsError where none can, and leaves the file as it was."""
    before = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a+b") as opened:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(opened, fcntl.LOCK_EX)  # studies may share the file
            opened.seek(0)
            before = opened.read()
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            if not before:
                writer.writeheader()
            elif before.splitlines()[0] != ",".join(COLUMNS).encode():
                raise RowsError(f"{file}: the columns of a study are {', '.join(COLUMNS)}")
            elif not before.endswith(b"\n"):
                text.write("\n")
            writer.writerows(asdict(row) for row in rows)
            opened.write(text.getvalue().encode())
    except OSError as error:
        if before is not None:
            with suppress(OSError):
                os.truncate(file, len(before))  # half a row would spoil the file
        raise RowsError(f"{file}: a row cannot be added ({error}); the rows before are as they were") from error


def _given(overrides: str) -> dict[str, str]:
    """Overrides by name. Truth and small numbers have one spelling: Hydra takes True and true, 5e-4 and 0.0005."""
    pairs = (override.lstrip("+").partition("=") for override in shlex.split(overrides))
    return {name: _one_spelling(value) for name, _, value in pairs}


def _one_spelling(value: str) -> str:
    if value.lower() in ("true", "false"):
        return value.lower()
    return str(float(value)) if re.fullmatch(r"\d+\.?\d*e-\d+", value) else value


def _telling(overrides: str) -> list[tuple[str, str]]:
    """Overrides by name, without those that say nothing."""
    return [(name, value) for name, value in _given(overrides).items() if value.lower() not in NOTHING.get(name, ())]


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "10.41 ± 0.12", or the value alone where there is one."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The t interval for the mean of paired differences. Needs two at least."""
    n = len(differences)
    half = stats.t.ppf((1 + level) / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return statistics.mean(differences) - half, statistics.mean(differences) + half


def made_with(rows: Sequence[Row]) -> str:
    """Commits and versions of torch: where they differ, runs are compared across them."""
    commits = {row.commit[:8] + "+changes" * (not row.clean) for row in rows if row.commit}
    versions = {row.torch.split("+")[0] for row in rows if row.torch}
    return f"Commit {', '.join(sorted(commits))}; torch {', '.join(sorted(versions))}."


def paired(differences: Sequence[float], seeds: int = 0) -> str:
    """ "+0.90 (+0.61 to +1.19)": the mean of paired differences and its 95 % interval, as far as there are any and they
    differ; and how many they are, where they are less than the `seeds`."""
    if not differences:
        return "no common seed"
    if len(differences) == 1:
        return f"{differences[0]:+.2f} (one seed)"
    pairs = f"; {len(differences)} pairs" * (len(differences) < seeds)
    if max(differences) - min(differences) < 1e-6:
        return f"{differences[0]:+.2f} ({len(differences)} times the same)"
    low, high = interval(differences)
    return f"{statistics.mean(differences):+.2f} ({low:+.2f} to {high:+.2f}{pairs})"


def epochs_to(row: Row, accuracy: float) -> float | None:
    """Epochs to a test accuracy (in %), on a straight line between the ends of two; None where it never was reached."""
    before = None
    for epoch, error in enumerate(row.test_curve.split(), 1):
        above = float(error) - (100 - accuracy)
        if above <= 0:
            return float(epoch) if before is None else epoch - 1 + before / (before - above)
        before = above
    return None
