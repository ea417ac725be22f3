"""The claim about objects: the class maps light up where the object is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nin.checks import literal
from nin.errors import ClaimError, NINError
from nin.run.trainer import exact_fp32
from nin.studies import maps
from nin.studies.answer import UNDECIDED, Answer, of_differences, overall
from nin.studies.nets import Subject, images_in_words, progress
from nin.studies.tables import GREY, LEAST_IMAGES, clean, interval, paired, table_row, table_rule

CLAIM = "Under pooling the class maps light up at the object, though nothing was trained to find it."
WHERE = {"map": "under the map", "other": "under another image's map", "random": "at random"}
OTHERS = ("other", "random")  # places that the map is compared with


def answer(subjects: Sequence[Subject]) -> Answer:
    """Losses of the true class's score when a quarter of the image is blanked: under the brightest part of the class's
    map, under that of another image's map, and at random (`nin.studies.maps.blanking`).

    Raises:
        ClaimError: a net's maps cannot be computed, or are too small to show a place.
    """
    measured = measure(subjects)
    title = f"Do the maps light up at the object? ({images_in_words(subjects)})"
    verdict, finding = judge(subjects, measured)
    return Answer("objects", title, CLAIM, verdict, finding, table(measured), draw(subjects, measured))


@exact_fp32()
def measure(subjects: Sequence[Subject]) -> pd.DataFrame:
    """Blanks quarters of the test images.

    Returns:
        a row for each net and image: place (of the net), name (with the seed if there are several), and the loss of
        the true class's score by blanking, as in `WHERE`: map, other, random.
    """
    frames = []
    names = [subject.name for subject in subjects]
    with progress("objects", subjects, 1) as bar:
        for place, subject in enumerate(subjects):
            try:
                falls = maps.blanking(subject.trained, subject.images, subject.labels, subject.blank)
            except NINError as error:  # the maps are too small, or the head requires another image size
                raise ClaimError(f"claim=objects: `{subject.name}`: {error}") from error
            seed = f", seed {subject.seed}" if names.count(subject.name) > 1 else ""
            columns = dict(zip(WHERE, falls, strict=True))
            frames.append(pd.DataFrame({"place": place, "name": subject.name + seed, **columns}))
            bar.update(len(subject.labels))
    return pd.concat(frames, ignore_index=True)


def differences(of_net: pd.DataFrame, other: str) -> list[float]:
    """The score that is lost under the map minus the one that is lost elsewhere, image by image."""
    return (of_net["map"] - of_net[other]).tolist()


def table(measured: pd.DataFrame) -> str:
    """Mean losses and their paired differences by net in Markdown."""
    lines = [
        table_row(
            *("score lost by blanking a quarter", *WHERE.values()),
            *("map minus another image's (95 %)", "map minus random (95 %)"),
        ),
        table_rule(5),
    ]
    for _, of_net in measured.groupby("place"):
        means = [f"{of_net[column].mean():.2f}" for column in WHERE]
        more = [paired(differences(of_net, column), noun="image") for column in OTHERS]
        lines.append(table_row(f"`{of_net['name'].iloc[0]}`", *means, *more))
    return "\n".join(lines)


def draw(subjects: Sequence[Subject], measured: pd.DataFrame) -> Figure:
    """A line for each net: the mean losses as points, and the interval of the map's loss minus another map's."""
    figure = Figure(figsize=(6.4, 1.4 + 0.4 * len(subjects)), layout="constrained")
    axis = clean(figure.subplots(), "x")
    for place, of_net in measured.groupby("place"):
        _draw_net(axis, place, subjects[place].colour, of_net)
    _draw_legend(figure, axis)
    names = measured.groupby("place")["name"].first()
    axis.set_yticks(range(len(subjects)), [textwrap.fill(literal(name), 26) for name in names])
    axis.set(xlim=(min(0, axis.get_xlim()[0]), None), ylim=(len(subjects) - 0.5, -0.5))
    axis.set_xlabel("loss of the true class's score by blanking a quarter")
    axis.tick_params(axis="y", length=0)
    return figure


def _draw_net(axis: Axes, y: int, colour: str, of_net: pd.DataFrame) -> None:
    under, other, chance = (of_net[column].mean() for column in WHERE)
    low, high = interval(differences(of_net, "other"))
    axis.plot([chance, under], [y, y], color=colour, linewidth=1.5, alpha=0.5, zorder=1)
    ends = {"solid_capstyle": "butt"}  # a line that ends where the interval does
    axis.plot([other + low, other + high], [y, y], color=colour, linewidth=7, alpha=0.35, zorder=2, **ends)
    axis.scatter([chance], [y], s=30, facecolors="white", edgecolors=colour, zorder=3)
    axis.scatter([other], [y], s=30, marker="D", facecolors="white", edgecolors=colour, zorder=3)
    axis.scatter([under], [y], s=30, color=colour, zorder=3)


def _draw_legend(figure: Figure, axis: Axes) -> None:
    """The legend, above the axes: beside them it would take half the width."""
    axis.scatter([], [], s=30, facecolors="white", edgecolors=GREY, label="at random")
    axis.scatter([], [], s=30, marker="D", facecolors="white", edgecolors=GREY, label="under another image's map")
    axis.scatter([], [], s=30, color=GREY, label="under the brightest part of the map")
    interval_of = "95 % interval of the map's loss minus another's"
    axis.plot([], [], color=GREY, linewidth=7, alpha=0.35, solid_capstyle="butt", label=interval_of)
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=2)


def judge(subjects: Sequence[Subject], measured: pd.DataFrame) -> tuple[str, str]:
    """Verdict and finding. A net that pools supports the claim if both intervals are above 0, and refutes it if both
    are below. With few images, or equal differences, it is undecided."""
    verdicts = []
    for place, of_net in measured.groupby("place"):
        if subjects[place].pools:
            both = {of_differences(differences(of_net, other), LEAST_IMAGES) for other in OTHERS}
            verdicts.append(both.pop() if len(both) == 1 else UNDECIDED)
    return overall(verdicts), _finding(subjects, measured, bool(verdicts))


def _finding(subjects: Sequence[Subject], measured: pd.DataFrame, is_judged: bool) -> str:
    cells: dict[str, list[str]] = {other: [] for other in OTHERS}
    for _, of_net in measured.groupby("place"):
        for other in OTHERS:
            cells[other].append(f"`{of_net['name'].iloc[0]}` {paired(differences(of_net, other), noun='image')}")
    finding = f"Score lost by blanking under the map, minus under another image's map: {', '.join(cells['other'])}; "
    finding += f"minus at random: {', '.join(cells['random'])}."
    if not is_judged:
        finding += " Judging the claim requires a net that pools."
    elif measured.groupby("place").size().max() < LEAST_IMAGES:
        finding += f" A verdict requires {LEAST_IMAGES} images."
    if not all(subject.has_class_maps for subject in subjects):
        finding += " The maps are the net's own if its head pools one map per class, else they are computed (HiResCAM)."
    return finding
