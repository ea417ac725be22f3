"""Preprocessing: from uint8 images to what the net reads. Its numbers travel with the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nin.bounds import shown, whole


def _finite(**values: Tensor) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.numel() or value.is_complex() or not value.isfinite().all():
            raise ValueError(f"{name}={shown(value)}: a tensor of finite numbers")


class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation of each channel, any image size.

    (N, C, H, W) uint8 in 0…255 ─► float32 of mean 0 and standard deviation 1.

    Args:
        mean, std: of each channel, of pixel values in 0…255.

    Raises:
        ValueError: they are of unequal length, not finite, or a standard deviation is not above 0.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        _finite(mean=mean, std=std)
        if std.numel() != mean.numel() or not (std > 0).all():
            raise ValueError(
                f"std={shown(std)}: a number above 0 for each of the {mean.numel()} channels that mean has"
            )
        self.register_buffer("mean", mean.float().reshape(1, -1, 1, 1))
        self.register_buffer("std", std.float().reshape(1, -1, 1, 1))

    @classmethod
    def fit(cls, images: Tensor) -> Normalise:
        """Measured on images (N, C, H, W) uint8."""
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.transpose(0, 1)]).double()
        share, values = counts / counts.sum(1, keepdim=True), torch.arange(256.0, dtype=torch.float64)
        mean = share @ values
        std = (share @ values.square() - mean.square()).sqrt()
        return cls(mean, std.clamp(min=1e-3))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class ImageNet(Normalise):
    """The channels' mean and standard deviation on ImageNet, which torchvision's weights were trained with."""

    @classmethod
    def fit(cls, images: Tensor) -> ImageNet:
        """The same whatever the images."""
        return cls(255 * torch.tensor([0.485, 0.456, 0.406]), 255 * torch.tensor([0.229, 0.224, 0.225]))


class Whiten(nn.Module):
    """Global contrast normalisation, then ZCA whitening: the authors' preprocessing (theirs is the maxout paper's).

    Each image has its mean subtracted and is scaled to a Euclidean norm of 55; the result is then multiplied by the
    inverse square root of the training images' covariance, its eigenvalues raised by 0.1. On CIFAR-10 the outcome
    has a standard deviation of 0.52.

    (N, C, H, W) uint8 in 0…255 ─► float32 of the same shape; only the one size that it was fitted on.

    Args:
        mean: (C·H·W) of the contrast-normalised training images.
        matrix: (C·H·W, C·H·W), symmetric.
        shape: (C, H, W) of an image.

    Raises:
        ValueError: images of another shape than it was fitted on, or arguments that disagree or are not finite.
    """

    SCALE = 55.0
    REGULARISER = 0.1

    def __init__(self, mean: Tensor, matrix: Tensor, shape: tuple[int, int, int]) -> None:
        super().__init__()
        if not isinstance(shape, list | tuple) or len(shape) != 3:
            raise ValueError(f"shape={shown(shape)}: channels, height and width of an image")
        for side in shape:
            whole(1, 65_536, shape=side)
        _finite(mean=mean, matrix=matrix)
        size = math.prod(shape)
        if (mean.shape, matrix.shape) != ((size,), (size, size)):
            raise ValueError(
                f"shape={list(shape)}: mean of {list(mean.shape)} and matrix of {list(matrix.shape)} are not for it"
            )
        self.shape = tuple(shape)
        self.register_buffer("mean", mean.float())
        self.register_buffer("matrix", matrix.float())

    @classmethod
    def fit(cls, images: Tensor) -> Whiten:
        """Fitted on images (N, C, H, W) uint8; about 15 s on two CPU cores for CIFAR-10."""
        size = images[0].numel()
        total, products = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for chunk in images.split(5000):
            normalised = cls._normalise_contrast(chunk)
            total += normalised.double().sum(0)
            products += (normalised.T @ normalised).double()
        mean = total / len(images)
        covariance = products / len(images) - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        matrix = (vectors * (values + cls.REGULARISER).rsqrt()) @ vectors.T
        return cls(mean.float(), matrix.float(), images.shape[1:])

    @classmethod
    def _normalise_contrast(cls, images: Tensor) -> Tensor:
        flat = images.flatten(1).float()
        flat = flat - flat.mean(1, keepdim=True)
        return flat * (cls.SCALE / flat.norm(dim=1, keepdim=True).clamp(min=1e-8))

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"whitening is tied to images of {'×'.join(map(str, self.shape))}, these are "
                f"{'×'.join(map(str, images.shape[1:]))}; resize them, or take a net that was trained without whitening"
            )
        return ((self._normalise_contrast(images) - self.mean) @ self.matrix).view(images.shape)


PREPROCESSINGS = {"normalise": Normalise, "whiten": Whiten, "imagenet": ImageNet}
