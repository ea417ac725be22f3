"""A run's learning curves as a picture."""

from __future__ import annotations

import csv
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from nin import files
from nin.checks import counted, literal
from nin.run.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {"train": "training, augmented", "val": "held out", "test_curve": "test"}
WIDTH = 84  # letters of a line of the title


def plot_curves(metrics: Path, file: Path, record: Record) -> None:
    """Draws a run's metrics.csv into a file. Raises RunError if it cannot be written."""
    files.save_figure(draw(metrics, record), file)


def draw(metrics: Path, record: Record) -> Figure:
    """A figure of a run: loss on the left, error in % on the right, over the epochs, and the final test error.

    Args:
        metrics: the run's metrics.csv.
        record: of the finished run.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with open(metrics, newline="") as opened:
        rows = list(csv.DictReader(opened))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    title = f"{record.title}, {counted(record.epochs, 'epoch')}: test error {record.test_error:.2f} %"
    figure.suptitle(textwrap.fill(literal(title), WIDTH), fontsize=11)
    style = {"marker": "." if len(rows) <= 50 else "", "markersize": 12 if len(rows) == 1 else 6}
    final = {"marker": "D", "linestyle": "none", "color": "black", "markersize": 5, "clip_on": False, "zorder": 3}
    for axis, quantity, label in zip(figure.subplots(1, 2), ("loss", "error"), ("loss", "error (%)"), strict=True):
        for stage, name in STAGES.items():
            points = [(int(r["epoch"]) + 1, float(r[key])) for r in rows if r.get(key := f"{stage}/{quantity}")]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, **style)
        if quantity == "error":
            axis.plot([record.epochs], [record.test_error], label="test, after the last epoch", **final)
        values = [value for line in axis.lines for value in line.get_ydata()]
        highest = max(filter(math.isfinite, values), default=0)  # one epoch's loss may have overflowed
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, 1.08 * highest or 1))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if len(rows) == 1:
            axis.set(xlim=(0.6, 2.2), xticks=[1])  # the legend is at the right
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return figure
