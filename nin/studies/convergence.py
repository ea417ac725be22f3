"""The claim about convergence: a net with global average pooling learns more slowly."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nin.errors import ClaimError
from nin.plan import HEADS
from nin.run.started import spelled
from nin.studies.answer import Answer
from nin.studies.comparisons import Group, comparable, judge
from nin.studies.report import ACCURACIES, epochs_table
from nin.studies.tables import COLOURS, FULLY_CONNECTED, clean, epochs_to, made_with, table_row, table_rule

CLAIM = "A net with global average pooling converges more slowly than one with a fully connected head."


def answers(rows: pd.DataFrame) -> list[Answer]:
    """Epochs to each of `ACCURACIES` (%) by head, and the difference to GAP seed by seed: an answer for each condition,
    or only for those with several heads, if there are any. Nets that died are counted, but not averaged.

    Raises:
        ClaimError: no row has a test curve.
    """
    groups = []
    for group in comparable(rows):
        known = group.rows[group.rows.test_curve.map(bool) | (group.rows.status == "dead")]
        if (known.status == "ok").any():
            groups.append(group._replace(rows=known))
    if not groups:
        raise ClaimError(
            "claim=convergence: no run of the study that varies only head and seed has a test curve; train some with "
            f"{spelled('ablate')} head=gap,fc seed=0,1,2 eval_curve=true"
        )
    several = [group for group in groups if group.rows["head"].nunique() > 1]
    return [_answer(group) for group in several or groups]


def _answer(group: Group) -> Answer:
    measured = measure(group.rows)
    epochs = group.condition.epochs
    title = f"Epochs to an accuracy: {group.title}"
    verdict, finding = judge_epochs(measured, epochs)
    name, tables = f"convergence-{group.stem}", table(group.rows, measured)
    return Answer(name, title, CLAIM, verdict, finding, tables, draw(measured, epochs))


def measure(rows: pd.DataFrame) -> pd.DataFrame:
    """Epochs that each run needed, interpolated linearly between two epochs.

    Returns:
        a row for each finished run and accuracy: head, seed, accuracy (%), epochs (NaN if it was never reached).
    """
    measured = []
    for row in rows[rows.status == "ok"].sort_values("seed").to_dict("records"):
        for accuracy in ACCURACIES:
            epochs = epochs_to(row["test_curve"], accuracy)
            measured.append((row["head"], row["seed"], accuracy, float("nan") if epochs is None else epochs))
    return pd.DataFrame(measured, columns=["head", "seed", "accuracy", "epochs"])


def beside_gap(measured: pd.DataFrame) -> pd.DataFrame:
    """The runs of the other heads, by seed, with the epochs of GAP's run of the same seed as epochs_gap."""
    is_gap = measured["head"] == "gap"
    return measured[~is_gap].merge(measured[is_gap], on=["seed", "accuracy"], suffixes=("", "_gap"))


def table(rows: pd.DataFrame, measured: pd.DataFrame) -> str:
    """Epochs by head, then the differences to GAP seed by seed, in Markdown."""
    parts = [epochs_table(rows)]
    if measured["head"].nunique() > 1 and (measured["head"] == "gap").any():
        parts.append(_differences_table(measured))
    parts.append(
        "Between the ends of two epochs the error is interpolated linearly. In the verdict, an accuracy that was never "
        "reached counts as reached one epoch after the last; one that neither head reached does not count. These "
        "figures hold for this recipe and this number of epochs. "
        f"{made_with(rows[rows.status == 'ok'])}"
    )
    return "\n\n".join(parts)


def _differences_table(measured: pd.DataFrame) -> str:
    pairs = beside_gap(measured)
    pairs["difference"] = pairs.epochs - pairs.epochs_gap
    lines = [table_row("minus `gap`, each seed that reached it with both", *(f"{a} %" for a in ACCURACIES))]
    lines.append(table_rule(len(ACCURACIES)))
    for head in [head for head in HEADS if head != "gap" and (measured["head"] == head).any()]:
        of_head = pairs[pairs["head"] == head]
        cells = [_each_and_mean(of_head[of_head.accuracy == a].difference.dropna()) for a in ACCURACIES]
        lines.append(table_row(f"`{head}`", *cells))
    return "\n".join(lines)


def _each_and_mean(differences: pd.Series) -> str:
    each = ", ".join(f"{difference:+.2f}" for difference in differences)
    return f"{each} (mean {differences.mean():+.2f})" if len(differences) > 1 else each or "none"


def draw(measured: pd.DataFrame, last: int) -> Figure:
    """A dot for each seed and a bar for the mean, by accuracy and head.

    Args:
        measured: as returned by `measure`.
        last: the last epoch; an accuracy that was never reached is an open dot to the right of it.
    """
    heads = [head for head in HEADS if (measured["head"] == head).any()]
    figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(heads) * len(ACCURACIES)), layout="constrained")
    axis = clean(figure.subplots(), "x")
    never = last + max(1, last / 12)
    for (head, accuracy), of_head in measured.groupby(["head", "accuracy"]):
        place = heads.index(head) - (len(heads) - 1) / 2
        _draw_head(axis, ACCURACIES.index(accuracy) + 0.2 * place, head, of_head.epochs, never)
    axis.set_yticks(range(len(ACCURACIES)), [f"{accuracy} %" for accuracy in ACCURACIES])
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set(xlabel="epochs to this test accuracy (a dot a seed, a bar the mean)", xlim=(0, never * 1.02))
    axis.invert_yaxis()
    return figure


def _draw_head(axis: Axes, y: float, head: str, epochs: pd.Series, never: float) -> None:
    reached = epochs.dropna()
    missed = len(epochs) - len(reached)
    heights = y + (np.linspace(-0.05, 0.05, len(epochs)) if len(epochs) > 1 else np.zeros(1))
    axis.scatter(reached, heights[: len(reached)], s=16, color=COLOURS[head], zorder=3, linewidths=0)
    axis.scatter([never] * missed, heights[len(reached) :], s=16, facecolors="none", edgecolors=COLOURS[head])
    if len(reached):
        axis.vlines(reached.mean(), y - 0.08, y + 0.08, color=COLOURS[head], linewidth=5, alpha=0.35)
    text = f"{head} ({missed} of {len(epochs)} never)" if missed else head
    at = (never if missed else reached.max(), y)
    style = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": COLOURS[head]}
    axis.annotate(text, at, (7, 0), **style)


def judge_epochs(measured: pd.DataFrame, last: int) -> tuple[str, str]:
    """Verdict and finding: whether fully connected heads reach the accuracies before GAP of the same seed. An
    accuracy that was never reached counts as reached one epoch after the last; one that neither head reached does not
    count."""
    pairs = beside_gap(measured).dropna(subset=["epochs", "epochs_gap"], how="all").fillna(last + 1)
    pairs["difference"] = pairs.epochs - pairs.epochs_gap
    differences = []
    for head in FULLY_CONNECTED:
        of_seeds = pairs[pairs["head"] == head].groupby("seed").difference.mean()
        if len(of_seeds):
            differences.append((f"`{head}`", of_seeds.tolist()))
    quantity = "Epochs of a fully connected head minus those of `gap`, mean over the accuracies"
    return judge(differences, quantity, also=" and recorded test curves")
