"""Nets and images that strangers send: each is used as it is meant, or refused in one sentence before it costs
anything."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import random
import re
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from safetensors.torch import load_file, save_file

import nin
from builders import ROOT, anything
from damaged import gradient
from nin import NIN, Block, caffe, predict, pretrained
from nin.config import Config
from nin.data.preprocess import Normalise, Whiten
from nin.data.sets import SETS, ImageSet, Set
from nin.errors import CheckpointError, PictureError, RowsError, SettingError
from nin.pretrained import Pretrained, golden_images
from nin.run.evaluate import evaluate_pretrained, images_of
from nin.run.machine import peak_memory_gb
from nin.studies import rows
from nin.studies.nets import gather

NAMES = tuple("abcdefghij")


def small(classes=NAMES, channels=3, size=32, head="gap", **facts) -> Pretrained:
    """A net of two narrow blocks for images of any form."""
    torch.manual_seed(0)
    net = NIN([Block(4), Block((4, 4, None))], len(classes), head, in_channels=channels, image_size=size)
    normalise = Normalise(torch.full((channels,), 120.0), torch.full((channels,), 60.0))
    return Pretrained(net, normalise, classes, {"data": "mini", **facts})


@pytest.fixture
def sets(monkeypatch):
    """Two sets of 20 random images in the table: "mini" in RGB at 32 pixels, "grey" at 28."""

    def read(channels, size):
        draws = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (20, channels, size, size), generator=draws, dtype=torch.uint8)
        labels = torch.arange(20) % 10
        return ImageSet(images, labels, images, labels, NAMES)

    for name, channels, size in (("mini", 3, 32), ("grey", 1, 28)):
        entry = replace(SETS["digits"], name=name, channels=channels, size=size, train=None)
        entry = replace(entry, read=lambda files, pixels, channels=channels, size=size: read(channels, size))
        monkeypatch.setitem(SETS, name, entry)
    assert isinstance(SETS["mini"], Set)


def quick() -> Config:
    config = Config()
    config.trainer.accelerator, config.trainer.progress_bar = "cpu", False
    return config


# nets and sets --------------------------------------------------------------------------------------------------------


@pytest.mark.tries(250)
def test_a_net_that_does_not_fit_its_set_is_refused(sets, tried):
    """Channels, classes, their names, sizes, and facts that name another set."""
    others = (NAMES, NAMES[:1], NAMES[:2], NAMES[:9], (*NAMES, "k"), tuple(map(str, range(100))), NAMES[::-1])
    for of_set, channels, classes, size in itertools.product(
        ("mini", "grey"), (1, 3, 4), others, (8, 28, 31, 32, 64, (32, 28))
    ):
        trained = small(classes, channels, size, data=of_set)
        form = SETS[of_set].channels, SETS[of_set].size
        if (channels, size) == form and classes == NAMES:
            assert images_of(trained).set.classes == NAMES
            continue
        with pytest.raises(CheckpointError, match=f"the net does not fit data={of_set}: ") as refused:
            images_of(trained)
        assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)
        tried(refused)


@pytest.mark.tries(12)
def test_every_way_in_asks_whether_net_and_set_fit(sets, tried, tmp_path):
    for number, trained in enumerate((small(NAMES[:2]), small(channels=1), small(size=30), small(NAMES[::-1]))):
        file = str(tmp_path / f"{number}.safetensors")
        pretrained.save(file, trained)
        good = str(tmp_path / "good.safetensors")
        pretrained.save(good, small())
        ways = (
            lambda: evaluate_pretrained(pretrained.load(file), quick()),  # noqa: B023, called in this turn
            lambda: predict.sample_test_images(pretrained.load(file), 3),  # noqa: B023
            lambda: gather([good, file]),  # noqa: B023, the second net shares the first one's images
        )
        for way in ways:
            with pytest.raises(CheckpointError, match="does not fit data=mini"):
                way()
            tried(way)


@pytest.mark.tries(64)
def test_a_net_whose_scores_are_not_finite_is_said_to_be(sets, tried, tmp_path):
    """Weights that are finite, and products that are not."""
    draws, pictures = random.Random(5), [("a", gradient()), ("b", gradient(50, 20))]
    for number in range(16):
        trained = small(head=("gap", "gmp", "fc")[number % 3])
        with torch.no_grad():
            for layer in draws.sample([m for m in trained.modules() if isinstance(m, torch.nn.Conv2d)], 2):
                layer.weight.copy_(layer.weight.abs() * 10 ** draws.uniform(32, 38))
        pretrained.save(tmp_path / "net.safetensors", trained)
        loaded = pretrained.load(tmp_path / "net.safetensors")
        with pytest.raises(CheckpointError, match="scores are NaN or infinite"):
            evaluate_pretrained(loaded, quick())
        tried(number)
        with pytest.raises(CheckpointError, match=r"checkpoint=\S+net\.safetensors: .*scores are NaN or infinite"):
            gather([str(tmp_path / "net.safetensors")])
        tried(number)
        for _, prediction in predict.predict_each(loaded, pictures):
            assert isinstance(prediction, PictureError) and "scores are NaN or infinite" in str(prediction)
            tried(number)


def describe_anew(file, net):
    """Changes the description of the net in a weights file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["nin"])
    header["net"] |= net
    save_file(load_file(file), str(file), metadata={"nin": json.dumps(header)})


@pytest.mark.tries(60)
def test_what_a_net_will_cost_is_estimated_before_it_is_loaded(tried, tmp_path, monkeypatch):
    """Padding, windows and image sizes that this machine has no memory or no time for."""
    file, draws, before = tmp_path / "net.safetensors", random.Random(6), peak_memory_gb()
    for _ in range(40):  # honest weights under a description that asks for more
        kernel, padding = 3, 3 + int(10 ** draws.uniform(0, 4))
        pretrained.save(file, small())
        block = {"widths": [4, 4, 4], "kernel_size": kernel, "padding": min(padding, 9_999)}
        describe_anew(file, {"blocks": [block, {"widths": [4, 4, None]}]})
        with pytest.raises(CheckpointError, match=r"has padding=\d+: expected an integer from 0 to 2"):
            pretrained.load(file)
        tried(padding)
    for _ in range(10):  # weights and description agree
        net = NIN([Block((1, 1, None), draws.choice([301, 401, 501]))], 1, in_channels=1, image_size=9_999)
        pretrained.save(file, Pretrained(net, Normalise(torch.zeros(1), torch.ones(1)), ["a"], {}))
        with pytest.raises(CheckpointError, match=r"too large for this machine: .* multiply-accumulates"):
            pretrained.load(file)
        tried(net)
    pretrained.save(file, small())
    assert pretrained.load(file)
    for gigabytes in (10 ** -draws.uniform(4, 9) for _ in range(10)):
        monkeypatch.setattr(pretrained, "memory_gb", lambda gigabytes=gigabytes: gigabytes)
        with pytest.raises(CheckpointError, match=r"too large for this machine: an image needs at least .* GB"):
            pretrained.load(file)
        tried(gigabytes)
    assert peak_memory_gb() - before < 0.5


def test_an_evaluation_that_needs_more_memory_than_there_is_is_refused(sets, monkeypatch):
    monkeypatch.setattr("nin.run.evaluate.memory_gb", lambda: 1e-6)
    with pytest.raises(CheckpointError, match=r"20 images at a time need at least .* GB of memory"):
        evaluate_pretrained(small(), quick())


def protobuf(number, value):
    """A field of a protocol buffer: an integer or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(number):
    head, rest = number & 127, number >> 7
    return bytes([head | 128]) + varint(rest) if rest else bytes([head])


@pytest.mark.tries(60)
def test_a_caffe_file_of_odd_sides_is_refused(tried):
    """Sides whose product is the number of floats, and which no tensor has."""
    draws = random.Random(12)
    for _ in range(60):
        sides = [draws.choice((0, 1, 2**31, 2**62, 2**69, 2**63 - 1)) for _ in range(3)] + [draws.choice((0, 1))]
        draws.shuffle(sides)
        floats = bytes(4 * (sides == [1, 1, 1, 1]))
        blob = b"".join(protobuf(place, side) for place, side in enumerate(sides, 1)) + protobuf(5, floats)
        with pytest.raises(ValueError, match=r"^(a blob|expected|it ends)"):
            caffe.read(protobuf(2, 2 * protobuf(6, blob)) * 8)  # a layer too few, where the blobs are good
        tried(sides)


# the library ----------------------------------------------------------------------------------------------------------


def odd_images():
    """Tensors that are no pixels of an image."""
    good = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for height, width in itertools.product((0, 1, 2, 40), (0, 1, 2, 40)):
        if min(height, width) < 3:
            yield good.new_zeros(2, 3, height, width)
    for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_bsr):
        yield good.reshape(-1, 32).to_sparse(layout=layout, blocksize=(4, 4) if layout == torch.sparse_bsr else None)
    yield good.to_sparse()
    for layout in (torch.strided, torch.jagged):
        yield torch.nested.nested_tensor([good[0], good[0, :, :16]], layout=layout)
    yield torch.nested.nested_tensor([good[0, 0], good[0, 0]])
    for shape in ((2, 3, 32, 32), (1, 3, 0, 0), (3, 32, 32)):
        yield torch.empty(shape, dtype=torch.uint8, device="meta")
    for dtype in (torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64, torch.bfloat16):
        yield good.to(dtype)
    for shape in ((3, 32, 32), (2, 1, 32, 32), (2, 4, 32, 32), (2, 32, 32, 3), (), (1,), (1, 2, 3, 32, 32)):
        yield good.new_zeros(shape)
    yield from (None, [], (), "cat.png", b"", 3, [None], [good], {}, [Image.new("RGB", (8, 8)), "x"], object())


@pytest.mark.tries(144)
def test_images_that_a_net_cannot_take_are_our_valueerror(tried):
    """Sizes of 0 to 2 pixels may be too small for one net and large enough for another."""
    whitened = Pretrained(small().net, Whiten(torch.zeros(3072), torch.eye(3072), (3, 32, 32)), NAMES, {})
    taken = 0
    for trained, images in itertools.product((small(), small(head="fc"), whitened), odd_images()):
        for call in (trained, trained.forward_maps)[: 1 + (trained.net.arguments["head"] == "gap")]:
            try:
                assert call(images).isfinite().all()
                taken += 1
            except SettingError as refused:
                assert isinstance(refused, ValueError) and len(str(refused)) < 500 and "\n" not in str(refused)
                if call is trained:
                    tried(images)
    assert taken == 6  # images of 2 pixels, by a net that pools, and their maps


def odd_pictures():
    """PIL images that cannot be decoded or converted, and modes that people seldom have."""
    encoded = io.BytesIO()
    Image.effect_noise((60, 40), 90).save(encoded, "PNG")
    for cut in range(60, 2000, 100):
        yield Image.open(io.BytesIO(encoded.getvalue()[:cut]))
    for size in ((0, 0), (0, 5), (5, 0)):
        yield from (Image.new(mode, size) for mode in ("RGB", "L", "RGBA"))
    yield Image.new("La", (6, 5))
    closed = Image.new("RGB", (6, 5))
    closed.close()
    yield closed


@pytest.mark.tries(31)
def test_a_picture_that_cannot_be_decoded_is_our_valueerror(tried):
    trained = small()
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "I;16"):
        assert trained(Image.new(mode, (6, 5))).isfinite().all(), mode
    for picture in odd_pictures():
        try:
            trained([Image.new("RGB", (6, 5)), picture])
        except SettingError as refused:
            assert re.match(r"images=a picture of \d+×\d+ pixels: cannot be read \(", str(refused))
            assert "\n" not in str(refused)
            tried(picture)


@pytest.mark.parametrize("name", pretrained.available())
def test_half_precision(name):
    """Every published net computes in half precision, and answers as in full precision within its rounding."""
    net = nin.load(name)
    images = golden_images(net.net.plan.image_size, net.channels)
    exact = net(images)
    for convert, tolerance in (("half", 0.01), ("bfloat16", 0.08)):
        halved = getattr(copy.deepcopy(net), convert)()
        logits = halved(images)
        assert logits.dtype == {"half": torch.float16, "bfloat16": torch.bfloat16}[convert]
        assert (logits - exact).abs().max() < tolerance * exact.abs().max().clamp(min=1)
        again = halved.float()(images)
        assert (again - exact).abs().max() < tolerance * exact.abs().max().clamp(min=1)


@pytest.mark.tries(100)
def test_what_is_no_name_of_a_checkpoint_is_refused(tried, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = (None, b"", [], b"x" * 9, [[]], {"a": 1}, {1, 2}, object(), float("nan"), 10**5000, True, print)

    def refused(checkpoint):
        with pytest.raises(CheckpointError) as error:
            nin.load(checkpoint)
        assert "\n" not in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 1000

    for checkpoint in (*odd, "\0", "a\nb", "\x1b[31mred", "x" * 5000, "/dev/null", "/proc/self/mem", "~", "."):
        refused(checkpoint)
        tried(checkpoint)
    numbers = iter(range(80))  # hypothesis may make one more than it is asked for, or fewer that differ

    @settings(max_examples=100)
    @given(anything)
    def one(checkpoint):
        refused(checkpoint)
        if next(numbers, None) is not None:
            tried(checkpoint)

    one()


@pytest.mark.tries(20)
def test_a_row_nested_without_end_is_refused(tried, tmp_path):
    head, first = (ROOT / "checkpoints" / "runs.csv").read_text().splitlines()[:2]
    names, (values,) = head.split(","), csv.reader([first])
    draws = random.Random(13)
    for _ in range(10):
        depth = draws.randrange(2_000, 60_000)
        for begin in ("[", '{"a":'):
            row = {**dict(zip(names, values, strict=False)), "settings": begin * depth}
            with open(tmp_path / "rows.csv", "w", newline="") as opened:
                writer = csv.DictWriter(opened, names)
                writer.writeheader()
                writer.writerow(row)
            with pytest.raises(RowsError, match="row 1 is not a row of a study") as refused:
                rows.read(tmp_path / "rows.csv")
            assert len(str(refused.value)) < 600
            tried(row)
