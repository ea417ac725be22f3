"""The claim about replacement: on a trained backbone pooling can replace fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nin.errors import ClaimError
from nin.plan import HEADS
from nin.run.started import spelled
from nin.studies.answer import Answer
from nin.studies.comparisons import Group, comparable, judge
from nin.studies.rows import Condition
from nin.studies.tables import (
    COLOURS,
    FULLY_CONNECTED,
    GREY,
    clean,
    died,
    each_seed,
    file_stem,
    made_with,
    mean_and_deviation,
    paired,
    paired_differences,
    table_row,
    table_rule,
)

CLAIM = "On a trained net global average pooling replaces fully connected layers and is better than they are."
VARIED, NAMED = ("freeze",), ("model.weights",)  # the second states where the file is, and keeps groups apart
ARTICLES = tuple(name for name, head in HEADS.items() if head.of_features)
POOLING = "gap_article"
LAST = 10  # epochs at the end, over which a curve's change is measured


def answers(rows: pd.DataFrame) -> list[Answer]:
    """Test error and loss by head of nets with a backbone, over the epochs: an answer for each condition, and one more
    where the backbone was frozen.

    Raises:
        ClaimError: the study has no run of `gap_article` beside one of `fc_article`.
    """
    found = []
    for group in comparable(rows, VARIED, NAMED):
        for frozen, runs in group.rows[group.rows["head"].isin(ARTICLES)].groupby("frozen"):
            heads = set(runs["head"])
            if POOLING in heads and heads & set(FULLY_CONNECTED):
                found.append(_answer(group, bool(frozen), runs))
    if not found:
        raise ClaimError(
            "claim=replacement: the study has no run of gap_article beside one of fc_article; train some "
            f"with {spelled('ablate')} experiment=flowers17_squeezenet head={','.join(ARTICLES)} seed=0,1,2,3,4"
        )
    return found


def _answer(group: Group, frozen: bool, runs: pd.DataFrame) -> Answer:
    backbone = runs.settings.iloc[0]["model.backbone"]
    part = "frozen" if frozen else "fine-tuned"
    pairs = minus_pooling(runs)
    error_name = group.condition.error_name
    verdict, finding = judge(
        [(f"`{head}`", values) for head, values in pairs.items() if head in FULLY_CONNECTED],
        f"{error_name.capitalize()} of fully connected layers minus that of `{POOLING}` on {backbone}, {part} (points)",
        below=False,
    )
    title = f"Heads on {backbone}, {part}: {group.title}"
    name = file_stem("replacement", group.stem, part)
    text = f"{table(runs, pairs, error_name)}\n\n{_caveat(runs, frozen)} {made_with(runs)}"
    return Answer(name, title, CLAIM, verdict, finding, text, draw(runs, group.condition))


def minus_pooling(runs: pd.DataFrame) -> dict[str, list[float]]:
    """For each other head its error minus that of `gap_article`, seed by seed."""
    of_head = {head: runs[runs["head"] == head] for head in _heads(runs)}
    return {head: paired_differences(each, of_head[POOLING]) for head, each in of_head.items() if head != POOLING}


def _heads(runs: pd.DataFrame) -> list[str]:
    return [head for head in ARTICLES if (runs["head"] == head).any()]


def mean_change(curve: Sequence[float]) -> float:
    """The restlessness of a curve's end: the mean change from one of its last epochs to the next."""
    return float(np.abs(np.diff(curve[-LAST:])).mean()) if len(curve) > 1 else float("nan")


def table(runs: pd.DataFrame, pairs: dict[str, list[float]], error_name: str) -> str:
    """Errors, last losses and last changes by head in Markdown.

    Args:
        runs: rows of one condition.
        pairs: as returned by `minus_pooling`.
        error_name: "test error", or "held-out error".
    """
    columns = ("head", f"{error_name} of each seed (%)", "mean ± s.d.", "n", "train error (%)", "test loss", "change")
    lines = [table_row(*columns, f"minus `{POOLING}`"), table_rule(len(columns))]
    for head in _heads(runs):
        of_head = runs[runs["head"] == head].sort_values("seed")
        learnt = of_head[of_head.error.notna()]
        ends = [curves["test_loss"][-1] for curves in learnt.curves if curves.get("test_loss")]
        changes = [mean_change(curve) for curve in learnt.test_curve if len(curve) > 1]
        cells = [each_seed(of_head), mean_and_deviation(learnt.error) if len(learnt) else "none"]
        cells.append(f"{len(learnt)}{died(len(of_head) - len(learnt))}")
        cells += [mean_and_deviation(values) if len(values) else "" for values in (learnt.train_error, ends, changes)]
        lines.append(table_row(f"`{head}`", *cells, paired(pairs[head], len(of_head)) if head in pairs else ""))
    return "\n".join(lines)


def _caveat(runs: pd.DataFrame, frozen: bool) -> str:
    text = (
        "Intervals (95 %) are over seeds: initial weights of the layers above and the order of the images. All seeds "
        f"have the same test images. Change: mean change of the test error between two of the last {LAST} epochs, in "
        "points."
    )
    if frozen:
        text += " The backbone was frozen, so the layers above were trained alone; the article trained all layers."
    return text


def draw(runs: pd.DataFrame, condition: Condition) -> Figure:
    """Accuracy and loss over the epochs, as the article has them: for each head the mean over seeds on the test set as
    a line, with a band from the lowest to the highest, and on the training images dotted."""
    figure = Figure(figsize=(9.4, 3.8), layout="constrained")
    accuracy, loss = (clean(axis) for axis in figure.subplots(1, 2))
    learnt = runs[runs.status == "ok"]
    for head in _heads(learnt):
        of_head = learnt[learnt["head"] == head]
        _draw_curves(accuracy, [100 - np.array(curve) for curve in of_head.test_curve], head, "-")
        _draw_curves(accuracy, [100 - np.array(c["train_error"]) for c in of_head.curves if "train_error" in c], head)
        _draw_curves(loss, [curves["test_loss"] for curves in of_head.curves if "test_loss" in curves], head, "-")
        _draw_curves(loss, [curves["train_loss"] for curves in of_head.curves if "train_loss" in curves], head)
        seeds = of_head.seed.nunique()
        accuracy.plot([], [], color=COLOURS[head], label=f"{head}, mean of {seeds} seeds" if seeds > 1 else head)
    accuracy.plot([], [], color=GREY, label="test images")
    accuracy.plot([], [], color=GREY, linestyle=":", label="training images")
    if (learnt.groupby("head").size() > 1).any():
        accuracy.fill_between([], [], color=GREY, alpha=0.2, linewidth=0, label="lowest to highest seed, test images")
    accuracy.set(xlabel="epoch", ylabel=f"accuracy (%), {condition.data}")
    loss.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    accuracy.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _draw_curves(axis: Axes, curves: Sequence[Sequence[float]], head: str, style: str = ":") -> None:
    known = [curve for curve in curves if len(curve)]
    if not known:
        return
    values = pd.DataFrame(known, dtype=float)  # a seed a row, an epoch a column; a curve may end early
    epochs = values.columns + 1
    axis.plot(epochs, values.mean(), style, color=COLOURS[head])
    if style == "-" and len(values) > 1:
        axis.fill_between(epochs, values.min(), values.max(), color=COLOURS[head], alpha=0.2, linewidth=0)
