"""A run's learning curves as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

from nin import files

STAGES = {"train": "training, augmented", "val": "held out", "test_curve": "test"}


def plot_curves(metrics: Path, file: Path) -> None:
    """Draws metrics.csv: loss on the left, error in % on the right, over the epochs.

    Raises:
        RunError: the picture cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with open(metrics, newline="") as opened:
        rows = list(csv.DictReader(opened))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axis, quantity, label in zip(figure.subplots(1, 2), ("loss", "error"), ("loss", "error (%)"), strict=True):
        for stage, name in STAGES.items():
            points = [(int(r["epoch"]) + 1, float(r[key])) for r in rows if r.get(key := f"{stage}/{quantity}")]
            if points:
                axis.plot(*zip(*points, strict=True), marker=".", label=name)
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    files.save_figure(figure, file)
