"""Class maps of test images: the paper's figure, and whether a map lights up at the object."""

from __future__ import annotations

import textwrap
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nin.checks import literal, shortened
from nin.errors import ClaimError
from nin.predict import class_maps, map_centres
from nin.pretrained import Pretrained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 100  # images at a time
COLUMNS = 100  # class maps of the paper's figure, at most
SEED = 0  # of the random places
SMALL, LARGE = 12, 15  # points: of scores, and of names
TRUE, WRONG = "#1fa187", "#d1495b"  # colours of frames


# the paper's figure ---------------------------------------------------------------------------------------------------


def one_of_each(labels: Tensor, num_classes: int, rows: int) -> list[int]:
    """Positions of at most `rows` images, one of each class in turn: the first of each class, then the second, …; a
    class that has no further image is passed over."""
    of_each_class = [(labels == k).nonzero()[:rows, 0].tolist() for k in range(num_classes)]
    turns = chain.from_iterable(zip_longest(*of_each_class))
    return [place for place in turns if place is not None][:rows]


def draw_paper_figure(trained: Pretrained, images: Tensor, labels: Tensor, rows: int = 10) -> Figure:
    """The paper's figure: test images in rows, one of each class in turn, and all class maps in columns. Of more than
    `COLUMNS` classes there are the images' own and the net's answers.

    Args:
        trained: the net.
        images, labels: a test set, (N, C, H, W) uint8 and (N).
        rows: number of images, as far as the set has them.
    """
    chosen = one_of_each(labels, len(trained.classes), rows)
    images, labels = images[chosen], labels[chosen]
    scores, maps = class_maps(trained, images)
    shown = torch.arange(len(trained.classes))
    if len(shown) > COLUMNS:
        shown = torch.cat([labels, scores.argmax(1).cpu()]).unique()
    classes = [trained.classes[k] for k in shown]
    return draw_maps(images, torch.searchsorted(shown, labels), scores[:, shown], maps[:, shown], classes)


def draw_maps(images: Tensor, labels: Tensor, scores: Tensor, maps: Tensor, classes: Sequence[str]) -> Figure:
    """Images in rows and their class maps in columns, each row on its own scale, with the class's score below.

    The true class's map has a frame. Where another class has the highest score, its map has a dashed frame, and the
    row names it. The names are legible where the figure is shown 620 pixels wide.

    Args:
        images, labels: (N, C, H, W) uint8 and (N).
        scores, maps: (N, K) and (N, K, h, w).
        classes: names of the K classes.
    """
    from matplotlib.figure import Figure

    rows, columns = maps.shape[:2]
    classes = [shortened(name) for name in classes]
    longest = max(map(len, (*classes, "taken for")))
    has_wrong = bool((scores.argmax(1).cpu() != labels.cpu()).any())
    overhang = max(0.0, 0.1 * len(classes[-1]) - 0.4)  # inches of the last column's slanted name
    width = columns + 1.1 + 0.12 * longest + overhang
    legend = (
        f"frame: the true class; {'dashed: a wrong answer; ' * has_wrong}numbers: scores; a colour scale for each row"
    )
    caption = ["", *textwrap.wrap(legend, int(8 * width))]  # the empty line keeps it off the last row's numbers
    height = 1.2 * rows + 0.45 + 0.25 * len(caption) + 0.09 * longest
    figure = Figure(figsize=(width, height), layout="constrained")
    inner = (0, 0, 1 - overhang / width, 1 - 0.15 / height)  # square axes move the slanted names up
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0, rect=inner)
    axes = figure.subplots(rows, columns + 1, squeeze=False)
    for of_row, image, label, of_image, of_scores in zip(axes, images, labels.tolist(), maps, scores, strict=True):
        of_row[0].imshow(image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        best = int(of_scores.argmax())
        _name_row(of_row[0], classes[label], "" if best == label else classes[best])
        for k, axis in enumerate(of_row[1:]):
            axis.imshow(of_image[k], cmap="inferno", vmin=of_image.min(), vmax=of_image.max(), interpolation="bilinear")
            score = round(of_scores[k].item(), 1) + 0.0  # not -0.0
            axis.set_xlabel(
                f"{score:.1f}".replace("-", "−"), fontsize=SMALL, labelpad=2, weight="bold" if k == best else "normal"
            )
            _frame(axis, k == label, k == best)
    for name, axis in zip(classes, axes[0, 1:], strict=True):
        axis.set_title(literal(name), fontsize=LARGE, rotation=40, ha="left", x=0.2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.supxlabel("\n".join(caption), fontsize=LARGE)
    return figure


def _name_row(axis: Axes, true: str, answer: str) -> None:
    """Writes the true class beside an image, and the answer if it is another."""
    name, colour = (f"{literal(true)},\ntaken for\n{literal(answer)}", WRONG) if answer else (literal(true), "black")
    axis.set_ylabel(name, fontsize=LARGE, rotation=0, ha="right", va="center", color=colour)


def _frame(axis: Axes, is_true: bool, is_answer: bool) -> None:
    """Frames the map of the true class, and with dashes that of a wrong answer."""
    for side in axis.spines.values():
        side.set(visible=is_true or is_answer, color=TRUE if is_true else WRONG, linewidth=4)
        side.set(linestyle="-" if is_true else (0, (1.5, 1)), capstyle="butt")


# blanking -------------------------------------------------------------------------------------------------------------


class Falls(NamedTuple):
    """Falls of the true class's score, image by image, when a quarter of the image is blanked."""

    under_map: list[float]
    elsewhere: list[float]
    at_random: list[float]


def blanking(trained: Pretrained, images: Tensor, labels: Tensor, blank: Tensor) -> Falls:
    """Falls of the true class's score when a quarter of the image is blanked: the quarter under the brightest part of
    the class's map; the one under that of another image's map, since objects may have their usual place; and a random
    one. Maps that light up at the object make the first the largest.

    A quarter is a square with half the image's side, over a quarter of the map. The other image is the one before.

    Args:
        trained: the net.
        images, labels: (N, C, H, W) uint8 and (N), which is on the net's device.
        blank: the colour of a blanked quarter, (C, 1, 1) uint8: the training images' mean, for example.

    Raises:
        ClaimError: the maps are smaller than 2×2 and have no quarters.
    """
    parts = [class_maps(trained, part.to(labels.device)) for part in images.split(BATCH)]
    logits, maps = (torch.cat(column) for column in zip(*parts, strict=True))
    true_maps = maps[torch.arange(len(labels), device=labels.device), labels]  # (N, h, w)
    sums = quarter_sums(true_maps)  # (N, h', w')
    brightest = sums.flatten(1).argmax(1).cpu()
    corners = quarter_corners(trained, images.shape[2:], maps.shape[2:])
    chance = torch.randint(sums[0].numel(), (len(images),), generator=torch.Generator().manual_seed(SEED))
    falls = []
    for places in (brightest, brightest.roll(1), chance):
        blanked = blank_quarters(images, places, corners, blank)
        falls.append(_falls(trained, blanked, labels, logits))
    return Falls(*falls)


def quarter_sums(maps: Tensor) -> Tensor:
    """The sum of each quarter of maps (N, h, w): (N, h', w') for all places of a square with half the shorter side."""
    side = min(maps.shape[1:]) // 2
    if side == 0:
        raise ClaimError(f"class maps of {maps.shape[1]}×{maps.shape[2]} show no place in the image")
    return maps.unfold(1, side, 1).unfold(2, side, 1).sum((3, 4))


def quarter_corners(trained: Pretrained, image: Sequence[int], maps: Sequence[int]) -> list[tuple[int, int]]:
    """Top and left pixel of the quarter of an image (H, W) that belongs to each place of `quarter_sums` of maps (h, w):
    it lies over the middle of the place's positions, inside the image."""
    size, side = min(image) // 2, min(maps) // 2
    corners = []
    for pixels, centres in zip(image, map_centres(trained, image[0], image[1], maps), strict=True):
        middles = [sum(centres[place : place + side]) / side for place in range(len(centres) - side + 1)]
        corners.append([round(min(max(middle - (size - 1) / 2, 0), pixels - size)) for middle in middles])
    tops, lefts = corners
    return [(top, left) for top in tops for left in lefts]


def blank_quarters(images: Tensor, places: Tensor, corners: Sequence[tuple[int, int]], blank: Tensor) -> Tensor:
    """Images (N, C, H, W) with a quarter of each in the colour `blank`, at the corner of its place (N)."""
    size = min(images.shape[2:]) // 2
    blanked = images.clone(memory_format=torch.contiguous_format)
    for image, place in zip(blanked, places.tolist(), strict=True):
        top, left = corners[place]
        image[:, top : top + size, left : left + size] = blank
    return blanked


@torch.no_grad()
def _falls(trained: Pretrained, blanked: Tensor, labels: Tensor, logits: Tensor) -> list[float]:
    """By how much the true class's scores are below `logits`."""
    scores = torch.cat([trained(part.to(labels.device)) for part in blanked.split(BATCH)])
    return (logits - scores).gather(1, labels[:, None])[:, 0].tolist()
