"""The claim about shifts: averaging over all places makes the place of an object matter less."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nin.data.augment import PAD_MODES
from nin.studies.answer import NOT_ANSWERED, Answer, by_sign, overall
from nin.studies.nets import Subject, batches, counted, error_of, progress
from nin.studies.tables import clean, interval, label, mean_and_deviation, paired, table_row, table_rule

CLAIM = "The place of an object matters less to a net that averages over all places than to a fully connected head."
SHIFTS = tuple(range(9))  # pixels
MEASURES = {"error": "test error (%)", "same": "same prediction as unshifted (%)"}
FILLS = {"zero": "fill: zero (the mean)", "reflect": "fill: reflected"}
TRAINING = ("data", "recipe", "epochs", "seed")  # nets that agree in these facts were trained alike


def answer(subjects: Sequence[Subject], pixels: Sequence[int] = SHIFTS) -> Answer:
    """Test error, and share of the predictions that stay, by shift of the image in pixels."""
    measured = measure(subjects, pixels)
    title = f"Shifted images, a quarter of them each way ({counted(subjects)})"
    verdict, finding = judge(subjects, measured)
    return Answer("shift", title, CLAIM, verdict, finding, table(measured), draw(subjects, measured))


def moved(images: Tensor, pixels: int, fill: str) -> Tensor:
    """Moves images by `pixels`: of each four one to the right, one to the left, one down, one up.

    Args:
        images: preprocessed, (N, C, H, W).
        pixels: the shift.
        fill: what fills the gap: "zero", which is the training images' mean, or "reflect".
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (pixels,) * 4, mode=PAD_MODES[fill])
    shifted = torch.empty_like(images)
    corners = ((pixels, 0), (pixels, 2 * pixels), (0, pixels), (2 * pixels, pixels))  # top, left of the window
    for direction, (top, left) in enumerate(corners):
        shifted[direction::4] = padded[direction::4, :, top : top + height, left : left + width]
    return shifted.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def measure(subjects: Sequence[Subject], pixels: Sequence[int]) -> pd.DataFrame:
    """Evaluates each net on shifted images.

    Returns:
        a row for each net, fill and shift: place (of the net), name, fill, pixels, error (%), same (% of the images
        with the prediction of the unshifted one), stays (the same for each image, (N) of booleans).
    """
    rows = []
    passes = 1 + len(FILLS) * sum(shift > 0 for shift in pixels)
    with progress("shift", subjects, passes) as bar:
        for place, subject in enumerate(subjects):
            unshifted = _predict(subject, 0, "zero", bar)
            for fill in FILLS:
                for shift in pixels:
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
    shifts = measured.pixels.unique()
    tables = []
    for column, title in MEASURES.items():
        lines = [table_row(f"{title}, shifted by", *(f"{shift} px" for shift in shifts)), table_rule(len(shifts))]
        for fill in FILLS:
            for name, of_net in measured[measured.fill == fill].groupby("name", sort=False):
                cells = of_net.groupby("pixels", sort=False)[column].agg(mean_and_deviation)
                lines.append(table_row(f"`{name}`, fill {fill}", *cells))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def draw(subjects: Sequence[Subject], measured: pd.DataFrame) -> Figure:
    """A panel for each measure and fill: a thin line a seed, a thick one the mean."""
    shifts = measured.pixels.unique()
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
        axis.set(xlabel="shift (pixels)", xticks=shifts)
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
        ends.append((mean.index[-1], mean.iloc[-1], name, subject.colour))
    return ends


def judge(subjects: Sequence[Subject], measured: pd.DataFrame) -> tuple[str, str]:
    """Verdict and finding: whether GAP keeps more predictions than a fully connected head that was trained alike, by
    the share of all shifts with reflected borders at which an image keeps its prediction."""
    reflected = measured[measured.fill == "reflect"]
    steadiness = {}  # of each net: (N), at how many of the shifts (%) an image keeps its prediction
    for place, of_net in reflected[reflected.pixels > 0].groupby("place"):
        steadiness[place] = 100 * np.stack(of_net.stays.tolist()).mean(0)
    verdicts, compared = [], []
    for gap, other in _trained_alike(subjects):
        differences = (steadiness[gap] - steadiness[other]).tolist()
        verdicts.append(by_sign(*interval(differences)))
        compared.append(f"minus `{subjects[other].name}` {paired(differences)}")
    verdict = overall(verdicts)
    if verdict == NOT_ANSWERED:
        finding = "Judging the claim requires a net with `gap` and one with a fully connected head, trained alike."
    else:
        if len(set(verdicts)) > 1:
            compared = [f"{each}, {own}" for each, own in zip(compared, verdicts, strict=True)]
        finding = (
            f"Predictions that stay the same (points), `gap` {'; '.join(compared)}; over all shifts with reflected "
            "borders, as in training; 95 % interval over images, one net a head."
        )
    return verdict, f"{finding} {_at_one_shift(reflected)}"


def _trained_alike(subjects: Sequence[Subject]) -> list[tuple[int, int]]:
    """Places of a net with `gap` and of one with a fully connected head that was trained alike."""
    pairs = []
    for one, gap in enumerate(subjects):
        for another, other in enumerate(subjects):
            alike = all(gap.trained.facts.get(fact) == other.trained.facts.get(fact) for fact in TRAINING)
            if gap.head == "gap" and not other.pools and alike:
                pairs.append((one, another))
    return pairs


def _at_one_shift(reflected: pd.DataFrame) -> str:
    shift = 4 if 4 in set(reflected.pixels) else int(reflected.pixels.iloc[-1])
    same = reflected[reflected.pixels == shift].groupby("name", sort=False).same.agg(mean_and_deviation)
    cells = ", ".join(f"`{name}` {share} %" for name, share in same.items())
    return (
        f"Shifted by {shift} pixel{'s' * (shift > 1)} with reflected borders: {cells} of the predictions stay the same."
    )
