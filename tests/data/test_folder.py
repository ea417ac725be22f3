import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from nin.data import Images
from nin.data.folder import list_folder, scan, table_of
from nin.data.sets import read_folder
from nin.errors import DataError, SettingError
from photographs import COLOURS, make_folder, make_picture


def listed(root):
    """A listing, and its notes in one text."""
    listing = list_folder(root)
    return listing, "\n".join(listing.notes)


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
    with pytest.raises(DataError, match=rf"data\.sha256={first.sha256}: the pictures in .* have sha256 {more.sha256}"):
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
        (lambda root: None, "expected at least two subfolders with pictures, got no subfolder with a picture"),
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
            lambda root: (
                [make_folder(root, (3, 3))]
                + [make_picture(root / n / "1.png", seed=7) for n in ("caf\u00e9", "cafe\u0301")]
            ),
            r"folders whose names look the same, or like nothing, when printed: caf.+, caf.+; rename them",
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
