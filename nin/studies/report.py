"""Tables and figures of an ablation study, from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from nin.studies.ablation import HEADS, Row, epochs_to, mean_and_deviation

PAPER = {"fc": 11.59, "fc_dropout": 10.88, "gap": 10.41}  # Table 5: CIFAR-10, no augmentation
# apart for every kind of colour vision: no two nearer than 31 (CIELAB), simulated protanopia and deuteranopia included
COLOURS = dict(zip(HEADS, ("#009e73", "#b2182b", "#e69f00", "#0072b2", "#009e73", "#e69f00", "#0072b2"), strict=True))


def plot_heads(rows: Sequence[Row], file: Path, title: str) -> None:
    """Every seed's test error as a point, one column a head, the mean as a line; beside it the paper's figure."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    shown = [head for head in HEADS if any(row.head == head for row in rows)]
    for x, head in enumerate(shown):
        errors = [row.test_error for row in rows if row.head == head and row.status == "ok"]
        axis.scatter([x] * len(errors), errors, color=COLOURS[head], alpha=0.8, zorder=3)
        if errors:
            axis.hlines(sum(errors) / len(errors), x - 0.2, x + 0.2, color=COLOURS[head], linewidth=2)
        if head in PAPER and rows[0].data == "cifar10":
            axis.scatter([x + 0.32], [PAPER[head]], marker="_", s=160, color="#888888", zorder=2)
    if rows[0].data == "cifar10":
        axis.scatter([], [], marker="_", s=160, color="#888888", label="paper, Table 5")
    axis.scatter([], [], color="#555555", label="one seed")
    axis.set(xticks=range(len(shown)), ylabel="test error (%)", title=title)
    axis.set_xticklabels(shown)
    _finish(figure, axis, file)


def plot_curves(rows: Sequence[Row], file: Path, title: str) -> None:
    """Test error after each epoch: a thin line a seed, a colour a head."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for head in HEADS:
        label = head
        for row in rows:
            curve = [float(error) for error in row.test_curve.split()]
            if row.head == head and curve:
                axis.plot(range(1, len(curve) + 1), curve, color=COLOURS[head], alpha=0.8, label=label)
                label = None
    axis.set(xlabel="epoch", ylabel="test error (%)", title=title, yscale="log")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter())
    _finish(figure, axis, file)


def _finish(figure: Figure, axis: Axes, file: Path) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None})


def convergence(rows: Sequence[Row], accuracies: Sequence[float] = (80, 85, 90)) -> str:
    """A Markdown table: epochs that each head needed to reach a test accuracy (%), over seeds."""
    lines = [
        "| head | " + " | ".join(f"epochs to {a:g} %" for a in accuracies) + " |",
        "|---" * (len(accuracies) + 1) + "|",
    ]
    for head in HEADS:
        chosen = [row for row in rows if row.head == head and row.test_curve]
        if not chosen:
            continue
        cells = []
        for accuracy in accuracies:
            reached = [epochs_to(row, accuracy) for row in chosen]
            found = [epoch for epoch in reached if epoch is not None]
            missed = len(reached) - len(found)
            cells.append((mean_and_deviation(found) if found else "") + f" ({missed} never)" * bool(missed))
        lines.append(f"| `{head}` | " + " | ".join(cell.strip() for cell in cells) + " |")
    return "\n".join(lines)
