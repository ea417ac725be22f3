import os
import random
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nin.data import Images
from nin.data.folder import Streamed, list_folder, scan, table_of, workers_of
from nin.data.sets import read_folder
from nin.errors import DataError, SettingError
from photographs import COLOURS, make_folder, make_picture


def listed(root):
    """A listing, and its notes in one text."""
    listing = list_folder(root)
    return listing, "\n".join(listing.notes)


# what is in a folder --------------------------------------------------------------------------------------------------


def test_classes_are_the_subfolders_and_a_fifth_of_each_is_for_testing(tmp_path):
    listing, notes = listed(make_folder(tmp_path, (20, 15, 10)))
    assert listing.classes == ("rose", "tulip", "violet") and notes == ""
    train, test = listing.split(seed=1)
    assert torch.tensor([picture.label for picture in test]).bincount().tolist() == [4, 3, 2]
    assert len(train) == 36 and not {p.file for p in train} & {p.file for p in test}
    assert torch.tensor([picture.label for picture in train[-9:]]).bincount().tolist() == [4, 3, 2]  # may be held out
    assert listing.split(1) == (train, test) and listing.split(2) != (train, test)
    table = table_of(listing, 1).decode().splitlines()
    assert table[0] == "part,class,file,sha256" and len(table) == 46
    assert sum(line.startswith("test,rose,rose/") for line in table) == 4


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_given_split_is_kept(tmp_path, test):
    make_folder(tmp_path, (3, 3, 3), "train")
    make_folder(tmp_path, (2, 2), test, shift=100)
    listing, _ = listed(tmp_path)
    assert listing.is_split and listing.classes == ("rose", "tulip", "violet")
    train, tested = listing.split(0)
    assert len(train) == 9 and [p.file.parts[-3] for p in tested] == [test] * 4
    assert listing.split(1) == (train, tested)


def test_a_folder_is_known_by_its_pictures(tmp_path):
    first, _ = listed(make_folder(tmp_path / "a"))
    again, _ = listed(make_folder(tmp_path / "b"))
    assert first.sha256 == again.sha256
    for file in (tmp_path / "b" / "rose").iterdir():  # another name in another order is the same picture
        file.rename(file.with_name(f"{random.Random(file.name).random()}.png"))
    renamed, _ = listed(tmp_path / "b")
    assert renamed.sha256 == first.sha256
    assert [p.sha256 for p in renamed.split(3)[0]] == [p.sha256 for p in first.split(3)[0]]
    (tmp_path / "b" / "rose").rename(tmp_path / "b" / "poppy")
    assert listed(tmp_path / "b")[0].sha256 != first.sha256
    make_picture(tmp_path / "a" / "rose" / "more.png", seed=99)
    more, _ = listed(tmp_path / "a")
    assert more.sha256 != first.sha256
    with pytest.raises(
        DataError, match=rf"data\.sha256={first.sha256}: the pictures in .* are others, with sha256 {more.sha256}"
    ):
        Images("folder", root=tmp_path / "a", sha256=first.sha256).prepare_data()


def test_nested_folders_and_mixed_formats_belong_to_their_class(tmp_path):
    endings = ("png", "jpg", "webp", "bmp", "gif", "tiff", "JPEG")
    for name, colour in COLOURS.items():
        for n, ending in enumerate(endings):
            make_picture(tmp_path / name / "deep" / "er" / f"{n}.{ending}", colour, seed=n)
    Image.new("L", (40, 50), 128).save(tmp_path / "rose" / "grey.png")
    Image.new("RGBA", (40, 50), (0, 0, 0, 0)).save(tmp_path / "rose" / "clear.png")
    Image.new("I;16", (40, 50), 40_000).save(tmp_path / "rose" / "deep.png")
    listing, _ = listed(tmp_path)
    assert sum(len(part) for part in listing.split(0)) == 24
    whole = read_folder(listing, 16, workers=0)
    assert whole.train_images.shape[1:] == (3, 16, 16) and whole.classes == listing.classes
    for images, labels in ((whole.train_images, whole.train_labels), (whole.test_images, whole.test_labels)):
        tulips = images[labels == 1].float().mean((0, 2, 3))
        assert (tulips - torch.tensor(COLOURS["tulip"])).abs().max() < 25


def assert_note(root, words):
    assert words in listed(root)[1], listed(root)[1]


def test_what_is_unusual_is_said(tmp_path):
    make_folder(tmp_path, (60, 11, 3))
    (tmp_path / "daisy").mkdir()
    (tmp_path / "rose" / "notes.txt").write_text("roses")
    (tmp_path / "rose" / "1.heic").write_bytes(b"")
    (tmp_path / "README").write_text("mine")
    (tmp_path / ".git").mkdir()
    (tmp_path / "rose" / "60.png").write_bytes(b"no picture")
    (tmp_path / "rose" / "61.png").write_bytes(b"")
    (tmp_path / "rose" / "62.jpg").symlink_to(tmp_path / "nothing")
    whole = make_picture(tmp_path / "rose" / "63.jpg", seed=63).read_bytes()
    (tmp_path / "rose" / "63.jpg").write_bytes(whole[:-200])
    (tmp_path / "rose" / "64.png").write_bytes((tmp_path / "tulip" / "1.png").read_bytes())
    (tmp_path / "rose" / "65.png").write_bytes((tmp_path / "rose" / "1.png").read_bytes())
    for words in (
        "left out 1 folder without a picture: daisy",
        "left out 4 pictures that cannot be decoded",
        "63.jpg (damaged (image file is truncated",
        "left out 1 repeated picture: ",
        "60.png (not a picture in a supported format (PNG",
        "1.heic (not a picture",
        "under 10 pictures: violet 3; their errors say little",
        "unequal classes: rose has 61 pictures, violet 3",
        "ignored files that are no pictures in a supported format",
        "1 picture in several classes",
    ):
        assert_note(tmp_path, words)
    listing, notes = listed(tmp_path)
    assert all(ending in notes for ending in (".txt", ".jpg", "no ending")) and ".git" not in notes
    whole = read_folder(listing, 16, workers=0)
    assert len(whole.train_labels) + len(whole.test_labels) == 61 + 11 + 3


def test_a_test_picture_that_is_trained_on_is_named(tmp_path):
    make_folder(tmp_path, (10, 10, 10), "train")
    make_folder(tmp_path, (1, 1, 1), "test")
    assert_note(tmp_path, "3 test pictures also in train/, which makes the error too low")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "expected two classes, a subfolder with pictures each, got no subfolder with a picture"),
        (lambda root: make_picture(root / "1.png"), "got no subfolder with a picture"),
        (lambda root: make_folder(root, (5,)), "got one, rose"),
        (
            lambda root: make_folder(root / "all"),
            r"got one, all; if its subfolders are the classes, set data\.root=.*all",
        ),
        (
            lambda root: make_folder(root, (1, 1)),
            "expected at least two different pictures of a class: one to train, one to test",
        ),
        (lambda root: [(root / name).mkdir() for name in "ab"], "got no subfolder with a picture"),
        (
            lambda root: [make_picture(root / n / "1.png").write_bytes(b"") for n in "ab"],
            r"got no subfolder with a picture.* \(left out 2 pictures that cannot be decoded: .*left out 2 folders",
        ),
        (
            lambda root: [make_picture(root / n / f"{i}.png", (1, 2, 3), seed=0) for n in "ab" for i in range(3)],
            r"expected at least two different pictures of a class.* \(left out 4 repeated pictures: ",
        ),
        (
            lambda root: [make_picture(root / f"{n}.png") for n in "ab"],
            r"left out 2 pictures in .* itself, outside the",
        ),
        (
            lambda root: (
                (make_folder(root, (4, 4), "train"), make_folder(root, (4, 4), "test", "jpg"))
                and [shutil.move(root / "train" / n, root / "train" / f"{n}2") for n in ("rose", "tulip")]
            ),
            "no class has both training and test pictures",
        ),
        (
            lambda root: (
                [make_folder(root, (3, 3))] + [make_picture(root / n / "1.png", seed=7) for n in ("a b", "a  b")]
            ),
            r"folders whose names look the same, or like nothing, when printed: a␣␣b, a␣b; rename them",
        ),
        (
            lambda root: [make_folder(root, (3, 3)), make_picture(root / " " / "1.png", seed=7)],
            r"look the same, or like nothing, when printed: ␣; rename them",
        ),
    ],
)
def test_folders_that_cannot_be_a_set_are_refused(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(DataError, match=rf"^data\.root=.*{words}"):
        list_folder(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path):
    file = make_picture(tmp_path / "1.png")
    for root, words in ((tmp_path / "nothing", "No such file"), (file, "Not a directory"), ("a\0b", "null byte")):
        with pytest.raises(DataError, match=rf"^data\.root=.*cannot be read \(.*{words}"):
            scan(root)
    with pytest.raises(SettingError, match=r"^root=null: data=folder requires a folder with one subfolder"):
        Images("folder")
    with pytest.raises(SettingError, match=r"^size=96: preprocessing=whiten requires at most 64"):
        Images("folder", root=tmp_path, size=96, preprocessing="whiten")


# images ---------------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("nin.data.folder.READ_AT_ONCE", 4)
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
    monkeypatch.setattr("nin.data.folder.READ_AT_ONCE", 1)
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


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "TEST"), ("training", "testing"), ("train", "valid"), ("train", "Validation")]
)
def test_usual_names_of_a_split_are_one(tmp_path, train, test):
    make_folder(tmp_path, (4, 5), part=train)
    make_folder(tmp_path, (3, 2), part=test, shift=50)
    make_folder(tmp_path, (1,), part="extra")
    listing, notes = listed(tmp_path)
    assert listing.is_split and listing.classes == ("rose", "tulip")
    assert [len(part) for part in listing.given] == [9, 5]
    assert f"left out 1 folder beside {train}/ and {test}/: extra" in notes


def test_linked_folders_are_followed_once(tmp_path):
    """A link that leads to its own folder, or above, has no end and no pictures of its own."""
    make_folder(tmp_path / "elsewhere", (3, 4))
    root = tmp_path / "photos"
    make_folder(root, (12, 11, 10))
    (root / "linked").symlink_to(tmp_path / "elsewhere" / "rose")
    (root / "rose" / "more").symlink_to(tmp_path / "elsewhere" / "tulip")
    (root / "rose" / "again").symlink_to(root / "rose")
    (root / "tulip" / "up").symlink_to(root)
    (root / "loop").symlink_to(root)
    found = scan(root)
    numbers = {name: len(files) for name, files in found.parts[0].items()}
    assert numbers == {"linked": 3, "rose": 12 + 4, "tulip": 11, "violet": 10}
    assert any("loop, a link to a folder that contains it" in note for note in found.notes)


def test_a_class_without_a_test_picture_is_named(tmp_path):
    make_folder(tmp_path, (4, 5, 3), part="train")
    make_folder(tmp_path, (3,), part="test", shift=50)
    assert "no test picture shows tulip, violet: the error leaves that out" in listed(tmp_path)[1]


def test_a_repeated_picture_is_named(tmp_path):
    make_folder(tmp_path, (12, 11, 10))
    shutil.copy(tmp_path / "rose" / "0.png", tmp_path / "rose" / "again.png")
    listing, notes = listed(tmp_path)
    assert len(listing.given[0]) == 33
    assert re.fullmatch(r"left out 1 repeated picture: .*rose/(0|again)\.png", notes)


def test_a_folder_inside_a_class_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    make_folder(tmp_path)
    (tmp_path / "rose" / "locked").mkdir()
    scandir = os.scandir

    def refused(path="."):
        if Path(os.fspath(path)).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"data\.root=.*locked: cannot be read \(Permission denied\); make it readable"):
        scan(tmp_path)


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
