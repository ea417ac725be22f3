"""Every error that this project raises on purpose: one sentence for people, and the exit code of a command that ends
with it. Any other exception is a bug."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

INTERRUPTED = (130, 143)  # exit codes after Ctrl-C and SIGTERM


class NINError(Exception):
    """The root of all errors below."""

    exit_code = 1


class SettingError(NINError, ValueError):
    """A setting or an argument with a value that is not allowed; str() is "setting=value: reason".

    Attributes:
        setting: its name, dotted where it belongs to a group: "recipe.lr".
        value: the refused value.
        reason: what is wrong, and what to do.
    """

    exit_code = 2

    def __init__(self, setting: str, value: Any, reason: str) -> None:
        super().__init__(setting, value, reason)
        self.setting = setting
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.setting}={one_line(self.value)}: {self.reason}"

    def under(self, group: str) -> SettingError:
        """The same error of the setting in a group: "lr" becomes "recipe.lr"."""
        return self.renamed(f"{group}.{self.setting}")

    def renamed(self, setting: str) -> SettingError:
        """The same error under another name of the setting."""
        return SettingError(setting, self.value, self.reason)


class UsageError(NINError):
    """A command line that is incomplete or contradicts itself."""

    exit_code = 2


class DataError(NINError):
    """A set of images that is missing, damaged or cannot be downloaded."""


class CheckpointError(NINError):
    """A checkpoint that does not exist, cannot be read, or is not what it claims to be."""


class WeightsError(NINError):
    """A backbone's weights that cannot be downloaded or read."""


class PictureError(NINError):
    """A picture that cannot be read."""


class RowsError(NINError):
    """A file that does not contain the rows of a study."""


class ClaimError(NINError):
    """A claim that these nets or rows cannot answer."""


class RunError(NINError):
    """A run that cannot start, resume or be written."""


class LockedError(RunError):
    """A file that another process has locked."""


class LeftAloneError(RunError):
    """Another process of this run has exited."""


class DeadNetError(NINError):
    """A net that cannot learn any more: its loss is not finite, or its scores no longer depend on the image."""

    exit_code = 3


class InterruptedRunError(NINError):
    """A run that was stopped by a signal: exit code 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StudyStoppedError(NINError):
    """A study that ended before all of its runs did: exit code 130 after Ctrl-C, else 1."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def one_line(value: Any) -> str:
    """A value as one line of a message: YAML's null, true and false; at most 300 characters, all of them printable."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = printable(" ".join(_beginning(value).split()))
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        return "(an integer of thousands of digits)"
    except RecursionError:
        return "(lists in lists, hundreds of them)"
    return text if len(text) <= 300 else f"{text[:300]}…"


def _beginning(value: Any) -> str:
    """The beginning of str(value). A file of a thousand letters may hold a list that takes gigabytes to write."""
    if not isinstance(value, dict | list | tuple):
        return str(value)
    pieces: list[str] = []
    for piece in _pieces(value):
        pieces.append(piece)
        if sum(map(len, pieces)) > 1000:
            break
    return "".join(pieces)


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for place, (name, each) in enumerate(value.items()):
            yield f"{', ' * (place > 0)}{name!r}: "
            yield from _pieces(each)
        yield "}"
    elif type(value) in (list, tuple):
        opening, closing = "[]" if isinstance(value, list) else "()"
        yield opening
        for place, each in enumerate(value):
            yield ", " * (place > 0)
            yield from _pieces(each)
        yield ",)" if closing == ")" and len(value) == 1 else closing
    else:
        yield repr(value)


def printable(text: Any) -> str:
    """A text that a terminal can only show: characters that break the line, move the cursor or turn the direction of
    writing are escaped as in Python: \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
