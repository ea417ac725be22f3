"""What a net costs, computed from shapes alone."""

import copy
import random

import pytest
import torch
from torch import nn

from nin import cost


def outputs(net: nn.Module, height: int, width: int) -> list[int] | None:
    """Output values of each convolution, computed with numbers; None where torch refuses the image."""
    net, sizes = copy.deepcopy(net), []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: sizes.append(output.numel()))
    try:
        net(torch.zeros(1, 2, height, width))
    except RuntimeError:
        return None
    return sizes


def test_the_shapes_are_those_of_torch():
    draw = random.Random(3)
    for _ in range(200):
        kernel, ceil_mode = draw.choice([1, 2, 3, 5]), draw.random() < 0.5
        convolution = nn.Conv2d(2, 3, kernel, draw.randint(1, 3), draw.randrange(kernel), dilation=draw.randint(1, 2))
        window = draw.choice([2, 3])
        pool = draw.choice([nn.MaxPool2d, nn.AvgPool2d])
        between = [pool(window, draw.randint(1, 3), draw.randint(0, window // 2), ceil_mode=ceil_mode)]
        net = nn.Sequential(convolution, *draw.choice([between, []]), nn.Conv2d(3, 4, 1))
        height, width = draw.randint(1, 19), draw.randint(1, 19)
        expected = outputs(net, height, width)
        if expected is None:
            with pytest.raises((ValueError, RuntimeError)):
                cost.activations(net, 1, 2, height, width)
        else:
            assert cost.activations(net, 1, 2, height, width) == expected
