"""Where a net looked: its class maps, drawn over the image, and what they are worth as a measure.

Under global average pooling nothing has to be computed to see them: the mean of a map is the class's score.
"""

from __future__ import annotations

import math
import statistics
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import stats
from torch import Tensor

from nin.bounds import activations
from nin.data import ImageSet
from nin.pretrained import Pretrained
from nin.provenance import memory_gb

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LONGEST = 20_000  # pixels of a side that are still read


class PictureError(RuntimeError):
    """A file that is no picture, or none that can be read; the message names it."""


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """The files of these paths; of a folder, the pictures in it, sorted. Raises PictureError where there is none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise PictureError(f"{path}: there is no picture in this folder ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise PictureError(f"{path}: there is no such file or folder")
    return found


def read_picture(file: Path) -> Image.Image:
    """The picture in RGB as a person sees it: turned as its EXIF says, on white where it is transparent, the first
    frame where it moves, 16 bits scaled to 8.

    Raises:
        PictureError: not a picture, cut short, or larger than can be read within bounds.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                if max(opened.size) > LONGEST:
                    raise PictureError(
                        f"{file}: {opened.width}×{opened.height} pixels, at most {LONGEST} a side are read"
                    )
                picture = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):
                    pixels = np.asarray(picture, dtype=np.float64)
                    picture = Image.fromarray((pixels / (257 if pixels.max() > 255 else 1)).astype(np.uint8))
                if picture.has_transparency_data:
                    picture = picture.convert("RGBA")
                    white = Image.new("RGBA", picture.size, "white")
                    picture = Image.alpha_composite(white, picture)
                return picture.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(f"{file}: too many pixels to be read ({error})") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{file}: not a picture of a known format") from error
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, struct.error) as error:
        raise PictureError(f"{file}: damaged ({error})") from error


def resize(picture: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture, `size` × `size` pixels."""
    return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)


@torch.no_grad()
def look(trained: Pretrained, picture: Image.Image) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (K), logits (K) and class maps (K, h, w) of one picture.

    Raises:
        PictureError: it is smaller than the net can take, or larger than this machine has memory for.
        ValueError: the head or the preprocessing is tied to another size.
    """
    try:
        outputs = activations(trained.net, 1, 3, picture.height, picture.width)
    except RuntimeError as error:
        raise PictureError(f"{picture.width}×{picture.height} pixels are too few for this net") from error
    needed = 2 * 4 * max(outputs) / 1e9  # a layer's input and output in fp32, at the least
    if needed > memory_gb():
        raise PictureError(
            f"{picture.width}×{picture.height} pixels are too many for this machine: {needed:,.1f} GB at the least, "
            f"and it has {memory_gb():,.1f} GB"
        )
    maps = trained.forward_maps(picture)
    logits = trained.net.head(maps)
    return logits.softmax(1)[0], logits[0], maps[0]


def draw(trained: Pretrained, picture: Image.Image, shown_as: Image.Image | None = None, top: int = 3) -> Figure:
    """The picture, and the class maps of its `top` classes laid over it, each with probability, score and map mean.
    `shown_as` is the same picture with more pixels, for the eye."""
    probabilities, logits, maps = look(trained, picture)
    best = probabilities.topk(min(top, len(trained.classes))).indices.tolist()
    shown = maps[best]
    low, high = shown.min().item(), max(shown.max().item(), shown.min().item() + 1e-6)
    figure = Figure(figsize=(2.6 * (1 + len(best)), 3.1), layout="constrained")
    axes = figure.subplots(1, 1 + len(best))
    canvas = shown_as or picture
    axes[0].imshow(canvas)
    axes[0].set_title(f"seen at {picture.width}×{picture.height}", fontsize=10)
    extent = (-0.5, canvas.width - 0.5, canvas.height - 0.5, -0.5)
    for axis, k in zip(axes[1:], best, strict=True):
        axis.imshow(ImageOps.grayscale(canvas), cmap="gray", alpha=0.7)
        light = axis.imshow(
            maps[k], cmap="inferno", vmin=low, vmax=high, alpha=0.6, extent=extent, interpolation="bilinear"
        )
        axis.set_title(f"{trained.classes[k]}  {100 * probabilities[k]:.1f} %", fontsize=10)
        axis.set_xlabel(f"score {logits[k]:.2f}, map mean {maps[k].mean():.2f}", fontsize=8)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    figure.colorbar(light, ax=axes[-1], shrink=0.7, label="class map")
    return figure


def draw_paper_figure(trained: Pretrained, images: Tensor, labels: Tensor, rows: int = 10) -> Figure:
    """The paper's figure: test images in rows, one of each class in turn, and the class maps in columns.

    Args:
        trained: the net.
        images, labels: a test set, (N, 3, H, W) uint8 and (N).
        rows: how many images.
    """
    classes = trained.classes
    chosen = [int((labels == k % len(classes)).nonzero()[k // len(classes)]) for k in range(rows)]
    with torch.no_grad():
        maps = trained.forward_maps(images[chosen])
    figure = Figure(figsize=(1.0 * (len(classes) + 1.2), 1.05 * rows), layout="constrained")
    axes = figure.subplots(rows, len(classes) + 1, squeeze=False)
    for r, i in enumerate(chosen):
        axes[r, 0].imshow(images[i].permute(1, 2, 0))
        axes[r, 0].set_ylabel(classes[labels[i]], fontsize=8, rotation=0, ha="right", va="center")
        low, high = maps[r].min(), maps[r].max()
        for k in range(len(classes)):
            axes[r, k + 1].imshow(maps[r, k], cmap="inferno", vmin=low, vmax=high, interpolation="bilinear")
            right = k == labels[i]
            for side in axes[r, k + 1].spines.values():
                side.set(visible=bool(right), color="#1fa187", linewidth=2.5)
    for k, name in enumerate(classes):
        axes[0, k + 1].set_title(name, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


@torch.no_grad()
def blanking(trained: Pretrained, test: ImageSet, count: int = 1000, seed: int = 0) -> str:
    """Does the map light up at the object? How much the true class's score falls when the quarter of the image under
    the brightest part of its map is blanked, against a quarter at random; over `count` test images, in words.

    Blanked is what the training images have on average. Both quarters are squares of half the image's side, at places
    of the map's grid.
    """
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(test.test_labels), generator=draws)[:count]
    differences, under_map, at_random = [], [], []
    mean = test.train_images.float().mean((0, 2, 3)).round().to(torch.uint8)[:, None, None]
    for part in chosen.split(100):
        images, labels = test.test_images[part].contiguous(), test.test_labels[part]
        rows = torch.arange(len(part))
        maps = trained.forward_maps(images)
        scores = trained.net.head(maps)[rows, labels]
        true_maps = maps[rows, labels]  # (n, h, w)
        side = true_maps.shape[1] // 2
        sums = true_maps.unfold(1, side, 1).unfold(2, side, 1).sum((3, 4))  # (n, h − side + 1, w − side + 1)
        places = sums.shape[1] * sums.shape[2]
        step, size = images.shape[2] // true_maps.shape[1], images.shape[2] // 2
        drops = []
        for where in (sums.flatten(1).argmax(1), torch.randint(places, (len(part),), generator=draws)):
            blanked = images.clone()
            for n, place in enumerate(where.tolist()):
                top, left = (step * p for p in divmod(place, sums.shape[2]))
                blanked[n, :, top : top + size, left : left + size] = mean
            drops.append(scores - trained(blanked)[rows, labels])
        under_map += drops[0].tolist()
        at_random += drops[1].tolist()
        differences += (drops[0] - drops[1]).tolist()
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    more = statistics.mean(differences)
    return (
        f"blanking a quarter of {len(differences)} test images lowers the true class's score by "
        f"{statistics.mean(under_map):.2f} under the brightest part of its map and by {statistics.mean(at_random):.2f} "
        f"at random: {more:.2f} more (95 % interval {more - half:.2f} to {more + half:.2f})"
    )
