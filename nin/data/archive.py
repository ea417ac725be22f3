"""The files of a set: downloaded, verified, unpacked.

A start reads and hashes every file once; the bytes that were hashed are the bytes that are parsed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nin import files
from nin.checks import one_line
from nin.download import download
from nin.errors import DataError, RunError

URLS = "train or evaluate data.urls='[\"URL\"]'"  # other commands that read sets refuse it


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
            f"put the folder {self.folder} or the archive {self.file} there, or train with data=digits, which requires "
            "no download"
        )
        if not allowed:
            raise DataError(
                f"{self.folder} is incomplete in {root.absolute()} ({damage}) and data.download=false; {wanted}"
            )
        root.mkdir(parents=True, exist_ok=True)
        try:
            archive = download(urls, self.md5, md5)
        except DataError as error:
            raise DataError(
                f"{self.folder} is incomplete in {root.absolute()} ({damage}) and {error}; "
                f"give the command {URLS} for another address, {wanted}"
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
        wanted = "put it there, or train with data=digits, which requires no download"
        if not allowed:
            raise DataError(f"{file.absolute()} {damage} and data.download=false; {wanted}")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = download([f"{url.rstrip('/')}/{file.name}" for url in urls], expected, md5)
        except DataError as error:
            raise DataError(
                f"{file.absolute()} {damage} and {error}; give the command {URLS} for "
                f"another folder that contains it, {wanted}"
            ) from error
        files.write(file, content)
        return content


def no_files(root: str | Path, *, download: bool = True, urls: Sequence[str] | None = None) -> dict[str, bytes]:
    """Returns no file: the `fetch` of a set that a library contains."""
    return {}


def md5(data: bytes) -> str:
    """The md5 of bytes, 32 hexadecimal digits: the checksum that the sets' authors publish."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


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
