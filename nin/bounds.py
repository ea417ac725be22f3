"""What a setting may be: a value that cannot be is refused in one sentence with its name and the choices.

And the memory that a net takes, known before it takes it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn


def shown(value: Any) -> str:
    """A value in one line of a message."""
    try:
        text = " ".join(str(value).split())
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "(a number of thousands of digits)"
    return text if len(text) <= 300 else f"{text[:300]}…"


def is_whole(value: Any) -> bool:
    """An integer, Python's or NumPy's; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite real number, which true and false are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def one_of(choices: Iterable[str], **settings: Any) -> None:
    """Raises ValueError where a setting is none of the names in `choices`."""
    for name, value in settings.items():
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name}={shown(value)}: choose one of {', '.join(choices)}")


def truth(**settings: Any) -> None:
    """Raises ValueError where a setting is neither true nor false."""
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={shown(value)}: choose one of true, false")


def whole(least: int, most: int, **settings: Any) -> None:
    """Raises ValueError where a setting is no integer from `least` to `most`."""
    for name, value in settings.items():
        if not is_whole(value) or not least <= value <= most:
            raise ValueError(f"{name}={shown(value)}: from {least} to {most}, a whole number")


def at_least_0(**settings: Any) -> None:
    """Raises ValueError where a setting is no number of at least 0."""
    for name, value in settings.items():
        if not is_number(value) or value < 0:
            raise ValueError(f"{name}={shown(value)}: a number of at least 0")


def share(**settings: Any) -> None:
    """Raises ValueError where a setting is no number of at least 0 and less than 1."""
    for name, value in settings.items():
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{name}={shown(value)}: a number of at least 0 and less than 1")


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
