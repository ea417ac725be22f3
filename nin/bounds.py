"""What a setting may be: a value that cannot be is refused in one sentence with its name and the choices."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


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


def sides(most: int, **settings: Any) -> tuple[int, int]:
    """Height and width of a setting that is both of them, or one number for both. Raises ValueError where it is
    neither, or a side is no integer from 1 to `most`."""
    ((name, value),) = settings.items()
    both = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(both) != 2 or not all(map(is_whole, both)):
        raise ValueError(f"{name}={shown(value)}: a number of pixels, or height and width")
    if not all(1 <= side <= most for side in both):
        raise ValueError(f"{name}={shown(value)}: from 1 to {most} pixels")
    return both[0], both[1]
