"""The claim about overfitting: a head without parameters has less to overfit with."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nin.checks import counted
from nin.errors import ClaimError
from nin.plan import HEADS
from nin.run.started import spelled
from nin.studies.answer import Answer
from nin.studies.comparisons import Group, comparable, judge
from nin.studies.tables import (
    COLOURS,
    FULLY_CONNECTED,
    GREY,
    clean,
    died,
    made_with,
    mean_and_deviation,
    paired,
    table_row,
    table_rule,
)

CLAIM = "Without parameters of its own global average pooling overfits less than a fully connected head."
VARIED = ("data.share", "trainer.max_epochs")
MARK = 22  # size of a mark


def answers(rows: pd.DataFrame) -> list[Answer]:
    """Training error and test error (%) by head and share of the training images: an answer for each recipe. If a share
    was trained for several numbers of epochs, the largest one counts that several heads have. Nets that died are
    counted, but not averaged.

    Raises:
        ClaimError: the study has only one share.
    """
    groups = groups_of(rows)
    if not groups:
        raise ClaimError(
            "claim=overfitting: the study has no runs with several shares of the training images; train some with "
            f"{spelled('ablate')} data.share=0.01,0.05,0.2,1"
        )
    return [_answer(group) for group in groups]


def groups_of(rows: pd.DataFrame) -> list[Group]:
    """The groups of rows that the claim compares: with finished runs on several shares of the training images."""
    groups = comparable(rows, VARIED)
    return [group for group in groups if group.rows[group.rows.status == "ok"].share.nunique() > 1]


def _answer(group: Group) -> Answer:
    runs = measure(group.rows)
    error_name = group.condition.error_name
    title = f"Training error and {error_name}: {group.title}"
    verdict, finding = judge_excess(runs, error_name)
    name, figure = f"overfitting-{group.stem}", draw(runs, error_name)
    text = "\n\n".join(filter(None, [table(runs, error_name), all_died(group.rows)]))
    return Answer(name, title, CLAIM, verdict, finding, text, figure)


def measure(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs that count, each beside GAP's with the same share and seed.

    Returns:
        the rows of finished runs, and for each: excess (error minus training error), minus_gap (error minus GAP's) and
        more (excess minus GAP's), NaN if there is no such run of GAP; dead (dead runs of its head and share).
    """
    finished = rows[rows.status == "ok"].sort_values("seed")
    heads = finished.groupby(["share", "epochs"])["head"].nunique().reset_index(name="heads")
    heads["compared"] = heads.heads > 1
    longest = heads.sort_values(["compared", "epochs"]).groupby("share").tail(1)
    runs = finished.merge(longest[["share", "epochs"]], on=["share", "epochs"])
    runs["excess"] = runs.error - runs.train_error
    gap = runs.loc[runs["head"] == "gap", ["share", "seed", "error", "excess"]]
    runs = runs.merge(gap, on=["share", "seed"], how="left", suffixes=("", "_gap"))
    is_gap = runs["head"] == "gap"
    runs["minus_gap"] = (runs.error - runs.error_gap).mask(is_gap)
    runs["more"] = (runs.excess - runs.excess_gap).mask(is_gap)
    dead = rows[rows.status == "dead"].groupby(["share", "epochs", "head"]).size().rename("dead").reset_index()
    return runs.merge(dead, on=["share", "epochs", "head"], how="left").fillna({"dead": 0})


def all_died(rows: pd.DataFrame) -> str:
    """A sentence about the heads and shares of which no run finished; "" if there are none."""
    groups = rows.groupby(["share", "head"])
    dead = [(share, head, len(of)) for (share, head), of in groups if (of.status == "dead").all()]
    named = ", ".join(f"`{head}` at {100 * share:g} % ({number})" for share, head, number in dead)
    return f"All runs died of {named}." if dead else ""


def by_share_and_head(runs: pd.DataFrame) -> list[tuple[float, str, pd.DataFrame]]:
    """Share, head and runs of each line of the table, in its order."""
    groups = [(share, head, group) for (share, head), group in runs.groupby(["share", "head"])]
    return sorted(groups, key=lambda group: (group[0], [*HEADS].index(group[1])))


def table(runs: pd.DataFrame, error_name: str) -> str:
    """Errors by share and head in Markdown.

    Args:
        runs: as returned by `measure`.
        error_name: "test error", or "held-out error".
    """
    columns = ("images", "epochs", "head", "n", "training error (%)", f"{error_name} (%)", "minus training error")
    lines = [table_row(*columns, f"{error_name} minus `gap`'s"), table_rule(len(columns))]
    for share, head, group in by_share_and_head(runs):
        n = f"{len(group)}{died(int(group.dead.iloc[0]))}"
        cells = [mean_and_deviation(group[column]) for column in ("train_error", "error", "excess")]
        difference = "" if head == "gap" else paired(group.minus_gap.dropna().tolist(), len(group))
        epochs = str(group.epochs.iloc[0])
        lines.append(table_row(f"{100 * share:g} %", epochs, f"`{head}`", n, *cells, difference))
    caveat = f"Where the training error is 0 under both heads, the verdict is of the {error_name}."
    return "\n".join([*lines, "", f"{caveat} {made_with(runs)}"])


def draw(runs: pd.DataFrame, error_name: str) -> Figure:
    """Errors over the share and, if GAP can be compared, each head's excess minus GAP's. No line joins the shares: they
    differ in steps too."""
    compared = runs.more.notna().any()
    figure = Figure(figsize=(9.4 if compared else 5.6, 4.3), layout="constrained")
    axes = figure.subplots(1, 2 if compared else 1, squeeze=False)[0]
    epochs = runs.groupby("share").epochs.first()
    ticks = [f"{100 * share:g} %\n{counted(number, 'epoch')}" for share, number in epochs.items()]
    for axis in axes:
        clean(axis).set(xscale="log", xlabel="share of the training images, and epochs")
        axis.set_xticks(100 * epochs.index, ticks)
        axis.xaxis.set_minor_locator(NullLocator())
    _draw_errors(axes[0], runs, error_name)
    if compared:
        _draw_more(axes[1], runs, error_name)
    figure.legend(frameon=False, fontsize=9, ncols=4 if compared else 2, loc="outside upper left")
    return figure


def _draw_errors(axis: Axes, runs: pd.DataFrame, error_name: str) -> None:
    heads = [head for head in HEADS if (runs["head"] == head).any()]
    for head in heads:
        means = runs[runs["head"] == head].groupby("share")[["train_error", "error"]].mean()
        shares = 100 * means.index * _aside(head, heads)
        hollow = {"facecolors": "none", "edgecolors": COLOURS[head]}
        axis.scatter(shares, means.error, s=MARK, color=COLOURS[head], label=head, zorder=3, linewidths=0)
        axis.scatter(shares, means.train_error, s=MARK, zorder=3, clip_on=False, **hollow)
    axis.scatter([], [], s=MARK, color=GREY, label=error_name, linewidths=0)
    axis.scatter([], [], s=MARK, facecolors="none", edgecolors=GREY, label="training error")
    axis.set(ylabel="error (%)", ylim=(0, None))


def _draw_more(axis: Axes, runs: pd.DataFrame, error_name: str) -> None:
    axis.axhline(0, color=COLOURS["gap"], linewidth=1.5)
    axis.margins(x=0.1)
    compared = runs.dropna(subset="more")
    heads = [head for head in HEADS if (compared["head"] == head).any()]
    for head in heads:
        of_head = compared[compared["head"] == head]
        aside = 100 * _aside(head, heads)
        axis.scatter(aside * of_head.share, of_head.more, s=10, color=COLOURS[head], alpha=0.6, linewidths=0)
        means = of_head[of_head.duplicated("share", keep=False)].groupby("share").more.mean()
        axis.scatter(aside * means.index, means, s=110, marker="_", color=COLOURS[head], linewidths=2)
    axis.scatter([], [], s=10, color=GREY, label="one seed, right", linewidths=0)
    axis.scatter([], [], s=110, marker="_", color=GREY, label="mean of the seeds, right", linewidths=2)
    axis.set_ylabel(f"{error_name} − training error, minus gap's (points)", fontsize=9)


def _aside(head: str, heads: Sequence[str]) -> float:
    """The factor that moves a head's marks beside those of the others at the same share."""
    return 1.12 ** (heads.index(head) - (len(heads) - 1) / 2)


def judge_excess(runs: pd.DataFrame, error_name: str) -> tuple[str, str]:
    """Verdict and finding: the error minus the training error, of a fully connected head minus that of GAP."""
    differences = []
    for share, head, group in by_share_and_head(runs):
        more = group.more.dropna().tolist()
        if head in FULLY_CONNECTED and more:
            differences.append((f"`{head}` with {100 * share:g} % of the images", more))
    quantity = f"{error_name.capitalize()} minus training error, of a fully connected head minus that of `gap` (points)"
    return judge(differences, quantity, below=False)
