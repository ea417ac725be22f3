"""What a net takes for images of a shape, known before it takes it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_accumulates(net: nn.Module, *image_shape: int) -> int:
    """Multiply-accumulates of one forward pass for one image of this shape, (3, 32, 32) say: convolutions and linear
    layers, counted by torch's own flop counter (a multiply-accumulate is two of its operations)."""
    net = copy.deepcopy(net).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *image_shape, device=next(net.parameters()).device))
    return counter.get_total_flops() // 2


def activations(net: nn.Module, *shape: int) -> list[int]:
    """How many numbers each convolution of `net` puts out for a batch of this shape, (128, 3, 32, 32) say; computed on
    torch's meta device, without memory for them. A net that is trained is asked about a training step.

    Raises:
        ValueError: batch normalisation that a training step would give one value a channel.
    """
    net = copy.deepcopy(net).to("meta")
    sizes: list[int] = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, inputs, output: sizes.append(output.numel()))
    net(torch.empty(shape, device="meta"))
    return sizes
