"""How this process was started, `nin NAME` or `python scripts/NAME.py`: what it prints to be typed next has that form.

The scripts belong to a checkout; the installed package has `nin` alone. The processes of one run, and the runs of a
study, are started in the form of the process that starts them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from nin import files

SCRIPT = re.compile(r"(?:python )?scripts/(\w+)\.py")


def by_entry_point() -> bool:
    """Whether `nin` or `python -m nin` started this process, or there are no scripts."""
    program = Path(sys.argv[0] if sys.argv else "")
    return files.CHECKOUT is None or program.name == "nin" or program.parts[-2:] == ("nin", "__main__.py")


def spelled(name: str) -> str:
    """A command as it is typed here: "nin train" or "python scripts/train.py"."""
    return f"nin {name}" if by_entry_point() else f"python scripts/{name}.py"


def in_this_form(text: str) -> str:
    """A help text with its commands as they are typed here; a column beside them stays where it is."""
    return "\n".join(map(_line_of_nin, text.splitlines())) if by_entry_point() else text


def _line_of_nin(line: str) -> str:
    command, gap, explanation = line.partition("  ")
    shorter = SCRIPT.sub(r"nin \1", command)
    padding = " " * (len(command) - len(shorter)) if gap else ""
    return shorter + padding + gap + SCRIPT.sub(r"nin \1", explanation)


def arguments_of(name: str) -> list[str]:
    """The beginning of a command line that starts another process in the same form."""
    if by_entry_point():
        return [sys.executable, "-P", "-m", "nin", name]
    return [sys.executable, str(files.CHECKOUT / "scripts" / f"{name}.py")]
