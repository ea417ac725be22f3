"""The 17 flowers of Oxford (Nilsback and Zisserman, 2006): what a net is transferred to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.utils import download_and_extract_archive
from torchvision.transforms import v2

from nin.data.sets import DataError, ImageSet

FLOWERS17_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/17flowers.tgz"
FLOWERS17_MD5 = "b59a65d8d1a99cd66944d474e1289eab"
PER_CLASS = 80
FLOWERS = (
    *("daffodil", "snowdrop", "lily of the valley", "bluebell", "crocus", "iris", "tiger lily", "tulip", "fritillary"),
    *("sunflower", "daisy", "coltsfoot", "dandelion", "cowslip", "buttercup", "windflower", "pansy"),
)


def load_flowers17(root: str | Path, size: int, *, download: bool = True) -> ImageSet:
    """17 × 80 photographs, scaled so that the shorter side has `size` pixels, and of these the square in the middle.

    Every eighth photograph of a class is a test image, whatever the seed: 1,190 for training, 170 to test. The training
    images come in the order 1, 18, …: their last ones, held out for tuning, are of all classes.

    Args:
        root: folder that holds `flowers17/jpg/image_0001.jpg` to `image_1360.jpg`, the archive's own layout.
        size: height and width in pixels.
        download: whether to download what is not there.

    Raises:
        DataError: photographs are missing or damaged and cannot be had.
    """
    folder = Path(root) / "flowers17"
    files = [folder / "jpg" / f"image_{number:04d}.jpg" for number in range(1, PER_CLASS * len(FLOWERS) + 1)]
    fetch_flowers17(root, download=download)
    squared = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    pixels = []
    for file in files:
        try:
            with Image.open(file) as photograph:
                pixels.append(np.asarray(squared(photograph.convert("RGB"))))
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise DataError(f"{file} is damaged ({error}); delete it, and the set is downloaded again") from error
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    labels = torch.arange(len(files)) // PER_CLASS
    place = torch.arange(len(files)) % PER_CLASS
    train, test = (place % 8 != 7).nonzero()[:, 0], (place % 8 == 7).nonzero()[:, 0]
    train = train[torch.argsort(place[train], stable=True)]
    return ImageSet(images[train], labels[train], images[test], labels[test], FLOWERS, flip=True)


def fetch_flowers17(root: str | Path, *, download: bool = True) -> None:
    """Brings the photographs into `root`, or raises DataError; touches nothing where all are there."""
    folder = Path(root) / "flowers17"
    wanted = PER_CLASS * len(FLOWERS)
    found = sum((folder / "jpg" / f"image_{number:04d}.jpg").is_file() for number in range(1, wanted + 1))
    if found == wanted:
        return
    where = f"{found} of the {wanted} photographs of flowers17 are in {(folder / 'jpg').absolute()}"
    put = "put image_0001.jpg to image_1360.jpg of Oxford's 17flowers.tgz there"
    if not download:
        raise DataError(f"{where}, and data.download=false: {put}")
    try:
        download_and_extract_archive(FLOWERS17_URL, str(folder), md5=FLOWERS17_MD5, remove_finished=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise DataError(f"{where}, and {FLOWERS17_URL} cannot be had ({error}): {put}") from error
