"""Argument checks. Each raises SettingError naming the argument, its value and what is allowed.

integer(1, 10, epochs=epochs, warmup=warmup)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from nin.errors import SettingError, one_line, printable

LONGEST_NAME = 22  # letters of a class's name in a figure

__all__ = ["boolean", "cores", "counted", "fraction", "integer", "is_integer", "is_number", "is_real", "is_sha256"]
__all__ += ["literal", "memory_gb", "non_negative", "one_line", "one_of", "positive", "printable", "share", "shortened"]
__all__ += ["sides", "some_of", "times", "whole_number"]


def is_integer(value: Any) -> bool:
    """Whether it is an integer, Python's or NumPy's. Booleans are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite real number. Booleans are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_real(value: Any) -> bool:
    """Whether it is a real number, infinity and NaN included. Booleans are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_sha256(value: Any) -> bool:
    """Whether it is a sha256: 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def literal(text: Any) -> str:
    """A text in one line that Matplotlib draws as it is, where a pair of dollars would begin a formula."""
    return printable(" ".join(str(text).split())).replace("$", r"\$")


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things in words: "1 epoch", "1,200 images". The plural of `noun` ends in s, if it is not given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def some_of(names: Sequence[object], most: int) -> str:
    """At most `most` of the names, and how many more there are: "cat, dog and 3 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(map(one_line, names[:most]))}{more}"


def shortened(name: str) -> str:
    """A class's name as figures and tables have it: cut where it is long."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def times(shape: Iterable[int]) -> str:
    """A shape in words: "3×32×32"."""
    return "×".join(map(str, shape))


def one_of(choices: Iterable[str], **settings: Any) -> None:
    """Each setting is one of the names in `choices`."""
    _all(settings, lambda v: isinstance(v, str) and v in choices, f"must be one of {', '.join(choices)}")


def boolean(**settings: Any) -> None:
    """Each setting is true or false."""
    _all(settings, lambda v: isinstance(v, bool), "must be one of true, false")


def integer(least: int, most: int, **settings: Any) -> None:
    """Each setting is an integer from `least` to `most`."""
    _all(settings, lambda v: is_integer(v) and least <= v <= most, f"expected an integer from {least} to {most}")


def whole_number(least: int, most: int, **settings: str) -> int:
    """The integer from `least` to `most` that a setting's text states."""
    ((name, text),) = settings.items()
    number = int(text) if text.isdecimal() and len(text) < 20 else -1  # Python reads no integer of 5,000 digits
    if not least <= number <= most:
        raise SettingError(name, text, f"expected an integer from {least} to {most}")
    return number


def positive(**settings: Any) -> None:
    """Each setting is a finite number above 0."""
    _all(settings, lambda v: is_number(v) and v > 0, "expected a number above 0")


def non_negative(**settings: Any) -> None:
    """Each setting is a finite number of at least 0."""
    _all(settings, lambda v: is_number(v) and v >= 0, "expected a number of at least 0")


def fraction(**settings: Any) -> None:
    """Each setting is a number of at least 0 and less than 1."""
    _all(settings, lambda v: is_number(v) and 0 <= v < 1, "expected a number of at least 0 and less than 1")


def share(**settings: Any) -> None:
    """Each setting is a number above 0 and at most 1."""
    _all(settings, lambda v: is_number(v) and 0 < v <= 1, "expected a number above 0 and at most 1")


def sides(most: int, **settings: Any) -> tuple[int, int]:
    """Height and width of a setting that is one number for both or a pair, each an integer from 1 to `most`."""
    ((name, value),) = settings.items()
    both = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(both) != 2 or not all(map(is_integer, both)):
        raise SettingError(name, value, "expected a number of pixels, or height and width")
    if not all(1 <= side <= most for side in both):
        raise SettingError(name, value, f"expected 1 to {most} pixels")
    return both[0], both[1]


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    """The memory that this process may use, in GB: the machine's, or less where a container's or a job's limit is
    lower."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _memory_limits():
        try:
            there = min(there, int(limit.read_text()))
        except (OSError, ValueError):  # no limit, or "max"
            continue
    return there / 1e9


def _memory_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[Path]:
    """The files with the limits of the control groups that this process is in: its own, and those around it."""
    try:
        lines = [line for line in own.read_text().splitlines() if line.count(":") > 1]
    except (OSError, ValueError):  # another system than Linux
        lines = []
    for line in ("0::/", ":memory:/", *lines):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
            group = top / path.lstrip("/")
            yield from (each / name for each in (group, *group.parents) if each.is_relative_to(top))


def _all(settings: dict[str, Any], holds: Callable[[Any], bool], reason: str) -> None:
    for name, value in settings.items():
        if not holds(value):
            raise SettingError(name, value, reason)
