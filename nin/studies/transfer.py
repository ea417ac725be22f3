"""The claim about transfer: a net that pools is a worse start for another set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from nin.errors import ClaimError
from nin.plan import HEADS
from nin.run.started import spelled
from nin.studies.answer import Answer
from nin.studies.comparisons import Group, comparable, judge, published_cards, refined, trained_alike
from nin.studies.tables import (
    COLOURS,
    FULLY_CONNECTED,
    clean,
    each_seed,
    file_stem,
    made_with,
    mean_and_deviation,
    paired,
    paired_differences,
    table_row,
    table_rule,
)

CLAIM = "A net with global average pooling transfers worse to another set than one with a fully connected head."
VARIED = ("checkpoint", "freeze")
SCRATCH, TUNED, PROBED = "from scratch", "fine-tuned", "probed"
LINEAR = "linear probe"  # `gap` on the frozen blocks of a net of any head: the same 1×1 convolution learns for all
WAYS = (SCRATCH, TUNED, PROBED, LINEAR)


class Key(NamedTuple):
    """The facts that the runs of one line have in common. Of a linear probe `head` is that of the net that it started
    from; from scratch the start is empty."""

    way: str
    head: str
    start_name: str
    start_sha256: str

    @property
    def place(self) -> tuple:
        """The place of the line in the table."""
        return WAYS.index(self.way), [*HEADS].index(self.head), self.start_name, self.start_sha256


@dataclass(frozen=True)
class TransferLine:
    """The runs of one way, head and start, and how they compare.

    Attributes:
        key: way, head and start.
        runs: a frame by seed with seed, status and error; the error is NaN if the net died.
        minus_gap: error minus that of GAP's run in the same way, for each seed that both have.
        minus_scratch: error minus that of the run from scratch, for each seed that both have.
    """

    key: Key
    runs: pd.DataFrame
    minus_gap: list[float]
    minus_scratch: list[float]


def answers(rows: pd.DataFrame) -> list[Answer]:
    """Test error (%) by head of nets that were trained on another set before: from scratch, fine-tuned, and with all
    layers frozen that the checkpoint brings, under its own head and under `head=gap`. An answer for each condition and
    each training of the nets that the runs started from.

    Raises:
        ClaimError: no run of the study started from a net of another set.
    """
    groups = groups_of(rows)
    if not groups:
        raise ClaimError(
            "claim=transfer: no run of the study that varies nothing else started from a net of another set; train "
            f"some with {spelled('ablate')} data=flowers17 recipe=transfer checkpoint=cifar10-gap head=gap "
            "freeze=false,true"
        )
    cards = published_cards()
    return [_answer(group, *part, cards) for group in groups for part in by_training(group.rows, cards)]


def groups_of(rows: pd.DataFrame) -> list[Group]:
    """The groups of rows that the claim compares: with runs that started from a net of another set."""
    groups = comparable(rows[~refined(rows)], VARIED)
    return [group for group in groups if (group.rows.start_name != "").any()]


def by_training(rows: pd.DataFrame, cards: Mapping[str, dict]) -> list[tuple[str, pd.DataFrame]]:
    """A group's rows, apart by the training of the nets that they started from, the longest first.

    Args:
        rows: the rows.
        cards: of nets, by the sha256 of their weights.

    Returns:
        the training in words and its rows, those from scratch in each. Nets of unknown training are apart where two
        trainings are known. Where fewer are, all rows are one part without words.
    """
    trainings: dict[str, list[str]] = {}  # the starts of each, by its first one
    for sha256 in sorted({*rows.start_sha256} & {*cards}):
        first = next((each for each in trainings if trained_alike(cards[sha256], cards[each])), sha256)
        trainings.setdefault(first, []).append(sha256)
    if len(trainings) < 2:
        return [("", rows)]
    parts: list[tuple[str, pd.DataFrame]] = []
    scratch = rows.start_name == ""
    for first in sorted(trainings, key=lambda first: (-cards[first]["epochs"], cards[first]["name"])):
        words = f"{cards[first]['recipe']}, {cards[first]['epochs']} epochs"
        if words in dict(parts):  # as long, but with other settings
            words += f", as {cards[first]['name']}"
        parts.append((words, rows[scratch | rows.start_sha256.isin(trainings[first])]))
    unknown = ~scratch & ~rows.start_sha256.isin(cards)
    return parts + ([("unknown training", rows[scratch | unknown])] if unknown.any() else [])


def _answer(group: Group, training: str, rows: pd.DataFrame, cards: Mapping[str, dict]) -> Answer:
    lines = measure(rows, cards)
    error_name = group.condition.error_name
    verdict, finding = judge_transfer(lines)
    name, title = file_stem(f"transfer-{group.stem}", *training.split(", ")), f"Transfer to {group.title}"
    title += f", from nets of {training}" if training else ""
    text = f"{table(lines, error_name)}\n\n{_caveat(lines)} {made_with(rows)}"
    return Answer(name, title, CLAIM, verdict, finding, text, draw(lines, error_name))


def measure(rows: pd.DataFrame, cards: Mapping[str, dict]) -> list[TransferLine]:
    """The lines of a group's rows, in the order of the table.

    Args:
        rows: the rows.
        cards: of nets, by the sha256 of their weights.
    """
    groups = _by_key(rows)
    lines = []
    for key in sorted(groups, key=lambda key: key.place):
        scratch = Key(SCRATCH, "gap" if key.way == LINEAR else key.head, "", "")
        minus_gap = _minus(groups, key, gap_beside(groups, key, cards))
        lines.append(TransferLine(key, groups[key], minus_gap, _minus(groups, key, scratch)))
    return lines


def _by_key(rows: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    """The runs of each line. A frozen run of `gap` on a net of another head is a linear probe. One on a net of `gap` is
    probed, and a linear probe too if there are linear probes of other heads."""
    same_start = rows.groupby("start_sha256").start_name.transform("first")  # a net may be renamed between its runs
    rows = rows.assign(start_name=rows.start_name.mask(rows.start_sha256 != "", same_start))
    way = pd.Series(TUNED, index=rows.index).mask(rows.start_name == "", SCRATCH).mask(rows.frozen, PROBED)
    runs = rows.assign(way=way).sort_values("seed")
    is_linear = (runs["head"] == "gap") & (runs.way == PROBED) & (runs.start_head != "")
    linear = runs[is_linear].assign(way=LINEAR, head=runs.start_head)
    own = runs[~is_linear | (runs.start_head == "gap")]
    if (linear["head"] != "gap").any():
        own = pd.concat([own, linear])
    columns = ["way", "head", "start_name", "start_sha256"]
    return {Key(*key): group[["seed", "status", "error"]] for key, group in own.groupby(columns)}


def gap_beside(groups: Mapping[Key, pd.DataFrame], key: Key, cards: Mapping[str, dict]) -> Key | None:
    """The line of `gap` that a line is compared with: the one in the same way whose start was trained alike, or the
    only one, unless the trainings of both starts are known and differ."""
    candidates = [other for other in groups if other.way == key.way and other.head == "gap"]
    own = cards.get(key.start_sha256)
    for other in candidates:
        if own is not None and other.start_sha256 in cards and trained_alike(own, cards[other.start_sha256]):
            return other
    if len(candidates) == 1 and (own is None or candidates[0].start_sha256 not in cards):
        return candidates[0]
    return None


def _minus(groups: Mapping[Key, pd.DataFrame], key: Key, other: Key | None) -> list[float]:
    """Differences of the errors of two lines, seed by seed."""
    if other is None or other == key or other not in groups:
        return []
    return paired_differences(groups[key], groups[other])


def table(lines: Sequence[TransferLine], error_name: str) -> str:
    """Errors by way, head and start in Markdown.

    Args:
        lines: as returned by `measure`.
        error_name: "test error", or "held-out error".
    """
    columns = ("", "head", "from", f"{error_name} of each seed (%)", "mean ± s.d.", "n", "minus `gap`")
    rows = [table_row(*columns, "minus from scratch"), table_rule(len(columns))]
    for line in lines:
        learnt = line.runs.error.dropna()
        mean = mean_and_deviation(learnt) if len(learnt) else "none"
        compared = [paired(minus, len(line.runs)) if minus else "" for minus in (line.minus_gap, line.minus_scratch)]
        way, head, start = line.key.way, f"`{line.key.head}`", _start_in_words(line, lines)
        rows.append(table_row(way, head, start, each_seed(line.runs), mean, str(len(learnt)), *compared))
    return "\n".join(rows)


def _start_in_words(line: TransferLine, lines: Sequence[TransferLine]) -> str:
    """The published name that the start has today; else its name in the rows, with its sha256 where several have it."""
    name, sha256 = line.key.start_name, line.key.start_sha256
    if card := published_cards().get(sha256):
        return card["name"]
    same_name = {other.key.start_sha256 for other in lines if other.key.start_name == name}
    return f"{name} ({sha256[:8] or 'unknown sha256'})" if len(same_name) > 1 else name


def _caveat(lines: Sequence[TransferLine]) -> str:
    """Caveats: the intervals' coverage, and the layers that a probe trains."""
    ways = {line.key.way for line in lines}
    text = (
        "Intervals (95 %) are over the seeds of new layers and order. All seeds start from the same nets and have the "
        "same test images. Not covered: other nets of these heads, other images."
    )
    if PROBED in ways:
        text += (
            " A probe trains what depends on the number of classes: the last 1×1 layer, and the linear layer of a "
            "fully connected head."
        )
    if LINEAR in ways:
        text += (
            " The linear probe puts one 1×1 layer and average pooling on the frozen blocks of each net. `gap` was "
            "trained to be read in this way, the others were not. The linear probes of `gap` are its probed runs "
            "again, and all linear probes are compared with `gap` from scratch."
        )
    return text


def draw(lines: Sequence[TransferLine], error_name: str) -> Figure:
    """A dot for each seed and a line for the mean, by way and head."""
    ways = [way for way in WAYS if any(line.key.way == way for line in lines)]
    heads = [head for head in HEADS if any(line.key.head == head for line in lines)]
    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    axis = clean(figure.subplots(), "y")
    for line in lines:
        x = ways.index(line.key.way) + 0.18 * (heads.index(line.key.head) - (len(heads) - 1) / 2)
        colour, learnt = COLOURS[line.key.head], line.runs.error.dropna()
        axis.scatter([x] * len(learnt), learnt, s=16, color=colour, alpha=0.7, linewidths=0)
        if len(learnt):
            axis.hlines(learnt.mean(), x - 0.07, x + 0.07, color=colour, linewidth=2)
    for head in heads:
        axis.scatter([], [], s=16, color=COLOURS[head], label=head)
    axis.set(ylabel=f"{error_name} (%): a dot a seed, a line the mean", xlim=(-0.5, len(ways) - 0.5))
    axis.set_xticks(range(len(ways)), ways)
    axis.legend(frameon=False, fontsize=9)
    return figure


def judge_transfer(lines: Sequence[TransferLine]) -> tuple[str, str]:
    """Verdict and finding: whether fully connected heads have lower errors than GAP, in each way but from scratch."""
    pairs = []
    for line in lines:
        if line.key.way != SCRATCH and line.key.head in FULLY_CONNECTED and line.minus_gap:
            pairs.append((f"{line.key.way} `{line.key.head}`", line.minus_gap))
    return judge(pairs, "Error of a fully connected head minus that of `gap` (points)")
