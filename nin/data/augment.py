"""Augmentation of a whole batch at once, with random numbers of its own for every image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PAD_MODES = {"zero": "constant", "reflect": "reflect"}  # torch's name of each of ours


def random_crop(images: Tensor, pad: int, mode: str = "zero", generator: torch.Generator | None = None) -> Tensor:
    """Returns a window of each padded image, at a random place of its own.

    Args:
        images: (N, C, H, W) of any dtype, preprocessed: zero is then the mean of the training set.
        pad: pixels on each side; 0 returns the images as they are.
        mode: the content of the padding, "zero" or "reflect".
        generator: draws the random places; by default torch's own.

    Shape:
        (N, C, H, W) ─► (N, C, H + 2 pad, W + 2 pad) ─► (N, C, H, W)
    """
    if pad == 0:
        return images
    n, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4, mode=PAD_MODES[mode])
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2 pad + 1, 2 pad + 1, H, W), a view
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=generator, device=images.device)
    return windows[torch.arange(n, device=images.device), :, top, left]


def random_cutout(images: Tensor, side: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns the images with a square of zeros each: cutout (DeVries and Taylor, 2017, arXiv 1708.04552).

    The square's middle is anywhere in the image, so that a part of it may be outside.

    Args:
        images: (N, C, H, W), preprocessed: zero is then the mean of the training set.
        side: of the square in pixels; 0 returns the images as they are.
        generator: draws the random places; by default torch's own.
    """
    if side == 0:
        return images
    inside = []
    for pixels in images.shape[2:]:
        first = torch.randint(0, pixels, (len(images), 1), generator=generator, device=images.device) - side // 2
        place = torch.arange(pixels, device=images.device)
        inside.append((place >= first) & (place < first + side))  # (N, H), then (N, W)
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 0)


def random_flip(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns the images (N, C, H, W), each mirrored left to right with probability 1/2."""
    flip = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)
