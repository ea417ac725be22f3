"""The claim about channels: each of the last maps means a class."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import confusion_matrix

from nin.checks import literal
from nin.errors import ClaimError
from nin.run.trainer import exact_fp32
from nin.studies.answer import NOT_ANSWERED, REFUTED, SUPPORTED, UNDECIDED, Answer
from nin.studies.nets import Subject, batches, error_of, images_in_words, progress
from nin.studies.tables import LEAST_IMAGES, mean_and_deviation, table_row, table_rule

CLAIM = "Each of the last maps means a class, whatever head reads them."
MEASURES = {
    "accuracy": "accuracy (%)",
    "own": "the true class's map has the highest mean (%)",
    "named": "maps named best one-to-one (%)",
}


def answer(subjects: Sequence[Subject]) -> Answer:
    """The share of the images for which the map with the highest mean is the true class's own.

    Under global average pooling this is the accuracy, by definition. A fully connected head ties no map to a class, so
    the best one-to-one naming of the maps, found on these very images, is measured too.

    Raises:
        ClaimError: no net has as many last maps as classes; other nets are left out.
    """
    subjects = with_a_map_per_class(subjects)
    measured = measure(subjects)
    title = f"Does a channel mean a class? ({images_in_words(subjects)})"
    verdict, finding = judge(subjects, measured)
    return Answer("channels", title, CLAIM, verdict, finding, table(subjects, measured), draw(subjects, measured))


@torch.no_grad()
def with_a_map_per_class(subjects: Sequence[Subject]) -> list[Subject]:
    """The nets with as many last maps as classes. Raises ClaimError if there are none."""
    fitting = []
    for subject in subjects:
        maps = subject.trained.forward_maps(subject.images[:1].to(subject.labels.device))  # (1, maps, h, w)
        if maps.shape[1] == len(subject.trained.classes):
            fitting.append(subject)
    if not fitting:
        raise ClaimError(
            "claim=channels: no net has as many last maps as classes; choose a net of these heads and sets"
        )
    return fitting


@exact_fp32()
@torch.no_grad()
def measure(subjects: Sequence[Subject]) -> pd.DataFrame:
    """Finds the map with the highest mean for each image.

    Returns:
        a row for each net: name; accuracy, own and named as in `MEASURES`; counts, (K, K): images by their class and
        the map with the highest mean.
    """
    rows = []
    with progress("channels", subjects, 1) as bar:
        for subject in subjects:
            highest, predictions = [], []
            for images in batches(subject, bar):
                maps = subject.trained.forward_maps(images)
                highest.append(maps.mean((2, 3)).argmax(1))
                predictions.append(subject.trained.net.head(maps).argmax(1))
            classes = range(len(subject.trained.classes))
            counts = confusion_matrix(subject.labels.cpu(), torch.cat(highest).cpu(), labels=classes)
            accuracy = 100 - error_of(torch.cat(predictions), subject)
            own = 100 * counts.trace() / counts.sum()
            named = 100 * counts[linear_sum_assignment(-counts)].sum() / counts.sum()
            rows.append((subject.name, accuracy, own, named, counts))
    return pd.DataFrame(rows, columns=["name", *MEASURES, "counts"])


def table(subjects: Sequence[Subject], measured: pd.DataFrame) -> str:
    """The measures by net in Markdown."""
    lines = [table_row("net", *MEASURES.values()), table_rule(len(MEASURES))]
    for name, of_name in measured.groupby("name", sort=False):
        lines.append(table_row(f"`{name}`", *(mean_and_deviation(of_name[column]) for column in MEASURES)))
    if any(subject.head == "gap" for subject in subjects):
        lines += ["", "For `gap` the first two are equal by definition: the mean of a class's map is its score."]
    return "\n".join(lines)


def draw(subjects: Sequence[Subject], measured: pd.DataFrame) -> Figure:
    """For each net (its first seed) the share of a class's images for which a map has the highest mean."""
    names = measured.groupby("name", sort=False)
    columns = min(len(names), 2)  # more would be too small to read where a page shows the figure
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(1.6 + 3.4 * columns, 3.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis, (name, of_name) in zip(axes, names, strict=False):
        first = of_name.index[0]
        subject = subjects[first]
        image = _draw_counts(axis, subject, measured.counts[first])
        if axis not in axes[::columns] and subject.trained.classes == subjects[0].trained.classes:
            axis.set_yticklabels([])
        seed = f" (seed {subject.seed})" if len(of_name) > 1 else ""
        title = f"{name}{seed}: {measured.own[first]:.1f} % own map"
        axis.set_title(textwrap.fill(literal(title), 44), fontsize=10, color=subject.colour)
    for axis in axes[::columns]:
        axis.set_ylabel("true class", fontsize=9)
    figure.supxlabel("map with the highest mean", fontsize=9)
    figure.colorbar(image, ax=axes.tolist(), shrink=0.75 / rows, label="images of the class (%)")
    return figure


def _draw_counts(axis: Axes, subject: Subject, counts: np.ndarray):
    """Draws one matrix, in % of each row; returns the image that a colour bar describes."""
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(min=1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 1:
            colour = "white" if share > 55 else "#333333"
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    numbers = [f"no. {number}" for number in range(1, len(shares) + 1)]
    classes = list(map(literal, subject.trained.classes))
    names = classes if subject.has_class_maps else numbers
    axis.set_xticks(range(len(shares)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(shares)), classes, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


def judge(subjects: Sequence[Subject], measured: pd.DataFrame) -> tuple[str, str]:
    """Verdict and finding. Of fully connected heads the claim is supported if each reaches nine tenths of its accuracy,
    refuted if none reaches twice its chance, or half the way from chance to its accuracy, and supported in part between
    the two. With few images it is undecided."""
    chance = 100 / measured.counts.map(len)
    others = measured[[not subject.has_class_maps for subject in subjects]]
    images = max(len(subject.labels) for subject in subjects)
    if others.empty:
        verdict = NOT_ANSWERED
    elif images < LEAST_IMAGES:
        verdict = UNDECIDED
    elif (others.own > 0.9 * others.accuracy).all():
        verdict = SUPPORTED
    else:
        by_chance = chance[others.index]
        none = (others.own < np.minimum(2 * by_chance, (by_chance + others.accuracy) / 2)).all()
        verdict = REFUTED if none else f"{SUPPORTED} in part"
    own = measured.groupby("name", sort=False).own.agg(mean_and_deviation)
    cells = ", ".join(f"`{name}` {share} %" for name, share in own.items())
    finding = f"The true class's own map has the highest mean for {cells} of the images; chance is "
    finding += f"{' or '.join(f'{each:.3g} %' for each in chance.unique())}. "
    if verdict == NOT_ANSWERED:
        finding += "Judging the claim requires a net with a fully connected head: under `gap` it is true by definition."
    else:
        finding += "The verdict is of fully connected heads: under `gap` the claim is true by definition."
        finding += f" A verdict requires {LEAST_IMAGES} images." if images < LEAST_IMAGES else ""
    return verdict, finding
