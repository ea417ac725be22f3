"""What a study answers with: a table, a figure and, where the numbers say it by themselves, a sentence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nin.studies.rows import ALL_HEADS

POOLING = ("gap", "gmp", "gap_article", "gmp_article")
FULLY_CONNECTED = ("fc", "fc_dropout", "fc_article")

# The first four are apart for every kind of colour vision: no two nearer than 31 (CIELAB) under simulated protanopia
# and deuteranopia. The article's three heads have Okabe and Ito's remaining colours.
COLOURS = dict(
    zip(ALL_HEADS, ("#009e73", "#b2182b", "#e69f00", "#0072b2", "#56b4e9", "#000000", "#cc79a7"), strict=True)
)


class ClaimError(RuntimeError):
    """Nothing to answer a question from."""


@dataclass(frozen=True)
class Answer:
    """Of one question: `name` for a file, `title` for people, the `claim` as it is heard, a Markdown `table`, a
    `figure`, and what these say of the claim, as `overall` has it or "Not answered", and why."""

    name: str
    title: str
    claim: str
    table: str
    figure: Figure
    finding: str


def overall(verdicts: Collection[str]) -> str:
    """One verdict of several among supported, refuted and undecided: theirs where they agree, "Supported in part" or
    "Refuted in part" where the rest decides nothing, else "Mixed"."""
    decided = set(verdicts) - {"undecided"}
    if len(decided) > 1:
        return "Mixed"
    said = decided.pop() if decided else "undecided"
    return said.capitalize() + " in part" * (len(set(verdicts)) > 1)


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table_rule(columns: int) -> str:
    """The line under a table's head: of so many columns and the one that names the rows."""
    return "|---" * (columns + 1) + "|"


def clean(axis: Axes, grid: str = "both") -> Axes:
    axis.grid(alpha=0.25, axis=grid)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def label(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names lines at their ends (x, y, name, colour), none over another. To be called when the axis has its limits."""
    low, high = axis.get_ylim()
    apart = 0.055 * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    heights = [y for _, y, _, _ in ends]
    for i in range(1, len(ends)):
        if ends[i][0] == ends[i - 1][0]:
            heights[i] = max(heights[i], heights[i - 1] + apart)
    for (x, _, name, colour), height in zip(ends, heights, strict=True):
        axis.annotate(name, (x, height), (8, 0), textcoords="offset points", va="center", color=colour, fontsize=9,
                      annotation_clip=False)  # fmt: skip
