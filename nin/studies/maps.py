"""Where a net looked: its class maps, drawn over the image, and what they are worth as a measure.

Under global average pooling nothing has to be computed to see them: the mean of a map is the class's score. The maps
below a fully connected head are no classes'; there what each position adds to a class's score is worked out.
"""

from __future__ import annotations

import math

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from nin.cost import activations
from nin.heads import GAP, GMP
from nin.pictures import PictureError
from nin.pretrained import Pretrained
from nin.provenance import memory_gb


def pools(trained: Pretrained) -> bool:
    """Whether the head pools, so that the maps themselves are the classes'."""
    return isinstance(trained.net.head, GAP | GMP)


@torch.no_grad()
def class_maps(trained: Pretrained, images: Tensor) -> tuple[Tensor, Tensor]:
    """Where in the images each class is: logits (N, K) and maps (N, K, h, w).

    Under a pooling head these are the net's own maps. Under any other they are class activation maps by HiResCAM
    (Draelos and Carin, 2020): the maps times the gradient of a class's score, summed over the channels. Of a single
    linear layer nothing is left out: a class's map sums to its score less the bias.

    Raises:
        ValueError: the head is tied to another size, or the library for the activation maps is not installed.
    """
    maps = trained.forward_maps(images)
    logits = trained.net.head(maps)
    if pools(trained):
        return logits, maps
    try:
        from captum.attr import InputXGradient
    except ImportError as error:
        raise ValueError(
            f"head={trained.net.arguments['head']}: its maps are no classes', and to work out class activation maps "
            "captum is needed: pip install 'network-in-network[cam]'"
        ) from error
    method = InputXGradient(trained.net.head)
    with torch.enable_grad():
        found = [method.attribute(maps.detach().requires_grad_(), target=k) for k in range(logits.shape[1])]
    return logits, torch.stack([each.detach().sum(1) for each in found], 1)


def look(trained: Pretrained, picture: Image.Image) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (K), logits (K) and class maps (K, h, w) of one picture, at its own size.

    Raises:
        PictureError: it is smaller than the net can take, or larger than this machine has memory for.
        ValueError: as in `class_maps`, or the preprocessing is tied to another size.
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
    logits, maps = class_maps(trained, pil_to_tensor(picture.convert("RGB"))[None])
    return logits.softmax(1)[0], logits[0], maps[0]


def draw(
    trained: Pretrained,
    picture: Image.Image,
    seen: tuple[Tensor, Tensor, Tensor],
    shown_as: Image.Image | None = None,
    top: int = 3,
    rows: int = 1,
) -> Figure:
    """The picture, and the class maps of its `top` classes laid over it, each with probability, score and what of the
    map that comes from. What speaks for a class glows, on one scale for all; where a map is 0 or less the picture
    stays clear. `seen` is what `look` says of the picture, `shown_as` the same picture with more pixels, for the eye;
    the 1 + `top` panels are set in `rows`."""
    probabilities, logits, maps = seen
    best = probabilities.topk(min(top, len(trained.classes))).indices.tolist()
    canvas = shown_as or picture
    light = ScalarMappable(Normalize(0, max(maps[best].max().item(), 1e-6)), "inferno")
    glow = F.interpolate(maps[None, best], size=(256, 256), mode="bilinear")[0]
    columns = math.ceil((1 + len(best)) / rows)
    figure = Figure(figsize=(2.6 * columns + 0.3, 3.1 + 2.9 * (rows - 1)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    axes[0].imshow(canvas)
    axes[0].set_title(f"seen at {picture.width}×{picture.height}", fontsize=10)
    extent = (-0.5, canvas.width - 0.5, canvas.height - 0.5, -0.5)
    for axis, k, each in zip(axes[1 : 1 + len(best)], best, glow, strict=True):
        axis.imshow(ImageOps.grayscale(canvas), cmap="gray", vmin=0, vmax=255)
        colours = light.to_rgba(each)
        colours[..., 3] = 0.8 * light.norm(each).clip(0, 1) ** 0.7
        axis.imshow(colours, extent=extent)
        axis.set_title(f"{trained.classes[k]}  {100 * probabilities[k]:.1f} %", fontsize=10)
        if not pools(trained):
            source = f"its map's sum {maps[k].sum():.2f}"
        elif isinstance(trained.net.head, GMP):
            source = f"map max {maps[k].max():.2f}"
        else:
            source = f"map mean {maps[k].mean():.2f}"
        axis.set_xlabel(f"score {logits[k]:.2f}, {source}", fontsize=8)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.colorbar(light, ax=axes[columns - 1 :: columns], shrink=0.7 / rows, label="class map")
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
    maps = class_maps(trained, images[chosen])[1]
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
def blanking(
    trained: Pretrained, images: Tensor, labels: Tensor, blank: Tensor, seed: int = 0
) -> tuple[list[float], list[float], list[float]]:
    """Does the map light up at the object? How much the true class's score falls, image by image, when a quarter of the
    image is blanked: the one under the brightest part of the class's map, the one under that of another image's, as
    objects may have their usual place, and one at random.

    A quarter is a square of half the image's side, at a place of the map's grid. The other image is the one before.

    Args:
        trained: the net.
        images, labels: (N, C, H, W) uint8 and (N).
        blank: the colour that a quarter gets, (C, 1, 1) uint8: what the training images have on average, say.
        seed: of the random places.

    Raises:
        ValueError: the maps have no quarters, being smaller than 2×2.
    """
    device, rows = labels.device, torch.arange(len(labels), device=labels.device)
    seen = [class_maps(trained, part.to(device)) for part in images.split(100)]
    logits, maps = (torch.cat(parts) for parts in zip(*seen, strict=True))
    true_maps = maps[rows, labels]  # (N, h, w)
    side = min(true_maps.shape[1:]) // 2
    if side == 0:
        raise ValueError(f"class maps of {true_maps.shape[1]}×{true_maps.shape[2]} show no place in the image")
    sums = true_maps.unfold(1, side, 1).unfold(2, side, 1).sum((3, 4))  # (N, h − side + 1, w − side + 1)
    places, columns = sums[0].numel(), sums.shape[2]
    under_map = sums.flatten(1).argmax(1)
    at_random = torch.randint(places, (len(images),), generator=torch.Generator().manual_seed(seed))
    size = images.shape[2] // 2
    step = (images.shape[2] - size) / (sums.shape[1] - 1)  # the last place ends with the image
    falls = []
    for where in (under_map, under_map.roll(1), at_random):
        blanked = images.clone(memory_format=torch.contiguous_format)
        for image, place in zip(blanked, where.tolist(), strict=True):
            top, left = (round(step * p) for p in divmod(place, columns))
            image[:, top : top + size, left : left + size] = blank
        scores = torch.cat([trained(part.to(device)) for part in blanked.split(100)])
        falls.append((logits - scores)[rows, labels].tolist())
    return falls[0], falls[1], falls[2]
