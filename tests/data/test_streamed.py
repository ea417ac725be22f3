import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nin.data import Images
from nin.data.streamed import Streamed, _collated, _surviving, workers_of
from nin.errors import DataError
from photographs import make_folder


def ready(root, **settings) -> Images:
    data = Images("folder", root=root, size=16, batch_size=7, seed=3, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data.setup()
    return data


def drawn(data) -> list:
    """Every batch of training and evaluation."""
    loaders = (data.train_dataloader(), data.train_as_test_dataloader(), data.test_dataloader(), *data.val_dataloader())
    return [batch for loader in loaders for batch in loader]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for (images, labels), (other_images, other_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


@pytest.mark.parametrize("changed", [{}, {"val": 5, "share": 0.7}, {"pad_mode": "reflect", "pad": 3, "flip": False}])
def test_streamed_batches_are_those_of_memory(tmp_path, changed):
    make_folder(tmp_path)
    whole, streamed = ready(tmp_path, **changed), ready(tmp_path, memory=1e-9, workers=2, **changed)
    assert isinstance(whole.train_images, torch.Tensor) and isinstance(streamed.train_images, Streamed)
    before = torch.random.get_rng_state()
    assert_equal(drawn(streamed), drawn(whole))
    assert torch.equal(torch.random.get_rng_state(), before)  # dropout's draws do not depend on the way
    assert torch.equal(streamed.preprocess.mean, whole.preprocess.mean)
    assert torch.equal(streamed.set.test_images[2], whole.set.test_images[2])


def test_streamed_images_are_whitened_too(tmp_path):
    make_folder(tmp_path)
    whole, streamed = ready(tmp_path, preprocessing="whiten"), ready(tmp_path, preprocessing="whiten", memory=1e-9)
    assert torch.equal(whole.preprocess.matrix, streamed.preprocess.matrix)
    for (images, _), (other, _) in zip(drawn(whole), drawn(streamed), strict=True):
        torch.testing.assert_close(images, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_streamed_images_split_as_a_tensor_does(tmp_path, monkeypatch, size):
    monkeypatch.setattr("nin.data.streamed.READ_AT_ONCE", 4)
    make_folder(tmp_path, ending="jpg")
    paths = sorted(tmp_path.rglob("*.jpg"))
    streamed = Streamed(paths, 16, workers=0)
    whole, _ = streamed.in_memory()
    for ours, theirs in zip(streamed.split(size), whole.split(size), strict=True):
        assert torch.equal(ours, theirs)
    paths[5].write_bytes(paths[5].read_bytes()[:-200])
    with pytest.warns(UserWarning, match="left out 1 damaged picture"):
        parts = list(streamed.split(size))
    assert torch.equal(torch.cat(parts), torch.cat([whole[:5], whole[6:]]))
    assert all(len(part) == size for part in parts[:-1])


def test_a_normalisation_holds_few_streamed_images_at_a_time(tmp_path, monkeypatch):
    make_folder(tmp_path)
    monkeypatch.setattr("nin.data.preprocess.COUNTED_AT_ONCE", 5)
    monkeypatch.setattr(Streamed, "in_memory", None)
    assert ready(tmp_path, memory=1e-9, workers=0).preprocess.mean.isfinite().all()


def test_an_imagenet_normalisation_reads_no_picture(tmp_path, monkeypatch):
    make_folder(tmp_path)
    monkeypatch.setattr(Streamed, "read", None)
    assert ready(tmp_path, memory=1e-9, preprocessing="imagenet").preprocess.std.isfinite().all()


@given(st.integers(1, 64), st.integers(1, 64))
def test_processes_share_the_cores_that_decode(cores, processes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        workers = workers_of(processes)
    assert 1 <= workers <= 8 and (workers == 1 or workers * processes <= cores)


def test_processes_share_streamed_batches(tmp_path):
    make_folder(tmp_path)
    data = ready(tmp_path, memory=1e-9, workers=0)
    alone = [labels for _, labels in data.train_dataloader()]
    parts = []
    for rank in range(2):
        loader = data.train_dataloader()
        loader.rank, loader.processes = rank, 2
        parts.append([labels for _, labels in loader])
    for whole, *shares in zip(alone, *parts, strict=True):
        assert [len(share) for share in shares] == [3, 3]  # of 7: equal shares, as gradients are averaged
        assert torch.equal(torch.stack(shares, 1).flatten(), whole[:6])


def test_a_damaged_picture_is_left_out_of_its_batch(tmp_path):
    make_folder(tmp_path, ending="jpg")
    file = tmp_path / "rose" / "3.jpg"
    whole = file.read_bytes()
    data = ready(tmp_path, memory=1e-9, workers=0)
    file.write_bytes(whole[:-200])  # since it was listed
    with pytest.warns(UserWarning, match=r"left out 1 damaged picture: .*3\.jpg: damaged"):
        batches = drawn(data)
        trained = sum(len(labels) for _, labels in data.train_dataloader())
    assert sum(len(labels) for _, labels in batches) - trained == 33 - 1
    with pytest.raises(DataError, match="damaged"):
        Streamed([file], 16)[0]


@pytest.mark.parametrize("memory", [None, 1e-9])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_damaged_picture_alone_in_its_batch_is_left_out(tmp_path, monkeypatch, memory, batch_size):
    monkeypatch.setattr("nin.data.module.EVALUATION_BATCH", 0)  # evaluations take the batches of the training
    monkeypatch.setattr("nin.data.streamed.READ_AT_ONCE", 1)
    make_folder(tmp_path, (3, 3, 3), part="train", ending="jpg")
    make_folder(tmp_path, (3, 2, 2), part="test", ending="jpg", shift=50)
    data = Images("folder", root=tmp_path, size=16, batch_size=batch_size, memory=memory, workers=0)
    data.prepare_data()
    for number in range(3):  # since they were listed
        file = tmp_path / "test" / "rose" / f"{number}.jpg"
        file.write_bytes(file.read_bytes()[:-200])
    with pytest.warns(UserWarning, match="left out 1 damaged picture|under 10 pictures"):
        data.setup()
        labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert sorted(labels.tolist()) == [1, 1, 2, 2]


def test_a_training_batch_of_damaged_pictures_ends_the_run_in_a_sentence(tmp_path):
    """The processes of a run wait for each other: each takes as many steps."""
    make_folder(tmp_path, (4, 4), ending="jpg")
    data = ready(tmp_path, memory=1e-9, workers=0)
    for file in tmp_path.rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"all 6 pictures of a training batch are damaged"), pytest.warns(UserWarning):
        list(data.train_dataloader())


def test_the_draws_are_those_of_memory_where_batches_are_made_together(tmp_path, monkeypatch):
    """As on a GPU, which crops and mirrors several batches at once."""
    make_folder(tmp_path)
    loaders = [ready(tmp_path, memory=memory, workers=0).train_dataloader() for memory in (None, 1e-9)]
    for loader in loaders:
        loader.ahead = 3
    whole, streamed = map(list, loaders)
    assert_equal(streamed, whole)
    loaders[0].ahead = 1
    assert not torch.equal(next(iter(loaders[0]))[0], whole[0][0])  # the draws depend on it


@pytest.mark.parametrize("memory", [None, 3e-5, 1e-9])  # features in memory, images alone in memory, none
def test_frozen_layers_are_applied_wherever_the_images_are(tmp_path, memory):
    make_folder(tmp_path)
    data = ready(tmp_path, memory=memory, workers=0, pad=0, flip=False)
    assert isinstance(data.train_images, Streamed) == (memory == 1e-9) and not data.augments
    seen = []

    def encode(images):
        seen.append(len(images))
        return images.repeat(1, 10, 1, 1)

    data.encode = encode
    for _ in range(2):
        features = [images for images, _ in data.train_as_test_dataloader()]
    assert {tuple(each.shape[1:]) for each in features} == {(30, 16, 16)}
    assert (sum(seen) == len(data.train_labels)) == (memory is None)  # else anew in each epoch
    data.encode = None
    data._on_device.clear()
    for ours, (images, _) in zip(features, data.train_as_test_dataloader(), strict=True):
        torch.testing.assert_close(ours, images.repeat(1, 10, 1, 1))


def test_whitened_images_count_as_what_they_take(tmp_path):
    make_folder(tmp_path)
    memory = 2 * 33 * 3 * 16 * 16 / 1e9
    assert isinstance(ready(tmp_path, memory=memory).train_images, torch.Tensor)
    assert isinstance(ready(tmp_path, memory=memory, preprocessing="whiten").train_images, Streamed)


@given(st.integers(8, 1024))
def test_few_large_pictures_are_read_at_once(size):
    seen = []
    streamed = Streamed([Path("x")] * 130, size)
    streamed.read = lambda batches: seen.extend(batches) or iter(())
    with pytest.raises(ValueError, match="shorter"):
        list(streamed._in_turn())
    numbers = [len(batch) for batch in seen]
    assert sum(numbers) == 130 and max(numbers) <= 64 and max(numbers) * size**2 <= max(64 * 224**2, size**2)


def test_a_picture_is_the_middle_of_its_upright_self(tmp_path):
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste((255, 0, 0), (100, 0, 200, 100))
    exif = wide.getexif()
    exif[0x0112] = 6  # turned by a camera
    wide.save(tmp_path / "wide.png", exif=exif)
    image = Streamed([tmp_path / "wide.png"], 24)[0]
    assert image.shape == (3, 24, 24) and (image[0] > 250).all() and (image[1:, 2:-2, 2:-2] < 5).all()


def test_a_large_photograph_is_decoded_at_a_fraction(tmp_path):
    rows = np.linspace(0, 255, 1600, dtype=np.uint8)[:, None, None]
    Image.fromarray(np.broadcast_to(rows, (1600, 2000, 3)).copy()).save(tmp_path / "large.jpg")
    fast, slow = Streamed([tmp_path / "large.jpg"], 32)[0], Image.open(tmp_path / "large.jpg").resize((40, 32))
    assert np.abs(fast.permute(1, 2, 0).numpy().astype(int) - np.asarray(slow)[:, 4:36].astype(int)).max() < 6


def test_decoded_pictures_take_no_shared_memory(tmp_path):
    """A container has 64 MB of it by default, and a worker that finds none waits for ever."""
    (read, order, damaged), *_ = [_collated([np.zeros((4, 4, 3), np.uint8), "damaged", np.ones((4, 4, 3), np.uint8)])]
    assert isinstance(read, np.ndarray) and order.tolist() == [0, 2] and damaged == ["damaged"]
    assert isinstance(_collated(["damaged"])[0], np.ndarray)


def test_a_killed_worker_is_one_sentence():
    def loader(reason):
        yield 1
        raise RuntimeError(reason)

    with pytest.raises(DataError, match=r"was killed, as for want of memory; set data\.workers=0"):
        list(_surviving(loader("DataLoader worker (pid 1) is killed by signal: Killed.")))
    with pytest.raises(RuntimeError, match="a bug"):
        list(_surviving(loader("Caught RuntimeError in DataLoader worker process 0. a bug")))
