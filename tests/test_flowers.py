import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONF
from PIL import Image

from nin import pretrained, run
from nin.command import compose
from nin.config import ConfigError
from nin.data import DataError, Normalise, Whiten
from nin.data.flowers import FLOWERS, load_flowers17


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """1,360 tiny pictures that show their own number: class in red, place in its class in green."""
    folder = tmp_path_factory.mktemp("flowers")
    (folder / "flowers17" / "jpg").mkdir(parents=True)
    for n in range(1360):
        pixels = np.full((12, 20, 3), (10 * (n // 80), 3 * (n % 80), 128), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "flowers17" / "jpg" / f"image_{n + 1:04d}.jpg", quality=95)
    return folder


def test_photographs_become_a_set(root):
    flowers = load_flowers17(root, 8, download=False)
    assert flowers.train_images.shape == (1190, 3, 8, 8) and flowers.test_images.shape == (170, 3, 8, 8)
    assert flowers.train_images.dtype == torch.uint8 and flowers.classes == FLOWERS and flowers.flip
    for images, labels in ((flowers.train_images, flowers.train_labels), (flowers.test_images, flowers.test_labels)):
        red = images[:, 0].float().mean((1, 2))
        torch.testing.assert_close(red, 10.0 * labels, atol=3, rtol=0)
    assert flowers.test_labels.bincount().tolist() == [10] * 17
    assert flowers.train_labels[-170:].bincount().tolist() == [10] * 17  # held-out images are of all classes
    places = (flowers.test_images[:, 1].float().mean((1, 2)) / 3).round().long()
    assert (places % 8 == 7).sum() > 160  # JPEG's rounding aside


def test_what_is_missing_or_damaged_is_named(root, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"0 of the 1360 photographs .* and data\.download=false: put image_0001\.jpg"):
        load_flowers17(tmp_path, 8, download=False)

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("nin.data.flowers.download_and_extract_archive", unreachable)
    with pytest.raises(DataError, match=r"17flowers\.tgz cannot be had \(no route to host\)"):
        load_flowers17(tmp_path, 8)
    damaged = root / "flowers17" / "jpg" / "image_0700.jpg"
    whole = damaged.read_bytes()
    for content in (b"", whole[:300], b"no photograph"):
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=r"image_0700\.jpg is damaged"):
            load_flowers17(root, 8)
    damaged.write_bytes(whole)


TINY = ["data=flowers17", "recipe=transfer", "model.blocks=[{widths: 8},{widths: [8, 8, null]}]", "data.download=false"]
TINY += ["trainer.max_epochs=2", "trainer.limit_train_batches=3", "eval_curve=true", "trainer.progress_bar=false"]


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("head", ["gap", "fc_dropout"])
def test_a_net_of_ten_classes_is_transferred_to_seventeen(root, tmp_path, head, freeze):
    settings = [*TINY, f"head={head}", f"data.root={root}"]
    torch.manual_seed(0)
    net = compose(CONF, [*settings, "data=digits"]).build_net()
    normalise = Normalise(torch.full((3,), 100.0), torch.full((3,), 50.0))
    trained = pretrained.Pretrained(net, normalise, [str(k) for k in range(10)], {"data": "digits"})
    pretrained.save(tmp_path / "ten.safetensors", trained)
    settings.append(f"checkpoint={tmp_path / 'ten.safetensors'}")
    run.train(compose(CONF, [*settings, f"freeze={freeze}"]), tmp_path / "run")
    after = pretrained.load(tmp_path / "run")
    assert after.net.num_classes == 17 and after.classes == FLOWERS
    assert torch.equal(after.preprocess.mean, normalise.mean)
    before, after = net.state_dict(), after.net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    new = {"blocks.block2.conv3.weight", "blocks.block2.conv3.bias"}
    new |= {"head.linear.weight", "head.linear.bias"} if head == "fc_dropout" else set()
    assert changed == (new if freeze else set(before))  # frozen: the statistics of batch norm stay, too


def test_a_probe_needs_something_to_train(root, tmp_path):
    settings = [*TINY, f"data.root={root}"]
    with pytest.raises(ConfigError, match="freeze=true: it freezes what checkpoint= brings"):
        compose(CONF, [*settings, "freeze=true"])
    run.train(compose(CONF, settings), tmp_path / "run")
    again = [*settings, f"checkpoint={tmp_path / 'run'}", "freeze=true"]
    with pytest.raises(ConfigError, match="none is left to train"):
        run.train(compose(CONF, again), tmp_path / "again")
    with pytest.raises(pretrained.CheckpointError, match="another one than these settings make: its blocks is"):
        other = [*again, "data=digits", "model.blocks=[{widths: 8},{widths: [8, 9, null]}]"]
        run.train(compose(CONF, other), tmp_path / "other")


def test_a_checkpoint_that_does_not_fit_the_images_is_refused(root, tmp_path):
    settings = [*TINY, f"data.root={root}", f"checkpoint={tmp_path / 'ten.safetensors'}", "data.size=40"]
    for head, preprocess, words in (
        (
            "fc",
            Normalise(torch.full((3,), 100.0), torch.full((3,), 50.0)),
            "tied to images of image_size=32, these are of",
        ),
        (
            "gap",
            Whiten(torch.zeros(3072), torch.eye(3072), (3, 32, 32)),
            "data.size=40: the checkpoint's whitening is tied",
        ),
    ):
        of_ten = compose(CONF, [*TINY, "data=digits", f"head={head}"]).build_net()
        trained = pretrained.Pretrained(of_ten, preprocess, [str(k) for k in range(10)], {"data": "digits"})
        pretrained.save(tmp_path / "ten.safetensors", trained)
        kind = f"data.preprocessing={'whiten' if head == 'gap' else 'normalise'}"
        with pytest.raises((pretrained.CheckpointError, ConfigError), match=words):
            run.train(compose(CONF, [*settings, f"head={head}", kind]), tmp_path / head)


REAL = Path(os.environ.get("NIN_DATA", "data"))


@pytest.mark.skipif(not (REAL / "flowers17").is_dir(), reason="the real flowers are not here: set NIN_DATA")
def test_the_real_flowers():
    flowers = load_flowers17(REAL, 32, download=False)
    assert flowers.train_images.shape == (1190, 3, 32, 32)
    sunflowers = flowers.train_images[flowers.train_labels == FLOWERS.index("sunflower")].float().mean((0, 2, 3))
    bluebells = flowers.train_images[flowers.train_labels == FLOWERS.index("bluebell")].float().mean((0, 2, 3))
    assert sunflowers[2] < sunflowers[0] and bluebells[2] - bluebells[0] > sunflowers[2] - sunflowers[0]
