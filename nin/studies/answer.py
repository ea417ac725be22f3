"""The answer to a claim: a table, a figure, the numbers in a sentence, and a verdict."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nin.studies.tables import all_equal, interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUPPORTED, REFUTED, UNDECIDED, NOT_ANSWERED = "supported", "refuted", "undecided", "not answered"


@dataclass(frozen=True)
class Answer:
    """The answer to one claim.

    Attributes:
        name: of its picture, without a suffix.
        title: one line.
        claim: a sentence, as people say it.
        verdict: as returned by `overall`.
        finding: numbers, comparison and caveat in sentences.
        table: in Markdown.
        figure: a Matplotlib figure.
    """

    name: str
    title: str
    claim: str
    verdict: str
    finding: str
    table: str
    figure: Figure


def overall(verdicts: Collection[str]) -> str:
    """One verdict of several: theirs if all agree, "supported in part" or "refuted in part" if the others are
    undecided, "mixed" if some support and some refute, "not answered" if there are none."""
    if not verdicts:
        return NOT_ANSWERED
    decided = set(verdicts) - {UNDECIDED}
    if len(decided) > 1:
        return "mixed"
    verdict = decided.pop() if decided else UNDECIDED
    return f"{verdict} in part" if len(set(verdicts)) > 1 else verdict


def by_sign(low: float, high: float) -> str:
    """The verdict of an interval on a claim that holds above 0."""
    if low > 0:
        return SUPPORTED
    return REFUTED if high < 0 else UNDECIDED


def of_differences(differences: Sequence[float], least: int) -> str:
    """The verdict of paired differences on a claim that holds above 0, by their 95 % interval. It is undecided with
    fewer than `least` of them, or if all are equal, for then they have no interval."""
    if len(differences) < least or all_equal(differences):
        return UNDECIDED
    return by_sign(*interval(differences))
