"""Picture files: every form that people have is read as a person sees it, and anything else is refused."""

import io
import os
import random
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from claims import tiny
from damaged import FORMATS, damaged_pictures, gradient
from nin import pictures, predict, pretrained
from nin.errors import PictureError
from nin.studies import confusion, maps


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
    for name in ("d/e/f.png", "d/a.tif", "maps/b_net.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        gradient().save(tmp_path / name, "PNG")
    found = pictures.find_pictures([tmp_path], leave_out=tmp_path / "maps")
    assert [str(file.relative_to(tmp_path)) for file in found] == ["a.JPG", "b.png", "d/a.tif", "d/e/f.png"]
    (tmp_path / "c").symlink_to(tmp_path / "d")  # beside its folder, and before it
    (tmp_path / "z").symlink_to(tmp_path / "d")
    assert pictures.find_pictures([tmp_path], leave_out=tmp_path / "maps") == found
    (tmp_path / "none").mkdir()
    for missing in ("none", "nothing.png", "x" * 5000):
        with pytest.raises(PictureError, match=missing[:300]):
            pictures.find_pictures([str(tmp_path / missing)])


def test_what_is_left_out_is_what_is_found_without_the_folder(tmp_path):
    """Any tree of folders, with links, and any of its folders left out."""
    draw = random.Random(0)
    seen = set()
    for number in range(60):
        top = tmp_path / str(number)
        folders = [top / name for name in ("maps", "a", "a/maps", "a/b", "maps/c", ".hidden")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("x.png", "y.jpg", "z.txt"):
                if draw.random() < 0.5:
                    (folder / name).touch()
        (top / "one.png").touch()
        if draw.random() < 0.5:
            (top / "link").symlink_to(draw.choice(folders))
        paths = draw.choice(
            [[top], [top, top / "maps"], [top / "maps"], [top, *top.glob("maps/*.png")], [top / "a", top]]
        )
        leave_out = draw.choice([*folders, top, tmp_path / "elsewhere"])
        left = []
        try:
            every = pictures.find_pictures(paths)
            found = pictures.find_pictures(paths, leave_out, left.extend)
        except PictureError as error:
            assert ("outside of" in str(error)) == any(map(pictures.is_picture, leave_out.rglob("*")))
            continue
        real = [{file.resolve() for file in files} for files in (every, found, left)]
        assert real[0] == real[1] | real[2] and not real[1] & real[2] and len(left) == len(real[2])
        assert all(file.is_relative_to(leave_out) for file in left if "link" not in str(file))
        seen.add(bool(left))
    assert seen == {True, False}


# strangers' pictures --------------------------------------------------------------------------------------------------


@pytest.mark.tries(25)
def test_pillow_opens_the_stated_formats_alone(tmp_path, tried):
    """Other formats that Pillow reads, or writes, or that people have, under the name of a picture."""
    others = {"EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"}
    others |= {"GRIB": b"GRIB" + bytes(3) + b"\1" + bytes(99), "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(99)}
    others |= {
        "BUFR": b"BUFR" + bytes(99),
        "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(99),
        "FITS": b"SIMPLE  =" + bytes(99),
    }
    others |= {"XPM": b"/* XPM */" + bytes(99), "MPEG": b"\0\0\1\xb3" + bytes(99), "PSD": b"8BPS\0\1" + bytes(99)}
    others |= {"PDF": b"%PDF-1.7\n", "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "text": b"hello"}
    for kind in ("PPM", "TGA", "ICO", "PCX", "DDS", "DIB", "IM", "MSP", "SGI", "XBM", "SPIDER"):
        file = io.BytesIO()
        gradient(mode={"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")).save(file, kind)
        others[kind] = file.getvalue()
    for name, (kind, content) in enumerate(sorted(others.items())):
        for suffix in ("png", "jpg")[: 1 + (kind in ("EPS", "PDF"))]:
            (tmp_path / f"{name}.{suffix}").write_bytes(content)
            with pytest.raises(PictureError, match="not a picture in a supported format"):
                pictures.read_picture(tmp_path / f"{name}.{suffix}")
            tried(kind)


@pytest.mark.tries(18)
def test_whatever_a_decoder_raises_costs_that_picture_alone(tmp_path, tried, monkeypatch):
    class Odd(Exception):
        pass

    for name in ("a.png", "b.png", "c.png"):
        gradient().save(tmp_path / name)
    faults = (RuntimeError, MemoryError, OSError, SyntaxError, ZeroDivisionError, AssertionError, RecursionError)
    faults += (OverflowError, UnicodeDecodeError, NotImplementedError, StopIteration, AttributeError, struct.error)
    faults += (IndexError, Image.DecompressionBombError, Image.DecompressionBombWarning, BufferError, Odd)
    good = pictures.upright
    for fault in faults:
        error = fault("utf-8", b"", 0, 1, "\x1b[31m") if fault is UnicodeDecodeError else fault("\x1b[31m\nbad")

        def decode(picture, error=error):
            if str(picture.filename).endswith("b.png"):
                raise error
            return good(picture)

        monkeypatch.setattr(pictures, "upright", decode)
        found = dict(predict.predict_each(tiny(), [(f.name, f) for f in sorted(tmp_path.glob("*.png"))]))
        assert [isinstance(found[name], predict.Prediction) for name in ("a.png", "b.png", "c.png")] == [1, 0, 1]
        message = str(found["b.png"])
        assert "b.png: " in message and message.isprintable()
        tried(fault)


@pytest.mark.tries(60)
def test_deep_pictures_keep_their_scale(tmp_path, tried):
    """The brightest value of a 16-bit picture does not decide how the others are shown."""
    draws = np.random.default_rng(0)
    for number in range(60):
        highest = int(10 ** draws.uniform(0.5, np.log10(65_535)))
        values = draws.integers(0, highest + 1, (9, 7)).astype(np.uint16)
        file = tmp_path / f"{number}.{('png', 'tif')[number % 2]}"
        Image.fromarray(values).save(file)
        assert np.abs(np.asarray(pictures.read_picture(file))[..., 0] - values / 257).max() <= 1
        tried(values)
    for highest in (3, 255, 256, 70_000, 2**31 - 1):  # of 32 bits, which have no scale
        values = np.array([[0, highest // 2, highest]], dtype=np.int32)
        Image.fromarray(values).save(tmp_path / "wide.tif")
        shown = np.asarray(pictures.read_picture(tmp_path / "wide.tif"))[0, :, 0].tolist()
        assert shown[0] == 0 and shown[2] == 255 and abs(shown[1] - 255 * (highest // 2) / highest) <= 1


HOSTILE = (
    "\x1b[31mred",
    "a\x07b",
    "\x9b2J",
    "$x$",
    "$\\frac{",
    "a\u202eb",
    "new\nline",
    "tab\t",
    "_{x}^{y}$$",
    "\r\b\b",
)


@pytest.mark.tries(16)
def test_no_text_of_a_stranger_reaches_terminal_or_figure_raw(tmp_path, tried, script, monkeypatch):
    """Names of classes, files and nets: escaped where they are printed, and never a formula where they are drawn."""
    draws, draw = random.Random(7), predict.draw
    monkeypatch.setattr(predict, "draw", lambda *_, **__: Figure(figsize=(1, 1)))  # a real one takes a second
    for number in range(4):
        classes = ["".join(draws.sample(HOSTILE, 2)) + str(k) for k in range(10)]
        trained = pretrained.Pretrained(tiny().net, tiny().preprocess, classes, {"data": "digits"})
        name = "".join(c for c in draws.choice(HOSTILE) if c != "/")
        pretrained.save(tmp_path / f"net{number}.safetensors", trained)
        gradient().save(tmp_path / f"{number}{name}.png")
        code, said, errors = script(
            "predict.py", f"checkpoint=net{number}.safetensors", tmp_path / f"{number}{name}.png"
        )
        assert code == 0, errors
        assert all(line.isprintable() for line in said.split("\n")), said
        tried(name)
        code, _, errors = script("predict.py", f"checkpoint=net{number}.safetensors", f"{name}missing.png")
        assert code == 1 and errors.rstrip("\n").isprintable(), errors
        tried(name)
        (prediction,) = predict.predict(trained, [gradient()])
        counts = torch.ones(10, 10, dtype=torch.int64)
        images, labels = torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10)
        for figure in (
            draw(trained, prediction),
            maps.draw_paper_figure(trained, images, labels, rows=1),
            confusion.draw(counts, trained.classes, f"{name}: a title"),
        ):
            texts = [text for text in figure.findobj(Text) if text.get_text()]
            assert not any(text._preprocess_math(text.get_text())[1] for text in texts)
        tried(classes)
        assert all(line.isprintable() for line in confusion.worst_pairs(counts, trained.classes).split("\n"))
        tried(classes)


@pytest.mark.tries(30)
def test_a_name_that_is_too_long_costs_nothing(tmp_path, tried):
    """Names as long as a file system allows, whose drawings would have longer ones."""
    draws, out = random.Random(8), tmp_path / "out"
    out.mkdir()
    for number in range(30):
        letters = draws.choice(("a", "é", "猫", "😀", "\udcff"))
        stem = f"{number}" + letters * ((251 - len(str(number))) // len(os.fsencode(letters)))
        file = tmp_path / f"{stem}.png"
        gradient().save(file)
        source, label = (file.name, file), draws.choice(("net", "é")) * 10 * number
        first, second = predict.name_drawings([source, source], out, label)
        for drawing in (first, second):
            drawing.touch()
            assert drawing.name.startswith(f"{number}{letters}")
        assert first != second
        tried(file)
        if number == 7:
            assert [drawing for *_, drawing in predict.Many(tiny(), [source], out, label)] == [first]
        file.unlink()


@pytest.mark.parametrize(("most", "factor"), [(1.0, 255), (0.25, 255), (200.0, 1), (65535.0, 1 / 257)])
def test_a_picture_of_floats_is_not_black(tmp_path, most, factor):
    values = np.linspace(0, most, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "float.tif")
    read = np.asarray(pictures.read_picture(tmp_path / "float.tif"))
    assert np.array_equal(read[..., 0], (values.astype(np.float64) * factor).round()) and read.shape == (3, 4, 3)
    values[0, 0], values[0, 1] = np.nan, -1
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert np.array_equal(np.asarray(pictures.read_picture(tmp_path / "float.tif"))[0, :2], np.zeros((2, 3)))


def test_a_picture_of_a_telephone_is_named_with_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x24ftypheic" + bytes(100))
    with pytest.raises(
        PictureError, match=r"photo\.heic: HEIC pictures require pillow-heif; install it with pip install"
    ):
        pictures.read_picture(tmp_path / "photo.heic")
    assert pictures.find_pictures([tmp_path]) == [tmp_path / "photo.heic"]


def test_too_many_pixels_are_refused_whatever_becomes_of_warnings(tmp_path, monkeypatch):
    """Threads that read pictures change the filters of the whole process."""
    Image.new("RGB", (20, 15)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    monkeypatch.setattr("nin.pictures.warnings.simplefilter", lambda *_: None)
    with warnings.catch_warnings(), pytest.raises(PictureError, match=r"large\.png: too many pixels \(expected"):
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        pictures.read_picture(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert pictures.read_picture(tmp_path / "large.png").size == (20, 15)
