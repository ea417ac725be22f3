"""Pictures for tests, good and damaged ones."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image

FORMATS = {
    "png": {},
    "jpg": {"quality": 80},
    "webp": {"quality": 80},
    "gif": {},
    "bmp": {},
    "tif": {"compression": "tiff_lzw"},
    "deep.png": {},
    "palette.png": {},
    "clear.png": {},
    "progressive.jpg": {"progressive": True},
    "deflate.tif": {"compression": "tiff_deflate"},
}


def gradient(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """Dark on the left, bright on the right."""
    x = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    return Image.fromarray(np.broadcast_to(x, (height, width, 3)).astype(np.uint8)).convert(mode)


def damaged_pictures(generator: random.Random, each: int) -> Iterator[tuple[str, bytes]]:
    """Files of every format, of each a third with flipped bytes alone, a third cut short too, a third patched too."""
    for name in FORMATS:
        good = _file(name)
        for number in range(each):
            bad = bytearray(good)
            for _ in range(generator.choice([1, 1, 4])):
                bad[generator.randrange(min(len(bad), generator.choice([100, len(bad), len(bad)])))] = (
                    generator.randrange(256)
                )
            if number % 3 == 1:
                del bad[generator.randrange(len(bad)) :]
            elif number % 3 == 2:
                place, length = generator.randrange(len(bad)), generator.randrange(30)
                bad[place : place + length] = generator.choice([b"", bytes(length), b"\xff" * length, bad[:length]])
            yield f"{number}.{name}", bytes(bad)


def _file(name: str) -> bytes:
    file = io.BytesIO()
    mode = {"deep": "I;16", "palette": "P", "clear": "LA"}.get(name.split(".")[0], "RGB")
    picture = gradient(mode="L").convert("I;16") if mode == "I;16" else gradient(mode=mode)
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name.split(".")[-1], name.split(".")[-1].upper())
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    picture.save(file, kind, **FORMATS[name], **options)
    return file.getvalue()
