import errno
import hashlib
import http.server
import pickle
import tarfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from nin import NIN, Block
from nin.data import Batches, DataError, Images, ImageSet, Normalise, Whiten, load_cifar10, load_digits, sets
from nin.data.augment import random_crop, random_flip
from nin.task import Classifier


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# augmentation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_each_image_gets_a_window_of_its_own(mode):
    images = torch.arange(1.0, 1 + 64 * 3 * 32 * 32).reshape(64, 3, 32, 32)
    out = random_crop(images, 4, mode, generator())
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), "constant" if mode == "zero" else "reflect")
    places = set()
    for image, source in zip(out.numpy(), padded, strict=True):
        found = [(i, j) for i in range(9) for j in range(9) if np.array_equal(image, source[:, i : i + 32, j : j + 32])]
        assert len(found) >= 1
        places.add(found[0])
    assert len(places) > 30  # of 81, for 64 images
    assert {i for i, _ in places} == set(range(9)) == {j for _, j in places}


def test_each_image_is_flipped_or_not_by_itself():
    images = torch.randn(1000, 3, 5, 4)
    out = random_flip(images, generator())
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(out, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(out, images, strict=True)]
    assert all(f != k for f, k in zip(flipped, kept, strict=True))
    assert 430 < sum(flipped) < 570


# preprocessing -------------------------------------------------------------------------------------------------------


def test_normalise_is_fitted_to_each_channel():
    images = torch.randint(0, 200, (50, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    images[:, 1] //= 3
    fitted = Normalise.fit(images)
    pixels = images.numpy().astype(float)
    np.testing.assert_allclose(fitted.mean.flatten(), pixels.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(fitted.std.flatten(), pixels.std((0, 2, 3)), rtol=1e-5)
    out = fitted(images)
    assert out.dtype == torch.float32
    assert out.mean().abs() < 1e-5


def test_whitening_agrees_with_its_formula():
    images = torch.randint(0, 256, (300, 3, 4, 4), generator=generator(), dtype=torch.uint8)
    x = images.numpy().reshape(300, 48).astype(float)
    x = x - x.mean(1, keepdims=True)
    x = 55 * x / np.sqrt((x**2).sum(1, keepdims=True))
    centred = x - x.mean(0)
    u, s, _ = np.linalg.svd(centred.T @ centred / 300)
    expected = centred @ (u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T)
    fitted = Whiten.fit(images)
    np.testing.assert_allclose(fitted(images).flatten(1), expected, atol=2e-3)
    covariance = np.cov(fitted(images).flatten(1).numpy().T)
    np.testing.assert_allclose(np.diag(covariance)[s.argsort()].mean(), (s / (s + 0.1)).mean(), rtol=0.02)
    with pytest.raises(ValueError, match="tied to images of 3×4×4, these are 3×5×4"):
        fitted(torch.zeros(1, 3, 5, 4, dtype=torch.uint8))


# batches -------------------------------------------------------------------------------------------------------------


def batches(n=10, size=4, augment=None, seed=0, epoch=0):
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 8, 8, 3)
    same = Normalise(torch.zeros(3), torch.ones(3))
    return Batches(images, torch.arange(n), size, same, augment=augment, seed=seed, epoch=lambda: epoch)


def test_evaluation_sees_each_image_once_in_order():
    labels = torch.cat([y for _, y in batches()])
    assert labels.tolist() == list(range(10))
    assert len(batches()) == 3


def test_training_drops_the_rest_and_shuffles_anew_each_epoch():
    def order(**k):
        return [y.tolist() for _, y in batches(augment=lambda x, g: x, **k)]

    assert [len(y) for y in order()] == [4, 4]
    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=1)
    assert len(batches(n=3, augment=lambda x, g: x)) == 1  # a set smaller than a batch is a batch


def test_images_and_labels_stay_together_and_channels_last():
    for x, y in batches(augment=lambda x, g: x):
        assert torch.equal(x[:, 0, 0, 0], y.float())
        assert x.is_contiguous(memory_format=torch.channels_last)


# the sets ------------------------------------------------------------------------------------------------------------


def test_digits():
    digits = load_digits()
    assert digits.train_images.shape == (1437, 3, 32, 32)
    assert digits.test_images.shape == (360, 3, 32, 32)
    assert digits.train_images.dtype == torch.uint8
    assert 250 <= digits.train_images.max() <= 255
    assert not digits.flip
    from sklearn.datasets import load_digits as original

    assert digits.test_labels.tolist() == original().target[-360:].tolist()
    small = original().images[-1] / 16 * 255
    blocks = digits.test_images[-1, 0].float().reshape(8, 4, 8, 4)[:, 1:3, :, 1:3].mean((1, 3))
    np.testing.assert_allclose(blocks, small, atol=60)  # enlarged, neither moved nor turned
    assert np.corrcoef(blocks.flatten(), small.flatten())[0, 1] > 0.97


def test_held_out_images_are_the_last_of_the_training_set():
    data = Images("digits", val=300)
    data.setup()
    digits = load_digits()
    assert torch.equal(data.train_images, digits.train_images[:1137])
    assert torch.equal(data.val_images, digits.train_images[1137:])
    assert data.val_stages == ("val/",)
    assert Images("digits", eval_curve=True).val_stages == ("test_curve/",)
    fitted = Normalise.fit(digits.train_images[:1137])
    assert torch.equal(data.preprocess.mean, fitted.mean)


def test_a_share_is_of_every_class_and_part_of_a_larger_one():
    def drawn(**arguments):
        data = Images("digits", **arguments)
        data.setup()
        return data

    whole, half, tenth = (drawn(share=share, val=300, seed=3) for share in (1.0, 0.5, 0.1))
    counts = whole.train_labels.bincount()
    assert torch.equal(tenth.train_labels.bincount(), (counts * 0.1).round().long())
    pixels = [{image.numpy().tobytes() for image in data.train_images} for data in (tenth, half, whole)]
    assert pixels[0] < pixels[1] < pixels[2]
    assert torch.equal(drawn(share=0.1, val=300, seed=3).train_images, tenth.train_images)
    assert not torch.equal(drawn(share=0.1, val=300, seed=4).train_images, tenth.train_images)
    assert not torch.equal(tenth.preprocess.mean, whole.preprocess.mean)  # fitted on what is trained on
    assert sorted(drawn(share=1e-6).train_labels.tolist()) == list(range(10))


def test_digits_are_never_flipped():
    data = Images("digits", flip=True, pad=0)
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    original = data.preprocess(data.train_images)
    for image, label in zip(images[:20], labels, strict=False):
        same = (original[data.train_labels == label] - image).abs().amax((1, 2, 3)).min()
        assert same < 1e-4


def test_cifar10(cifar10_root):
    cifar = load_cifar10(cifar10_root, download=False)
    assert cifar.train_images.shape == (50_000, 3, 32, 32)
    assert cifar.test_images.shape == (10_000, 3, 32, 32)
    assert cifar.classes[3] == "cat" and cifar.flip
    assert torch.bincount(cifar.train_labels).tolist() == [5000] * 10
    assert torch.bincount(cifar.test_labels).tolist() == [1000] * 10
    means = cifar.train_images.float().mean((0, 2, 3))
    torch.testing.assert_close(means, torch.tensor([125.307, 122.950, 113.865]), atol=1e-2, rtol=0)


def test_an_image_without_contrast_is_whitened_to_numbers():
    images = torch.randint(0, 256, (2000, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[7] = 128
    assert Whiten.fit(images)(images).isfinite().all()


def test_whitened_cifar10_has_the_known_spread(cifar10_root):
    data = Images(root=cifar10_root, preprocessing="whiten")
    data.setup()
    assert data.preprocess(data.train_images[:2000]).std().item() == pytest.approx(0.52, abs=0.01)


# a small set with CIFAR-10's names, and its archive, to download from a server of our own ----------------------------


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The bytes of an archive of the right form, with torchvision's checksums set to it."""
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": list(range(10)) * 2}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
    md5 = {file.name: sets.calculate_md5(str(file)) for file in folder.iterdir()}
    monkeypatch.setattr(sets.CIFAR10, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(sets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(sets.CIFAR10, "meta", {**sets.CIFAR10.meta, "md5": md5["batches.meta"]})
    monkeypatch.setattr(sets.CIFAR10, "tgz_md5", sets.calculate_md5(str(tmp_path / "made.tar.gz")))
    return (tmp_path / "made.tar.gz").read_bytes()


@pytest.fixture
def server(archive, monkeypatch):
    """Serves /good, /altered, /short, /missing, /nonsense, /slow and /slower."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/nonsense":
                self.wfile.write(b"nonsense\r\n")
                return
            if self.path == "/missing":
                self.send_error(404)
                return
            body = archive[::-1] if self.path == "/altered" else archive
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.path == "/short":
                self.wfile.write(body[:100])
            elif self.path.startswith("/slow"):
                size = len(body) // (100 if self.path == "/slower" else 25)
                for i in range(0, len(body), size):
                    try:
                        self.wfile.write(body[i : i + size])
                    except OSError:
                        return
                    time.sleep(0.03)
            else:
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    asked = []
    monkeypatch.setattr(sets, "TRIAL", 0.3)
    monkeypatch.setattr(sets, "SLOW", 1e9)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield lambda path: f"http://127.0.0.1:{httpd.server_port}{path}", asked
        httpd.shutdown()


def test_bad_addresses_are_given_up_for_the_next(tmp_path, server, capsys):
    url, asked = server
    paths = ["/missing", "/nonsense", "/altered", "/short", "/slow", "/good"]
    found = load_cifar10(tmp_path / "root", urls=[url(path) for path in paths])
    assert asked == paths
    assert found.train_images.shape == (100, 3, 32, 32)
    said = capsys.readouterr().out
    assert all(word in said for word in ("404", "md5", "slow"))
    assert not list((tmp_path / "root").glob("*.part"))
    load_cifar10(tmp_path / "root", urls=[url("/good")])
    assert len(asked) == len(paths)  # what is whole is not asked for again


def test_a_slow_address_gets_a_second_chance_when_no_other_is_left(tmp_path, server):
    url, asked = server
    load_cifar10(tmp_path, urls=[url("/slower"), url("/slow"), url("/missing")])
    assert asked == ["/slower", "/slow", "/missing", "/slow"]


def test_all_unreachable_names_the_folder_and_the_ways_out(tmp_path, server):
    url, _ = server
    with pytest.raises(DataError) as error:
        load_cifar10(
            tmp_path / "root", urls=[url("/missing"), "http://127.0.0.1:9/x", "nonsense", "http://localhost:abc/x"]
        )
    for word in (str(tmp_path / "root"), "cifar-10-batches-py", "cifar-10-python.tar.gz", "data.urls", "data=digits"):
        assert word in str(error.value)


def test_an_archive_put_in_place_wins(tmp_path, archive):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    assert len(load_cifar10(tmp_path, download=False).test_labels) == 20


def test_a_damaged_file_is_named_with_both_checksums_or_mended(tmp_path, archive, server):
    url, _ = server
    load_cifar10(tmp_path, urls=[url("/good")])
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    good = file.read_bytes()
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    file.write_bytes(good[:-1])
    found, expected = sets.calculate_md5(str(file)), sets.CIFAR10.train_list[2][1]
    with pytest.raises(DataError, match=f"data_batch_3 has md5 {found}, not {expected}"):
        load_cifar10(tmp_path, download=False)
    load_cifar10(tmp_path, urls=[url("/good")])
    assert file.read_bytes() == good


PARTS = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]


@pytest.mark.parametrize("damage", ["cut", "empty", "altered", "missing"])
@pytest.mark.parametrize("part", PARTS)
def test_any_damaged_part_is_named_and_mended(tmp_path, archive, part, damage):
    root = tmp_path / "root"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(archive)
    whole = load_cifar10(root, download=False)
    (root / "cifar-10-python.tar.gz").unlink()
    file = root / "cifar-10-batches-py" / part
    good = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        middle = len(good) // 2
        altered = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        file.write_bytes({"cut": good[:middle], "empty": b"", "altered": altered}[damage])
    with pytest.raises(DataError) as error:
        load_cifar10(root, download=False)
    said = str(error.value)
    assert said.count("\n") == 0 and part in said
    if damage == "missing":
        assert f"{part} is missing" in said
    else:
        assert sets.calculate_md5(str(file)) in said and hashlib.md5(good).hexdigest() in said
    (root / "cifar-10-python.tar.gz").write_bytes(archive)
    mended = load_cifar10(root, download=False)
    assert file.read_bytes() == good and torch.equal(mended.train_images, whole.train_images)


def test_a_pickle_in_place_of_a_part_does_not_run(tmp_path, archive):
    root = tmp_path / "root"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(archive)
    load_cifar10(root, download=False)
    (root / "cifar-10-python.tar.gz").unlink()
    for part in PARTS:
        file = root / "cifar-10-batches-py" / part
        good = file.read_bytes()
        file.write_bytes(pickle.dumps(Payload(str(tmp_path / "marker"))))
        with pytest.raises(DataError, match=f"{part} has md5"):
            load_cifar10(root, download=False)
        file.write_bytes(good)
    assert not (tmp_path / "marker").exists()


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("moment", ["download", "unpacking"])
@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        KeyboardInterrupt(),
    ],
    ids=["full", "read-only", "quota", "ctrl-c"],
)
def test_an_interrupted_download_leaves_no_half_set(tmp_path, server, monkeypatch, moment, fault):
    url, asked = server
    root = tmp_path / "root"

    def half(source, target, **rest):
        if moment == "download":
            Path(target).write_bytes(b"half of it")
        else:
            (Path(target) / "cifar-10-batches-py").mkdir()
            (Path(target) / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half of it")
        raise fault

    with monkeypatch.context() as faulty:
        faulty.setattr(sets, "_read" if moment == "download" else "extract_archive", half)
        with pytest.raises(KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else DataError) as error:
            load_cifar10(root, urls=[url("/good"), url("/good")])
    if isinstance(fault, OSError):
        assert str(root) in str(error.value) and fault.strerror in str(error.value)
    assert asked == ([] if moment == "download" else ["/good"])  # a full disk is no reason to ask the next address
    assert not list(root.glob("*/data_batch_1")) and not list(root.glob("tmp*"))
    assert len(load_cifar10(root, urls=[url("/good")]).train_labels) == 100


def test_what_a_killed_download_leaves_is_not_taken_for_a_set(tmp_path, archive, server):
    url, _ = server
    (tmp_path / "root" / "tmpabc").mkdir(parents=True)
    (tmp_path / "root" / "tmpabc" / "cifar-10-python.tar.gz").write_bytes(archive[:100])
    (tmp_path / "root" / "cifar-10-python.tar.gz").write_bytes(archive[:-1])
    (tmp_path / "root" / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="data_batch_1 is missing"):
        load_cifar10(tmp_path / "root", download=False)
    assert len(load_cifar10(tmp_path / "root", urls=[url("/good")]).train_labels) == 100


def test_downloads_side_by_side_all_end_with_the_whole_set(tmp_path, server):
    url, _ = server
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_cifar10(tmp_path, urls=[url("/good")]), range(8)))
    assert all(torch.equal(each.train_images, found[0].train_images) for each in found)
    assert not list(tmp_path.glob("tmp*"))


def made_set(**changed) -> ImageSet:
    images, labels = torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.arange(20) % 10
    fields = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    return ImageSet(**{**fields, "classes": tuple("abcdefghij"), "flip": True, **changed})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_labels": torch.arange(20)}, "image 10 of the training set has the label 10, .* 10 classes, 0 to 9"),
        ({"train_labels": torch.full((20,), 99)}, "image 0 of the training set has the label 99"),
        ({"test_labels": torch.arange(20) % 10 - 1}, "image 0 of the test set has the label -1"),
        ({"train_labels": torch.arange(19) % 10}, "training set has 20 images and labels of shape"),
        ({"train_labels": torch.zeros(20)}, "labels of torch.float32"),
        ({"test_images": torch.zeros(20, 3, 8, 8)}, "test set has images of torch.float32"),
        (
            {"train_images": torch.zeros(20, 8, 8, dtype=torch.uint8)},
            "training set has images of torch.uint8 and shape",
        ),
        ({"train_images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "train_labels": torch.arange(0)}, "0 images"),
    ],
)
def test_labels_and_images_that_cannot_be_are_refused(changed, words):
    made_set()
    with pytest.raises(DataError, match=words):
        made_set(**changed)


def test_a_class_without_training_images_is_named():
    data = Images("digits", val=1430)
    with pytest.warns(UserWarning, match=r"no training image shows .*: the net cannot learn them") as said:
        data.setup()
    shown = {str(label) for label in data.train_labels.tolist()}
    named = str(said[0].message).split(" shows ")[1].split(":")[0].split(", ")
    assert set(named) == set("0123456789") - shown and named
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Images("digits").setup()


@pytest.mark.parametrize(("size", "val", "steps"), [(1436, 0, 1), (1, 1436, 1), (128, 1436, 1), (718, 0, 2)])
def test_a_rest_of_one_image_does_not_stop_batch_norm(size, val, steps):
    data = Images("digits", batch_size=size, val=val)
    narrow = [Block((8, 8, None), stride=4 if val else 40)]  # 1×1 maps cannot be normalised over one image
    task = Classifier(NIN(narrow, norm="batch"), lr=1e-3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, enable_model_summary=False, limit_val_batches=0, **quiet)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no training image", UserWarning)
        trainer.fit(task, data)
    assert trainer.global_step == steps
    assert all(value.isfinite().all() for value in task.net.state_dict().values())


def test_a_folder_that_cannot_be_written_is_named(tmp_path, server):
    url, _ = server
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"{tmp_path}/file/root"):
        load_cifar10(tmp_path / "file" / "root", urls=[url("/good")])


def test_the_root_is_data_root_or_nin_data_or_data(monkeypatch):
    monkeypatch.setenv("NIN_DATA", "~/elsewhere")
    assert Images(root="here").root == "here"
    assert Images().root.endswith("/elsewhere") and "~" not in Images().root
    monkeypatch.delenv("NIN_DATA")
    assert Images().root == "data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar11"}, "name=cifar11: choose one of cifar10, digits"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"val": 50_000}, "val=50000: from 0 to 49999"),
        ({"share": 0.0}, "share=0.0: above 0 and at most 1"),
        ({"pad": -1}, "pad=-1"),
        ({"pad_mode": "edge"}, "pad_mode=edge: choose one of zero, reflect"),
        ({"preprocessing": "gcn"}, "preprocessing=gcn: choose one of normalise, whiten"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Images(**arguments)
