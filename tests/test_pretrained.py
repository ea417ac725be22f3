import hashlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import CONF, ROOT
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import pil_to_tensor

import nin
from nin import NIN, Block, pretrained, run
from nin.bounds import sides
from nin.command import compose
from nin.data import DataError, Normalise, Whiten
from nin.pretrained import CheckpointError, Pretrained, copy_weights, golden_images, load, save


def trained(preprocess=None, size=8, **arguments) -> Pretrained:
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
    before = trained(Whiten.fit(images.repeat(9, 1, 1, 1)) if whitened else None, head=head)
    save(tmp_path / "model.safetensors", before)
    for checkpoint in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        after = load(checkpoint)
        assert torch.equal(after(images), before(images))
        assert (after.classes, after.facts) == (before.classes, before.facts)
        assert not after.training
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask  # others may read it


def test_images_as_people_have_them(images):
    net = trained()
    pictures = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in images]
    assert torch.equal(net(pictures), net(images))
    assert net(pictures[0]).shape == (1, 10)
    assert net(pictures[0].convert("L")).shape == (1, 10)
    assert net.forward_maps(images).shape == (5, 10, 4, 4)
    assert torch.allclose(net.forward_maps(images).mean((2, 3)), net(images))
    for wrong in (
        images.float() / 255,
        images[0],
        images[:, :1],
        [],
        [pictures[0], None],
        "cat.png",
        np.zeros((8, 8, 3)),
    ):
        with pytest.raises(ValueError, match="give uint8 pixels"):
            net(wrong)


@pytest.mark.parametrize("whitened", [False, True])
def test_pictures_of_any_size_are_seen_as_the_net_was_trained(images, whitened):
    net = trained(Whiten.fit(images.repeat(9, 1, 1, 1)) if whitened else None, head="fc")
    upright = Image.new("RGBA", (90, 30), (0, 0, 0, 0))  # transparent, but for its middle: red and blue
    upright.paste((255, 0, 0, 255), (15, 0, 45, 30))
    upright.paste((0, 0, 255, 255), (45, 0, 75, 30))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    lying = net(turned.copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    seen = pil_to_tensor(ImageOps.fit(upright.convert("RGB"), (8, 8)))[None]
    torch.testing.assert_close(net([upright, turned]), net(seen).expand(2, 10))
    assert not torch.allclose(net(turned), lying, atol=1e-2)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert torch.equal(net(clear), net(Image.new("RGB", (300, 500), "white")))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds 0 \.safetensors files"):
        load(tmp_path)
    (tmp_path / "config.yaml").touch()
    (tmp_path / "part.model.safetensors").touch()  # what a killed run was writing
    with pytest.raises(CheckpointError, match=r"has not ended; .* resume=auto"):
        load(tmp_path)
    for name in "ab":
        save(tmp_path / f"{name}.safetensors", trained())
    with pytest.raises(CheckpointError, match=r"holds 2 \.safetensors files"):
        load(tmp_path)


def test_a_file_that_is_something_else_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("not weights")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load(file)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load(file)
    save_file({"weight": torch.zeros(3)}, str(file))
    with pytest.raises(CheckpointError, match="no description of a net"):
        load(file)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_a_pickle_in_disguise_does_not_run(tmp_path):
    marker = str(tmp_path / "marker")
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load(tmp_path)
    assert not (tmp_path / "marker").exists()


def rewrite(file, header=None, tensors=None):
    net = trained()
    save(file, net)
    found = load_file(file)
    from safetensors import safe_open

    with safe_open(str(file), "pt") as opened:
        described = json.loads(opened.metadata()["nin"])
    described |= header or {}
    found |= tensors or {}
    save_file(found, str(file), metadata={"nin": json.dumps(described)})


@pytest.mark.parametrize(
    "change",
    [
        {"header": {"net": {"blocks": [{"widths": [8, 8, 8]}]}}},
        {"header": {"net": {}}},
        {"header": {"classes": ["one"]}},
        {"header": {"facts": [1]}},
        {"header": {"net": {"blocks": [{"widths": [8, 8, None]}], "image_size": 10**400}}},
        {"tensors": {"preprocess.mean": torch.zeros(1, 5, 1, 1)}},
        {"header": {"preprocess": {"name": "whiten", "shape": [3, 8, 8]}}},
        {"tensors": {"net.blocks.block1.conv1.weight": torch.zeros(8, 3, 5, 5)}},
        {"tensors": {"something.else": torch.zeros(1)}},
    ],
)
def test_a_description_that_is_not_of_its_weights_is_refused(tmp_path, change):
    rewrite(tmp_path / "model.safetensors")
    load(tmp_path)
    rewrite(tmp_path / "model.safetensors", **change)
    with pytest.raises(CheckpointError, match="does not describe its weights"):
        load(tmp_path)


def test_weights_for_another_run():
    other = NIN([Block(8), Block((8, 8, None))], image_size=8, norm="batch")
    copy_weights(trained(), other)
    assert torch.equal(other.blocks.block1.conv1.weight, trained().net.blocks.block1.conv1.weight)
    with pytest.raises(CheckpointError, match="another one than these settings make"):
        copy_weights(trained(), NIN())


@pytest.mark.parametrize(
    ("classes", "new"), [(10, {"head.linear"}), (5, {"head.linear", "blocks.block2.conv3", "blocks.block2.norm3"})]
)
def test_weights_for_a_net_of_another_head(classes, new):
    """The blocks of a net that pools, for one that ends in a fully connected layer, and the other way round."""
    pooling = trained()
    other = NIN([Block(8), Block((8, 8, None))], classes, "fc", image_size=8, norm="batch")
    assert {name.rpartition(".")[0] for name in copy_weights(pooling, other)} == new
    assert torch.equal(other.blocks.block1.conv1.weight, pooling.net.blocks.block1.conv1.weight)
    back = NIN([Block(8), Block((8, 8, None))], 10, "gap", image_size=12, norm="batch")
    named = {name.rpartition(".")[0] for name in copy_weights(Pretrained(other, pooling.preprocess, ["a"], {}), back)}
    assert named == new - {"head.linear"}


# published nets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of published nets with one in it, "small"."""
    monkeypatch.setattr(pretrained, "CHECKPOINTS", tmp_path)
    pretrained.publish(trained(size=32), "small", tmp_path)
    return tmp_path


def weights_file(shelf):
    (file,) = shelf.glob("small-*.safetensors")
    return file


def test_a_published_net_has_a_name_a_card_and_a_hash(shelf):
    assert nin.available() == ["small"]
    net = nin.load("small")
    card = json.loads((shelf / "small.json").read_text())
    assert net.facts == card
    assert not net.training and net.classes == tuple(card["classes"])
    file = weights_file(shelf)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card["sha256"]
    assert file.name == f"small-{card['sha256'][:8]}.safetensors"
    assert card["bytes"] == file.stat().st_size
    torch.testing.assert_close(net(golden_images()), torch.tensor(card["golden_logits"]), atol=1e-4, rtol=0)
    assert torch.equal(net(golden_images()), trained(size=32)(golden_images()))
    assert card["test_error"] == 12.34
    assert torch.equal(load(file)(golden_images()), net(golden_images()))  # a weights file serves alone, too


def test_a_name_is_given_once_and_stays_on_the_shelf(shelf):
    for name, words in (("small", "has this name already"), ("../esc", "small letters"), ("a/b", "small letters")):
        with pytest.raises(CheckpointError, match=words):
            pretrained.publish(trained(size=32), name, shelf)
    pretrained.publish(nin.load("small"), "again", shelf)
    assert json.loads((shelf / "again.json").read_text())["file"].startswith("again-")
    torch.testing.assert_close(nin.load("again")(golden_images()), nin.load("small")(golden_images()))


def test_golden_images_are_images():
    images = golden_images()
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    assert len(images.unique()) > 100 and not torch.equal(images[0], images[1])


def test_whitened_nets_share_one_file(shelf):
    images = torch.randint(0, 256, (4000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whiten = Whiten.fit(images[:, :, :8, :8])
    nets = [trained(whiten), trained(whiten, head="fc")]
    whitening, published = pretrained.publish_whitening(whiten, shelf)
    nearly = Whiten(whiten.mean, whiten.matrix + 1e-4, whiten.shape)
    assert pretrained.publish_whitening(nearly, shelf)[0] == whitening  # fitted again, on another machine say
    lighter = Whiten(whiten.mean + 1, whiten.matrix, whiten.shape)
    assert pretrained.publish_whitening(lighter, shelf)[0] != whitening
    other = Whiten.fit(images[:2000, :, :8, :8])
    assert pretrained.publish_whitening(other, shelf)[0] != whitening
    small = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    small[0, 0, 2:5] = 200
    for net, name in zip(nets, ("one", "two"), strict=True):
        # the fixed images of a card are 32×32, these nets read 8×8
        save(shelf / f"{name}.safetensors", net, whitening)
        back = load(shelf / f"{name}.safetensors")
        torch.testing.assert_close(back(small), net(small), atol=0.05, rtol=0.01)
        assert torch.equal(back.preprocess(small), published(small))
        assert (shelf / f"{name}.safetensors").stat().st_size < 30_000
    whitening.write_bytes(whitening.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"whitening-.* has sha256 .* its card says"):
        load(shelf / "one.safetensors")


def test_a_changed_byte_is_refused_with_both_hashes(shelf):
    file = weights_file(shelf)
    content = bytearray(file.read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[-5] ^= 1
    file.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(CheckpointError, match=f"has sha256 {found}, its card says {expected}"):
        nin.load("small")
    with pytest.raises(CheckpointError, match=f"has sha256 {found}, its name says {expected[:8]}…"):
        nin.load(file)
    dated = file.with_name("mine-20261124.safetensors")
    nin.load(file.rename(dated))  # eight digits that are no hash


def test_a_pickle_under_a_published_name_does_not_run(shelf):
    file, marker = weights_file(shelf), shelf / "marker"
    file.write_bytes(pickle.dumps(Payload(str(marker))))
    with pytest.raises(CheckpointError, match="its card says"):
        nin.load("small")
    card = json.loads((shelf / "small.json").read_text())
    card["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (shelf / "small.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        nin.load("small")
    assert not marker.exists()


@pytest.mark.parametrize("card", ["", "{", "[]", "{}", '{"file": "../small.safetensors", "sha256": "0"}'])
def test_a_damaged_card_is_refused(shelf, card):
    (shelf / "small.json").write_text(card)
    with pytest.raises(CheckpointError, match=r"its card small\.json is damaged"):
        nin.load("small")


def test_an_unknown_name_is_refused_with_the_names(shelf):
    with pytest.raises(CheckpointError, match="the published names are small"):
        nin.load("smal")
    weights_file(shelf).unlink()
    with pytest.raises(CheckpointError, match=r"its file small-.* is not in"):
        nin.load("small")


@pytest.mark.parametrize("name", pretrained.available())
def test_the_cards_of_the_published_nets(name):
    card = pretrained.read_card(name)
    net = nin.load(name)
    assert sum(p.numel() for p in net.net.parameters()) == card["parameters"]
    size = sides(10_000, image_size=card["net"]["image_size"])
    assert nin.multiply_accumulates(net.net, 3, *size) == card["multiply_accumulates"]
    assert json.loads(json.dumps(net.net.arguments)) == card["net"]
    assert card["head"] == card["net"]["head"]
    assert list(net.classes) == card["classes"]
    assert type(net.preprocess).__name__.lower() == card["preprocessing"]
    file = pretrained.CHECKPOINTS / card["file"]
    assert file.stat().st_size == card["bytes"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card["sha256"]
    assert card["file"] == f"{name}-{card['sha256'][:8]}.safetensors"
    torch.testing.assert_close(net(golden_images(size)), torch.tensor(card["golden_logits"]), atol=1e-4, rtol=0)
    again = compose(CONF, shlex.split(card["command"])[2:])
    assert (again.head.name, again.recipe.name, again.seed) == (card["head"], card["recipe"], card["seed"])
    assert again.trainer.max_epochs == card["epochs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", pretrained.available())
def test_the_error_of_a_card_is_measured_again(name):
    try:
        error = run.evaluate_checkpoint(compose(CONF, [f"checkpoint={name}", "trainer=cpu", "data.download=false"]))[0]
    except DataError as missing:
        pytest.skip(str(missing))
    assert error == pytest.approx(pretrained.read_card(name)["test_error"], abs=0.02)


NO_NETWORK = """
import socket
def refuse(*_, **__):
    raise OSError("the network is off")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import nin
print(nin.__file__)
print(*nin.available())
for name in nin.available():
    net = nin.load(name)
    print(name, *net(nin.pretrained.golden_images()).shape)
"""


def test_a_wheel_carries_the_published_nets(tmp_path):
    """Built from the tracked files, unpacked elsewhere, loaded in an empty folder without a network."""
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
        pytest.skip("hatchling cannot be had without a network")
    assert built.returncode == 0, built.stderr
    assert sorted((tmp_path / "source").rglob("*")) == before  # nothing is left that could go stale
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        opened.extractall(tmp_path / "installed")
    published = {
        f"nin/checkpoints/{name}" for name in os.listdir(ROOT / "checkpoints") if name.endswith(("safetensors", "json"))
    }
    assert {name for name in names if name.startswith("nin/checkpoints/")} == published
    assert {name.split("/")[0].split("-")[0] for name in names} == {"nin", "network_in_network"}
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, listed, *loaded = done.stdout.splitlines()
    assert where.startswith(str(tmp_path / "installed"))
    assert listed.split() == nin.available()
    assert loaded == [f"{name} 2 10" for name in nin.available()]
