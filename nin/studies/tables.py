"""Tools for the tables and figures of studies: statistics over seeds, Markdown, names of files, the heads' colours."""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nin import files
from nin.checks import literal
from nin.plan import HEADS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LEVEL = 0.95  # of intervals
LEAST_SEEDS = 3  # of a verdict
LEAST_IMAGES = 30  # of a verdict over images

# No two of the first four are nearer than 31 (CIELAB) under simulated protanopia and deuteranopia. The article's heads
# have the remaining colours of Okabe and Ito.
COLOURS = {
    "gap": "#009e73",
    "fc_dropout": "#b2182b",
    "fc": "#e69f00",
    "gmp": "#0072b2",
    "gap_article": "#56b4e9",
    "fc_article": "#000000",
    "gmp_article": "#cc79a7",
}
LINES = ("-", "--", ":", "-.")  # line styles of several nets with one head
LONGEST_LABEL = 24  # letters of a name at the end of a line
GREY = "#555555"  # of parts of a figure that belong to no head, as in a legend

POOLING = tuple(name for name, head in HEADS.items() if head.pools)
FULLY_CONNECTED = tuple(name for name, head in HEADS.items() if not head.pools)


def mean_and_deviation(values: Sequence[float]) -> str:
    """The mean and the standard deviation, "10.41 ± 0.12", or the value alone if there is one."""
    values = list(values)
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % t interval for the mean of at least two paired differences. If all are equal it has no width."""
    from scipy import stats

    n, mean = len(differences), statistics.mean(differences)
    if len(set(differences)) == 1:  # scipy returns NaN for a scale of 0
        return mean, mean
    low, high = stats.t.interval(LEVEL, n - 1, loc=mean, scale=statistics.stdev(differences) / math.sqrt(n))
    return float(low), float(high)


def all_equal(differences: Sequence[float]) -> bool:
    """Whether differences are the same but for rounding, so that they have no interval."""
    return max(differences) - min(differences) < 1e-6


def paired(differences: Sequence[float], seeds: int = 0, noun: str = "seed") -> str:
    """The mean of paired differences and its 95 % interval, "+0.90 (+0.61 to +1.19)".

    Args:
        differences: one for each seed that both have.
        seeds: how many seeds there are; if fewer have a pair, their number is added.
        noun: what there is a difference for, in place of a seed.
    """
    differences = list(differences)
    if not differences:
        return f"no common {noun}"
    if len(differences) == 1:
        return f"{differences[0]:+.2f} (one {noun})"
    if all_equal(differences):
        return f"{differences[0]:+.2f} ({len(differences)} times the same)"
    low, high = interval(differences)
    pairs = f"; {len(differences)} pairs" if len(differences) < seeds else ""
    return f"{statistics.mean(differences):+.2f} ({low:+.2f} to {high:+.2f}{pairs})"


def paired_differences(runs: pd.DataFrame, others: pd.DataFrame) -> list[float]:
    """The errors of runs minus those of other runs, one for each seed in which both have an error, in their order.

    Raises:
        ValueError: two of the runs have one seed, so that they are not seeds of one training.
    """
    errors, theirs = (each.set_index("seed", verify_integrity=True).error for each in (runs, others))
    return (errors - theirs).dropna().sort_index().tolist()


def each_seed(runs: pd.DataFrame) -> str:
    """The error of each run of a frame, "10.00, dead, 10.40": the status stands where there is no error."""
    cells = []
    for status, error in zip(runs.status, runs.error, strict=True):
        cells.append(f"{error:.2f}" if math.isfinite(error) else status)
    return ", ".join(cells)


def died(number: int) -> str:
    """The end of a cell that counts dead runs, ", 2 died"; empty if there are none."""
    return f", {number} died" if number else ""


def epochs_to(curve: Sequence[float], accuracy: float) -> float | None:
    """Epochs to a test accuracy (%), interpolated linearly between two epochs; None if it is never reached.

    Args:
        curve: test error in % after each epoch.
        accuracy: in %.
    """
    before = None
    for epoch, error in enumerate(curve, 1):
        above = error - (100 - accuracy)
        if above <= 0:
            return float(epoch) if before is None else epoch - 1 + before / (before - above)
        before = above
    return None


def made_with(rows: pd.DataFrame) -> str:
    """The commits and versions of torch that rows were made with; where they differ, runs are compared across them."""
    commits = set()
    for commit, is_clean in zip(rows.commit, rows.clean, strict=True):
        if commit:
            commits.add(commit[:8] if is_clean or commit == "unknown" else f"{commit[:8]}+changes")
    versions = {version.split("+")[0] for version in rows.torch if version}
    return f"Commit {', '.join(sorted(commits))}; torch {', '.join(sorted(versions))}."


def table_row(*cells: str) -> str:
    """A row of a Markdown table; a bar in a cell ends none."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def table_rule(columns: int) -> str:
    """The line under a Markdown table's head: for the column that names the rows, and for `columns` others."""
    return "|---" * (columns + 1) + "|"


def file_stem(*parts: str) -> str:
    """A file's name without suffix: the parts that are not empty, joined by "-". Characters that do not belong in a
    name become "-" as well. A name that is cut, or in which more than the "=" and the spaces of NAME=VALUE become
    "-", ends in a hash that keeps it unique: -1 is not 1."""
    text = "-".join(filter(None, parts))
    stem = re.sub(r"[^\w.]+", "-", text)
    if len(stem.encode()) <= 150 and re.fullmatch(r"[\w.]+([-= ][\w.]+)*", text):
        return stem
    return f"{stem.encode()[:140].decode(errors='ignore')}-{files.sha256(text.encode())[:8]}"


def clean(axis: Axes, grid: str = "both") -> Axes:
    """The same axis with a light grid ("both", "x" or "y") and without the frame above and at the right."""
    axis.grid(alpha=0.25, axis=grid)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def label(axis: Axes, ends: Sequence[tuple[float, float, str, str, str]]) -> None:
    """Writes names at the ends of lines, none over another and none above the axis. Long names would leave no room for
    the lines: they stand in a legend under the figure, once. Call it when the axis has its limits.

    Args:
        axis: where the lines are.
        ends: (x, y, name, colour, line style) of each line's last point.
    """
    if max((len(name) for _, _, name, *_ in ends), default=0) > LONGEST_LABEL:
        if not axis.figure.legends:
            lines = [axis.plot([], [], style, color=colour, marker="o", markersize=4)[0] for *_, colour, style in ends]
            names = [textwrap.fill(literal(name), 60) for _, _, name, *_ in ends]
            axis.figure.legend(lines, names, frameon=False, fontsize=8, loc="outside lower left")
        return
    low, high = axis.get_ylim()
    line = 0.055 * (high - low)
    style = {"textcoords": "offset points", "va": "center", "fontsize": 9, "annotation_clip": False}
    by_height = sorted(ends, key=lambda end: end[1])
    lowest: dict[float, float] = {}  # by x, where the next name may stand
    for place, (x, y, name, colour, _) in enumerate(by_height):
        above = sum(x == other for other, *_ in by_height[place + 1 :])  # the names that need room over this one
        height = max(min(y, high - above * line), lowest.get(x, low))
        lowest[x] = height + line
        axis.annotate(literal(name), (x, height), (8, 0), color=colour, **style)
