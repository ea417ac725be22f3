"""Operations, activations and memory of a net."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn


def multiply_accumulates(net: nn.Module, *image_shape: int) -> int:
    """Multiply-accumulates of one forward pass for one image of this shape, (3, 32, 32) say.

    Convolutions and linear layers count, by torch's flop counter, which counts a multiply-accumulate as two.
    """
    from torch.utils.flop_counter import FlopCounterMode

    net = copy.deepcopy(net).eval()
    for layer in net.modules():
        if isinstance(layer, nn.LocalResponseNorm):  # it sums by a matrix product, but has no weights
            layer.forward = _unchanged
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # without gradients a folded net is uncounted
        net(torch.zeros(1, *image_shape, device=next(net.parameters()).device))
    return counter.get_total_flops() // 2


def inference_cost(net: nn.Module, *shape: int) -> tuple[float, int]:
    """What a forward pass costs for a batch of this shape, (250, 3, 32, 32) say: the least memory in GB, which is input
    and output of the largest convolution in fp32, and the multiply-accumulates of all convolutions.

    Nothing is allocated.

    Raises:
        RuntimeError, ValueError: the net cannot compute images of this size.
    """
    layers = convolutions(net, *shape)
    largest = max((outputs for outputs, _ in layers), default=0)
    return 2 * 4 * largest / 1e9, sum(outputs * weights for outputs, weights in layers)


def activations(net: nn.Module, *shape: int) -> list[int]:
    """Output values of each convolution of `net`; arguments and errors as for `convolutions`."""
    return [outputs for outputs, _ in convolutions(net, *shape)]


def convolutions(net: nn.Module, *shape: int) -> list[tuple[int, int]]:
    """Of each convolution of `net`, for a batch of this shape: its output values, and the weights behind each of them.

    They are computed on torch's meta device, which allocates no memory. There torch's own layers import its
    compiler or sympy, which takes seconds, so only the shapes of their outputs are computed. The head
    has no convolution and is left out.

    Raises:
        RuntimeError: an image too small for a convolution or a pooling.
        ValueError: batch normalisation in training mode that gets one value a channel.
    """
    net = copy.deepcopy(net).to("meta")
    sizes: list[tuple[int, int]] = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, inputs, output: sizes.append((output.numel(), layer.weight[0].numel()))
            )
            if type(layer).forward is nn.Conv2d.forward:  # not a locally connected layer
                layer.forward = partial(_convolved, layer)
        elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
            layer.forward = partial(_pooled, layer)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.forward = _checked if layer.training else _unchanged
        elif isinstance(layer, nn.Dropout | nn.LocalResponseNorm):
            layer.forward = _unchanged
    getattr(net, "forward_maps", net)(torch.empty(shape, device="meta"))
    return sizes


def _convolved(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """An empty tensor with the shape of the layer's output."""
    if images.shape[1] != layer.in_channels:
        raise RuntimeError(f"a convolution expects {layer.in_channels} channels, got {list(images.shape)}")
    windows = [layer.dilation[n] * (layer.kernel_size[n] - 1) + 1 for n in range(2)]
    padding = [window // 2 for window in windows] if isinstance(layer.padding, str) else layer.padding
    return _slid(images, layer.out_channels, windows, layer.stride, padding)


def _pooled(layer: nn.MaxPool2d | nn.AvgPool2d, images: Tensor) -> Tensor:
    """An empty tensor with the shape of the layer's output."""
    window, stride, padding = (
        (each, each) if isinstance(each, int) else each for each in (layer.kernel_size, layer.stride, layer.padding)
    )
    return _slid(images, images.shape[1], window, stride, padding, layer.ceil_mode)


def _slid(
    images: Tensor,
    channels: int,
    windows: Sequence[int],
    strides: Sequence[int],
    paddings: Sequence[int],
    ceil_mode: bool = False,
) -> Tensor:
    sides = []
    for side, window, stride, padding in zip(images.shape[2:], windows, strides, paddings, strict=True):
        if side + 2 * padding < window and not ceil_mode:
            raise RuntimeError(f"a window of {window} pixels is larger than its input, {list(images.shape)}")
        steps, rest = divmod(side + 2 * padding - window, stride)
        count = steps + 1 + (ceil_mode and rest > 0)
        sides.append(count - (ceil_mode and (count - 1) * stride >= side + padding))  # a window begins in the image
    return images.new_empty((len(images), channels, *sides))


def _unchanged(values: Tensor) -> Tensor:
    return values


def _checked(values: Tensor) -> Tensor:
    if values.numel() == values.shape[1]:
        raise ValueError(f"batch norm requires two values a channel, got one in {list(values.shape)}")
    return values
