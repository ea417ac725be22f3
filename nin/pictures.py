"""Pictures as people have them: found, read, and made into what a net was trained on."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nin.bounds import sides

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LONGEST = 20_000  # pixels of a side that are still read


class PictureError(RuntimeError):
    """A file that is no picture, or none that can be read; the message names it."""


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """The files of these paths; of a folder, the pictures in it, sorted. Raises PictureError where there is none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise PictureError(f"{path}: there is no picture in this folder ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise PictureError(f"{path}: there is no such file or folder")
    return found


def read_picture(file: Path) -> Image.Image:
    """The picture in a file, as `upright` has it.

    Raises:
        PictureError: not a picture, cut short, or larger than can be read within bounds.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                if max(opened.size) > LONGEST:
                    raise PictureError(
                        f"{file}: {opened.width}×{opened.height} pixels, at most {LONGEST} a side are read"
                    )
                return upright(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(f"{file}: too many pixels to be read ({error})") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{file}: not a picture of a known format") from error
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, struct.error) as error:
        raise PictureError(f"{file}: damaged ({error})") from error


def upright(picture: Image.Image) -> Image.Image:
    """The picture in RGB as a person sees it: turned as its EXIF says, on white where it is transparent, the first
    frame where it moves, 16 bits scaled to 8."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        pixels = np.asarray(picture, dtype=np.float64)
        picture = Image.fromarray((pixels / (257 if pixels.max() > 255 else 1)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def resize(picture: Image.Image, size: int | Sequence[int]) -> Image.Image:
    """The middle of a picture, `size` pixels: height and width, or one number for both."""
    height, width = sides(LONGEST, size=size)
    return ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
