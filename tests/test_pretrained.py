import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nin import NIN, Block
from nin.data import Normalise, Whiten
from nin.pretrained import CheckpointError, Pretrained, copy_weights, load, save


def trained(preprocess=None, **arguments) -> Pretrained:
    torch.manual_seed(0)
    net = NIN([Block(8), Block((8, 8, None))], init="kaiming", image_size=8, norm="batch", **arguments)
    preprocess = preprocess or Normalise(torch.tensor([120.0, 110, 100]), torch.tensor([60.0, 61, 62]))
    return Pretrained(net, preprocess, [f"class {k}" for k in range(10)], {"test_error": 12.34})


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", ["gap", "gmp", "fc", "fc_dropout"])
@pytest.mark.parametrize("whitened", [False, True])
def test_what_is_saved_comes_back(tmp_path, images, head, whitened):
    before = trained(Whiten.fit(images.repeat(9, 1, 1, 1)) if whitened else None, head=head)
    save(tmp_path / "model.safetensors", before)
    for checkpoint in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        after = load(checkpoint)
        assert torch.equal(after(images), before(images))
        assert (after.classes, after.facts) == (before.classes, before.facts)
        assert not after.training


def test_images_as_people_have_them(images):
    net = trained()
    pictures = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in images]
    assert torch.equal(net(pictures), net(images))
    assert net(pictures[0]).shape == (1, 10)
    assert net(pictures[0].convert("L")).shape == (1, 10)
    assert net.forward_maps(images).shape == (5, 10, 4, 4)
    assert torch.allclose(net.forward_maps(images).mean((2, 3)), net(images))
    for wrong in (images.float() / 255, images[0]):
        with pytest.raises(ValueError, match="give uint8 pixels"):
            net(wrong)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds 0 \.safetensors files"):
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
