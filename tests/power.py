"""What a power cut leaves: every change of a folder is recorded, and the folder rebuilt as it may stand after a cut.

A cut may leave every name as it was renamed while the content behind it never reached the disk, or the names as they
were when their folder was last flushed. What was not flushed is empty or short. In a mixture, drawn by a seeded
generator, some of the renames and some blocks of what was not flushed have reached the disk.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Disk = tuple[tuple[str, bytes], ...]  # names and contents, sorted
BLOCK = 512  # bytes of a sector
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")  # of Python's audit events


@dataclass
class Recorder:
    """Records what happens in a folder between system calls that write, flush or rename.

    Attributes:
        folder: the folder.
        calls: what was called, in order.
        disks: the folders that a cut may leave, in order and each once, with the number of the call after which it
            stands first.
        mixtures: further folders of this kind, in which only a part of what was not flushed is there.
        versions: the contents that each file had under its own name.
    """

    folder: Path
    calls: list[str] = field(default_factory=list)
    disks: dict[Disk, int] = field(default_factory=dict)
    mixtures: dict[Disk, int] = field(default_factory=dict)
    versions: dict[str, set[bytes]] = field(default_factory=dict)
    draws: random.Random = field(default_factory=lambda: random.Random(16))
    flushed: dict[int, bytes] = field(default_factory=dict)  # content by inode
    names: dict[str, int] = field(default_factory=dict)  # inode by name, as the folder was last flushed

    def record(self, run: Callable[[], None]) -> None:
        """Runs a function whose changes are recorded. The hook stays in the process: call this in one of its own."""
        fsync, recording = os.fsync, [True]

        def flush(handle: int) -> None:
            self.snapshot("")
            fsync(handle)
            self.flush(handle)

        def heard(event: str, arguments: tuple) -> None:
            if not recording:
                return
            is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (event in CHANGES or is_write) and self.concerns(arguments[0]):
                recording.clear()
                self.snapshot(f"{event} {Path(os.fsdecode(arguments[0])).name}")
                recording.append(True)

        sys.addaudithook(heard)
        os.fsync = os.fdatasync = flush
        try:
            run()
        finally:
            os.fsync = fsync
            self.snapshot("end")
            recording.clear()

    def concerns(self, path: object) -> bool:
        """Whether a path is in the folder, or is it."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        path = Path(os.path.abspath(os.fsdecode(path)))
        return self.folder in (path, *path.parents)

    def flush(self, handle: int) -> None:
        """Notes what a flush has brought to the disk."""
        about = os.fstat(handle)
        seen = self.seen()
        inodes = {inode: (name, content) for name, (inode, content) in seen.items()}
        if about.st_ino in inodes:
            self.flushed[about.st_ino] = inodes[about.st_ino][1]
            self.calls.append(f"fsync {inodes[about.st_ino][0]}")
        elif self.folder.exists() and about.st_ino == self.folder.stat().st_ino:
            self.names = {name: inode for name, (inode, _) in seen.items()}
            self.calls.append("fsync folder")
        self.snapshot("")

    def seen(self) -> dict[str, tuple[int, bytes]]:
        """Inode and content of each file in the folder, as a program sees them."""
        found = sorted(file for file in self.folder.rglob("*") if file.is_file() and file.name != ".lock")
        return {str(file.relative_to(self.folder)): (file.stat().st_ino, file.read_bytes()) for file in found}

    def snapshot(self, call: str) -> None:
        """Adds the folders that a cut may leave now; then notes the call that comes next."""
        seen = self.seen()
        contents = dict(seen.values())
        for of_names in ({name: inode for name, (inode, _) in seen.items()}, self.names):
            for share in (0, 0.5):
                disk = tuple((name, self.after_a_cut(of_names[name], contents, share)) for name in sorted(of_names))
                self.disks.setdefault(disk, len(self.calls))
        for name, (_, content) in seen.items():
            self.versions.setdefault(name, set()).add(content)
        for _ in range(20):
            mixture = self.mixture({name: inode for name, (inode, _) in seen.items()}, contents)
            self.mixtures.setdefault(mixture, len(self.calls))
        if call:
            self.calls.append(call)

    def mixture(self, names: dict[str, int], contents: dict[int, bytes]) -> Disk:
        """A folder in which a random part of the names and contents that were not flushed has reached the disk."""
        found: dict[str, bytes] = {}
        for name in sorted({*names, *self.names}):
            inode = self.draws.choice((names.get(name), self.names.get(name)))
            if inode is not None:
                found[name] = self.in_part(inode, contents)
        return tuple(found.items())

    def in_part(self, inode: int, contents: dict[int, bytes]) -> bytes:
        """A file's content: whole where it was flushed, else some of its blocks, zeros between them, up to a length."""
        content, flushed = contents.get(inode), self.flushed.get(inode)
        if content is None or content == flushed:
            return flushed or b""
        size = self.draws.choice((0, len(content), self.draws.randrange(len(content) + 1)))
        blocks = (content[start : start + BLOCK] for start in range(0, size, BLOCK))
        return b"".join(block if self.draws.random() < 0.5 else bytes(len(block)) for block in blocks)[:size]

    def after_a_cut(self, inode: int, contents: dict[int, bytes], share: float) -> bytes:
        """A file's content: whole where it was flushed, else a share of it."""
        content, flushed = contents.get(inode), self.flushed.get(inode)
        if content is None or content == flushed:
            return flushed or b""
        return content[: int(share * len(content))]


def rebuild(disk: Disk, folder: Path) -> None:
    """Writes a folder as a cut has left it."""
    folder.mkdir(parents=True)
    for name, content in disk:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def cuts_of_a_run(
    overrides: list[str], folder: Path
) -> tuple[list[str], list[Disk], list[Disk], dict[str, set[bytes]]]:
    """The calls of a run in `folder` that change it, the folders that a power cut may leave, mixtures of them, and the
    versions of each file."""
    from nin.cli import compose
    from nin.run.train import train

    recorder = Recorder(folder)
    recorder.record(lambda: train(compose(overrides), folder))
    mixtures = [disk for disk in recorder.mixtures if disk not in recorder.disks]
    return recorder.calls, list(recorder.disks), mixtures, recorder.versions
