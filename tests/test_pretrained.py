"""Weights files, cards and names: what is saved comes back, and everything else is refused in one sentence."""

import hashlib
import json
import os
import pickle
import random
import shlex
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

import nin
from builders import ROOT, Payload
from nin import NIN, Block, cli, pretrained, publish
from nin.backbones import Backbone
from nin.checks import sides
from nin.config import consequential, from_settings, settings_of
from nin.data.preprocess import Normalise, Whiten
from nin.errors import CheckpointError, DataError, SettingError
from nin.plan import Plan
from nin.pretrained import Pretrained, copy_weights, golden_images, load, save
from nin.run.machine import peak_memory_gb
from nin.run.record import Record
from nin.studies import report

HEAVY = ("lightning", "torchvision", "hydra", "omegaconf", "pandas", "matplotlib", "sklearn", "scipy")


def small(preprocess=None, size=8, **arguments) -> Pretrained:
    torch.manual_seed(0)
    net = NIN([Block(8), Block((8, 8, None))], init="kaiming", image_size=size, norm="batch", **arguments)
    preprocess = preprocess or Normalise(torch.tensor([120.0, 110, 100]), torch.tensor([60.0, 61, 62]))
    return Pretrained(net, preprocess, [f"class {k}" for k in range(10)], {"data": "digits", "test_error": 12.34})


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", ["gap", "gmp", "fc", "fc_dropout"])
@pytest.mark.parametrize("whitened", [False, True])
def test_what_is_saved_comes_back(tmp_path, images, head, whitened):
    os.umask(umask := os.umask(0))
    before = small(Whiten.fit(images.repeat(9, 1, 1, 1)) if whitened else None, head=head)
    save(tmp_path / "model.safetensors", before)
    for checkpoint in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        after = load(checkpoint)
        assert torch.equal(after(images), before(images))
        assert (after.classes, after.facts) == (before.classes, before.facts)
        assert after.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
        assert not after.training
    assert before.sha256 is None
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask  # others may read it


def test_a_loaded_net_does_not_depend_on_its_file(tmp_path, images):
    save(tmp_path / "model.safetensors", small())
    trained = load(tmp_path)
    before = trained(images)
    with open(tmp_path / "model.safetensors", "r+b") as file:  # in place, as no writer of ours does it
        file.write(bytes((tmp_path / "model.safetensors").stat().st_size))
    assert torch.equal(trained(images), before)


# pictures -------------------------------------------------------------------------------------------------------------


def test_pictures_and_pixels_have_the_same_scores(images):
    trained = small()
    pictures = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in images]
    assert torch.equal(trained(pictures), trained(images))
    assert trained(pictures[0]).shape == (1, 10)
    assert trained(pictures[0].convert("L")).shape == (1, 10)
    assert trained.forward_maps(images).shape == (5, 10, 4, 4)
    assert torch.allclose(trained.forward_maps(images).mean((2, 3)), trained(images))
    wrong = (images.float() / 255, images[0], images[:, :1], [], [pictures[0], None], "cat.png", np.zeros((8, 8, 3)))
    for each in wrong:
        with pytest.raises(SettingError, match=r"images=.*: expected uint8 pixels in 0…255, \(N, 3, H, W\)"):
            trained(each)


def test_a_net_of_grey_images_takes_any_picture(tmp_path, images):
    grey = small(Normalise(torch.tensor([120.0]), torch.tensor([60.0])), in_channels=1)
    save(tmp_path / "model.safetensors", grey)
    back, picture = load(tmp_path), Image.fromarray(images[0].permute(1, 2, 0).numpy())
    levels = torch.from_numpy(np.array(picture.convert("L")))[None, None]
    torch.testing.assert_close(back(picture), grey(levels))
    with pytest.raises(SettingError, match=r"\(N, 1, H, W\)"):
        back(images)


@pytest.mark.parametrize("whitened", [False, True])
def test_pictures_of_any_size_are_seen_as_the_net_was_trained(images, whitened):
    trained = small(Whiten.fit(images.repeat(9, 1, 1, 1)) if whitened else None, head="fc")
    upright = Image.new("RGBA", (90, 30), (0, 0, 0, 0))  # transparent, except for its middle: red and blue
    upright.paste((255, 0, 0, 255), (15, 0, 45, 30))
    upright.paste((0, 0, 255, 255), (45, 0, 75, 30))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    lying = trained(turned.copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    fitted = torch.from_numpy(np.array(ImageOps.fit(upright.convert("RGB"), (8, 8)))).permute(2, 0, 1)[None]
    torch.testing.assert_close(trained([upright, turned]), trained(fitted).expand(2, 10))
    assert not torch.allclose(trained(turned), lying, atol=1e-2)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert torch.equal(trained(clear), trained(Image.new("RGB", (300, 500), "white")))


# checkpoints that are refused -----------------------------------------------------------------------------------------


def test_a_folder_must_contain_one_net(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"expected one \.safetensors file in this folder, got 0"):
        load(tmp_path)
    (tmp_path / "config.yaml").touch()
    for left in ("part.model.safetensors", ".part-abc-model.safetensors"):  # a killed run was writing it
        (tmp_path / left).touch()
    with pytest.raises(CheckpointError, match=r"has not finished; .* resume=auto"):
        load(tmp_path)
    for name in "ab":
        save(tmp_path / f"{name}.safetensors", small())
    with pytest.raises(CheckpointError, match=r"got 2$"):
        load(tmp_path)


@pytest.mark.parametrize(
    "checkpoint",
    ["", "x" * 5000, "a\0b", "../../nothing", "/dev/null", "/dev/zero", None, b"bytes", [], 3, {"a": 1}],
    ids=range(11),
)
def test_what_is_not_a_checkpoint_is_refused(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        nin.load(checkpoint)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        load(tmp_path / "model.safetensors")


def test_a_file_too_large_for_any_net_is_not_read(tmp_path):
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(pretrained.MAX_FILE_BYTES + 1)  # sparse: it takes no disk
    before = peak_memory_gb()
    with pytest.raises(CheckpointError, match="it is larger than 4,294,967,296 bytes"):
        load(tmp_path)
    assert peak_memory_gb() - before < 0.5


def hostile(kind: str, marker: Path, file: Path) -> None:
    """Writes a file that creates `marker` when it is unpickled."""
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "pytorch-lightning_version")
    payload = {**{part: {} for part in parts}, "epoch": 0, "global_step": 1, "hyper_parameters": Payload(marker)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_no_pickle_runs(script, tmp_path, kind):
    marker = tmp_path / "marker"
    hostile(kind, marker, tmp_path / "trap")
    if kind == "pickle":
        pickle.loads((tmp_path / "trap").read_bytes())
    else:
        torch.load(tmp_path / "trap", weights_only=False)
    marker.unlink()  # the trap works
    Image.new("RGB", (40, 40), "red").save(tmp_path / "picture.png")
    for name in ("net.ckpt", "net.pt", "net.safetensors"):
        hostile(kind, marker, tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name} is not a safetensors file"):
            nin.load(tmp_path / name)
        commands = (("predict.py", "picture.png"), ("evaluate.py",), ("train.py", "data=digits", "hydra.run.dir=run"))
        for command in commands:
            code, _, errors = script(*command, f"checkpoint={name}")
            assert code == 1 and errors.startswith(f"error: checkpoint={name}: {name} is not a safetensors file")
            assert len(errors.splitlines()) == 1
        assert not marker.exists()


def test_a_file_that_is_something_else_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    for content in (b"not weights", b""):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a safetensors file"):
            load(file)
    save_file({"weight": torch.zeros(3)}, str(file))
    with pytest.raises(CheckpointError, match="no description of a net"):
        load(file)


def described(file: Path) -> dict:
    """Our header of a weights file."""
    (size,) = struct.unpack("<Q", file.read_bytes()[:8])
    return json.loads(json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"]["nin"])


def rewrite(file: Path, header=None, tensors=None) -> None:
    """Replaces parts of a weights file's header and tensors."""
    content = {**load_file(file), **(tensors or {})}
    save_file(content, str(file), metadata={"nin": json.dumps({**described(file), **(header or {})})})


def first_block(**block):
    return {"net": {"blocks": [block, {"widths": [8, 8, None]}]}}


ODD_FACTS = (
    ("seed", [1]),
    ("commit", 3),
    ("precision", "\n"),
    ("frozen", "no"),
    ("start", "net"),
    ("start", {"name": 1}),
)
ODD_FACTS += (("started_from", ["net"]), ("settings", [1]), ("settings", {"model": {"weights": 5}}))
LIES = {
    "one block": {"net": {"blocks": [{"widths": [8, 8, 8]}]}},
    "a net that is empty": {"net": None},
    "one class": {"classes": ["one"]},
    "facts that are a list": {"facts": [1]},
    **{f"{name} that is {value}": {"facts": {name: value}} for name, value in ODD_FACTS},
    "a huge image": {"net": {"image_size": 10**400}},
    "a whitening without its tensors": {"preprocess": {"name": "whiten", "shape": [3, 8, 8]}},
    "100 GB of weights": first_block(widths=60_000),
    "a window of 10,000 pixels": first_block(widths=8, kernel_size=10_000, padding=5000),
    "a stride of 0": first_block(widths=8, stride=0),
    "a huge width": first_block(widths=10**400),
    "a width that is a fraction": first_block(widths=8.5),
    "a width that is NaN": first_block(widths=float("nan")),
    "a width that is text": first_block(widths="888"),
    "no width": first_block(widths=None),
    "an unknown word of a block": first_block(widths=8, code="x"),
    "a block that is a number": {"net": {"blocks": [3]}},
    "blocks without end": {"net": {"blocks": [{"widths": [1, 1, 1], "padding": 3}] * 5000}},
    "blocks that are text": {"net": {"blocks": "cifar10"}},
    "an unknown head": {"net": {"head": "sum"}},
    "a head that is a list": {"net": {"head": ["gap"]}},
    "a million classes": {"net": {"num_classes": 10**6}},
    "other channels": {"net": {"in_channels": 1}},
    "classes that are numbers": {"classes": list(range(10))},
    "classes without end": {"classes": ["x"] * 100_000},
    "no classes": {"classes": None},
    "an unknown preprocessing": {"preprocess": {"name": ["whiten"]}},
    "no preprocessing": {"preprocess": None},
    "a whitening of another size": {"preprocess": {"name": "whiten", "shape": [10**9] * 3}},
    "a whitening without a checksum": {"preprocess": {"name": "whiten", "file": "model.safetensors", "sha256": ""}},
    "another file for the whitening": {"preprocess": {"name": "whiten", "file": "../../x", "sha256": "0" * 64}},
    "a whitening that is a number": {"preprocess": {"name": "whiten", "file": 3, "sha256": "0" * 64}},
}
OTHER_TENSORS = {
    "preprocessing of five channels": {"preprocess.mean": torch.zeros(1, 5, 1, 1)},
    "weights of another shape": {"net.blocks.block1.conv1.weight": torch.zeros(8, 3, 5, 5)},
    "one tensor too many": {"something.else": torch.zeros(1)},
    **{
        f"weights of {dtype}": {"net.blocks.block1.conv1.weight": torch.zeros(8, 3, 3, 3).to(dtype)}
        for dtype in (torch.float16, torch.float64, torch.int64, torch.uint8, torch.float8_e4m3fn)
    },
    **{
        f"{value} in {name}": {f"net.blocks.block1.{name}": torch.full(shape, value)}
        for value in (float("nan"), float("inf"))
        for name, shape in (("conv1.weight", (8, 3, 3, 3)), ("norm1.running_var", (8,)))
    },
}


def test_a_description_that_does_not_match_its_weights_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save(file, small())
    good, before = file.read_bytes(), peak_memory_gb()
    changes = {lie: {"header": header} for lie, header in LIES.items()}
    changes |= {lie: {"tensors": tensors} for lie, tensors in OTHER_TENSORS.items()}
    for lie, change in changes.items():
        file.write_bytes(good)
        load(file)
        if isinstance((net := change.get("header", {}).get("net")), dict):
            change = {"header": {"net": {**described(file)["net"], **net}}}
        rewrite(file, **change)
        with pytest.raises(CheckpointError, match=r"model\.safetensors|/x|\bx\b") as error:
            load(file)
        assert "\n" not in str(error.value) and len(str(error.value)) < 1000, lie
        expected = {
            "nan": "contains NaN or infinity",
            "inf": "contains NaN or infinity",
            "weights of torch": "is torch",
        }
        for begins, words in expected.items():
            assert not lie.startswith(begins) or words in str(error.value), lie
    assert peak_memory_gb() - before < 0.5


def lying_headers():
    """Bytes of safetensors files whose header does not match what follows it."""

    def file(header, data=b"\0" * 64, size=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if size is None else size) + text + data

    def tensor(shape=(16,), offsets=(0, 64), dtype="F32"):
        return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}

    yield "a header of 2^63 bytes", file(tensor(), size=2**63)
    yield "a header longer than the file", file(tensor(), size=10**6)
    yield "a header of no bytes", file(b"")
    yield "a header that is not JSON", file(b"{" * 100)
    yield "a header nested without end", file(b'{"a":' * 50_000)
    yield "a header that is not text", file(b"\xff\xfe" * 50)
    yield "a shape of 100 GB", file(tensor(shape=(25 * 10**9,)))
    yield "a shape beyond all numbers", file(tensor(shape=(2**62, 2**62)))
    yield "a shape below 0", file(tensor(shape=(-16,)))
    yield "data beyond the end", file(tensor(offsets=(0, 10**12), shape=(25 * 10**10,)))
    yield "data that ends before it begins", file(tensor(offsets=(64, 0)))
    yield "two tensors in one place", file({**tensor(), "v": tensor()["w"]})
    yield "an unknown type", file(tensor(dtype="PICKLE"))
    nested = json.dumps({"__metadata__": {"nin": "[" * 200_000}, **tensor()}).encode()
    yield "a description nested without end", file(nested)


@pytest.mark.parametrize(("lie", "content"), lying_headers(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_header_that_lies_is_refused(tmp_path, lie, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    before = peak_memory_gb()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert peak_memory_gb() - before < 0.5


def test_a_damaged_weights_file_is_loaded_or_refused(tmp_path, images):
    """A change in the weights alone looks like other weights; only a card's sha256 reveals it."""
    file, draws = tmp_path / "model.safetensors", random.Random(0)
    save(file, small(Whiten.fit(images.repeat(9, 1, 1, 1))))
    good = file.read_bytes()
    header = struct.unpack("<Q", good[:8])[0] + 8
    ended = {"loaded": 0, "refused": 0}
    for number in range(300):
        bad = bytearray(good)
        for _ in range(draws.choice([1, 4])):
            bad[draws.randrange(header if number % 2 else len(bad))] = draws.randrange(256)
        if number % 3 == 2:
            del bad[draws.randrange(len(bad)) :]
        file.write_bytes(bad)
        try:
            assert load(file)(images).shape == (5, 10)
            ended["loaded"] += 1
        except CheckpointError as error:
            assert "model.safetensors" in str(error) and len(str(error)) < 1500
            ended["refused"] += 1
    assert min(ended.values()) > 50, ended


# weights for another net ----------------------------------------------------------------------------------------------


def test_weights_for_another_run():
    other = NIN([Block(8), Block((8, 8, None))], image_size=8, norm="batch")
    copy_weights(small(), other)
    assert torch.equal(other.blocks.block1.conv1.weight, small().net.blocks.block1.conv1.weight)
    with pytest.raises(CheckpointError, match=r"does not match these settings: blocks is .* there, .* here"):
        copy_weights(small(), NIN())
    with pytest.raises(CheckpointError, match=r"head accepts only image_size=8, got image_size=16; set data\.size"):
        copy_weights(small(head="fc"), small(head="fc", size=16).net)


@pytest.mark.parametrize(
    ("classes", "new"), [(10, {"head.linear"}), (5, {"head.linear", "blocks.block2.conv3", "blocks.block2.norm3"})]
)
def test_weights_for_a_net_of_another_head(classes, new):
    """The blocks of a net that pools, for one that ends in a fully connected layer, and the other way round."""
    pooling = small()
    other = NIN([Block(8), Block((8, 8, None))], classes, "fc", image_size=8, norm="batch")
    assert {name.rpartition(".")[0] for name in copy_weights(pooling, other)} == new
    assert torch.equal(other.blocks.block1.conv1.weight, pooling.net.blocks.block1.conv1.weight)
    back = NIN([Block(8), Block((8, 8, None))], 10, "gap", image_size=12, norm="batch")
    named = {name.rpartition(".")[0] for name in copy_weights(Pretrained(other, pooling.preprocess, ["a"], {}), back)}
    assert named == new - {"head.linear"}


# published nets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of published nets that contains one, "small"."""
    monkeypatch.setattr(pretrained, "CHECKPOINTS", tmp_path)
    publish.publish_net(small(size=32), "small", {"data": "digits", "test_error": 12.34})
    return tmp_path


def weights_file(shelf: Path) -> Path:
    (file,) = shelf.glob("small-*.safetensors")
    return file


def test_a_published_name_is_not_the_folder_of_that_name(shelf, tmp_path, monkeypatch):
    """Whatever stands there: the published net is loaded, and a note says how to load the other."""
    monkeypatch.chdir(tmp_path)
    published, own = nin.load("small"), small()
    with torch.no_grad():
        next(own.net.parameters()).add_(1)
    save(tmp_path / "net.safetensors", own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nin.load("small")
    for make in (lambda: Path("small").mkdir(), lambda: Path("small").symlink_to("nowhere")):
        make()
        with pytest.warns(UserWarning, match=r"checkpoint=small: the published net; write \./small for what is here"):
            assert nin.load("small").sha256 == published.sha256
        Path("small").unlink() if Path("small").is_symlink() else Path("small").rmdir()
    Path("small").mkdir()
    shutil.move("net.safetensors", "small/model.safetensors")
    assert nin.load("./small").sha256 != published.sha256


def test_a_published_net_is_loaded_by_its_name(shelf):
    assert nin.available() == ["small"]
    trained = nin.load("small")
    card = json.loads((shelf / "small.json").read_text())
    assert trained.facts == card
    assert trained.sha256 == card["sha256"]
    assert not trained.training and trained.classes == tuple(card["classes"])
    assert torch.equal(trained(golden_images()), small(size=32)(golden_images()))
    by_file = load(weights_file(shelf))  # a weights file is enough
    assert torch.equal(by_file(golden_images()), trained(golden_images()))


def test_a_changed_byte_is_refused_with_both_hashes(shelf):
    file = weights_file(shelf)
    content = bytearray(file.read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[-5] ^= 1
    file.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(CheckpointError, match=f"has sha256 {found}, expected {expected}, which the net"):
        nin.load("small")
    with pytest.raises(CheckpointError, match=f"has sha256 {found}, its name says {expected[:8]}…"):
        nin.load(file)
    dated = file.with_name("mine-20261124.safetensors")
    nin.load(file.rename(dated))  # eight digits of a date


def test_a_pickle_under_a_published_name_does_not_run(shelf):
    file, marker = weights_file(shelf), shelf / "marker"
    file.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(CheckpointError, match="which the net's file or card states"):
        nin.load("small")
    card = json.loads((shelf / "small.json").read_text())
    card["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (shelf / "small.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        nin.load("small")
    assert not marker.exists()


ODD = [None, True, -1, 101.5, "1e400", "x" * 5000, "\x1b[2J", "a\nb", [], [[1]], {}, {"a": 1}]


@pytest.mark.parametrize("name", pretrained.FACTS)
@pytest.mark.tries(len(ODD) + 1)
def test_a_card_with_any_fact_is_read_or_refused(shelf, name, tried):
    weights_file(shelf)
    card = json.loads((shelf / "small.json").read_text())
    card |= {"data": "digits", "head": "gap", "recipe": "quick", "epochs": 3, "parameters": 9, "test_error": 5.0}
    (shelf / "small.json").write_text(json.dumps(card))
    assert "| 5.00 % |" in report.nets_table(cli.variant_of)
    for odd in ODD:
        (shelf / "small.json").write_text(json.dumps({**card, name: odd}))
        try:
            report.nets_table(cli.variant_of)
        except CheckpointError as error:
            assert f"its card small.json is damaged ({name}=" in str(error)
            assert str(error).isprintable() and len(str(error)) < 600
        else:
            assert type(odd) in (str, int), odd
        tried(odd)
    del card[name]
    (shelf / "small.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=f"it lacks '{name}'"):
        report.nets_table(cli.variant_of)
    tried("missing")


def test_the_table_of_nets_has_what_a_net_varies_of_its_recipe(shelf):
    weights_file(shelf)
    card = json.loads((shelf / "small.json").read_text())
    card |= {"data": "digits", "head": "gap", "recipe": "quick", "epochs": 3, "parameters": 9, "test_error": 5.0}
    varied = cli.compose(["recipe=quick", "data=digits", "recipe.drops=[0.5,0.75]"])
    (shelf / "small.json").write_text(json.dumps(card | {"settings": settings_of(varied)}))
    assert "| `quick` `recipe.drops=[0.5, 0.75]` |" in report.nets_table(cli.variant_of)
    (shelf / "small.json").write_text(json.dumps(card | {"settings": None}))
    assert "| `quick` |" in report.nets_table(cli.variant_of)
    (shelf / "small.json").write_text(json.dumps(card | {"settings": {"nosuch": 1}}))
    with pytest.raises(CheckpointError, match=r"checkpoint=small: its card .* is damaged .*nosuch"):
        report.nets_table(cli.variant_of)


def test_the_recipe_of_the_best_net_is_what_it_was_trained_with():
    """Its run was started as `modern` with overrides, before the recipe had a name."""
    settings = from_settings(pretrained.read_card("cifar10-gap-best")["settings"])  # a later setting has its default
    of_card = consequential(settings_of(settings))
    of_recipe = consequential(settings_of(cli.compose(["recipe=best"])))
    assert {name for name in of_recipe if of_recipe[name] != of_card[name]} == {"recipe.name"}


def test_a_damaged_card_is_refused(shelf):
    name, whole = weights_file(shelf).name, "0" * 64
    cards = ["", "{", "[]", "{}", "null", "\0", "[" * 100_000]
    cards += [f'{{"file": "../{name}", "sha256": "{whole}"}}', f'{{"file": 3, "sha256": "{whole}"}}']
    hashes = ("NaN", "9" * 5000, '""', '"0"', f'"{whole[1:]}g"', f'"{whole}0"', f'["{whole}"]')
    cards += [f'{{"file": "{name}", "sha256": {each}}}' for each in hashes]
    for card in cards:
        (shelf / "small.json").write_text(card)
        with pytest.raises(CheckpointError, match=r"its card small\.json is damaged") as error:
            nin.load("small")
        assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_an_unknown_name_is_refused_with_the_names(shelf):
    with pytest.raises(CheckpointError, match="the published names are small"):
        nin.load("smal")
    weights_file(shelf).unlink()
    with pytest.raises(CheckpointError, match=r"its file small-.* is not in"):
        nin.load("small")


def test_golden_images_are_images():
    images = golden_images()
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    assert len(images.unique()) > 100 and not torch.equal(images[0], images[1])
    assert golden_images((8, 12), 1).shape == (2, 1, 8, 12)


@pytest.mark.parametrize("name", pretrained.available())
def test_the_cards_of_the_published_nets(name):
    from nin import cli

    card, trained = pretrained.read_card(name), nin.load(name)
    record = Record.from_dict(card, f"{name}.json")
    assert (record.status, record.parameters) == ("finished", sum(p.numel() for p in trained.net.parameters()))
    size = sides(10_000, image_size=card["net"]["image_size"])
    assert nin.multiply_accumulates(trained.net, trained.channels, *size) == card["multiply_accumulates"]
    assert pretrained.build_net(card["net"]).plan == trained.net.plan
    assert card["head"] == card["net"]["head"] == record.head
    assert list(trained.classes) == card["classes"]
    assert trained.preprocess.name == card["preprocessing"]
    content = (pretrained.CHECKPOINTS / card["file"]).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (card["bytes"], card["sha256"])
    assert card["file"] == f"{name}-{card['sha256'][:8]}.safetensors"
    golden = golden_images(size, trained.channels)
    torch.testing.assert_close(trained(golden), torch.tensor(card["golden_logits"]), atol=1e-4, rtol=0)
    again = cli.compose(shlex.split(card["command"])[2:])
    assert (again.head.name, again.recipe.name, again.seed) == (record.head, record.recipe, record.seed)
    assert again.trainer.max_epochs == record.epochs == card["epochs"]


def error_of(name, batches=None):
    """Test error of a published net in %, on all images or on the first batches; skips where the set is missing."""
    from nin.config import Config
    from nin.run.evaluate import evaluate_pretrained

    config = Config()
    config.trainer.accelerator, config.data.download, config.trainer.limit_test_batches = "cpu", False, batches
    config.trainer.progress_bar = False
    try:
        return evaluate_pretrained(nin.load(name), config).error
    except DataError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", pretrained.available())
def test_the_error_of_the_first_thousand_images_is_the_cards(name):
    stated = pretrained.read_card(name)["error_of_first_batches"]
    assert error_of(name, publish.GOLDEN_BATCHES) == pytest.approx(stated, abs=0.11)  # one image, for other CPUs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10-gap", "cifar10-gap-paper"])
def test_the_error_of_a_card_is_measured_again(name):
    assert error_of(name) == pytest.approx(pretrained.read_card(name)["test_error"], abs=0.02)


LOADS_ALL = f"""
import socket, sys
def refuse(*_, **__):
    raise OSError("the network is off")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import nin
print(nin.__file__)
print(*nin.available())
for name in nin.available():
    net = nin.load(name)
    images = nin.pretrained.golden_images(net.net.plan.image_size, net.channels)
    print(name, net(images).shape[1] == len(net.classes))
print("heavy:", *(name for name in {HEAVY} if name in sys.modules))
"""


def build_wheel(tmp_path):
    """Builds the wheel from the tracked files and installs it in tmp_path/installed; returns the wheel."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.splitlines()):
        if (ROOT / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "source" / name)
    before = sorted((tmp_path / "source").rglob("*"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(tmp_path / "source")]
    built = subprocess.run(build, capture_output=True, text=True)
    if "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("hatchling cannot be downloaded")
    assert built.returncode == 0, built.stderr
    assert sorted((tmp_path / "source").rglob("*")) == before  # nothing is left that could become stale
    (wheel,) = tmp_path.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(tmp_path / "installed")]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return wheel


def outside(wheel, *command):
    """Runs a command of the installed wheel in an empty folder, outside the checkout."""
    installed, folder = wheel.parent / "installed", wheel.parent / "empty"
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_wheel_carries_the_published_nets(tmp_path):
    """Installed elsewhere, it loads every net without a network, in an empty folder, and imports none of the heavy
    libraries for it. Its commands train, predict and study there."""
    wheel = build_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    published = {
        f"nin/checkpoints/{name}" for name in os.listdir(ROOT / "checkpoints") if name.endswith(("safetensors", "json"))
    }
    assert {name for name in names if name.startswith("nin/checkpoints/")} == published
    assert {name.split("/")[0].split("-")[0] for name in names} == {"nin", "network_in_network"}
    settings = {f"nin/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert {name for name in names if name.startswith("nin/conf/")} == settings
    assert "nin/scripts/chelsea.png" in names  # with which the demo page opens
    done = outside(wheel, "-c", LOADS_ALL)
    assert done.returncode == 0, done.stderr
    where, listed, *loaded, heavy = done.stdout.splitlines()
    assert where.startswith(str(wheel.parent / "installed"))
    assert listed.split() == nin.available()
    assert loaded == [f"{name} True" for name in nin.available()]
    assert heavy == "heavy:"
    commands_work(wheel)


def commands_work(wheel):
    """`nin` trains, predicts and says what belongs to a checkout; results go into the current folder."""
    nin_command = str(wheel.parent / "installed" / "bin" / "nin")
    small = ["head=gap", "data=digits", "model.blocks=[{widths: [8, 8, 10]}]", "trainer.max_epochs=1"]
    small += ["trainer.limit_train_batches=2", "trainer.limit_test_batches=1", "trainer.progress_bar=false"]
    trained = outside(wheel, nin_command, "train", *small, "trainer=cpu", "resume=auto", "hydra.run.dir=runs/a")
    assert trained.returncode == 0, trained.stderr
    assert "resume=auto: runs/a has no whole epoch to resume" in trained.stdout
    assert "nin evaluate checkpoint=" in trained.stdout and "scripts" not in trained.stdout
    assert (wheel.parent / "empty" / "runs" / "a" / "model.safetensors").is_file()
    photo = str(ROOT / "scripts" / "chelsea.png")
    predicted = outside(wheel, "-P", "-m", "nin", "predict", "checkpoint=cifar10-gap", photo)
    assert predicted.returncode == 0, predicted.stderr
    assert "chelsea.png: " in predicted.stdout
    assert (wheel.parent / "empty" / "maps" / "chelsea_cifar10-gap.png").is_file()
    study = outside(wheel, nin_command, "ablate", *small, "seed=0", "eval_curve=false")
    assert study.returncode == 0, study.stderr
    assert study.stdout.endswith("1 row in runs.csv\n") and "nin evaluate" in study.stdout
    refused = outside(wheel, nin_command, "report")
    assert refused.returncode == 2 and refused.stderr.startswith("error: nin report: belongs to a checkout")
    assert sorted(file.name for file in (wheel.parent / "empty").glob("[!.]*")) == ["maps", "runs", "runs.csv"]


# other classes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["gap", "fc_dropout"])
@pytest.mark.parametrize("other", [None, "gmp"])
def test_a_head_is_replaced_in_one_call(images, head, other):
    trained, before = small(head=head), small(head=head)
    trained.sha256 = "0" * 64
    new = trained.reset_head(["cat", "dog", "frog"], other)
    weights, kept = trained.net.state_dict(), before.net.state_dict()
    assert trained.classes == ("cat", "dog", "frog") and (trained.facts, trained.sha256) == ({}, None)
    assert trained.net.arguments == {**before.net.arguments, "num_classes": 3, "head": other or head}
    assert any(name.endswith("weight") for name in new)
    assert all(torch.equal(weights[name], kept[name]) for name in weights if name not in new)
    assert {name for name in weights if name not in kept or weights[name].shape != kept[name].shape} <= set(new)
    assert trained(images).shape == (5, 3) and not trained.net.training
    trained(images).sum().backward()  # it can be trained


@pytest.mark.parametrize("head", ["gap", "fc"])
@pytest.mark.parametrize("last", [None, 10])
def test_as_many_other_classes_start_anew(head, last):
    """A weight that learned a class says nothing about another one in its place."""
    net = NIN([Block(8), Block((8, 8, last))], 10, head, image_size=8, norm="batch")
    trained = Pretrained(net, Normalise(torch.ones(3), torch.ones(3)), list("0123456789"), {})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert trained.reset_head(list("0123456789")) == []
    new = trained.reset_head(list("abcdefghij"))
    layers = {name.rpartition(".")[0] for name in new}
    of_maps = {"blocks.block2.conv3", "blocks.block2.norm3"}
    assert layers == (of_maps if head == "gap" else {"head.linear"} | (of_maps if last is None else set()))
    after = trained.net.state_dict()
    assert all(torch.equal(after[name], before[name]) == (name not in new) for name in after if "conv" in name)


def test_a_backbones_head_is_replaced_too():
    net = Backbone("squeezenet1_1", 4, "gap", image_size=64, weights="none")
    trained = Pretrained(net, Normalise(torch.full((3,), 120.0), torch.full((3,), 60.0)), list("abcd"), {})
    assert trained.reset_head(list("ab")) == ["classes.weight", "classes.bias"]
    assert trained.reset_head(list("cd")) == ["classes.weight", "classes.bias"]
    assert trained.reset_head(list("cd")) == []
    kept = trained.net.features.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in net.features.state_dict().items())


def test_blocks_of_a_fixed_number_of_maps_refuse_other_classes():
    net = NIN([Block(8), Block((8, 8, 10))], image_size=8)
    trained = Pretrained(net, Normalise(torch.ones(3), torch.ones(3)), list("0123456789"), {})
    with pytest.raises(SettingError, match="requires one map per class"):
        trained.reset_head(["cat", "dog"])
    assert trained.net is net and len(trained.classes) == 10


def test_a_net_of_half_precision_is_saved_as_any(tmp_path):
    save(tmp_path / "net.safetensors", nin.load("cifar10-gap").half())
    loaded = nin.load(tmp_path / "net.safetensors")
    assert {tensor.dtype for tensor in loaded.state_dict().values() if tensor.is_floating_point()} == {torch.float32}


def test_class_names_that_repeat_are_refused(tmp_path):
    trained = nin.load("cifar10-gap")
    save(tmp_path / "net.safetensors", Pretrained(trained.net, trained.preprocess, ["cat"] * 10, {}))
    with pytest.raises(CheckpointError, match="several classes have the name cat"):
        nin.load(tmp_path / "net.safetensors")


@pytest.mark.parametrize(("before", "after"), [("fc", "gap"), ("gap", "fc"), ("gap", "gap")])
def test_the_conventional_cnn_changes_its_head(before, after):
    preprocess = Normalise(torch.zeros(3), torch.ones(3))
    trained = Pretrained(NIN("cnn", head=before), preprocess, list("0123456789"), {})
    kept = trained.net.blocks.block1.conv1.weight.clone()
    new = trained.reset_head(list("abcde"), head=after)
    assert trained.net.plan == Plan("cnn", 5, after) and torch.equal(trained.net.blocks.block1.conv1.weight, kept)
    assert "blocks.block1.conv1.weight" not in new and new
