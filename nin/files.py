"""Whole files or none, and locks.

A file is written under a fresh name in its own folder, flushed to the disk, renamed, and its folder flushed: after a
kill or a power cut there is the old file or the new one. A file is read once, and parsed from the bytes that were
hashed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml
from filelock import FileLock, Timeout

from nin.errors import LockedError, RunError, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPORARY = ".part-"  # how the name of a file that is being written begins
PACKAGE = Path(__file__).resolve().parent
CHECKOUT = None if (PACKAGE / "conf").is_dir() else PACKAGE.parent  # None where the wheel is installed


def shipped(name: str) -> Path:
    """A folder that travels in the wheel: inside the package there, beside it in a checkout."""
    return PACKAGE / name if CHECKOUT is None else CHECKOUT / name


def csv_table(rows: Iterable[Sequence[str]]) -> bytes:
    """Rows as CSV in UTF-8. Names of files may contain anything: a line break of either kind is quoted, and bytes that
    are no text stay what they are."""
    lines = []
    for row in rows:
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(row)  # Python quotes the line breaks that it writes itself
        lines.append(line.getvalue().removesuffix("\r\n"))
    return "\n".join([*lines, ""]).encode("utf-8", "surrogateescape")


@contextmanager
def writing(file: str | Path) -> Iterator[Path]:
    """Yields the path of a new, empty file in the same folder and with the same suffix; at the end it becomes `file`.

    The temporary file is created exclusively, so no link is followed. An exception leaves `file` as it was.

    Raises:
        RunError: it cannot be written: the disk is full, the folder does not exist or is read-only.
    """
    file, part, name = Path(file), None, ""
    try:
        suffix = os.fsencode(file.name)[-100:].decode(errors="ignore")  # a name may have 255 bytes
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=TEMPORARY, suffix=f"-{suffix}")
        part = Path(name)
        mode = _mode(file)
        with suppress(OSError):  # a file system without modes
            os.fchmod(handle, mode)
        os.close(handle)
        yield part
        _flush(part)
        os.replace(part, file)
        part = None
        _flush(file.parent)
    except OSError as error:
        then = "the file before is as it was" if part or not name else "it is there, but a power cut may undo it"
        raise RunError(f"{file} cannot be written ({error.strerror or error}); {then}") from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write(file: str | Path, content: str | bytes) -> None:
    """Writes a whole file or nothing; text as UTF-8. Raises RunError as `writing` does."""
    with writing(file) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def make_folder(folder: str | Path) -> Path:
    """A folder, which is created if need be. Raises RunError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{one_line(folder)}: this folder cannot be created ({reason})") from error
    return Path(folder)


def save_figure(figure: Figure, file: str | Path, dpi: int = 150) -> None:
    """Writes a figure as a PNG that depends on nothing but the figure, and creates its folder if need be.

    Raises:
        RunError: the folder cannot be created, or the file cannot be written.
    """
    make_folder(Path(file).parent)
    with writing(file) as part:
        figure.savefig(part, dpi=dpi, metadata={"Software": None})  # Matplotlib's version


class WithoutAliases(yaml.SafeLoader):
    """Reads plain YAML: no file of ours has aliases, by which a few lines stand for gigabytes. Raises ValueError."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias, *")
        return super().compose_node(parent, index)


def read(file: str | Path) -> bytes:
    """The bytes of a regular file. Raises OSError, also for a folder, a pipe or a device."""
    with open(file, "rb", opener=_without_waiting) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError(f"{file} is not a regular file")
        return opened.read()


@contextmanager
def appending(file: str | Path) -> Iterator[BinaryIO]:
    """Yields a file opened for what another process prints, at its end; no link is followed. Raises RunError."""
    try:
        opened = os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK), "ab")
    except OSError as error:
        raise RunError(f"{file} cannot be written ({error.strerror})") from error
    with opened:
        yield opened


def sha256(data: bytes) -> str:
    """The sha256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def lock(file: str | Path, timeout: float = 0) -> Iterator[None]:
    """Holds the operating system's lock on a file, which is created if need be and never deleted; a killed process
    releases it.

    Args:
        file: the lock file. It holds the number of the process that locked it last.
        timeout: seconds to wait for it; -1 waits as long as it takes.

    Raises:
        LockedError: another process holds it; the message names that process.
        RunError: the lock file cannot be created.
    """
    held = FileLock(file, is_singleton=False)
    try:
        held.acquire(timeout=timeout)
    except Timeout as error:
        with suppress(OSError, UnicodeDecodeError, IndexError):
            owner = read(file).decode().split()[0]
            raise LockedError(f"{file} is locked by process {owner}") from error
        raise LockedError(f"{file} is locked by another process") from error
    except (OSError, NotImplementedError) as error:
        raise RunError(f"{file} cannot be locked ({getattr(error, 'strerror', None) or error})") from error
    try:
        with suppress(OSError):  # a full disk costs the number, not the lock
            # a file system without locks has more in the file, by which filelock knows whether the process lives
            if not (before := read(file)) or before.isdigit():
                handle = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
                os.write(handle, str(os.getpid()).encode())
                os.close(handle)
        yield
    finally:
        held.release()


def is_locked(file: str | Path) -> bool:
    """Whether a process holds the lock on a file."""
    if not Path(file).exists():
        return False
    held = FileLock(file, is_singleton=False)
    try:
        held.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    held.release()
    return False


def _mode(file: Path) -> int:
    """The permissions that `open` would give a new file, or those of the file that is replaced. Raises OSError for what
    is not to be replaced: a device, a pipe or a folder."""
    with suppress(FileNotFoundError):
        mode = file.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise OSError("it is not a regular file")
        return 0o644 if stat.S_ISLNK(mode) else stat.S_IMODE(mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if path.is_dir() and error.errno in (22, 95):  # EINVAL, ENOTSUP: a file system that flushes no folders
            return
        raise
    finally:
        os.close(handle)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe without a writer would hold the reader for ever
