import io
import random
import re
import subprocess
import sys
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn

from nin import NIN, Block, pictures, pretrained
from nin.data import Normalise
from nin.heads import GAP
from nin.pretrained import Pretrained
from nin.studies import maps

PREDICT = (sys.executable, str(ROOT / "scripts" / "predict.py"))


@pytest.fixture(scope="module")
def trained() -> Pretrained:
    torch.manual_seed(0)
    net = NIN([Block(8), Block((8, 8, None))], init="kaiming", norm="batch", last_relu=False)
    normalise = Normalise(torch.full((3,), 120.0), torch.full((3,), 60.0))
    return Pretrained(net, normalise, [f"class {k}" for k in range(10)], {"data": "digits"})


def gradient(width=40, height=30, mode="RGB") -> Image.Image:
    x = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    return Image.fromarray(np.broadcast_to(x, (height, width, 3)).astype(np.uint8)).convert(mode)


def test_pictures_as_people_have_them_are_read(tmp_path):
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
        found = pictures.read_picture(tmp_path / name)
        assert (found.mode, found.size) == ("RGB", (40, 30))
        assert abs(np.asarray(found).astype(int) - reference).mean() < 20, name


def test_sixteen_bits_are_scaled(tmp_path):
    values = (np.asarray(gradient(mode="L")).astype(np.uint16)) * 257
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(pictures.read_picture(tmp_path / "deep.png"))[..., 0], values // 257)


def test_transparency_is_white_and_exif_turns(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(pictures.read_picture(tmp_path / "clear.png")).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient(40, 30).save(tmp_path / "turned.jpg", exif=exif)
    assert pictures.read_picture(tmp_path / "turned.jpg").size == (30, 40)


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


@pytest.mark.parametrize(("name", "content"), bad_files(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_picture_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(pictures.PictureError, match=name):
        pictures.read_picture(tmp_path / name)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (10_000, 20), (20, 10_000)])
def test_any_shape_of_picture_is_looked_at(trained, tmp_path, size):
    gradient(*size).save(tmp_path / "odd.png")
    picture = pictures.read_picture(tmp_path / "odd.png")
    assert picture.size == size
    assert maps.look(trained, pictures.resize(picture, 32))[0].sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient(40, 30).save(tmp_path / "turned.jpg", exif=exif)
    assert pictures.read_picture(tmp_path / "turned.jpg").size == ((40, 30) if orientation < 5 else (30, 40))


def test_more_pixels_than_there_is_memory_for_are_refused(trained, monkeypatch):
    monkeypatch.setattr(maps, "memory_gb", lambda: 1e-4)
    with pytest.raises(pictures.PictureError, match="400×300 pixels are too many for this machine"):
        maps.look(trained, gradient(400, 300))
    maps.look(trained, gradient(30, 30))


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


def damaged_pictures(each=60):
    """Good files of every format: bytes flipped, runs overwritten, cut short, and pieces swapped."""
    draws = random.Random(0)
    for name, options in FORMATS.items():
        file = io.BytesIO()
        mode = {"deep": "I;16", "palette": "P", "clear": "LA"}.get(name.split(".")[0], "RGB")
        picture = gradient(mode="L").convert("I;16") if mode == "I;16" else gradient(mode=mode)
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name.split(".")[-1], name.split(".")[-1].upper())
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(file, kind, **options, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
        good = file.getvalue()
        for number in range(each):  # a third each: flips alone, cut too, patched too
            bad = bytearray(good)
            for _ in range(draws.choice([1, 1, 4])):
                bad[draws.randrange(min(len(bad), draws.choice([100, len(bad), len(bad)])))] = draws.randrange(256)
            if number % 3 == 1:
                del bad[draws.randrange(len(bad)) :]
            elif number % 3 == 2:
                place, length = draws.randrange(len(bad)), draws.randrange(30)
                bad[place : place + length] = draws.choice([b"", bytes(length), b"\xff" * length, bad[:length]])
            yield f"{number}.{name}", bytes(bad)


def test_a_damaged_picture_is_read_or_refused_and_nothing_else(trained, tmp_path):
    ended = {"read": 0, "refused": 0}
    for name, content in damaged_pictures():
        (tmp_path / name).write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow speaks of what it leaves out
                picture = pictures.read_picture(tmp_path / name)
            assert picture.mode == "RGB"
            if ended["read"] % 10 == 0:
                assert maps.look(trained, pictures.resize(picture, 32))[0].isfinite().all()
            ended["read"] += 1
        except pictures.PictureError as error:
            assert name in str(error)
            ended["refused"] += 1
    assert sum(ended.values()) == 60 * len(FORMATS) and min(ended.values()) > 80, ended


def test_the_command_goes_through_a_folder_of_damaged_pictures(trained, tmp_path):
    pretrained.save(tmp_path / "net.safetensors", trained)
    (tmp_path / "pictures").mkdir()
    for name, content in damaged_pictures(each=2):
        (tmp_path / "pictures" / name).write_bytes(content)
    command = [*PREDICT, "checkpoint=net.safetensors", "pictures"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    refused = re.findall(r"pictures/(\d+\.[\w.]+?): ", lines[0])
    assert len(refused) + len(ended.stdout.splitlines()) == 2 * len(FORMATS)
    assert len(list((tmp_path / "maps").iterdir())) == len(ended.stdout.splitlines())


def test_folders_and_files_are_found(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt"):
        gradient().save(tmp_path / name, "PNG")
    assert [file.name for file in pictures.find_pictures([str(tmp_path)])] == ["a.JPG", "b.png"]
    (tmp_path / "none").mkdir()
    for missing in ("none", "nothing.png"):
        with pytest.raises(pictures.PictureError, match=missing):
            pictures.find_pictures([str(tmp_path / missing)])


def test_the_mean_of_a_map_is_the_score(trained):
    probabilities, logits, found = maps.look(trained, gradient())
    torch.testing.assert_close(found.mean((1, 2)), logits)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    maps.look(trained, gradient(10_000, 20))
    seen = probabilities, logits, found
    titles = [axis.get_title() for axis in maps.draw(trained, gradient(), seen).axes]
    best = probabilities.argmax().item()
    assert titles[1] == f"class {best}  {100 * probabilities[best]:.1f} %"


def test_what_speaks_for_a_class_glows_and_the_rest_is_clear(trained):
    seen = probabilities, _, found = maps.look(trained, gradient(32, 32))
    figure = maps.draw(trained, gradient(32, 32), seen, gradient(64, 64), rows=2)
    best = probabilities.topk(3).indices.tolist()
    for axis, k in zip(figure.axes[1:4], best, strict=True):
        glow = np.asarray(axis.images[1].get_array())[..., 3]
        fine = nn.functional.interpolate(found[None, None, k], size=(256, 256), mode="bilinear")[0, 0].numpy()
        assert np.array_equal(glow > 0, fine > 0)
    tops = [round(axis.get_subplotspec().get_gridspec().nrows) for axis in figure.axes[:4]]
    assert tops == [2] * 4


def fully_connected() -> Pretrained:
    torch.manual_seed(0)
    net = NIN([Block(8), Block((8, 8, None))], head="fc", init="kaiming", norm="batch", last_relu=False)
    nn.init.normal_(net.head.linear.bias)
    normalise = Normalise(torch.full((3,), 120.0), torch.full((3,), 60.0))
    return Pretrained(net, normalise, [f"class {k}" for k in range(10)], {"data": "digits"})


def test_under_a_linear_layer_a_class_map_is_maps_times_weights():
    pytest.importorskip("captum")
    looking = fully_connected()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    logits, found = maps.class_maps(looking, images)
    layer = looking.net.head.linear
    with torch.no_grad():
        theirs = looking.forward_maps(images)
        torch.testing.assert_close(logits, looking(images))
    weight = layer.weight.detach().view(10, *theirs.shape[1:])
    torch.testing.assert_close(found, torch.einsum("nmhw,kmhw->nkhw", theirs, weight), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.sum((2, 3)) + layer.bias.detach(), logits, rtol=1e-3, atol=1e-3)
    assert all(parameter.grad is None for parameter in looking.parameters())


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ValueError, match=r"head=fc: .* pip install 'network-in-network\[cam\]'"):
        maps.look(fully_connected(), gradient(32, 32))


class Bright(nn.Module):
    """Its maps are the brightness of the image, 8×8."""

    arguments: ClassVar = {"head": "gap"}

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.head = GAP()

    def forward_maps(self, images):
        lit = images.mean(1, keepdim=True).unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
        return lit.expand(-1, 10, -1, -1)

    def forward(self, images):
        return self.head(self.forward_maps(images))


def test_a_net_that_looks_at_bright_pixels_loses_by_their_blanking():
    looking = Pretrained(Bright(), Normalise(torch.zeros(3), torch.ones(3)), list("0123456789"), {})
    images = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    places = torch.randint(0, 24, (200, 2), generator=torch.Generator().manual_seed(0))
    for image, (top, left) in zip(images, places, strict=True):
        image[:, top : top + 8, left : left + 8] = 255
    black, labels = torch.zeros(3, 1, 1, dtype=torch.uint8), torch.zeros(200).long()
    under_map, elsewhere, at_random = maps.blanking(looking, images, labels, black)
    assert len(under_map) == len(elsewhere) == len(at_random) == 200
    assert under_map == pytest.approx([255 * 64 / 1024] * 200)  # all of the light
    assert 0 < sum(at_random) < 0.7 * sum(under_map)
    assert 0 < sum(elsewhere) < 0.7 * sum(under_map)
    one_place = maps.blanking(looking, images[:1].expand(200, -1, -1, -1), labels, black)
    assert one_place[0] == one_place[1]  # where all objects are in one place, another's map shows it as well
    seeded = maps.blanking(looking, images, labels, black, seed=1)
    assert seeded[:2] == (under_map, elsewhere) and seeded[2] != at_random
    grey = torch.full_like(images, 90)
    assert np.ptp(maps.blanking(looking, grey, labels, black), axis=0).round(4).tolist() == [0.0] * 200


def test_what_is_blanked_is_a_quarter_of_the_image_wherever_the_map_points():
    images = torch.full((20, 3, 28, 28), 255, dtype=torch.uint8)
    for cells in (7, 2):  # the image's side is no multiple of the first's half
        blanked = []
        looking = Pretrained(Bright(), Normalise(torch.zeros(3), torch.ones(3)), list("0123456789"), {})
        corner = torch.zeros(20, 10, cells, cells)
        corner[:, :, -1, -1] = 1  # the last place that there is
        looking.net.forward_maps = lambda x, corner=corner: corner[: len(x)]
        looking.net.forward = lambda x, blanked=blanked: blanked.append(x) or x.mean((2, 3)).repeat(1, 4)[:, :10]
        dark = images, torch.zeros(20).long(), torch.zeros(3, 1, 1, dtype=torch.uint8)
        maps.blanking(looking, *dark)
        under_map = blanked[0]
        assert (under_map[:, :, 14:, 14:] == 0).all() and under_map.mean() == pytest.approx(255 * 3 / 4)
        assert (blanked[1] == under_map).all()  # another image's map, which points there too
        assert blanked[2].mean() == pytest.approx(255 * 3 / 4)  # at random, and as much
    looking.net.forward_maps = lambda x: torch.zeros(len(x), 10, 1, 1)
    with pytest.raises(ValueError, match="class maps of 1×1 show no place"):
        maps.blanking(looking, *dark)


def test_the_papers_figure(trained):
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    figure = maps.draw_paper_figure(trained, images, torch.arange(40) % 10, rows=5)
    assert len(figure.axes) == 5 * 11
    assert [axis.get_title() for axis in figure.axes[1:11]] == list(trained.classes)


def test_the_command(trained, script, tmp_path):
    pretrained.save(tmp_path / "net.safetensors", trained)
    gradient().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("text")
    command = [*PREDICT, "checkpoint=net.safetensors", "good.png", "bad.png", "size=native"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == "error: bad.png: not a picture of a known format\n"
    assert ended.stdout.startswith("good.png: class ")
    assert (tmp_path / "maps" / "good_net.png").stat().st_size > 10_000
    _, said, errors = script("predict.py", "checkpoint=net.safetensors", "figure=blanking")
    assert "(360 test images)" in said and said.endswith("maps/blanking_net.png\n"), errors
    assert (tmp_path / "maps" / "blanking_net.png").stat().st_size > 10_000
    coarse = NIN([Block(8, stride=8), Block((8, 8, None), stride=2)], norm="batch")
    coarse = Pretrained(coarse, trained.preprocess, trained.classes, trained.facts)
    pretrained.save(tmp_path / "coarse.safetensors", coarse)
    code, _, errors = script("predict.py", "checkpoint=coarse.safetensors", "figure=blanking", "test=5")
    assert code == 1 and errors.endswith("error: objects: class maps of 1×1 show no place in the image\n")
    said = script("predict.py", "checkpoint=net.safetensors", "test=2", "seed=5")[1].splitlines()
    assert len(said) == 2 and all(re.match(r"test_\d+_\d: class ", line) for line in said)
    assert script("predict.py", "checkpoint=net.safetensors", "figure=paper")[1].strip() == "maps/paper_net.png"


def test_the_command_spares_what_is_there_and_names_what_it_cannot_look_at(trained, script, tmp_path):
    pretrained.save(tmp_path / "net.safetensors", trained)
    names = ("good.png", "good_net.png", "size=big.png")  # the second is where the first's maps would go
    for name, size in zip(names, (40, 30, 20), strict=True):
        gradient(size, size).save(tmp_path / name)
    before = [(tmp_path / name).read_bytes() for name in names]
    (tmp_path / "folder.png").mkdir()
    gradient(1, 1).save(tmp_path / "one.png")
    arguments = ("checkpoint=net.safetensors", ".", "size=big.png", "size=native", "out=.")
    code, said, errors = script("predict.py", *arguments)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert code == 1 and len(said.splitlines()) == 4
    assert errors.endswith("\nerror: one.png: 1×1 pixels are too few for this net\n")
    assert (tmp_path / "good_net_2.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good.png"], "checkpoint= must be given"),
        (["checkpoint=net"], "give a picture"),
        (["checkpoint=net", "size=big", "good.png"], "size=big: choose training, native"),
        (["checkpoint=net", "test=some"], "test=some: a whole number from 0 to 999999999"),
        (["checkpoint=net", "figure=maps"], "figure=maps: choose one of paper, blanking"),
        (["checkpoint=net", "figure=paper", "seed=3"], "seed=3: figure=paper takes the first test images"),
        (["checkpoint=net", "figure=blanking", "size=64"], "size=64: figure=blanking takes test images as they are"),
    ],
)
def test_a_wrong_command_is_one_sentence(script, arguments, words):
    code, _, errors = script("predict.py", *arguments)
    assert code == 2
    assert words in errors and len(errors.splitlines()) == 1
