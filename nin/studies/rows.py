"""The rows of a study: a CSV file with one row per run, read as a pandas frame.

A row holds the settings that its run's result depends on, so it stays true when a file in conf/ or a published net
changes later. Rows are data: they are never composed again.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from nin import files
from nin.checks import boolean, counted, integer, is_number, one_line, one_of, printable, share
from nin.config import Config, check_types, consequential, settings_of
from nin.errors import RowsError, RunError
from nin.plan import HEADS

if TYPE_CHECKING:
    from nin.run.record import Record

COLUMNS = (
    *("data", "head", "recipe", "seed", "epochs", "status", "test_error", "train_error", "val_error", "seconds"),
    *("images_per_second", "precision", "hardware", "torch", "commit", "clean"),
    *("start_name", "start_sha256", "start_head", "variant", "settings", "test_curve", "curves", "start_data"),
)
LATER = COLUMNS[-2:]  # columns that older files and rows lack, one or both
HEADER, *OLDER = (",".join(COLUMNS[: len(COLUMNS) - lacking]).encode() for lacking in range(len(LATER) + 1))
CURVES = {"train_error": "train/error", "train_loss": "train/loss", "test_loss": "test_curve/loss"}  # of metrics.csv
NUMBERS = ("test_error", "train_error", "val_error", "seconds", "images_per_second")
# a row's status by that of its run's record: a dead net is a result, a run that was stopped has none yet
STATUS_OF = {"finished": "ok", "dead": "dead", "running": "stopped"}
STATUSES = tuple(STATUS_OF.values())
NAMED = {"data": "data.name", "head": "head.name", "recipe": "recipe.name", "seed": "seed"}
NAMED |= {"epochs": "trainer.max_epochs"}
# the first two are in `identity` as the row's own precision and start_sha256; the last two do not change what is learnt
NOT_OF_IDENTITY = ("trainer.precision", "checkpoint", "trainer.accelerator", "eval_curve")
NOT_COMPARED = (*NOT_OF_IDENTITY, "head.name", "seed")  # may differ between rows that are compared
NO_ROW = (LookupError, TypeError, ValueError, RecursionError, csv.Error)  # what reading something else raises


class Condition(NamedTuple):
    """The facts that runs must have in common to be compared. `epochs` is 0 if runs of any length are compared."""

    data: str
    recipe: str
    epochs: int
    precision: str
    held_out: int  # training images

    @property
    def error_name(self) -> str:
        """The name of the error by which its runs are compared."""
        return "held-out error" if self.held_out else "test error"

    @property
    def title(self) -> str:
        """The condition in words: "cifar10, recipe quick, 8 epochs, bf16-mixed"."""
        epochs = counted(self.epochs, "epoch") if self.epochs else ""
        held_out = f"{counted(self.held_out, 'training image')} held out" if self.held_out else ""
        return ", ".join(filter(None, [self.data, f"recipe {self.recipe}", epochs, self.precision, held_out]))

    @property
    def stem(self) -> str:
        """The condition as part of a file's name: "cifar10-quick-8-bf16-mixed"."""
        epochs = str(self.epochs) if self.epochs else ""
        held_out = f"val{self.held_out}" if self.held_out else ""
        return "-".join(filter(None, [self.data, self.recipe, epochs, self.precision, held_out]))


def row_of(
    record: Record, curve: Sequence[float] = (), variant: str = "", curves: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Any]:
    """The row of a run.

    Args:
        record: of the run's folder.
        curve: test error in % after each epoch.
        variant: the settings that were varied, for people; nothing is derived from it.
        curves: for names of CURVES a number after each epoch.

    Returns:
        a dictionary of COLUMNS; errors and timings are None unless the run finished.
    """
    status = STATUS_OF[record.status]
    row = {name: getattr(record, name) for name in (*NAMED, "precision", "commit", "clean")}
    row |= {name: getattr(record, name) if status == "ok" else None for name in NUMBERS}
    row |= {"status": status, "hardware": record.device, "torch": record.versions.get("torch", "")}
    start = record.start
    row |= {f"start_{name}": getattr(start, name, None) or "" for name in ("name", "sha256", "head", "data")}
    row |= {"variant": variant, "settings": consequential(record.settings), "test_curve": tuple(curve)}
    row |= {name: printable(value) for name, value in row.items() if isinstance(value, str) and name not in NAMED}
    return row | {"curves": dict(curves or {})}


def identity(settings: Mapping[str, Any], precision: str, start_sha256: str = "") -> str:
    """The text by which a run is known: equal for two runs that must have the same result.

    Args:
        settings: the run's consequential settings by dotted name. A setting that the schema got later has its default,
            which reproduces the behaviour of earlier runs.
        precision: the precision that the run computed in, never "auto".
        start_sha256: sha256 of the weights that the run started from.
    """
    complete = {**defaults(), **settings}
    kept = {name: value for name, value in complete.items() if name not in NOT_OF_IDENTITY}
    return json.dumps({**kept, "precision": precision, "start": start_sha256}, sort_keys=True)


def read(file: str | Path) -> pd.DataFrame:
    """The rows of a study; an empty frame if the file does not exist.

    Returns:
        a frame of COLUMNS, where

        - settings are dictionaries, with defaults for settings that are newer than the row;
        - test_curve is a tuple of errors in %;
        - curves is a dictionary of lists, empty in rows from before curves were recorded;

        and of derived columns:

        - held_out: number of training images held out; share: the share of the training images that is trained on;
          frozen: whether layers were frozen;
        - error: the error in % by which runs are compared, that of the held-out images if there are any, else of the
          test set;
        - condition: a Condition; identity: as returned by `identity`.

    Raises:
        RowsError: it cannot be read, or is not a study's file; the message names file and row.
    """
    rows: list[dict[str, Any]] = []
    try:
        text = files.read(file).decode("utf-8-sig")  # spreadsheets begin a file with a mark
        if text and not text.endswith("\n"):
            rows = [{}] * (text.count("\n") - 1)  # so that the message names the last row
            raise ValueError("it is cut: its line does not end; complete it or delete it")
        for row in _parsed(text):
            rows.append(_typed(row))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RowsError(f"{file} cannot be read ({error.strerror or error})") from error
    except NO_ROW as error:
        raise RowsError(f"{file}: row {len(rows) + 1} is not a row of a study ({_reason(error)})") from error
    derived = ("held_out", "share", "frozen", "error", "condition", "identity")
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *derived])
    return frame.astype(dict.fromkeys((*NUMBERS, "error", "share"), float))


def ended(file: str | Path) -> pd.DataFrame:
    """The rows of the runs that ended, one per run, as by `last_of_each_run`.

    Returns:
        a frame as returned by `read`, with a column `label`: the variant, and the settings that differ among rows of
        one condition and variant, as after an edit of a recipe.

    Raises:
        RowsError: as `read` does.
    """
    rows = last_of_each_run(read(file))
    return rows.assign(label=labels(rows))


def last_of_each_run(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each run that ended: its last row with a test curve, or its last row if none has one."""
    rows = rows[rows.status != "stopped"]
    best_last = rows.assign(has_curve=rows.test_curve.map(bool)).sort_values("has_curve", kind="stable")
    return rows.loc[best_last.drop_duplicates("identity", keep="last").index.sort_values()]


def labels(rows: pd.DataFrame) -> pd.Series:
    """A label for each row: its variant, and the settings that differ among the rows of its condition and variant. Rows
    with the same settings get the variant of the first of them."""
    compared = {row.Index: _compared(row) for row in rows.itertuples()}
    settings_text = pd.Series(
        {index: json.dumps(settings) for index, settings in compared.items()}, index=rows.index, dtype=str
    )
    condition = [rows[name] for name in Condition._fields]
    variant = rows.variant.groupby([*condition, settings_text]).transform("first")
    labels = variant.astype(str)
    while True:  # a longer label may be that of other rows
        number = settings_text.groupby([*condition, labels]).transform("nunique")
        if not (number > 1).any():
            return labels
        longer = dict(labels)
        for group in rows.groupby([*condition, labels]).groups.values():
            for name in dict.fromkeys(name for index in group for name in compared[index]):
                if len({compared[index].get(name) for index in group}) > 1:
                    for index in group:
                        longer[index] = f"{longer[index]} {name}={compared[index].get(name)}".strip()
        labels = pd.Series(longer, index=rows.index, dtype=str)


def append(file: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows of COLUMNS to a study's file, all or none; creates the file if need be. An empty sequence checks that
    rows can be added. Several processes may append to one file.

    Raises:
        RowsError: the file is not a study's, or cannot be written, or a row could not be read again; its rows are
            unchanged.
    """
    try:
        file = Path(os.path.realpath(file))  # a link stays one, and all who write to its file have one lock
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(file.with_name(f".{file.name}.lock"), timeout=-1):
            before = files.read(file).removeprefix(codecs.BOM_UTF8) if file.exists() else b""
            for older in OLDER:
                if before.startswith(older + b"\n"):  # its rows may lack the columns that came later
                    before = before.replace(older, HEADER, 1)
            files.write(file, before + _appended(file, before, rows))
    except (OSError, RunError) as error:
        raise RowsError(f"{file}: a row cannot be added ({error}); the rows before are as they were") from error


def _appended(file: Path, before: bytes, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes to append to a file with the content `before`: these rows, after the header if it is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    if not before:
        writer.writeheader()
    elif before.splitlines()[0] != HEADER:
        raise RowsError(f"{file} is not a study's file: expected the columns {', '.join(COLUMNS)}")
    elif not before.endswith(b"\n"):
        raise RowsError(f"{file}: its last row is cut: the line does not end; complete it or delete it")
    header = text.tell()
    for row in rows:
        curve = " ".join(f"{error:.2f}" for error in row["test_curve"])
        numbers = {name: "" if _is_missing(row[name]) else row[name] for name in NUMBERS}
        settings = json.dumps(row["settings"], sort_keys=True)
        curves = json.dumps(row["curves"], sort_keys=True) if row.get("curves") else ""
        writer.writerow({**row, **numbers, "settings": settings, "test_curve": curve, "curves": curves})
    try:
        for written in _parsed(text.getvalue()[header:], COLUMNS):
            _typed(written)
        return text.getvalue().encode()
    except NO_ROW as error:
        raise RowsError(f"{file}: a row cannot be added: it could not be read again ({_reason(error)})") from error


def _parsed(text: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of CSV by column; the first line names the columns, unless they are given."""
    return csv.DictReader(io.StringIO(text, newline=""), columns, strict=True)


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)


def _typed(row: dict[str, str]) -> dict[str, Any]:
    """A row's values with their types, and the values derived from them. Raises ValueError, KeyError or TypeError."""
    curves, start_data = (row.pop(name, None) or "" for name in LATER)
    if None in row or None in row.values():
        raise ValueError(f"expected {len(COLUMNS)} columns")
    row = {name: row[name] for name in COLUMNS if name not in LATER} | {"start_data": start_data}
    if unprintable := [name for name, text in row.items() if not text.isprintable()]:
        raise ValueError(f"{unprintable[0]} contains control characters")
    typed: dict[str, Any] = {**row, "curves": _checked_curves(json.loads(curves or "{}"))}
    for name in NUMBERS:
        typed[name] = _number(name, row[name]) if row[name] else math.nan
    for name in ("seed", "epochs"):
        typed[name] = (
            int(row[name]) if re.fullmatch("[0-9]{1,10}", row[name]) else row[name]
        )  # a text differs from the settings, below
    typed["clean"] = row["clean"] == "True"
    typed["test_curve"] = tuple(_number("test_error", error) for error in row["test_curve"].split())
    typed["settings"] = settings = {**defaults(), **json.loads(row["settings"])}
    check_types(settings)
    one_of(HEADS, head=typed["head"])
    one_of(("", *HEADS), start_head=typed["start_head"])
    one_of(STATUSES, status=typed["status"])
    one_of(("True", "False"), clean=row["clean"])
    for column, name in NAMED.items():
        if typed[column] != settings[name]:
            raise ValueError(f"{column} is {typed[column]}, but its settings have {name}={one_line(settings[name])}")
    held_out, part, frozen = (settings[name] for name in ("data.val", "data.share", "freeze"))
    integer(0, 10**9, **{"data.val": held_out})
    share(**{"data.share": part})
    boolean(freeze=frozen)
    error = typed["val_error" if held_out else "test_error"]
    if typed["status"] == "ok" and not (math.isfinite(error) and math.isfinite(typed["train_error"])):
        raise ValueError("its status is ok, but an error is missing")
    typed |= {"held_out": held_out, "share": part, "frozen": frozen, "error": error}
    typed["condition"] = Condition(*(typed[name] for name in Condition._fields))
    return typed | {"identity": identity(settings, typed["precision"], typed["start_sha256"])}


def _checked_curves(curves: Any) -> dict[str, list[float]]:
    """The curves of a row. Raises ValueError unless they are lists of numbers under names of CURVES."""
    if not isinstance(curves, dict) or not set(curves) <= set(CURVES):
        raise ValueError(f"expected curves named {', '.join(CURVES)}")
    for name, curve in curves.items():
        if not isinstance(curve, list) or not all(is_number(value) for value in curve):
            raise ValueError(f"{name} is no list of numbers")
    return curves


def _number(column: str, text: str) -> float:
    """A number of a row: an error in %, or an amount. Raises ValueError."""
    number, most = float(text), 100 if column.endswith("error") else 1e12
    if not 0 <= number <= most:
        raise ValueError(f"{column}={one_line(text)}: expected a number from 0 to {most:g}")
    return number


def _compared(row: Any) -> dict[str, str]:
    """The settings by which rows of one condition and variant may differ, as a label states them."""
    compared = {name: _stated(value) for name, value in sorted(row.settings.items()) if name not in NOT_COMPARED}
    return compared | {"start": row.start_sha256[:8] or "none"}


def _stated(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@cache
def defaults() -> dict[str, Any]:
    """All consequential settings with their defaults. A setting that is newer than a row has the default that
    reproduces the row's run."""
    return consequential(settings_of(Config()))


def _is_missing(value: float | None) -> bool:
    return value is None or math.isnan(value)
