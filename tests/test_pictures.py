"""Picture files: every form that people have is read as a person sees it, and anything else is refused."""

import io
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from damaged import FORMATS, damaged_pictures, gradient
from nin import pictures
from nin.errors import PictureError


def test_pictures_of_every_form_are_read(tmp_path):
    reference = np.asarray(gradient()).astype(int)
    forms = {
        "a.png": "RGB",
        "b.jpg": "RGB",
        "c.webp": "RGB",
        "d.png": "L",
        "e.png": "P",
        "f.jpg": "CMYK",
        "g.png": "LA",
    }
    for name, mode in forms.items():
        gradient(mode=mode).save(tmp_path / name)
        picture = pictures.read_picture(tmp_path / name)
        assert (picture.mode, picture.size) == ("RGB", (40, 30))
        assert abs(np.asarray(picture).astype(int) - reference).mean() < 20, name


def test_sixteen_bits_are_scaled(tmp_path):
    values = (np.asarray(gradient(mode="L")).astype(np.uint16)) * 257
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(pictures.read_picture(tmp_path / "deep.png"))[..., 0], values // 257)


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(pictures.read_picture(tmp_path / "clear.png")).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient(40, 30).save(tmp_path / "turned.jpg", exif=exif)
    assert pictures.read_picture(tmp_path / "turned.jpg").size == ((40, 30) if orientation < 5 else (30, 40))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (10_000, 20), (20, 10_000)])
def test_any_shape_is_read_and_resized(tmp_path, size):
    gradient(*size).save(tmp_path / "odd.png")
    picture = pictures.read_picture(tmp_path / "odd.png")
    assert picture.size == size
    assert pictures.resize(picture, (32, 48)).size == (48, 32)


def test_pixels_and_pictures_are_converted_into_each_other():
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(pictures.to_tensor(pictures.to_picture(image)), image)
    assert pictures.to_tensor(pictures.to_picture(image), 1).shape == (1, 5, 7)
    grey = torch.randint(0, 256, (1, 5, 7), dtype=torch.uint8)
    assert torch.equal(pictures.to_tensor(pictures.to_picture(grey), 1), grey)
    assert pictures.to_picture(grey).mode == "RGB"
    assert pictures.to_tensor(Image.new("RGBA", (4, 2))).shape == (3, 2, 4)


def bad_files():
    good = io.BytesIO()
    gradient(400, 300).save(good, "PNG")
    yield "empty.png", b""
    yield "text.png", b"I am text"
    yield "cut.png", good.getvalue()[: len(good.getvalue()) // 2]
    yield "noise.jpg", bytes(range(256)) * 9
    claim = bytearray(good.getvalue())
    claim[16:24] = (60_000).to_bytes(4, "big") * 2  # says that it has 60,000 × 60,000 pixels
    yield "bomb.png", bytes(claim)
    claim[16:24] = (30_000).to_bytes(4, "big") + (3).to_bytes(4, "big")
    yield "long.png", bytes(claim)
    # formats that Pillow can open, but that nobody means by a picture; EPS starts another program
    yield "postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"
    for kind in ("PPM", "TGA", "ICO", "PCX"):
        other = io.BytesIO()
        gradient().save(other, kind)
        yield f"{kind}.png", other.getvalue()


@pytest.mark.parametrize(("name", "content"), bad_files(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_a_picture_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PictureError, match=name) as error:
        pictures.read_picture(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_damaged_picture_is_read_or_refused_and_nothing_else(tmp_path):
    ended = {"read": 0, "refused": 0}
    for name, content in damaged_pictures(random.Random(0), 60):
        (tmp_path / name).write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns about what it skips
                picture = pictures.read_picture(tmp_path / name)
            assert picture.mode == "RGB"
            assert pictures.to_tensor(pictures.resize(picture, 32)).shape == (3, 32, 32)
            ended["read"] += 1
        except PictureError as error:
            assert name in str(error)
            ended["refused"] += 1
    assert sum(ended.values()) == 60 * len(FORMATS) and min(ended.values()) > 80, ended


def test_folders_and_files_are_found(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt"):
        gradient().save(tmp_path / name, "PNG")
    assert [file.name for file in pictures.find_pictures([tmp_path])] == ["a.JPG", "b.png"]
    assert pictures.find_pictures([str(tmp_path / "c.txt")]) == [tmp_path / "c.txt"]
    (tmp_path / "none").mkdir()
    for missing in ("none", "nothing.png", "x" * 5000):
        with pytest.raises(PictureError, match=missing[:300]):
            pictures.find_pictures([str(tmp_path / missing)])
