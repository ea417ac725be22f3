"""The claim about image size: a net that pools accepts images of any size."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from nin.backbones import BACKBONES
from nin.checks import literal
from nin.errors import ClaimError, NINError
from nin.run.trainer import exact_fp32
from nin.studies.answer import REFUTED, SUPPORTED, Answer, overall
from nin.studies.nets import Subject, batches, error_of, images_in_words, progress
from nin.studies.tables import clean, label, mean_and_deviation, table_row, table_rule

CLAIM = "A net that pools accepts images of any size, a net with a fully connected head only the size it was built for."


def answer(subjects: Sequence[Subject], sizes: Sequence[int] | None = None) -> Answer:
    """Test error by image size.

    Args:
        subjects: the nets, all with images of one size.
        sizes: sides in pixels; by default from three quarters of the images' own side to twice it, in eighths.

    Raises:
        ClaimError: the nets have images of several sizes.
    """
    shapes = sorted({tuple(subject.images.shape[2:]) for subject in subjects})
    if len(shapes) > 1:
        several = ", ".join(f"{height}×{width}" for height, width in shapes)
        raise ClaimError(
            f"claim=size: the nets have test images of several sizes ({several}); choose nets with images of one size"
        )
    own = subjects[0].images.shape[-1]
    sizes = sizes or eighths(own)
    measured = measure(subjects, sizes)
    title = f"Test error by image size ({images_in_words(subjects)})"
    verdicts = judge(subjects, measured)
    finding = _finding(measured, verdicts)
    return Answer("size", title, CLAIM, overall(verdicts), finding, table(measured), draw(subjects, measured))


def eighths(own: int) -> list[int]:
    """Sides from three quarters of `own` to twice it, in eighths rounded to whole pixels; `own` is one of them."""
    return sorted({max(1, round(own * n / 8)) for n in range(6, 17)})


@exact_fp32()
@torch.no_grad()
def measure(subjects: Sequence[Subject], sizes: Sequence[int]) -> pd.DataFrame:
    """Resizes the test images (bilinear, antialiased) and evaluates each net on them.

    Returns:
        a row for each net and size: place (of the net), name, pixels, error (%, NaN if refused), refusal (its reason).
    """
    rows = []
    with progress("size", subjects, len(sizes)) as bar:
        for place, subject in enumerate(subjects):
            for pixels in sizes:
                if refusal := refusal_of(subject, pixels):
                    bar.update(len(subject.labels))
                error = float("nan") if refusal else _error_at(subject, pixels, bar)
                rows.append((place, subject.name, pixels, error, refusal))
    return pd.DataFrame(rows, columns=["place", "name", "pixels", "error", "refusal"])


def _error_at(subject: Subject, pixels: int, bar: tqdm) -> float:
    predictions = []
    for images in batches(subject, bar, pixels):
        resized = resize(images, [pixels, pixels], antialias=True)
        predictions.append(subject.trained(resized).argmax(1))
    return error_of(torch.cat(predictions), subject)


def refusal_of(subject: Subject, pixels: int) -> str:
    """Why a net refuses images with this side; empty if it accepts them."""
    if pixels < smallest(subject):
        backbone = subject.trained.net.arguments["backbone"]
        return f"{backbone} requires images of at least {smallest(subject)} pixels a side"
    try:
        subject.trained(subject.images.new_zeros(1, subject.images.shape[1], pixels, pixels))
    except (NINError, ValueError, RuntimeError) as error:  # torch's RuntimeError: nothing is left of the image
        return str(error).splitlines()[0]
    return ""


def smallest(subject: Subject) -> int:
    """The smallest side that the trunk accepts, whatever the head."""
    backbone = subject.trained.net.arguments.get("backbone")
    return BACKBONES[backbone].smallest if backbone else 1


def accepted(of_name: pd.DataFrame) -> dict[int, list[float]]:
    """The errors of the seeds of one name at each size that all of them accept."""
    errors = of_name.groupby("pixels").error.agg(list)
    return {pixels: each for pixels, each in errors.items() if not pd.isna(each).any()}


def table(measured: pd.DataFrame) -> str:
    """Errors by net and size in Markdown, then the reason of each net's first refusal."""
    sizes = measured.pixels.unique()
    lines = [table_row("net", *(f"{pixels} px" for pixels in sizes)), table_rule(len(sizes))]
    for name, of_name in measured.groupby("name", sort=False):
        errors = accepted(of_name)
        cells = [mean_and_deviation(errors[pixels]) if pixels in errors else "refused" for pixels in sizes]
        lines.append(table_row(f"`{name}`", *cells))
    for row in measured[measured.refusal != ""].drop_duplicates("name").itertuples():
        lines += ["", f"`{row.name}` at {row.pixels} pixels: {row.refusal}"]
    return "\n".join(lines)


def draw(subjects: Sequence[Subject], measured: pd.DataFrame) -> Figure:
    """Error over image size: a thin line for each seed, a thick one for the mean. A net that accepts one size is a
    point and a note."""
    own, sizes = subjects[0].images.shape[-1], measured.pixels.unique()
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = clean(figure.subplots())
    axis.axvline(own, color="#bbbbbb", linewidth=1, zorder=0)
    ends, notes = [], [(f"trained at {own}", "#777777")]
    for name, of_name in measured.groupby("name", sort=False):
        subject, errors = subjects[of_name.place.iloc[0]], accepted(of_name)
        means = _draw_lines(axis, subject, errors)
        if len(errors) == len(sizes) or len(errors) > 1:
            ends.append((max(errors), means[-1], name, subject.colour, subject.style))
        else:
            only = f"{name}: {means[0]:.2f} % at {min(errors)} px only" if errors else f"{name}: no size"
            notes.append((only, subject.colour))
    notes = [(textwrap.fill(literal(note), 54), colour) for note, colour in notes]
    free = 0.08 + 0.055 * sum(
        1 + note.count("\n") for note, _ in notes
    )  # share of the height for notes above all lines
    highest = measured.error.max() / (1 - free)
    axis.set(xlabel="side of the image (pixels)", ylabel="test error (%)", xticks=sizes)
    axis.set_ylim(0, highest if highest > 0 else 1)
    label(axis, ends)
    _write_notes(axis, own, notes)
    return figure


def _write_notes(axis: Axes, x: float, notes: Sequence[tuple[str, str]]) -> None:
    """Writes notes (text, colour) under each other, from the top, right of `x`."""
    style = {"fontsize": 9, "va": "top", "textcoords": "offset points", "xycoords": ("data", "axes fraction")}
    line = 0
    for note, colour in notes:
        axis.annotate(note, (x, 1), (5, -3 - 13 * line), color=colour, **style)
        line += 1 + note.count("\n")


def _draw_lines(axis: Axes, subject: Subject, errors: dict[int, list[float]]) -> list[float]:
    """Draws the seeds and their mean; returns the means."""
    seeds = list(zip(*errors.values(), strict=True))
    for each in seeds if len(seeds) > 1 else ():
        axis.plot([*errors], each, subject.style, color=subject.colour, alpha=0.25, linewidth=1)
    means = [sum(each) / len(each) for each in errors.values()]
    axis.plot([*errors], means, subject.style, color=subject.colour, marker="o", markersize=4)
    return means


def judge(subjects: Sequence[Subject], measured: pd.DataFrame) -> list[str]:
    """A verdict for each net that pools: it supports the claim if it accepts every size that its trunk accepts. A net
    on whitened images or with a locally connected layer does not count, since these require one size."""
    verdicts = []
    for place, of_net in measured.groupby("place"):
        subject = subjects[place]
        if subject.trained.accepts_any_size:
            possible = of_net[of_net.pixels >= smallest(subject)]
            verdicts.append(SUPPORTED if possible.error.notna().all() else REFUTED)
    return verdicts


def _finding(measured: pd.DataFrame, verdicts: Sequence[str]) -> str:
    nets = [_accepted_in_words(name, of_name) for name, of_name in measured.groupby("name", sort=False)]
    finding = f"{'; '.join(nets)}."
    if not verdicts:
        finding += " Judging the claim requires a net that pools, without whitening or a locally connected layer."
    elif SUPPORTED in verdicts:
        finding += " Accepting a size does not mean recognising it: the nets were trained on images of one size."
    return finding


def _accepted_in_words(name: str, of_name: pd.DataFrame) -> str:
    errors = accepted(of_name)
    cells = {pixels: f"{mean_and_deviation(each)} % at {pixels} px" for pixels, each in errors.items()}
    accepts = f"`{name}` accepts {len(cells)} of {of_name.pixels.nunique()} sizes"
    if not cells:
        return accepts
    best = min(errors, key=lambda pixels: sum(errors[pixels]))
    if len(cells) > 1:
        cells[best] += " (its lowest error)"
    return f"{accepts}: {', '.join(cells[pixels] for pixels in dict.fromkeys((best, min(errors), max(errors))))}"
