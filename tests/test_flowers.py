import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nin.data import DataError
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


REAL = Path(os.environ.get("NIN_DATA", "data"))


@pytest.mark.skipif(not (REAL / "flowers17").is_dir(), reason="the real flowers are not here: set NIN_DATA")
def test_the_real_flowers():
    flowers = load_flowers17(REAL, 32, download=False)
    assert flowers.train_images.shape == (1190, 3, 32, 32)
    sunflowers = flowers.train_images[flowers.train_labels == FLOWERS.index("sunflower")].float().mean((0, 2, 3))
    bluebells = flowers.train_images[flowers.train_labels == FLOWERS.index("bluebell")].float().mean((0, 2, 3))
    assert sunflowers[2] < sunflowers[0] and bluebells[2] - bluebells[0] > sunflowers[2] - sunflowers[0]
