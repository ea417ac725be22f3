"""The ONNX file of a net beside the net."""

import json
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from builders import ROOT
from claims import CLASSES, tiny
from nin import HEADS, NIN, Block, export, predict, pretrained
from nin.data import Normalise, Whiten
from nin.errors import CheckpointError, UsageError
from nin.pretrained import Pretrained

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")


def pixels(number, height, width, channels=3):
    draws = torch.Generator().manual_seed(number * height + width)
    return torch.randint(0, 256, (number, channels, height, width), dtype=torch.uint8, generator=draws)


def answers(content, images):
    return onnxruntime.InferenceSession(content).run(None, {"pixels": images.numpy()})


def whitened():
    whiten = Whiten(torch.linspace(-1, 1, 3072), torch.eye(3072) / 20, (3, 32, 32))
    return Pretrained(tiny("fc").net, whiten, CLASSES, {"data": "digits"})


def pooled_by_average(seed=0):
    torch.manual_seed(seed)
    net = NIN([Block(6), Block((8, 8, 5))], 5, "gmp", in_channels=1, image_size=28, last_pool="average", init="kaiming")
    return Pretrained(net, Normalise(torch.tensor([100.0]), torch.tensor([50.0])), list("abcde"), {})


def conventional():
    torch.manual_seed(0)
    return Pretrained(NIN("cnn", head="gap", init="kaiming"), Normalise(torch.zeros(3), torch.ones(3)), CLASSES, {})


NETS = {"one size": whitened, "locally connected": conventional, "any size": pooled_by_average}


@cache
def file_of(kind):
    return export.to_onnx(NETS[kind]())


@pytest.mark.parametrize("kind", NETS)
def test_the_file_answers_as_the_net_does(kind):
    """Three batch sizes; and other image sizes, odd ones too, where the net has them."""
    trained, content, any_size = NETS[kind](), file_of(kind), kind == "any size"
    size = (28, 28) if any_size else (32, 32)
    assert {row.images for row in export.compare(content, trained)} == set(export.BATCHES)
    for height, width in [size, (37, 51), (64, 30)] if any_size else [size]:
        for number in (1, 2, 9):
            images = pixels(number, height, width, trained.channels)
            logits, maps = answers(content, images)
            expected, where = predict.class_maps(trained, images)
            np.testing.assert_allclose(logits, expected.detach(), atol=1e-4)
            np.testing.assert_allclose(maps, where.detach(), atol=1e-4)
    if not any_size:
        with pytest.raises(Exception, match="Got invalid dimensions"):
            answers(content, pixels(1, size[0] + 8, size[1], trained.channels))


def test_a_published_net_as_a_file(tmp_path, script):
    """Then the ten lines in nin/README.md classify a photo with it, in a Python that cannot import torch."""
    file = tmp_path / "sub" / "cifar10-gap.onnx"
    code, said, errors = script("export.py", "checkpoint=cifar10-gap", f"out={file}")
    assert code == 0, errors
    lines = said.splitlines()
    sizes = [("1", "32×32"), ("3", "32×32"), ("16", "32×32"), ("1", "40×48"), ("3", "40×48"), ("16", "40×48")]
    assert [tuple(line.split()[:2]) for line in lines[1:7]] == sizes
    assert lines[7] == f"{file}: 3.9 MB" and [*file.parent.iterdir()] == [file]
    content = file.read_bytes()
    session = onnxruntime.InferenceSession(content)
    facts, card = session.get_modelmeta().custom_metadata_map, pretrained.read_card("cifar10-gap")
    assert json.loads(facts["card"]) == card and json.loads(facts["classes"]) == card["classes"]
    assert (facts["head"], facts["preprocessing"], facts["sha256"]) == ("gap", "normalise", card["sha256"])
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("pixels", "tensor(uint8)", ["batch", 3, "height", "width"])
    ]
    assert [each.name for each in session.get_outputs()] == ["logits", "maps"]
    assert not any(path in content for path in (str(ROOT).encode(), b"site-packages"))  # of the machine that wrote it
    golden, _ = session.run(None, {"pixels": pretrained.golden_images().numpy()})
    np.testing.assert_allclose(golden, card["golden_logits"], atol=1e-4)

    page = (ROOT / "nin" / "README.md").read_text()
    (block,) = [part for part in re.findall(r"```python\n(.*?)```", page, re.S) if "onnxruntime" in part]
    assert len([line for line in block.splitlines() if line]) <= 10
    (file.parent / "scripts").symlink_to(ROOT / "scripts")
    blocked = "import sys; sys.modules |= dict.fromkeys(['torch', 'nin', 'torchvision'])\n"
    lines = [sys.executable, "-I", "-c", blocked + block]
    ended = subprocess.run(lines, cwd=file.parent, capture_output=True, text=True, check=True)
    assert ended.stdout == "cat (1, 10, 8, 8)\n"


def test_a_file_of_another_net_is_not_written(monkeypatch, tmp_path, script):
    other = pooled_by_average(seed=1)
    with pytest.raises(CheckpointError, match="does not answer as the net does"):
        list(export.compare(file_of("any size"), other))
    monkeypatch.setattr(export, "to_onnx", lambda trained: file_of("any size"))
    pretrained.save(tmp_path / "net.safetensors", other)
    code, _, errors = script("export.py", f"checkpoint={tmp_path}/net.safetensors", f"out={tmp_path}/net.onnx")
    assert code == 1 and "does not answer" in errors and not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "checkpoint= is required"),
        (("checkpoint=cifar10-gap", "format=tflite"), 2, "format=tflite: must be one of onnx"),
        (("checkpoint=cifar10-gap", "out=net.pt"), 2, "out=net.pt: expected the name of a file that ends in .onnx"),
        (("checkpoint=nosuch",), 1, "checkpoint=nosuch: does not exist"),
    ],
)
def test_what_cannot_be_exported_is_refused(script, arguments, code, words):
    ended, said, errors = script("export.py", *arguments)
    assert (ended, said) == (code, "") and words in errors and len(errors.splitlines()) == 1


def test_a_missing_extra_is_named(monkeypatch, script):
    monkeypatch.setattr(export, "REQUIRED", ("onnx", "no_such_package"))
    with pytest.raises(UsageError, match=r"no_such_package: pip install 'network-in-network\[onnx\]'"):
        export.to_onnx(tiny())
    assert script("export.py", "checkpoint=cifar10-gap")[0] == 2


@pytest.mark.parametrize("name", HEADS)
def test_maps_without_gradients_are_the_activation_maps(name):
    """An exported graph has no gradients; for each head its maps are those of `nin.predict.class_maps`."""
    torch.manual_seed(1)
    if HEADS[name].of_features:
        net = pretrained.build_net({"backbone": "vgg19", "num_classes": 4, "head": name, "image_size": 64})
        net.features = nn.Sequential(nn.Conv2d(3, 512, 8, stride=32), nn.ReLU(), Maps())  # small, as many channels
        net.head.to_empty(device="cpu")
        for parameter in net.head.parameters():
            nn.init.normal_(parameter, std=0.1)
    else:
        net = tiny(name).net
    normalise = Normalise(torch.full((3,), 120.0), torch.full((3,), 60.0))
    trained = Pretrained(net, normalise, [str(k) for k in range(net.num_classes)], {})
    images = pixels(3, *[net.arguments["image_size"]] * 2)
    logits, maps = export.Whole(trained)(images)
    expected, where = predict.class_maps(trained, images)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(maps, where)


class Maps(nn.Module):
    """As torchvision's feature extractor: a dictionary of maps."""

    def forward(self, maps):
        return {"maps": maps}


def test_nin_can_be_exported_by_torch():
    net = NIN([Block(8), Block((8, 8, None))], image_size=32).eval()
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(net, (torch.randn(2, 3, 32, 32),), dynamic_shapes=(free,))
    images = torch.randn(5, 3, 45, 38)
    torch.testing.assert_close(program.module()(images), net(images))
