"""Folders of pictures that tests make."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"rose": (200, 20, 40), "tulip": (230, 180, 20), "violet": (90, 20, 200)}


def make_picture(file: Path, colour=(10, 20, 30), seed=0, size=(50, 40)) -> Path:
    """A picture of noise around a colour, in the format that its ending names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(file)
    return file


def make_folder(root: Path, numbers=(12, 11, 10), part="", ending="png", shift=0) -> Path:
    """A folder with a class for each colour, with so many pictures each."""
    for (name, colour), number in zip(COLOURS.items(), numbers, strict=False):
        for i in range(number):
            make_picture(root / part / name / f"{i}.{ending}", colour, seed=shift + i)
    return root
