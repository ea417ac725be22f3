"""The authors' own net, from Caffe's file."""

import os
import random
import struct
from pathlib import Path

import pytest
import torch

from nin import caffe, pretrained
from nin.errors import CheckpointError

AUTHORS = Path(os.environ.get("NIN_DATA", "data")) / "authors" / "cifar10_nin.caffemodel"


def varint(value):
    encoded = b""
    while value > 127:
        encoded, value = encoded + bytes([value & 127 | 128]), value >> 7
    return encoded + bytes([value])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(tensor):
    sides = (*[1] * (4 - tensor.ndim), *tensor.shape)
    encoded = b"".join(varint(number << 3) + varint(side) for number, side in enumerate(sides, 1))
    return encoded + message(5, tensor.numpy().astype("<f4").tobytes())


def layer(name, *tensors):
    return message(2, message(4, name.encode()) + b"".join(message(6, blob(tensor)) for tensor in tensors))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    with torch.device("cpu"):
        return pretrained.NIN(**caffe.NET)


@pytest.fixture(scope="module")
def written(net):
    """A file as Caffe writes it: layers without weights between the convolutions, and fields of no interest."""
    weights = net.state_dict()
    content = (
        message(1, b"CIFAR10_full") + layer("data") + varint(99 << 3 | 5) + b"1234" + varint(98 << 3 | 1) + b"8" * 8
    )
    for block, number in caffe.LAYERS:
        name = f"blocks.block{block}.conv{number}"
        content += layer(name, weights[f"{name}.weight"], weights[f"{name}.bias"]) + layer(f"relu{block}")
    return content


def test_a_file_of_caffe_is_loaded_with_the_published_whitening(tmp_path, net, written):
    file = tmp_path / "mine.caffemodel"
    file.write_bytes(written)
    trained = pretrained.load(file)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in trained.net.state_dict().items())
    assert trained.preprocess.name == "whiten" and trained.classes[5] == "dog" and not trained.training
    images = pretrained.golden_images()
    with torch.no_grad():
        torch.testing.assert_close(trained(images), net.eval()(trained.preprocess(images)))
    assert sum(parameter.numel() for parameter in trained.net.parameters()) == 966_986
    other = pretrained.build_net({**caffe.NET, "last_pool": "max"})
    with pytest.raises(CheckpointError, match="last_pool is average there, max here"):
        pretrained.copy_weights(trained, other)


def test_anything_else_is_one_sentence(tmp_path, written):
    file, draws = tmp_path / "bad.caffemodel", random.Random(0)
    bad = [b"", b"\xff" * 100, b"text", written[:-1], written[: len(written) // 2], written + written, varint(2 << 3)]
    bad += [varint(2 << 3 | 2) + varint(2**62), layer("a", torch.zeros(2, 2)), message(2, message(6, b"\x08\x05"))]
    bad += [written.replace(struct.pack("<f", 0.0) * 10, struct.pack("<f", float("nan")) * 10, 1)]
    for _ in range(40):  # damaged where the structure is
        start = written.index(message(4, f"blocks.block{draws.randint(1, 3)}".encode())[2:])
        at, byte = start + draws.randrange(40), bytes([draws.randrange(256)])
        bad.append(written[:at] + byte + written[at + 1 :])
    refused = 0
    for content in bad:
        file.write_bytes(content)
        try:
            pretrained.load(file)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(
                f"checkpoint={file}: bad.caffemodel is not the CIFAR-10 net of Caffe's model zoo"
            )
            assert "\n" not in str(error) and len(str(error)) < 700
    assert refused >= 11
    with pytest.raises(ValueError, match="expected at most 67,108,864 bytes"):
        caffe.read(bytes(caffe.MAX_BYTES + 1))


@pytest.mark.skipif(not AUTHORS.exists(), reason="the authors' weights are not here; their licence is unknown")
def test_the_authors_net_has_their_error(cifar10_root):
    """45 of 500 test images; of all 10,000 it is 10.42 or 10.43 %, as the machine rounds."""
    from nin.run.evaluate import images_of

    trained = pretrained.load(AUTHORS)
    test = images_of(trained, cifar10_root).set
    with torch.no_grad():
        answers = torch.cat([trained(images).argmax(1) for images in test.test_images[:500].split(250)])
    assert (answers != test.test_labels[:500]).sum() == 45
