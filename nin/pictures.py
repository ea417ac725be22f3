"""Picture files: finding and reading them, resizing, and conversion to tensors."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nin.checks import one_line, sides
from nin.errors import PictureError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow opens no other: some start programs, as EPS does
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif")
LONGEST = 20_000  # pixels of the longest side


def find_pictures(
    paths: Sequence[str | Path],
    leave_out: Path | None = None,
    on_left_out: Callable[[list[Path]], object] | None = None,
) -> list[Path]:
    """Picture files: each path that is a file, and for each folder the pictures in it and its subfolders, sorted.

    Args:
        paths: of files and folders.
        leave_out: a folder that is not searched where it lies in another one, such as that of drawings.
        on_left_out: called with the pictures in it that are not returned, if there are any.

    Raises:
        PictureError: a path does not exist, or a folder contains no picture.
    """
    files: list[Path] = []
    unsearched: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # unlike Path's own, False for a name that is too long
            inside = sorted(filter(is_picture, files_below(path, leave_out, unsearched.append)))
            if not inside:
                outside = f" outside of {leave_out}, which is not searched" if _pictures_in(unsearched) else ""
                raise PictureError(f"{path}: this folder contains no picture{outside} ({', '.join(SUFFIXES)})")
            files += inside
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise PictureError(f"{path}: does not exist")
    if on_left_out and (left_out := {file.resolve(): file for file in _pictures_in(unsearched)}):
        for file in files:  # the folder may be named itself, or linked
            left_out.pop(file.resolve(), None)
        if left_out:
            on_left_out([*left_out.values()])
    return files


def _pictures_in(folders: Sequence[Path]) -> list[Path]:
    """The pictures in folders, as far as these can be read."""
    return [file for folder in folders for file in files_below(folder, onerror=None) if is_picture(file)]


def _refuse(error: OSError) -> NoReturn:
    raise PictureError(f"{error.filename}: cannot be read ({error.strerror})") from error


def files_below(
    folder: Path,
    leave_out: Path | None = None,
    on_left_out: Callable[[Path], object] | None = None,
    onerror: Callable[[OSError], object] | None = _refuse,
) -> Iterator[Path]:
    """Yields the files in a folder and its subfolders. Hidden ones are left out; a linked folder is searched, unless it
    leads to a folder that is searched already or contains one.

    Args:
        folder: it is searched in any case.
        leave_out: a folder that is not searched.
        on_left_out: called with that folder where it is met.
        onerror: called with the error of a folder that cannot be read; None leaves such folders out.

    Raises:
        PictureError: a folder cannot be read, by default.
    """
    real, left_out = folder.resolve(), leave_out.resolve() if leave_out else None
    seen = {real, *real.parents}
    for here, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        below = sorted((os.path.islink(Path(here, name)), name) for name in folders if is_shown(name))
        folders.clear()
        for _, name in below:  # a folder before the links to it
            place = Path(here, name).resolve()
            if place not in seen:
                seen.add(place)
                if place != left_out:
                    folders.append(name)
                elif on_left_out:
                    on_left_out(Path(here, name))
        yield from (Path(here, name) for name in sorted(names) if is_shown(name))


def is_shown(name: str) -> bool:
    """Whether the name of a file or folder is not that of a hidden one; macOS leaves such beside a zip's files."""
    return not name.startswith((".", "__MACOSX"))


def is_picture(file: Path) -> bool:
    """Whether a file has the ending of a picture."""
    return file.suffix.lower() in SUFFIXES and file.is_file()


def read_picture(file: str | Path, least: int | None = None, content: bytes | None = None) -> Image.Image:
    """The picture in a file, in RGB and `upright`.

    Args:
        file: of the picture.
        least: pixels a side that suffice. A larger JPEG is then decoded at a half, a quarter or an eighth of its size
            with at least so many, which is several times as fast.
        content: the file's bytes, where they have been read.

    Raises:
        PictureError: not a picture in one of `FORMATS`, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a decoder skips
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            formats = (*FORMATS, "HEIF") if _is_heic(file) and _reads_heic() else FORMATS
            with Image.open(file if content is None else io.BytesIO(content), formats=formats) as opened:
                if max(opened.size) > LONGEST:
                    size = f"{opened.width}×{opened.height}"
                    raise PictureError(f"{file}: expected at most {LONGEST} pixels a side, got {size}")
                if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                    # Pillow warns; another thread may have changed what becomes of warnings
                    raise Image.DecompressionBombError(f"expected at most {Image.MAX_IMAGE_PIXELS:,}")
                if least is not None:
                    opened.draft(None, (least, least))
                return upright(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(f"{file}: too many pixels ({one_line(error)})") from error
    except UnidentifiedImageError as error:
        if _is_heic(file):
            reason = "HEIC pictures require pillow-heif; install it with pip install pillow-heif, or save them as JPEG"
            raise PictureError(f"{file}: {reason}") from error
        raise PictureError(f"{file}: not a picture in a supported format ({', '.join(FORMATS)})") from error
    except MemoryError as error:
        raise PictureError(f"{file}: there is not enough memory for it") from error
    except PictureError:
        raise
    except PermissionError as error:
        raise PictureError(f"{file}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a decoder raises anything
        raise PictureError(f"{file}: damaged ({one_line(error) or type(error).__name__})") from error


def _is_heic(file: str | Path) -> bool:
    """Whether a file begins as a HEIC picture does, which telephones take."""
    with open(file, "rb") as opened:
        start = opened.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def _reads_heic() -> bool:
    """Whether pillow-heif is installed, which no other picture requires."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def upright(picture: Image.Image) -> Image.Image:
    """The picture in RGB as a person sees it.

    Turned as its EXIF says, on white where it is transparent, its first frame if it is animated. 16 bits keep their
    scale: 65,535 is white. 32 bits have none: their largest value is white, and 0 or a smaller value is black. Floats
    up to 1 are scaled to 0…255; larger ones are taken as 8 bits, or as 16 where they exceed 255.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        most = values.max(initial=0.0)
        scale = 255 if most <= 1 else 1 if most <= 255 else 1 / 257
        picture = Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
    if picture.mode.startswith("I"):
        pixels = np.asarray(picture, dtype=np.float64)
        black, white = (0, 65_535) if picture.mode.startswith("I;16") else (min(0, pixels.min()), pixels.max())
        picture = Image.fromarray((255 * (pixels - black) / max(white - black, 1)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def resize(picture: Image.Image, size: int | Sequence[int]) -> Image.Image:
    """The middle of a picture at `size` pixels: height and width, or one number for both.

    Raises:
        PictureError: the picture has no pixels.
    """
    height, width = sides(LONGEST, size=size)
    if 0 in picture.size:
        raise PictureError(f"a picture of {picture.width}×{picture.height} pixels shows nothing")
    return ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)


def to_tensor(picture: Image.Image, channels: int = 3) -> Tensor:
    """The pixels of a picture, (C, H, W) uint8 in 0…255: RGB, or grey if `channels` is 1."""
    pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(picture.height, picture.width, channels)).permute(2, 0, 1).contiguous()


def to_picture(image: Tensor) -> Image.Image:
    """The RGB picture of pixels (C, H, W) uint8 with C of 1 or 3, as an image of a set has them."""
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
