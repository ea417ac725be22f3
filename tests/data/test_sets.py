import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import ROOT
from nin.data import SETS, ImageSet
from nin.data.archive import Files, md5
from nin.data.sets import CIFAR10, CIFAR100, FLOWERS, FLOWERS17, MNIST, SVHN, read_cifar10
from nin.errors import DataError

REAL = Path(os.environ.get("NIN_DATA", "data"))


def made_set(channels=3, **changed) -> ImageSet:
    images, labels = torch.zeros(20, channels, 8, 8, dtype=torch.uint8), torch.arange(20) % 10
    fields = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    return ImageSet(**{**fields, "classes": tuple("abcdefghij"), "flip": True, **changed})


def test_grey_and_colour_images_are_a_set():
    assert [made_set(channels).channels for channels in (1, 3)] == [1, 3]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_labels": torch.arange(20)}, "image 10 of the training set has the label 10; expected 0 to 9, for 10"),
        ({"train_labels": torch.full((20,), 99)}, "image 0 of the training set has the label 99"),
        ({"test_labels": torch.arange(20) % 10 - 1}, "image 0 of the test set has the label -1"),
        ({"train_labels": torch.arange(19) % 10}, "training set has 20 images and labels of shape"),
        ({"train_labels": torch.zeros(20)}, "labels of torch.float32"),
        ({"test_images": torch.zeros(20, 3, 8, 8)}, "test set has images of torch.float32"),
        (
            {"train_images": torch.zeros(20, 8, 8, dtype=torch.uint8)},
            "training set has images of torch.uint8 and shape",
        ),
        ({"train_images": torch.zeros(20, 2, 8, 8, dtype=torch.uint8)}, "shape .20, 2, 8, 8.* expected .* 1 or 3"),
        ({"train_images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "train_labels": torch.arange(0)}, "0 images"),
        ({"train_images": torch.zeros(20, 1, 8, 8, dtype=torch.uint8)}, r"\[1, 8, 8\], the test images \[3, 8, 8\]"),
    ],
)
def test_labels_and_images_that_cannot_be_are_refused(changed, words):
    made_set()
    with pytest.raises(DataError, match=words):
        made_set(**changed)


def test_test_images_are_sampled_without_repetition():
    images = made_set()
    assert sorted(images.sample_test().tolist()) == list(range(20))
    assert images.sample_test(5, seed=1).tolist() == images.sample_test(seed=1)[:5].tolist()
    assert images.sample_test(seed=1).tolist() != images.sample_test(seed=2).tolist()


# the table ------------------------------------------------------------------------------------------------------------


def assert_as_in_the_table(name, images, size):
    entry = SETS[name]
    assert entry.name == name and entry.size in (None, size)
    assert len(images.classes) == entry.classes
    assert images.train_images.shape == (entry.train, entry.channels, size, size)
    assert images.train_images.dtype == torch.uint8


def test_every_set_has_a_file_in_conf():
    assert sorted(SETS) == sorted(file.stem for file in (ROOT / "conf" / "data").glob("*.yaml"))


def test_digits():
    digits = SETS["digits"].parse({}, 32)
    assert_as_in_the_table("digits", digits, 32)
    assert digits.test_images.shape == (360, 3, 32, 32) and not digits.flip
    assert 250 <= digits.train_images.max() <= 255
    from sklearn.datasets import load_digits as original

    assert digits.test_labels.tolist() == original().target[-360:].tolist()
    small = original().images[-1] / 16 * 255
    blocks = digits.test_images[-1, 0].float().reshape(8, 4, 8, 4)[:, 1:3, :, 1:3].mean((1, 3))
    np.testing.assert_allclose(blocks, small, atol=60)  # enlarged, neither moved nor turned
    assert np.corrcoef(blocks.flatten(), small.flatten())[0, 1] > 0.97


def test_cifar10(cifar10_root):
    cifar = SETS["cifar10"].parse(CIFAR10.fetch(cifar10_root, download=False), 32)
    assert_as_in_the_table("cifar10", cifar, 32)
    assert cifar.test_images.shape == (10_000, 3, 32, 32)
    assert cifar.classes[3] == "cat" and cifar.flip
    assert torch.bincount(cifar.train_labels).tolist() == [5000] * 10
    assert torch.bincount(cifar.test_labels).tolist() == [1000] * 10
    # the pixels that torchvision.datasets.CIFAR10 reads, in its order
    assert md5(cifar.train_images.numpy().tobytes()) == "11af95666bd6fd7846144e768325bf13"
    assert md5(cifar.test_images.numpy().tobytes()) == "f1aa22116df97725db0e47461c45a82b"
    assert md5(cifar.train_labels.numpy().tobytes()) == "64a7290ac3c358816975e50453f50b5c"


def test_cifar10_is_parsed_from_the_bytes_that_were_fetched(tmp_path, made):
    (tmp_path / made.archive.file).write_bytes(made.packed)
    entry = replace(SETS["cifar10"], fetch=made.archive.fetch)
    fetched = entry.fetch(tmp_path, download=False)
    for file in (tmp_path / made.archive.folder).iterdir():
        file.write_bytes(b"exchanged since")
    small = entry.parse(fetched, 32)
    assert small.train_images.shape == (100, 3, 32, 32) and small.test_images.shape == (20, 3, 32, 32)
    assert small.classes == tuple("abcdefghij") and small.flip
    assert "data_batch_1" not in fetched  # memory is freed while it reads
    with pytest.raises(DataError, match="data_batch_1 cannot be read"):
        read_cifar10(dict.fromkeys(made.parts, b"damaged"), 32)


@pytest.mark.skipif(not (REAL / "cifar-100-python").is_dir(), reason="CIFAR-100 is not here: set NIN_DATA")
def test_cifar100():
    from torchvision.datasets import CIFAR100 as Original

    cifar, original = SETS["cifar100"].load(REAL, download=False), Original(REAL, train=False)
    assert_as_in_the_table("cifar100", cifar, 32)
    assert cifar.test_images.shape == (10_000, 3, 32, 32) and cifar.flip
    assert (cifar.test_images.permute(0, 2, 3, 1).numpy() == original.data).all()
    assert cifar.test_labels.tolist() == original.targets and cifar.classes == tuple(original.classes)
    assert torch.bincount(cifar.train_labels).tolist() == [500] * 100


def test_checksums_are_those_of_torchvision():
    from torchvision import datasets

    assert dict(datasets.MNIST.resources) == MNIST.parts
    assert {file: checksum for _, file, checksum in datasets.SVHN.split_list.values()} == SVHN.parts
    assert datasets.CIFAR100.tgz_md5 == CIFAR100.md5
    listed = [*datasets.CIFAR100.train_list, *datasets.CIFAR100.test_list, ("meta", datasets.CIFAR100.meta["md5"])]
    assert dict(listed) == CIFAR100.parts


def packed_idx(values: np.ndarray) -> bytes:
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes())


def make_mnist(root, number=20) -> Files:
    """Files of MNIST's form in a data folder, and their entry."""
    rng, parts = np.random.default_rng(0), {}
    (root / MNIST.folder).mkdir(parents=True)
    for name in MNIST.parts:
        images = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        content = packed_idx(images if "images" in name else np.arange(number, dtype=np.uint8) % 10)
        (root / MNIST.folder / name).write_bytes(content)
        parts[name] = md5(content)
    return replace(MNIST, parts=parts)


def test_mnist(tmp_path):
    made = make_mnist(tmp_path)
    mnist = SETS["mnist"].parse(made.fetch(tmp_path, download=False), 32)
    assert mnist.train_images.shape == (20, 1, 28, 28) and mnist.channels == 1 and not mnist.flip
    assert mnist.classes[3] == "3" and mnist.test_labels.tolist() == [n % 10 for n in range(20)]
    first = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert (mnist.train_images[:, 0].numpy() == first).all()


def test_damaged_files_of_mnist_are_named(tmp_path):
    files = make_mnist(tmp_path).fetch(tmp_path)
    name = "train-images-idx3-ubyte.gz"
    short = gzip.compress(gzip.decompress(files[name])[:1000])
    for content in (b"", b"no archive", files[name][:300], gzip.compress(b""), short):
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
            SETS["mnist"].parse({**files, name: content}, 28)


def test_files_published_one_by_one_are_fetched_one_by_one(tmp_path, server, made):
    url, asked = server
    entry = Files("one/by/one", [url("/missing"), url("/good")], {"part": md5(made.packed)})
    with pytest.raises(DataError, match=r"one/by/one/part is missing and data\.download=false; put it there"):
        entry.fetch(tmp_path, download=False)
    with pytest.raises(DataError, match=r"part is missing and no address has it .* train or evaluate data\.urls="):
        entry.fetch(tmp_path, urls=[url("/missing")])
    assert entry.fetch(tmp_path) == {"part": made.packed} and asked[-2:] == ["/missing/part", "/good/part"]
    (tmp_path / "one" / "by" / "one" / "part").write_bytes(b"damaged")
    assert entry.fetch(tmp_path, urls=[url("/folder/")]) == {"part": made.packed}
    assert asked[-1] == "/folder/part"
    assert entry.fetch(tmp_path, download=False) == {"part": made.packed}


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN as Original

    files, rng = {}, np.random.default_rng(0)
    for name, number in zip(SVHN.parts, (30, 50, 20), strict=True):
        labels = np.arange(number)[:, None] % 10 + 1  # 10 for the digit 0
        savemat(tmp_path / name, {"X": rng.integers(0, 256, (32, 32, 3, number), dtype=np.uint8), "y": labels})
        files[name] = (tmp_path / name).read_bytes()
    svhn = SETS["svhn"].parse(dict(files), 32)
    assert svhn.train_images.shape == (80, 3, 32, 32) and svhn.test_images.shape == (20, 3, 32, 32)
    assert svhn.test_labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]

    own = {split: [url, name, md5(files[name])] for split, (url, name, _) in Original.split_list.items()}
    monkeypatch.setattr(Original, "split_list", own)  # the same files, with their own checksums
    for split, images in (("test", svhn.test_images), ("train", svhn.train_images[-30:])):
        assert (images.numpy() == Original(tmp_path, split).data).all()
    with pytest.raises(DataError, match=r"test_32x32\.mat cannot be read"):
        SETS["svhn"].parse({**files, "test_32x32.mat": files["test_32x32.mat"][:500]}, 32)


def test_photographs_become_a_set(flowers_root):
    flowers = SETS["flowers17"].parse(FLOWERS17.fetch(flowers_root, download=False), 8)
    assert_as_in_the_table("flowers17", flowers, 8)
    assert flowers.test_images.shape == (170, 3, 8, 8) and flowers.classes == FLOWERS and flowers.flip
    for images, labels in ((flowers.train_images, flowers.train_labels), (flowers.test_images, flowers.test_labels)):
        red = images[:, 0].float().mean((1, 2))
        torch.testing.assert_close(red, 10.0 * labels, atol=3, rtol=0)
    assert flowers.test_labels.bincount().tolist() == [10] * 17
    assert flowers.train_labels[-170:].bincount().tolist() == [10] * 17  # held-out images are of all classes
    places = (flowers.test_images[:, 1].float().mean((1, 2)) / 3).round().long()
    assert (places % 8 == 7).sum() > 160  # JPEG's rounding aside


def test_missing_and_damaged_photographs_are_named(flowers_root, tmp_path):
    with pytest.raises(DataError, match=r"there is no folder flowers17/jpg.* and data\.download=false; put the folder"):
        FLOWERS17.fetch(tmp_path, download=False)
    with pytest.raises(DataError, match=r"no address has it \(http://127\.0\.0\.1:9/flowers\.tgz: .*refused"):
        FLOWERS17.fetch(tmp_path, urls=["http://127.0.0.1:9/flowers.tgz"])
    photographs = FLOWERS17.fetch(flowers_root)
    for content in (b"", photographs["image_0700.jpg"][:300], b"no photograph"):
        with pytest.raises(DataError, match=r"image_0700\.jpg is damaged"):
            SETS["flowers17"].parse({**photographs, "image_0700.jpg": content}, 8)


@pytest.mark.skipif(not (REAL / "flowers17").is_dir(), reason="the real flowers are not here: set NIN_DATA")
def test_the_real_flowers():
    flowers = SETS["flowers17"].parse(FLOWERS17.fetch(REAL, download=False), 32)
    assert flowers.train_images.shape == (1190, 3, 32, 32)
    sunflowers = flowers.train_images[flowers.train_labels == FLOWERS.index("sunflower")].float().mean((0, 2, 3))
    bluebells = flowers.train_images[flowers.train_labels == FLOWERS.index("bluebell")].float().mean((0, 2, 3))
    assert sunflowers[2] < sunflowers[0] and bluebells[2] - bluebells[0] > sunflowers[2] - sunflowers[0]
