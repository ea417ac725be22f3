"""The report of a study: tables of heads and variants in Markdown, and their figures."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nin import files, pretrained
from nin.checks import counted, literal
from nin.config import pasted
from nin.errors import CheckpointError, RunError, SettingError
from nin.plan import HEADS
from nin.studies import overfitting, papers, transfer
from nin.studies.rows import Condition
from nin.studies.tables import (
    COLOURS,
    GREY,
    clean,
    died,
    each_seed,
    epochs_to,
    file_stem,
    made_with,
    mean_and_deviation,
    paired,
    paired_differences,
    table_row,
    table_rule,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCURACIES = (80, 85, 90)  # %
FIGURES = "figures"  # folder of a study's figures, beside its file
PAPERS_GREY = "#888888"


# measuring ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadLine:
    """The runs of one head and variant, as a table and a figure show them.

    Attributes:
        head: the head's name.
        label: the variant, as in `nin.studies.rows.ended`.
        runs: a frame, by seed; `error` is NaN where the net died.
        against: the label of the pooling line that it is compared with; None if there is nothing to compare.
        differences: error minus that line's, for each seed that both have.
    """

    head: str
    label: str
    runs: pd.DataFrame
    against: str | None
    differences: tuple[float, ...]


def tabulated(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that a table of heads and variants shows: all but those that only the claims `transfer` and
    `overfitting` take. The label of a run that started from a checkpoint names it."""
    groups = [*transfer.groups_of(rows), *overfitting.groups_of(rows)]
    taken = rows.index.isin([index for group in groups for index in group.rows.index])
    plain = (rows.start_name == "") & (rows.share == 1) & (rows.recipe != "transfer")
    shown = rows[plain | ~taken]
    unnamed = (shown.start_name != "") & ~shown.variant.str.contains("checkpoint=", regex=False)
    named = ("checkpoint=" + shown.start_name + " " + shown.label).str.strip()
    return shown.assign(label=shown.label.mask(unnamed, named))


def conditions(rows: pd.DataFrame) -> list[Condition]:
    """The conditions of these rows: by set, the longest runs first."""
    return sorted(rows.condition.unique(), key=lambda condition: (condition.data, -condition.epochs, condition))


def measure(rows: pd.DataFrame) -> list[HeadLine]:
    """The lines of one condition's rows, in the order of a table.

    A head is compared with GAP of the same variant; a variant of GAP with plain GAP or, if there is none, with the
    first variant. The article's heads are compared with `gap_article`. Runs that started from a checkpoint are not
    compared: a head that the checkpoint brings has been trained longer than another one.
    """
    groups = {key: runs.sort_values("seed") for key, runs in rows.groupby(["label", "head"])}
    further = {key for key, runs in groups.items() if (runs.start_name != "").any()}
    ordered = sorted(groups, key=lambda key: (key[0], list(HEADS).index(key[1])))
    lines = []
    for label, head in ordered:
        pooling = _pooling_like(head)
        first = next((of for of, name in ordered if name == pooling and (of, name) not in further), "")
        against = first if head == pooling else label
        runs, others = groups[label, head], groups.get((against, pooling), rows[:0])
        alone = (label, head) == (against, pooling) or others.error.isna().all() or (label, head) in further
        minus = () if alone else tuple(paired_differences(runs, others))
        lines.append(HeadLine(head, label, runs, None if alone else against, minus))
    return lines


def _pooling_like(head: str) -> str:
    """The head that a head is compared with."""
    return "gap_article" if HEADS[head].of_features else "gap"


# tabulating -----------------------------------------------------------------------------------------------------------


def table(rows: pd.DataFrame) -> str:
    """A Markdown table for each condition: the errors of each head and variant, and the paired difference to GAP. If
    training images were held out, the errors are those on them."""
    return "\n".join(_condition_table(c, rows[rows.condition == c]) for c in conditions(rows))


def _condition_table(condition: Condition, rows: pd.DataFrame) -> str:
    lines = measure(rows)
    pooling = " or ".join(f"`{name}`" for name in dict.fromkeys(_pooling_like(line.head) for line in lines))
    columns = ("head", f"{condition.error_name} of each seed (%)", "mean ± s.d.", "n", "train error (%)")
    parts = [f"**{condition.title}**", "", table_row(*columns, f"minus {pooling} (95 %)"), table_rule(5)]
    parts += [_line_of_table(line) for line in lines]
    return "\n".join([*parts, "", made_with(rows) + _papers_table(condition, lines), ""])


def _line_of_table(line: HeadLine) -> str:
    runs = line.runs
    learnt = runs[runs.error.notna()]
    dead = len(runs) - len(learnt)
    mean = mean_and_deviation(learnt.error) if len(learnt) else "none"
    if 0 < dead < len(runs):
        mean += f", {dead} of {len(runs)} died"
    train = mean_and_deviation(learnt.train_error) if len(learnt) else "none"
    difference = "" if line.against is None else paired(line.differences, len(runs))
    if difference and line.against and line.head == _pooling_like(line.head):
        difference = f"against `{line.against}`: {difference}"
    name = f"`{line.head}` `{line.label}`" if line.label else f"`{line.head}`"
    return table_row(name, each_seed(runs), mean, str(len(learnt)), train, difference)


def _papers_table(condition: Condition, lines: Sequence[HeadLine]) -> str:
    """The paper's figures, where they can be set beside these."""
    sentences = ""
    for label in dict.fromkeys(line.label for line in lines):
        theirs = {} if condition.held_out else papers.heads_of(condition.data, label)  # theirs are test errors
        if len({line.head for line in lines if line.label == label} & {*theirs}) > 1:
            errors = ", ".join(f"`{head}` {theirs[head]:.2f}" for head in HEADS if head in theirs)
            of_net = f" for `{label}`" if label else ""
            sentences += f" The paper's Table 5{of_net}, without augmentation and with its own recipe: {errors}."
    return sentences


def epochs_table(rows: pd.DataFrame) -> str:
    """A Markdown table: epochs that each head needed to reach each of `ACCURACIES`, over seeds (`epochs_to`)."""
    lines = [table_row("head", *(f"epochs to {accuracy} %" for accuracy in ACCURACIES)), table_rule(len(ACCURACIES))]
    for head in HEADS:
        of_head = rows[rows["head"] == head]
        curves = of_head[(of_head.status == "ok") & of_head.test_curve.map(bool)].test_curve
        dead = int((of_head.status == "dead").sum())
        if len(curves) or dead:
            cells = [_epochs_cell([epochs_to(curve, accuracy) for curve in curves]) for accuracy in ACCURACIES]
            lines.append(table_row(f"`{head}`{died(dead)}", *cells))
        elif len(of_head):
            lines.append(table_row(f"`{head}`", *["no curve"] * len(ACCURACIES)))
    return "\n".join(lines)


def _epochs_cell(epochs: Sequence[float | None]) -> str:
    reached = [epoch for epoch in epochs if epoch is not None]
    never = len(epochs) - len(reached)
    mean = mean_and_deviation(reached) if reached else ""
    return f"{mean} ({never} never)".strip() if never else mean


def nets_table(variant_of: Callable[[dict[str, Any]], str]) -> str:
    """The published nets in Markdown, from their cards; a damaged one raises nin.errors.CheckpointError.

    Args:
        variant_of: what a card's settings vary of their recipe: nin.cli.variant_of.
    """
    columns = "name", "head", "recipe", "epochs", "parameters", "file", "test error"
    lines = [table_row(*columns), table_rule(len(columns) - 1)]
    for name in pretrained.available():
        card = pretrained.read_card(name, whole=True)
        start = card["start"]["name"] if card.get("start") else ""
        try:
            varied = variant_of(card["settings"]) if card.get("settings") else ""
        except SettingError as error:
            raise CheckpointError(f"checkpoint={name}: its card {name}.json is damaged ({error})") from error
        varied = varied.replace(f"checkpoint={start}", "").strip() if start else varied
        recipe = f"`{card['recipe']}`" + (f" from `{start}`" if start else "") + (f" `{varied}`" if varied else "")
        cells = [f"`{name}`", card["head"], recipe, str(card["epochs"]), f"{card['parameters']:,}"]
        lines.append(table_row(*cells, f"{card['bytes'] / 1e6:.1f} MB", f"{card['test_error']:.2f} %"))
    return "\n".join(lines)


# drawing --------------------------------------------------------------------------------------------------------------


def draw_heads(rows: pd.DataFrame, title: str) -> Figure:
    """A figure of one condition and variant: a point for each seed's error, a column for each head, a line for the
    mean, a cross at the top for each net that died, and the paper's figure beside them. All marks are inside the axes.
    """
    figure, axis = _canvas(title)
    heads = [head for head in HEADS if (rows["head"] == head).any()]
    condition = rows.condition.iloc[0]
    theirs = {} if condition.held_out else papers.heads_of(condition.data, rows.label.iloc[0])
    for x, head in enumerate(heads):
        of_head = rows[rows["head"] == head].error
        _draw_head(axis, x, COLOURS[head], of_head.dropna(), int(of_head.isna().sum()))
        if head in theirs:
            axis.scatter([x + 0.32], [theirs[head]], marker="_", s=160, color=PAPERS_GREY, zorder=2)
    if theirs.keys() & {*heads}:
        axis.scatter([], [], marker="_", s=160, color=PAPERS_GREY, label="paper, Table 5: no augmentation")
    if rows.error.notna().any():
        axis.scatter([], [], color=GREY, label="one seed")
    if rows.dropna(subset="error").groupby("head").size().gt(1).any():
        axis.plot([], [], color=GREY, linewidth=2, label="mean of the seeds")
    if rows.error.isna().any():
        axis.scatter([], [], marker="x", color=GREY, label="a seed that died")
    axis.set(xlim=(-0.5, len(heads) - 0.4), ylabel=f"{condition.error_name} (%)")
    slanted = {"rotation": 25, "ha": "right"} if len(heads) > 4 else {}
    axis.set_xticks(range(len(heads)), heads, **slanted)
    axis.margins(y=0.1)
    if rows.error.isna().all():
        axis.set_ylim(0, 100)
    axis.legend(frameon=False, fontsize=8)
    return figure


def _draw_head(axis: Axes, x: float, colour: str, errors: pd.Series, dead: int) -> None:
    """One column of `draw_heads`."""
    axis.scatter([x] * len(errors), errors, color=colour, alpha=0.8, zorder=3)
    step, at_the_top = min(0.08, 0.7 / max(dead, 1)), axis.get_xaxis_transform()
    places = [x + step * (n - (dead - 1) / 2) for n in range(dead)]
    axis.scatter(places, [0.96] * dead, marker="x", color=colour, transform=at_the_top)
    if len(errors) > 1:
        axis.hlines(errors.mean(), x - 0.2, x + 0.2, color=colour, linewidth=2)


def draw_curves(rows: pd.DataFrame, title: str) -> Figure:
    """A figure of the test error after each epoch: for each head the mean over its seeds, a band from the lowest to the
    highest of them, and a dotted line for each net that died. A head without a curve is named."""
    from matplotlib.ticker import MaxNLocator

    figure, axis = _canvas(title)
    missing = [head for head in HEADS if (rows["head"] == head).any()]
    rows = rows[rows.test_curve.map(bool)]
    heads = [head for head in HEADS if (rows["head"] == head).any()]
    for n, head in enumerate(heads):
        of_head = rows[rows["head"] == head]
        learnt = of_head.status == "ok"
        _draw_mean(axis, list(of_head[learnt].test_curve), head, shift=n - (len(heads) - 1) / 2)
        if not learnt.any():
            axis.plot([], [], color=COLOURS[head], linestyle=":", label=f"{head}, every seed died")
        for curve in of_head[~learnt].test_curve:
            axis.plot(range(1, len(curve) + 1), curve, color=COLOURS[head], linestyle=":", marker="x", markevery=[-1])
    is_short = rows.test_curve.map(len).max() == 1
    if not is_short and (rows[rows.status == "ok"].groupby("head").size() > 1).any():
        axis.fill_between([], [], color=GREY, alpha=0.2, linewidth=0, label="lowest to highest seed")
    if (rows.status != "ok").any():
        axis.plot([], [], color=GREY, linestyle=":", marker="x", label="a seed that died")
    for head in missing:
        if head not in heads:
            axis.plot([], [], linestyle="none", label=f"{head}: no curve was recorded")
    axis.set(xlabel="epoch", ylabel="test error (%)")
    if all(min(curve) > 0 for curve in rows.test_curve):
        _scale_logarithmically(axis)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if is_short:
        axis.set(xlim=(0.6, 2), xticks=[1])  # the legend is at the right
    axis.legend(frameon=False, fontsize=8)
    return figure


def _scale_logarithmically(axis: Axes) -> None:
    """A logarithmic scale with plain numbers, and with enough of them where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    low, high = axis.get_ylim()
    axis.set_yscale("log")
    is_narrow = low > 0 and high < 3 * low
    locator = (
        MaxNLocator(6, steps=[1, 2, 5, 10]) if is_narrow else LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8), numticks=20)
    )
    axis.yaxis.set_major_locator(locator)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _draw_mean(axis: Axes, curves: Sequence[Sequence[float]], head: str, shift: float) -> None:
    """One head of `draw_curves`; curves of a single epoch are points side by side, `shift` columns from the middle."""
    import pandas as pd

    if not curves:
        return
    table = pd.DataFrame([list(curve) for curve in curves])  # a seed a row, an epoch a column
    mean, low, high, epochs = table.mean(), table.min(), table.max(), table.columns + 1
    style = {"color": COLOURS[head], "label": head}
    if len(curves) > 1:
        style["label"] = f"{head}, mean of {len(curves)} seeds"
    if len(epochs) == 1:
        style["label"] += ", lowest to highest" * (len(curves) > 1)
        axis.errorbar([1 + 0.08 * shift], mean, yerr=[mean - low, high - mean], fmt="o", capsize=3, **style)
        return
    axis.plot(epochs, mean, **style)
    if len(curves) > 1:
        axis.fill_between(epochs, low, high, color=COLOURS[head], alpha=0.2, linewidth=0)


def _canvas(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = clean(figure.subplots())
    axis.set_title(textwrap.fill(literal(title), 52), fontsize=10)
    return figure, axis


# the whole report -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure of a report, and the rows that it is drawn from."""

    kind: str  # heads or curves
    title: str
    file: Path
    rows: pd.DataFrame

    def draw(self) -> Figure:
        return {"heads": draw_heads, "curves": draw_curves}[self.kind](self.rows, self.title)


def text(rows: pd.DataFrame, file: Path) -> str:
    """The tables of a study in Markdown, with links to its figures, for a page beside the study's file.

    Args:
        rows: the study's, as returned by `nin.studies.rows.ended`.
        file: the study's file, beside which its figures stand.
    """
    of_heads = tabulated(rows)
    parts = [f"{papers.tables(rows)}\n"] if papers.tables(rows) else []
    for condition in conditions(of_heads):
        of_condition = of_heads[of_heads.condition == condition]
        parts.append(table(of_condition))
        for variant, pictures in _pictures(condition, of_condition, file).items():
            parts += [_link(picture) for picture in pictures]
            reaches = _reaches_an_accuracy(pictures)
            parts.append(f"\n{epochs_table(of_condition[of_condition.label == variant])}\n" if reaches else "")
    if others := len(rows) - len(of_heads):
        parts.append(_of_claims(others, file))
    return "\n".join(parts)


def _link(picture: Picture) -> str:
    return f"![{picture.kind}: {picture.title}]({FIGURES}/{picture.file.name})"


def _of_claims(number: int, file: Path) -> str:
    """A paragraph about the runs that only the claims show."""
    whole = file.resolve()
    if files.CHECKOUT and whole.is_relative_to(files.CHECKOUT):
        file = whole.relative_to(files.CHECKOUT)  # the command runs in the checkout
    verb = "is" if number == 1 else "are"
    return (
        f"\n{counted(number, 'more run')} (of transfer, or on a share of the training images) {verb} reported "
        f"by `scripts/claims.py {pasted('study', file, in_quotes=False)}`.\n"
    )


def figures(rows: pd.DataFrame, file: Path) -> Iterator[tuple[Path, Figure]]:
    """The figures of a study and their files, beside the study's file."""
    of_heads = tabulated(rows)
    for condition in conditions(of_heads):
        for pictures in _pictures(condition, of_heads[of_heads.condition == condition], file).values():
            for picture in pictures:
                yield picture.file, picture.draw()


def _pictures(condition: Condition, rows: pd.DataFrame, file: Path) -> dict[str, list[Picture]]:
    """The figures of one condition by variant, for each variant with several heads. If training images were held out,
    no figure shows the test set."""
    by_variant: dict[str, list[Picture]] = {}
    for variant, of_variant in rows.groupby("label"):
        if of_variant["head"].nunique() == 1:
            continue
        title = ", ".join(filter(None, [condition.title, variant]))
        study = "" if file.stem == "runs" else file.stem  # several studies may stand in one folder
        stem = file.parent / FIGURES / file_stem(study, condition.stem, variant)
        by_variant[variant] = [Picture("heads", title, Path(f"{stem}-heads.png"), of_variant)]
        if of_variant.test_curve.map(bool).any() and not condition.held_out:
            by_variant[variant].append(Picture("curves", title, Path(f"{stem}-curves.png"), of_variant))
    return by_variant


def _reaches_an_accuracy(pictures: Sequence[Picture]) -> bool:
    """Whether a run from scratch does: one that started from a checkpoint may have reached it before."""
    if any((picture.rows.start_name != "").any() for picture in pictures):
        return False
    curves = [curve for picture in pictures if picture.kind == "curves" for curve in picture.rows.test_curve]
    return any(epochs_to(curve, accuracy) for curve in curves for accuracy in ACCURACIES)


def into_page(page: Path, **blocks: str) -> None:
    """Puts each text between a page's marks of its name, <!-- NAME --> and <!-- end of NAME -->.

    Raises:
        nin.errors.RunError: the page has no such marks, or cannot be written.
    """
    content = files.read(page).decode()
    for name, block in blocks.items():
        marked = re.compile(rf"<!-- {name} -->.*<!-- end of {name} -->", re.S)
        if not marked.search(content):
            raise RunError(f"{page} lacks the lines <!-- {name} --> and <!-- end of {name} -->; add them")
        marks = f"<!-- {name} -->\n{block}\n<!-- end of {name} -->"
        content = marked.sub(lambda _, marks=marks: marks, content)
    files.write(page, content)
