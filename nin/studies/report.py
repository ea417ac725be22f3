"""What the rows of a study say of heads and variants: tables and figures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from nin.studies.answer import COLOURS, clean, table_row, table_rule
from nin.studies.rows import ALL_HEADS, PAPER, Condition, Row, epochs_to, made_with, mean_and_deviation, paired

ACCURACIES = (80, 85, 90)  # %


def without_claims(rows: Sequence[Row]) -> list[Row]:
    """What `transfer` and `overfitting` leave for a table of heads and variants."""
    return [row for row in rows if row.recipe != "transfer" and not {"checkpoint", "data.share"} & set(row.varied)]


def conditions(rows: Iterable[Row]) -> list[Condition]:
    """The conditions of these rows: a set's longest runs first."""
    return sorted({row.condition for row in rows}, key=lambda condition: (condition.data, -condition.epochs, condition))


def table(rows: Iterable[Row]) -> str:
    """A Markdown table a condition: the errors of each head and variant, and the paired difference to GAP. Where
    training images were held out the errors are those on them.

    A head is compared with GAP under the same variant, a variant of GAP with plain GAP or, where there is none, with
    the first variant, seed by seed; the article's heads with `gap_article`.
    """
    rows = list(rows)
    parts = []
    for condition in conditions(rows):
        of_condition = [row for row in rows if row.condition == condition]
        errors = {(r.variant, r.head, r.seed): r.error for r in of_condition if r.error is not None}
        names = sorted({(row.variant, row.head) for row in of_condition}, key=_order)
        pooling = "gap" if any(not head.endswith("_article") for _, head in names) else "gap_article"
        parts += [
            f"**{condition.title}**",
            "",
            table_row(
                *("head", f"{condition.errors} of each seed (%)", "mean ± s.d.", "n", "train error (%)"),
                f"minus `{pooling}` (95 %)",
            ),
            table_rule(5),
        ]
        for variant, head in names:
            chosen = sorted((r for r in of_condition if (r.variant, r.head) == (variant, head)), key=lambda r: r.seed)
            ok = [r for r in chosen if r.error is not None]
            each = ", ".join(r.status if r.error is None else f"{r.error:.2f}" for r in chosen)
            name = f"`{head}`" + f" `{variant}`" * bool(variant)
            mean = mean_and_deviation([r.error for r in ok]) if ok else "none"
            mean += f", {len(chosen) - len(ok)} of {len(chosen)} died" * (0 < len(ok) < len(chosen))
            train = mean_and_deviation([r.train_error for r in ok]) if ok else "none"
            of = "gap_article" if head.endswith("_article") else "gap"
            to = next((v for v, h in names if h == of), "") if head == of else variant
            other = {seed: error for (v, h, seed), error in errors.items() if (v, h) == (to, of)}
            differences = [r.error - other[r.seed] for r in ok if r.seed in other]
            alone = (variant, head) == (to, of) or not other  # nothing to be compared with
            difference = "" if alone else paired(differences, len(chosen))
            if difference and head == of and to:
                difference = f"against `{to}`: {difference}"
            parts.append(table_row(name, each, mean, str(len(ok)), train, difference))
        said = made_with(of_condition)
        if condition.data == "cifar10" and len({head for _, head in names} & {*PAPER}) > 1:
            theirs = ", ".join(f"`{head}` {error:.2f}" for head, error in PAPER.items())
            said += f" The paper's Table 5, without augmentation and with its own recipe: {theirs}."
        parts += ["", said, ""]
    return "\n".join(parts)


def _order(name: tuple[str, str]) -> tuple[str, int]:
    return name[0], ALL_HEADS.index(name[1])


def epochs_table(rows: Sequence[Row], accuracies: Sequence[float] = ACCURACIES) -> str:
    """A Markdown table: epochs that each head needed to reach a test accuracy (%), over seeds (`epochs_to`)."""
    lines = [table_row("head", *(f"epochs to {a:g} %" for a in accuracies)), table_rule(len(accuracies))]
    for head in ALL_HEADS:
        chosen = [row for row in rows if row.head == head and row.test_curve and row.status == "ok"]
        died = sum(row.head == head and row.status == "dead" for row in rows)
        if not chosen and not died:
            continue
        cells = []
        for accuracy in accuracies:
            reached = [epochs_to(row, accuracy) for row in chosen]
            found = [epoch for epoch in reached if epoch is not None]
            missed = len(reached) - len(found)
            mean = mean_and_deviation(found) if found else ""
            cells.append(mean + f" ({missed} never)" * bool(missed))
        lines.append(table_row(f"`{head}`" + f", {died} died" * bool(died), *(cell.strip() for cell in cells)))
    return "\n".join(lines)


def plot_heads(rows: Sequence[Row], file: Path, title: str) -> None:
    """Every seed's test error as a point, one column a head, the mean as a line, a cross at the top for each net that
    died; beside it the paper's figure."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    shown = [head for head in ALL_HEADS if any(row.head == head for row in rows)]
    for x, head in enumerate(shown):
        errors = [row.error for row in rows if row.head == head and row.error is not None]
        axis.scatter([x] * len(errors), errors, color=COLOURS[head], alpha=0.8, zorder=3)
        dead = [x + 0.08 * n for n in range(sum(row.head == head and row.error is None for row in rows))]
        at_the_top = {"transform": axis.get_xaxis_transform(), "clip_on": False}
        axis.scatter(dead, [1.0] * len(dead), marker="x", color=COLOURS[head], **at_the_top)
        if len(errors) > 1:
            axis.hlines(sum(errors) / len(errors), x - 0.2, x + 0.2, color=COLOURS[head], linewidth=2)
        if head in PAPER and rows[0].data == "cifar10":
            axis.scatter([x + 0.32], [PAPER[head]], marker="_", s=160, color="#888888", zorder=2)
    if rows[0].data == "cifar10":
        axis.scatter([], [], marker="_", s=160, color="#888888", label="paper, Table 5: no augmentation")
    axis.scatter([], [], color="#555555", label="one seed")
    if any(len({r.seed for r in rows if r.head == head}) > 1 for head in shown):
        axis.plot([], [], color="#555555", linewidth=2, label="mean of the seeds")
    if any(row.error is None for row in rows):
        axis.scatter([], [], marker="x", color="#555555", label="a seed that died")
    axis.set(xticks=range(len(shown)), xlim=(-0.5, len(shown) - 0.4))
    axis.set_title(textwrap.fill(title, 60), fontsize=10)
    axis.set_ylabel(f"{rows[0].condition.errors} (%)")
    axis.set_xticklabels(shown)
    _finish(figure, file)


def plot_curves(rows: Sequence[Row], file: Path, title: str) -> None:
    """Test error after each epoch: a thin line a seed, a colour a head."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for head in ALL_HEADS:
        name = head
        for row in rows:
            curve = [float(error) for error in row.test_curve.split()]
            if row.head == head and curve:
                axis.plot(range(1, len(curve) + 1), curve, color=COLOURS[head], alpha=0.8, label=name)
                name = None
    axis.set(xlabel="epoch", ylabel="test error (%)", yscale="log")
    axis.set_title(textwrap.fill(title, 60), fontsize=10)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter())
    _finish(figure, file)


def _finish(figure: Figure, file: Path) -> None:
    clean(figure.axes[0]).legend(frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None})
