"""The files of a set: downloaded, verified, unpacked.

A start reads and hashes every file once; the bytes that were hashed are the bytes that are parsed.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import pickle
import tarfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nin import files
from nin.checks import one_line
from nin.errors import DataError, RunError

SILENCE = 20.0  # seconds without a byte after which an address is given up
TRIAL = 15.0  # seconds in which an address must show its speed, again and again
SLOW = 300e3  # bytes per second; slower addresses are given up for others
SLOWEST = 10e3  # bytes per second; slower addresses are given up for good
DEADLINE = 6 * 3600.0  # seconds after which an address is given up in any case
MAX_DOWNLOAD_BYTES = 2e9  # a longer answer is no file of a set; the longest, of SVHN, has 1.3e9


@dataclass(frozen=True)
class Archive:
    """The files of a set as its authors publish them: one archive, and the parts inside.

    Attributes:
        file: name of the archive in the data folder.
        md5: its checksum.
        urls: its addresses, tried in turn.
        folder: folder of the parts, below the data folder; inside the archive it has the last of these names.
        parts: the md5 of each part by its name, or None where only the archive has a known md5.
    """

    file: str
    md5: str
    urls: Sequence[str]
    folder: str
    parts: Mapping[str, str | None]

    def fetch(self, root: str | Path, *, download: bool = True, urls: Sequence[str] | None = None) -> dict[str, bytes]:
        """Returns the verified bytes of every part by name.

        If a part is missing or damaged, all are unpacked anew from the archive; if that is not in `root` either, it is
        downloaded. A folder whose parts are whole is only read.

        Args:
            root: the data folder.
            download: whether to download what is missing.
            urls: addresses of the archive in place of the set's own.

        Raises:
            DataError: a part is missing or damaged, and the archive cannot be downloaded, read or unpacked.
        """
        root = Path(root)
        try:
            parts, damage = self._read_parts(root / self.folder)
            if not damage:
                return parts
            archive = self._read_archive(root / self.file)
            if archive is None:
                archive = self._download(root, damage, self.urls if urls is None else urls, allowed=download)
            return self._unpack(archive, root)
        except (OSError, RunError, tarfile.TarError, EOFError, zlib.error) as error:
            raise DataError(
                f"{self.folder} cannot be read from or written to {root.absolute()} ({one_line(error)}); make "
                "room or change the permissions, or set data.root=FOLDER"
            ) from error

    def _read_parts(self, folder: Path) -> tuple[dict[str, bytes], str]:
        """The parts in a folder, and their damage: "" if they are whole."""
        if not folder.is_dir():
            return {}, f"there is no folder {self.folder}"
        parts = {name: files.read(folder / name) for name in self.parts if (folder / name).is_file()}
        return parts, self._damage(parts)

    def _damage(self, parts: Mapping[str, bytes]) -> str:
        """The damage of these parts in words; "" if they are whole."""
        if missing := [name for name in self.parts if name not in parts]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return f"{missing[0]} is missing{more}"
        for name, expected in self.parts.items():
            if expected is not None and (actual := md5(parts[name])) != expected:
                return f"{name} has md5 {actual}, expected {expected}"
        return ""

    def _read_archive(self, file: Path) -> bytes | None:
        """The bytes of the archive, or None if it is missing or damaged."""
        archive = files.read(file) if file.is_file() else b""
        return archive if md5(archive) == self.md5 else None

    def _download(self, root: Path, damage: str, urls: Sequence[str], allowed: bool) -> bytes:
        """The bytes of the archive, downloaded and kept in `root`."""
        wanted = (
            f"put the folder {self.folder} or the archive {self.file} there, or use data=digits, which requires no "
            "download"
        )
        if not allowed:
            raise DataError(
                f"{self.folder} is incomplete in {root.absolute()} ({damage}) and data.download=false; {wanted}"
            )
        root.mkdir(parents=True, exist_ok=True)
        try:
            archive = download(urls, self.md5)
        except DataError as error:
            raise DataError(
                f"{self.folder} is incomplete in {root.absolute()} ({damage}) and {error}; set data.urls='[\"URL\"]' "
                f"to another address, {wanted}"
            ) from error
        files.write(root / self.file, archive)
        return archive

    def _unpack(self, archive: bytes, root: Path) -> dict[str, bytes]:
        """The parts in the archive, written to their folder one whole file at a time."""
        inside, parts = PurePosixPath(self.folder).name, {}
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                folder, name = PurePosixPath(member.name).parent.name, PurePosixPath(member.name).name
                if member.isfile() and folder == inside and name in self.parts:
                    parts[name] = tar.extractfile(member).read()
        if damage := self._damage(parts):
            raise DataError(f"{self.file} does not contain {self.folder} as expected ({damage})")
        (root / self.folder).mkdir(parents=True, exist_ok=True)
        for name, content in parts.items():
            files.write(root / self.folder / name, content)
        return {name: parts[name] for name in self.parts}


@dataclass(frozen=True)
class Files:
    """The files of a set whose authors publish them one by one.

    Attributes:
        folder: folder of the files, below the data folder.
        urls: addresses of folders that contain them all, tried in turn.
        parts: the md5 of each file by its name.
    """

    folder: str
    urls: Sequence[str]
    parts: Mapping[str, str]

    def fetch(self, root: str | Path, *, download: bool = True, urls: Sequence[str] | None = None) -> dict[str, bytes]:
        """Returns the verified bytes of every file by name. Files that are missing or damaged are downloaded.

        Args and Raises are those of `Archive.fetch`; `urls` are addresses of folders.
        """
        folder = Path(root) / self.folder
        try:
            return {
                name: self._fetch(folder / name, download, self.urls if urls is None else urls) for name in self.parts
            }
        except (OSError, RunError) as error:
            raise DataError(
                f"{self.folder} cannot be read from or written to {folder.absolute()} ({one_line(error)}); make "
                "room or change the permissions, or set data.root=FOLDER"
            ) from error

    def _fetch(self, file: Path, allowed: bool, urls: Sequence[str]) -> bytes:
        """The bytes of one file, read or downloaded."""
        expected = self.parts[file.name]
        content = files.read(file) if file.is_file() else None
        actual = None if content is None else md5(content)
        if content is not None and actual == expected:
            return content
        damage = "is missing" if content is None else f"has md5 {actual}, expected {expected}"
        wanted = "put it there, or use data=digits, which requires no download"
        if not allowed:
            raise DataError(f"{file.absolute()} {damage} and data.download=false; {wanted}")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = download([f"{url.rstrip('/')}/{file.name}" for url in urls], expected)
        except DataError as error:
            raise DataError(
                f"{file.absolute()} {damage} and {error}; set data.urls='[\"URL\"]' to the address of another folder "
                f"that contains it, {wanted}"
            ) from error
        files.write(file, content)
        return content


def no_files(root: str | Path, *, download: bool = True, urls: Sequence[str] | None = None) -> dict[str, bytes]:
    """Returns no file: the `fetch` of a set that a library contains."""
    return {}


def md5(data: bytes) -> str:
    """The md5 of bytes, 32 hexadecimal digits: the checksum that the sets' authors publish."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class SlowError(OSError):
    """An address that works, but slowly.

    Attributes:
        speed: in bytes per second.
    """

    def __init__(self, speed: float) -> None:
        super().__init__(f"slow, {speed / 1e3:.0f} kB/s")
        self.speed = speed


def download(urls: Sequence[str], expected: str) -> bytes:
    """Returns the bytes with the md5 `expected` from the first of some addresses that has them.

    An address that is broken, silent, slow or has other bytes is given up for the next one, and this is printed. If no
    other is left, the slow ones get a second chance, the fastest first.

    Raises:
        DataError: no address has them; the message lists the reasons.
    """
    failures: dict[str, str] = {}
    slow: dict[str, float] = {}
    for patient in (False, True):
        for url in sorted(slow, key=lambda url: -slow[url]) if patient else urls:
            try:
                answer = read_address(url, patient=patient)
                if (actual := md5(answer)) != expected:
                    raise OSError(f"it has md5 {actual}, expected {expected}")
                return answer
            except SlowError as error:
                slow[url], failures[url] = error.speed, str(error)
            except (OSError, ValueError, http.client.HTTPException) as error:
                failures[url] = one_line(error) or type(error).__name__
            print(f"gave up {one_line(url)}: {failures[url]}")
    reasons = "; ".join(f"{one_line(url)}: {reason}" for url, reason in failures.items())
    raise DataError(f"no address has it ({reasons or 'data.urls is empty'})")


def read_address(url: str, *, patient: bool = False) -> bytes:
    """Returns the answer of an address, with a progress bar.

    Raises:
        SlowError: it is slow and we are not `patient`.
        OSError, ValueError, http.client.HTTPException: it is broken, silent, all too slow, or its answer too long.
    """
    from tqdm import tqdm

    answer, start = _Answer(url), time.monotonic()
    answer.start()
    slowest, mark, marked = SLOWEST if patient else SLOW, start, 0
    with tqdm(desc=one_line(url), unit="B", unit_scale=True) as bar:
        try:
            while True:
                ended = answer.ended.wait(0.1)
                now, received = time.monotonic(), len(answer.content)
                bar.total = answer.total
                bar.update(received - bar.n)
                if max(received, answer.total or 0) > MAX_DOWNLOAD_BYTES:
                    raise OSError(f"the answer is longer than {MAX_DOWNLOAD_BYTES:.0e} bytes")
                if ended and answer.error:
                    raise answer.error
                if now - mark > TRIAL:
                    if received - marked < slowest * (now - mark):
                        error = SlowError((received - marked) / (now - mark))
                        raise OSError(str(error)) if patient else error
                    mark, marked = now, received
                if ended:
                    return bytes(answer.content)
                if now - start > DEADLINE:
                    raise OSError(f"not finished after {DEADLINE:.0f} s")
        finally:
            answer.abandoned = True


class _Answer(threading.Thread):
    """Reads an address in a thread of its own: no name server and no drip of header bytes can hold the caller.

    Attributes:
        content: the bytes so far.
        total: how many there will be, where the server says it.
        ended: set when the answer has ended or failed.
        error: why it failed.
        abandoned: set by the caller; the thread then ends with the next byte.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)  # a thread that is held ends with the process
        self.url = url
        self.content = bytearray()
        self.total: int | None = None
        self.ended = threading.Event()
        self.error: Exception | None = None
        self.abandoned = False

    def read(self) -> None:
        """Reads the answer to its end."""
        with urllib.request.urlopen(self.url, timeout=SILENCE) as answer:
            self.total = int(answer.headers.get("Content-Length") or 0) or None
            while not self.abandoned and len(self.content) <= MAX_DOWNLOAD_BYTES:
                chunk = answer.read1(1 << 20)
                if not chunk:
                    break
                self.content += chunk

    def run(self) -> None:
        try:
            self.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.error = error
        except Exception as error:  # a server's answer raises anything
            self.error = OSError(f"{type(error).__name__}: {one_line(error)}")
        finally:
            self.ended.set()


_RECONSTRUCT = np.empty(0).__reduce__()[0]
ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 1's name, which CIFAR's files have
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class Arrays(pickle.Unpickler):
    """An unpickler of NumPy arrays and plain containers. It refuses everything else, so no file runs code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is neither a NumPy array nor a plain container")
        return ADMITTED[module, name]


def unpickle(data: bytes, name: str) -> Any:
    """Returns the NumPy arrays and plain containers that bytes hold as a pickle; strings of Python 2 as text.

    Raises:
        DataError: the bytes are damaged or hold anything else; the message begins with `name`.
    """
    try:
        return Arrays(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # damaged bytes raise anything
        raise DataError(f"{name} cannot be read ({one_line(error) or type(error).__name__})") from error
