"""The claim about shifts: averaging over all places makes the place of an object matter less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nin.data.augment import PAD_MODES
from nin.errors import ClaimError
from nin.run.trainer import exact_fp32
from nin.studies.answer import Answer, of_differences, overall
from nin.studies.comparisons import trained_alike
from nin.studies.nets import Subject, batches, error_of, images_in_words, progress
from nin.studies.tables import LEAST_IMAGES, clean, label, mean_and_deviation, paired, table_row, table_rule

CLAIM = "The place of an object matters less to a net that averages over all places than to a fully connected head."
SHIFTS = tuple(range(9))  # pixels
STATED = 4  # pixels: the shift of the finding's last sentence
MEASURES = {"error": "test error (%)", "same": "same prediction as unshifted (%)"}
FILLS = {"zero": "fill: zero (the mean)", "reflect": "fill: reflected"}


class Difference(NamedTuple):
    """The steadiness of a net with GAP minus that of a fully connected net that was trained alike, for each image.

    Attributes:
        other: the name of the fully connected net.
        points: in %, as `steadiness` measures it.
    """

    other: str
    points: list[float]


def answer(subjects: Sequence[Subject]) -> Answer:
    """Test error, and share of the predictions that stay, by shift of the image in pixels."""
    measured = measure(subjects)
    title = f"Shifted images, a quarter of them each way ({images_in_words(subjects)})"
    differences = compare(subjects, measured)
    verdicts = [of_differences(difference.points, LEAST_IMAGES) for difference in differences]
    finding = f"{_finding(differences, verdicts)} {_at_one_shift(measured)}"
    return Answer("shift", title, CLAIM, overall(verdicts), finding, table(measured), draw(subjects, measured))


def moved(images: Tensor, pixels: int, fill: str) -> Tensor:
    """Moves images by `pixels`: of each four one to the right, one to the left, one down, one up.

    Args:
        images: preprocessed, (N, C, H, W).
        pixels: the shift.
        fill: of the gap: "zero", which is the training images' mean, or "reflect".
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (pixels,) * 4, mode=PAD_MODES[fill])
    shifted = torch.empty_like(images)
    corners = ((pixels, 0), (pixels, 2 * pixels), (0, pixels), (2 * pixels, pixels))  # top, left of the window
    for direction, (top, left) in enumerate(corners):
        shifted[direction::4] = padded[direction::4, :, top : top + height, left : left + width]
    return shifted.contiguous(memory_format=torch.channels_last)


@exact_fp32()
@torch.no_grad()
def measure(subjects: Sequence[Subject]) -> pd.DataFrame:
    """Evaluates each net on shifted images.

    Returns:
        a row for each net, fill and shift: place (of the net), name, fill, pixels, error (%), same (% of the images
        with the prediction of the unshifted one), stays (the same for each image, (N) of booleans).
    """
    for subject in subjects:
        if (side := min(subject.images.shape[2:])) <= max(SHIFTS):
            few = f"nothing is left of images of {side} pixels that are shifted by {max(SHIFTS)}"
            raise ClaimError(f"claim=shift: {few}; choose nets of larger images")
    rows = []
    passes = 1 + len(FILLS) * sum(shift > 0 for shift in SHIFTS)
    with progress("shift", subjects, passes) as bar:
        for place, subject in enumerate(subjects):
            unshifted = _predict(subject, 0, "zero", bar)
            for fill in FILLS:
                for shift in SHIFTS:
                    predicted = _predict(subject, shift, fill, bar) if shift else unshifted
                    stays = (predicted == unshifted).cpu().numpy()
                    error = error_of(predicted, subject)
                    rows.append((place, subject.name, fill, shift, error, 100 * stays.mean(), stays))
    return pd.DataFrame(rows, columns=["place", "name", "fill", "pixels", "error", "same", "stays"])


def _predict(subject: Subject, pixels: int, fill: str, bar: tqdm) -> Tensor:
    predictions = []
    for images in batches(subject, bar):
        prepared = subject.trained.preprocess(images)
        predictions.append(subject.trained.net(moved(prepared, pixels, fill)).argmax(1))
    return torch.cat(predictions)


def table(measured: pd.DataFrame) -> str:
    """A table of each measure in Markdown, by net, fill and shift."""
    tables = []
    for column, title in MEASURES.items():
        lines = [table_row(f"{title}, shifted by", *(f"{shift} px" for shift in SHIFTS)), table_rule(len(SHIFTS))]
        for fill in FILLS:
            for name, of_net in measured[measured.fill == fill].groupby("name", sort=False):
                cells = of_net.groupby("pixels", sort=False)[column].agg(mean_and_deviation)
                lines.append(table_row(f"`{name}`, fill {fill}", *cells))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def draw(subjects: Sequence[Subject], measured: pd.DataFrame) -> Figure:
    """A panel for each measure and fill: a thin line for each seed, a thick one for the mean."""
    figure = Figure(figsize=(8.6, 6.0), layout="constrained")
    axes = figure.subplots(len(MEASURES), len(FILLS), sharex=True, sharey="row")
    for row, column in enumerate(MEASURES):
        for axis, fill in zip(axes[row], FILLS, strict=True):
            ends = _draw_panel(clean(axis), subjects, measured[measured.fill == fill], column)
        axes[row, 0].set(ylabel=MEASURES[column], ylim=(None, 100.5) if column == "same" else (0, None))
        label(axes[row, -1], ends)
    for axis, title in zip(axes[0], FILLS.values(), strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes[-1]:
        axis.set(xlabel="shift (pixels)", xticks=SHIFTS)
    return figure


def _draw_panel(axis: Axes, subjects: Sequence[Subject], measured: pd.DataFrame, column: str) -> list[tuple]:
    """Draws the lines of one panel; returns their ends, as `label` takes them."""
    ends = []
    for name, of_name in measured.groupby("name", sort=False):
        subject = subjects[of_name.place.iloc[0]]
        seeds = of_name.pivot(index="pixels", columns="place", values=column)
        if len(seeds.columns) > 1:
            axis.plot(seeds.index, seeds, subject.style, color=subject.colour, alpha=0.25, linewidth=1)
        mean = seeds.mean(axis=1)
        axis.plot(mean.index, mean, subject.style, color=subject.colour, marker="o", markersize=3.5)
        ends.append((mean.index[-1], mean.iloc[-1], name, subject.colour, subject.style))
    return ends


def compare(subjects: Sequence[Subject], measured: pd.DataFrame) -> list[Difference]:
    """Differences in steadiness between a net with GAP and each fully connected net that was trained alike."""
    steady = steadiness(measured)
    return [
        Difference(subjects[other].name, (steady[gap] - steady[other]).tolist())
        for gap, other in _trained_alike(subjects)
    ]


def steadiness(measured: pd.DataFrame) -> dict[int, np.ndarray]:
    """By place of a net, (N): the share (%) of all shifts with reflected borders at which an image keeps its
    prediction."""
    shifted = measured[(measured.fill == "reflect") & (measured.pixels > 0)]
    return {place: 100 * np.stack(of_net.stays.tolist()).mean(0) for place, of_net in shifted.groupby("place")}


def _trained_alike(subjects: Sequence[Subject]) -> list[tuple[int, int]]:
    """Places of a net with `gap` and of one with a fully connected head that was trained alike."""
    pairs = []
    for one, gap in enumerate(subjects):
        for another, other in enumerate(subjects):
            if gap.head == "gap" and not other.pools and trained_alike(gap.trained.facts, other.trained.facts):
                pairs.append((one, another))
    return pairs


def _finding(differences: Sequence[Difference], verdicts: Sequence[str]) -> str:
    if not differences:
        return "Judging the claim requires a net with `gap` and one with a fully connected head, trained alike."
    cells = [f"minus `{difference.other}` {paired(difference.points, noun='image')}" for difference in differences]
    if len(set(verdicts)) > 1:
        cells = [f"{cell}, {verdict}" for cell, verdict in zip(cells, verdicts, strict=True)]
    few = max(len(difference.points) for difference in differences) < LEAST_IMAGES
    note = f" A verdict requires {LEAST_IMAGES} images." if few else ""
    return (
        f"Predictions that stay the same (points), `gap` {'; '.join(cells)}; over all shifts with reflected "
        f"borders; 95 % interval over images, one net per head.{note}"
    )


def _at_one_shift(measured: pd.DataFrame) -> str:
    rows = measured[(measured.fill == "reflect") & (measured.pixels == STATED)]
    same = rows.groupby("name", sort=False).same.agg(mean_and_deviation)
    cells = ", ".join(f"`{name}` {share} %" for name, share in same.items())
    return f"Shifted by {STATED} pixels with reflected borders: {cells} of the predictions stay the same."
