"""Augmentation of a whole batch at once, with a draw of its own for every image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PAD_MODES = {"zero": "constant", "reflect": "reflect"}


def random_crop(images: Tensor, pad: int, mode: str = "zero", generator: torch.Generator | None = None) -> Tensor:
    """Pads images (N, C, H, W) by `pad` pixels on each side, zero or reflected, and cuts an H×W window out of each,
    at a place drawn for each image. After normalisation or whitening zero is the mean of the training set."""
    if pad == 0:
        return images
    n, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4, mode=PAD_MODES[mode])
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2 pad + 1, 2 pad + 1, H, W), a view
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=generator, device=images.device)
    return windows[torch.arange(n, device=images.device), :, top, left]


def random_flip(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mirrors each of the images (N, C, H, W) left to right with probability 1/2."""
    flip = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)
