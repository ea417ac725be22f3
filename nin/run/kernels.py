"""Convolutions as matrix products, which an NVIDIA GPU computes faster in 16 bits than cuDNN's convolutions.

Of a step of the paper's net on an H200, a quarter of the kernels' time went into sums, mostly of the biases' gradients.
The first convolution has three input channels, and cuDNN's kernels want more: as a product of windows it saved 7 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class RowsTimesWeight(torch.autograd.Function):
    """rows (M, I) · weight (O, I)ᵀ + bias (O) ─► (M, O). The gradient of the bias is a matrix product too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return F.linear(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows, _, of_bias = ctx.needs_input_grad
        return gradient @ weight if of_rows else None, gradient.T @ rows, sum_of(gradient) if of_bias else None


def sum_of(rows: Tensor) -> Tensor:
    """The sum (O) of rows (M, O), as a matrix product: 17 µs on an H200 where torch's own sum takes 132."""
    return (rows.new_ones(1, len(rows)) @ rows)[0]


def pointwise(conv: nn.Conv2d, maps: Tensor) -> Tensor:
    """A 1×1 convolution: one matrix product over all positions of all images.

    Shape:
        (N, I, H, W) ─► (N, O, H, W), channels last
    """
    maps = maps.permute(0, 2, 3, 1)  # a view of channels-last maps
    outputs = _product(maps.flatten(0, 2), conv.weight.flatten(1), conv.bias)
    return outputs.unflatten(0, maps.shape[:3]).permute(0, 3, 1, 2)


def first(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """A convolution of images as one matrix product of their windows. A window is a row, padded with zeros to a
    multiple of 8 columns, which the hardware requires. The images get no gradient. Expects a convolution without
    dilation that pads with zeros.

    Shape:
        (N, I, H, W) ─► (N, O, H', W'), channels last
    """
    (kernel_height, kernel_width), (step_down, step_right) = conv.kernel_size, conv.stride
    above, beside = map(int, conv.padding)
    pixels = F.pad(images, (beside, beside, above, above)).permute(0, 2, 3, 1).contiguous()  # (N, H, W, I)
    n, height, width, channels = pixels.shape
    to_image, to_line, to_pixel, _ = pixels.stride()
    size = n, (height - kernel_height) // step_down + 1, (width - kernel_width) // step_right + 1
    windows = pixels.as_strided(  # overlapping
        (*size, kernel_height, kernel_width * channels),
        (to_image, to_line * step_down, to_pixel * step_right, to_line, 1),
    )
    columns = kernel_height * kernel_width * channels
    rows = pixels.new_zeros((*size, math.ceil(columns / 8) * 8), dtype=_dtype(images))
    rows[..., :columns].unflatten(3, (kernel_height, -1)).copy_(windows)
    weight = F.pad(conv.weight.permute(0, 2, 3, 1).flatten(1), (0, rows.shape[3] - columns))
    return _product(rows.flatten(0, 2), weight, conv.bias).unflatten(0, size).permute(0, 3, 1, 2)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = _dtype(rows)
    return RowsTimesWeight.apply(rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _dtype(values: Tensor) -> torch.dtype:
    """The dtype of a matrix product of these values: autocast's where it is on, else their own."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


@contextmanager
def matrix_products(net: nn.Module) -> Iterator[None]:
    """In the block the net's 1×1 convolutions with stride 1, and its first convolution if it has under 8 input
    channels, are matrix products. The net computes the same function, rounded differently; parameters and their names
    stay."""
    convs = [layer for layer in net.modules() if type(layer) is nn.Conv2d and layer.groups == 1]
    relus = [layer for layer in net.modules() if isinstance(layer, nn.ReLU) and layer.inplace]
    for layer in relus:
        layer.inplace = False  # its input is a view of a matrix product, which autograd would copy for an inplace ReLU
    for number, conv in enumerate(convs):
        if conv.kernel_size == (1, 1) == conv.stride and not any(conv.padding):
            conv.__dict__["forward"] = partial(pointwise, conv)
        elif number == 0 and conv.in_channels < 8:
            conv.__dict__["forward"] = partial(first, conv)
    try:
        yield
    finally:
        for conv in convs:
            conv.__dict__.pop("forward", None)
        for layer in relus:
            layer.inplace = True
