"""Operations and activations of a net."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def multiply_accumulates(net: nn.Module, *image_shape: int) -> int:
    """Multiply-accumulates of one forward pass for one image of this shape, (3, 32, 32) say.

    Convolutions and linear layers count, by torch's flop counter, which counts a multiply-accumulate as two.
    """
    from torch.utils.flop_counter import FlopCounterMode

    net = copy.deepcopy(net).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *image_shape, device=next(net.parameters()).device))
    return counter.get_total_flops() // 2


def activations(net: nn.Module, *shape: int) -> list[int]:
    """Output values of each convolution of `net` for a batch of this shape, (128, 3, 32, 32) say.

    They are computed on torch's meta device, which allocates no memory. Batch norm, dropout and the head have no
    convolution and are left out: on that device they import torch's compiler, which takes 3 s.

    Raises:
        ValueError: batch normalisation in training mode that gets one value a channel.
    """
    net = copy.deepcopy(net).to("meta")
    sizes: list[int] = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, inputs, output: sizes.append(output.numel()))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.forward = _checked if layer.training else _unchanged
        elif isinstance(layer, nn.Dropout):
            layer.forward = _unchanged
    getattr(net, "forward_maps", net)(torch.empty(shape, device="meta"))
    return sizes


def _unchanged(values: Tensor) -> Tensor:
    return values


def _checked(values: Tensor) -> Tensor:
    if values.numel() == values.shape[1]:
        raise ValueError(f"batch norm requires two values a channel, got one in {list(values.shape)}")
    return values
