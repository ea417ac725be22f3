"""Photographs as images: read into memory, or streamed from the disk by worker processes."""

from __future__ import annotations

import ctypes
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from nin.checks import cores, counted, one_line, some_of
from nin.errors import DataError, PictureError
from nin.pictures import read_picture, resize

READ_AT_ONCE = 64  # pictures of a batch while a folder is read into memory, or counted
READ_PIXELS = 64 * 224**2  # at most, in such a batch: each worker has two in the queue
MOST_WORKERS = 8  # more seldom decode faster than a net learns
NAMED = 5  # damaged files that a warning names


class Streamed:
    """Pictures as images (N, 3, size, size) uint8 in 0…255 that are decoded anew each time, by worker processes.

    An index returns one image, a slice or a tensor of indices fewer streamed ones. Each picture is turned upright, its
    shorter side is resized to `size`, and the square in the middle is cut out.

    Args:
        paths: files of the pictures.
        size: pixels a side.
        workers: processes that decode; None takes `workers_of()` of them, 0 decodes in this process.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(self, paths: Sequence[Path], size: int, workers: int | None = None) -> None:
        self.paths = list(paths)
        self.size = size
        self.workers = workers

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.paths), 3, self.size, self.size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor | Streamed:
        if isinstance(index, slice):
            return Streamed(self.paths[index], self.size, self.workers)
        if isinstance(index, Tensor) and index.ndim:
            return Streamed([self.paths[i] for i in index.tolist()], self.size, self.workers)
        try:
            return decoded(self.paths[int(index)], self.size).permute(2, 0, 1)
        except PictureError as error:
            raise DataError(str(error)) from error

    def read(self, batches: Sequence[Tensor], pin: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """The images (B, size, size, 3) of each batch of indices in turn, and the places in the batch that they have:
        a damaged picture is left out, with a warning, so that B may be 0."""
        workers = workers_of() if self.workers is None else self.workers
        loader = DataLoader(
            _Decoding(self.paths, self.size),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=workers if len(batches) > 1 else 0,
            collate_fn=_collated,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # else it draws from the one that dropout draws from
        )
        for array, order, damaged in _surviving(loader):
            if damaged:
                warnings.warn(
                    f"left out {counted(len(damaged), 'damaged picture')}: {some_of(damaged, NAMED)}", stacklevel=1
                )
            images, places = torch.from_numpy(array).view(-1, self.size, self.size, 3), torch.from_numpy(order)
            yield (images.pin_memory() if pin else images), places

    def in_memory(self) -> tuple[Tensor, Tensor]:
        """All images (N, 3, size, size), channels last in memory, and their indices: damaged pictures are left out."""
        images = torch.empty(len(self), self.size, self.size, 3, dtype=torch.uint8)
        kept = []
        for read, indices in self._in_turn():
            images[indices] = read
            kept.append(indices)
        indices = torch.cat(kept)
        images = images if len(indices) == len(self) else images[indices]
        return images.permute(0, 3, 1, 2), indices

    def split(self, number: int) -> Iterator[Tensor]:
        """The images (B, 3, size, size) in parts of so many, like torch.Tensor.split; damaged pictures are left out."""
        held = torch.empty(0, self.size, self.size, 3, dtype=torch.uint8)
        for images, _ in self._in_turn():
            held = torch.cat([held, images])
            while len(held) >= number:
                yield held[:number].permute(0, 3, 1, 2)
                held = held[number:]
        if len(held):
            yield held.permute(0, 3, 1, 2)

    def _in_turn(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images (B, size, size, 3), READ_AT_ONCE or fewer at a time, and their indices, with a progress bar."""
        number = max(1, min(READ_AT_ONCE, READ_PIXELS // self.size**2))
        batches = list(torch.arange(len(self)).split(number))
        with tqdm(desc="reading pictures", total=len(self), unit=" pictures", delay=2, leave=False) as bar:
            for batch, (images, places) in zip(batches, self.read(batches), strict=True):
                yield images, batch[places]
                bar.update(len(batch))


def workers_of(processes: int = 1) -> int:
    """Returns the number of decoding workers of each training process: its share of the cores, at most MOST_WORKERS."""
    return min(MOST_WORKERS, max(1, cores() // processes))


def decoded(file: Path, size: int) -> Tensor:
    """The middle square of a picture, (size, size, 3) uint8. Raises PictureError."""
    return torch.from_numpy(np.array(resize(read_picture(file, least=2 * size), size)))


class _Decoding(Dataset):
    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = paths
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray | str:
        """The image, or why there is none."""
        try:
            return decoded(self.paths[index], self.size).numpy()
        except PictureError as error:
            return one_line(error)


def _collated(read: Iterable[np.ndarray | str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images, their places and the reasons of damaged ones. Arrays come through a pipe: tensors would take shared
    memory, of which a container has 64 MB by default, and a worker that finds none waits for ever."""
    images = [(place, image) for place, image in enumerate(read) if isinstance(image, np.ndarray)]
    damaged = [reason for reason in read if isinstance(reason, str)]
    stacked = np.stack([image for _, image in images]) if images else np.empty(0, dtype=np.uint8)
    return stacked, np.array([place for place, _ in images], dtype=np.int64), damaged


def _surviving(loader: DataLoader) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """The batches of a loader. Raises DataError where a worker was killed."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # the others are errors in a worker
            raise
        reason = "a process that decodes pictures was killed, as for want of memory"
        raise DataError(f"{reason}; set data.workers=0, or a smaller number than now") from error


def _begin_worker(_: int) -> None:
    """A worker ignores Ctrl-C: its parent handles it, and the worker ends with the parent.

    A forked worker shares its parent's freed memory. Once the parent reuses it, the worker holds a copy: 0.4 GB each.
    So it returns that memory first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(OSError, AttributeError):  # another system's library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
