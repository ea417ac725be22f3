"""Preprocessing: from uint8 images to the input of the net. Its numbers are stored with the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from nin.checks import integer, times
from nin.errors import SettingError

COUNTED_AT_ONCE = 64  # images of a normalisation: few, since photographs are large
WHITENED_AT_ONCE = 5000  # images of a whitening, which are small


class ImageSource(Protocol):
    """Images (N, C, H, W) uint8 that a preprocessing is fitted on: a tensor, or a folder's, which are streamed."""

    @property
    def shape(self) -> torch.Size: ...

    def split(self, number: int, /) -> Iterable[Tensor]:
        """Returns the images, so many at a time."""


class _InFloat32(nn.Module):
    """A module whose buffers stay in fp32 under half(), bfloat16() and to(dtype): whitening would lose most of its
    digits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _InFloat32:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != torch.float32:
                setattr(self, name, exact[name].to(buffer.device))
        return self


class Normalise(_InFloat32):
    """Subtracts the mean and divides by the standard deviation of each channel, at any image size.

    Args:
        mean, std: one number per channel, of pixel values in 0…255.

    Attributes:
        name: the value of data.preprocessing, which also stands beside the weights.

    Raises:
        SettingError: they are of unequal length or not finite, or a standard deviation is not above 0; in `forward`,
            images with another number of channels.

    Shape:
        (N, C, H, W) uint8 in 0…255 ─► float32 of mean 0 and standard deviation 1
    """

    mean: Tensor
    std: Tensor
    name: ClassVar[str] = "normalise"
    channels: ClassVar[int | None] = None  # that every set must have; None: those it is fitted on

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        _check_finite(mean=mean, std=std)
        if std.numel() != mean.numel() or not (std > 0).all():
            raise SettingError("std", std, f"expected {mean.numel()} numbers above 0, one for each channel of mean")
        self.register_buffer("mean", mean.float().reshape(1, -1, 1, 1))
        self.register_buffer("std", std.float().reshape(1, -1, 1, 1))

    @classmethod
    def fit(cls, images: ImageSource) -> Normalise:
        """Returns the normalisation of these images."""
        counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
        for chunk in images.split(COUNTED_AT_ONCE):
            counts += torch.stack([torch.bincount(c.flatten(), minlength=256) for c in chunk.transpose(0, 1)])
        share, values = counts / counts.sum(1, keepdim=True), torch.arange(256.0, dtype=torch.float64)
        mean = share @ values
        std = (share @ values.square() - mean.square()).sqrt()
        return cls(mean, std.clamp(min=1e-3))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-3] != self.mean.shape[1]:
            raise SettingError(
                "images", times(images.shape[-3:]), f"expected {self.mean.shape[1]} channels, as in training"
            )
        return (images - self.mean) / self.std


class ImageNet(Normalise):
    """The mean and standard deviation of ImageNet's channels, for weights that torchvision trained there."""

    name = "imagenet"
    channels = 3

    @classmethod
    def fit(cls, images: ImageSource) -> ImageNet:
        """Returns the same normalisation for any images, without reading them."""
        return cls(255 * torch.tensor([0.485, 0.456, 0.406]), 255 * torch.tensor([0.229, 0.224, 0.225]))


class Whiten(_InFloat32):
    """Global contrast normalisation, then ZCA whitening: the authors' preprocessing, which is the maxout paper's.

    The mean of each image is subtracted, and the image is scaled to a Euclidean norm of 55. It is then multiplied by
    the inverse square root of the training images' covariance, with 0.1 added to the eigenvalues. On CIFAR-10 the
    result has a standard deviation of 0.52.

    Args:
        mean: (C·H·W) of the contrast-normalised training images.
        matrix: (C·H·W, C·H·W), symmetric.
        shape: (C, H, W) of an image.

    Raises:
        SettingError: arguments that contradict each other or are not finite; in `forward`, images of another shape.

    Shape:
        (N, C, H, W) uint8 in 0…255 ─► float32 of the same shape; only the size that it was fitted on
    """

    mean: Tensor
    matrix: Tensor
    shape: tuple[int, ...]
    name: ClassVar[str] = "whiten"
    channels: ClassVar[int | None] = None
    SCALE = 55.0
    REGULARISER = 0.1

    def __init__(self, mean: Tensor, matrix: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(shape, list | tuple) or len(shape) != 3:
            raise SettingError("shape", shape, "expected channels, height and width of an image")
        for side in shape:
            integer(1, 65_536, shape=side)
        _check_finite(mean=mean, matrix=matrix)
        size = math.prod(shape)
        if (mean.shape, matrix.shape) != ((size,), (size, size)):
            got = f"mean of {list(mean.shape)} and matrix of {list(matrix.shape)}"
            raise SettingError("shape", list(shape), f"expected a mean of {size} and a matrix of {size}², got {got}")
        self.shape = tuple(shape)
        self.register_buffer("mean", mean.float())
        self.register_buffer("matrix", matrix.float())

    @classmethod
    def fit(cls, images: ImageSource) -> Whiten:
        """Returns the whitening of these images; about 15 s on two CPU cores for CIFAR-10."""
        size, count = math.prod(images.shape[1:]), 0
        total, products = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for chunk in images.split(WHITENED_AT_ONCE):
            normalised = cls._normalise_contrast(chunk)
            total += normalised.double().sum(0)
            products += (normalised.T @ normalised).double()
            count += len(chunk)
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
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
            raise SettingError(
                "images",
                times(images.shape[1:]),
                f"expected {times(self.shape)}, which the whitening was fitted on; resize them, or use a net that "
                "was trained without whitening",
            )
        return ((self._normalise_contrast(images) - self.mean) @ self.matrix).view(images.shape)


def upper_triangle(matrix: Tensor) -> Tensor:
    """The rows of a symmetric matrix (n, n) from the diagonal on, one after the other: (n·(n+1)/2), half of it."""
    return matrix[torch.ones_like(matrix, dtype=torch.bool).triu()]


def symmetric(triangle: Tensor, size: int) -> Tensor:
    """The symmetric matrix (size, size) of its `upper_triangle`. Raises SettingError if the two do not agree."""
    if triangle.shape != (size * (size + 1) // 2,):
        raise SettingError("triangle", list(triangle.shape), f"expected [{size * (size + 1) // 2}]")
    matrix = triangle.new_zeros(size, size)
    matrix[torch.ones_like(matrix, dtype=torch.bool).triu()] = triangle
    return matrix + matrix.triu(1).T


def _check_finite(**values: Tensor) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.numel() or value.is_complex() or not value.isfinite().all():
            raise SettingError(name, value, "expected a tensor of finite numbers")


PREPROCESSINGS = {kind.name: kind for kind in (Normalise, Whiten, ImageNet)}
