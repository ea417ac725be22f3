"""scripts/predict.py"""

import random
import re
import shlex

import pytest

from claims import tiny
from damaged import FORMATS, damaged_pictures, gradient
from nin import NIN, Block, pretrained
from nin.commands import claims, evaluate, predict
from nin.data import archive
from nin.errors import DataError
from nin.pretrained import Pretrained


@pytest.fixture
def net(tmp_path):
    """The name of a weights file in the script's folder."""
    pretrained.save(tmp_path / "net.safetensors", tiny())
    return "net.safetensors"


def test_pictures_are_predicted_and_drawn(net, script, tmp_path):
    gradient().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("text")
    code, said, errors = script("predict.py", f"checkpoint={net}", "good.png", "bad.png", "size=native")
    assert code == 1 and errors.startswith("error: bad.png: not a picture in a supported format")
    assert len(errors.splitlines()) == 1
    known, line = said.splitlines()
    assert known == "net knows 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert re.fullmatch(r"good\.png: \d: \d+\.\d %, \d: .*  \(maps/good_net\.png\)", line)
    assert (tmp_path / "maps" / "good_net.png").stat().st_size > 10_000
    code, said, errors = script("predict.py", f"checkpoint={net}", "test=2", "seed=5", "out=drawn")
    lines = said.splitlines()[1:]
    assert code == 0 and len(lines) == 2
    for line in lines:  # each picture is named
        name, file = re.fullmatch(r"(test_\d+_\d): .*  \((.*)\)", line).groups()
        assert file == f"drawn/{name}_net.png" and (tmp_path / file).exists()


def test_figures_of_the_test_set(net, script, tmp_path):
    code, said, errors = script("predict.py", f"checkpoint={net}", "figure=blanking", "test=50")
    assert code == 0 and "(50 test images)" in said and said.endswith("\nmaps/blanking_net.png\n"), errors
    assert script("predict.py", f"checkpoint={net}", "figure=paper")[1].splitlines() == ["maps/paper_net.png"]
    for name in ("blanking_net.png", "paper_net.png"):
        assert (tmp_path / "maps" / name).stat().st_size > 10_000
    coarse = NIN([Block(8, stride=8), Block((8, 8, None), stride=2)], norm="batch")
    trained = tiny()
    pretrained.save(
        tmp_path / "coarse.safetensors", Pretrained(coarse, trained.preprocess, trained.classes, trained.facts)
    )
    code, _, errors = script("predict.py", "checkpoint=coarse.safetensors", "figure=blanking", "test=5")
    assert code == 1 and errors.endswith("class maps of 1×1 show no place in the image\n")


def test_a_folder_of_damaged_pictures(net, script, tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, content in damaged_pictures(random.Random(0), 2):
        (tmp_path / "pictures" / name).write_bytes(content)
    code, said, errors = script("predict.py", f"checkpoint={net}", "pictures")
    assert code == 1 and "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    refused = re.findall(r"pictures/(\d+\.[\w.]+?): ", line)
    *predicted, table = said.splitlines()[1:]
    assert len(refused) + len(predicted) == 2 * len(FORMATS)
    assert len(list((tmp_path / "maps").glob("*.png"))) == len(predicted)
    assert table == f"{2 * len(FORMATS)} pictures: maps/predictions.csv"


def test_folders_in_folders_are_a_table(net, script, tmp_path):
    for name in ("photos/a.png", "photos/cats/b.png", "photos/cats/far/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        gradient().save(tmp_path / name)
    for drawings in (0, 3, 3):  # the second time its own drawings are no photographs
        where = ("photos", "pictures=false") if not drawings else ("photos", "out=photos/maps")
        code, said, errors = script("predict.py", f"checkpoint={net}", *where, "top=2")
        assert code == 0, errors
        assert said.endswith(f"3 pictures: {'photos/' * bool(drawings)}maps/predictions.csv\n")
        table = (tmp_path / ("photos/maps" if drawings else "maps") / "predictions.csv").read_text().splitlines()
        assert table[0].startswith("file,class,probability,class_2,probability_2,") and len(table) == 4
        assert [line.split(",")[0] for line in table[1:]] == [f"photos/{n}.png" for n in ("a", "cats/b", "cats/far/c")]
        assert len([*tmp_path.rglob("*_net*.png")]) == drawings
    code, said, errors = script("predict.py", f"checkpoint={net}", "photos/a.png", "class=7")
    assert code == 0 and "7: " in said and not (tmp_path / "photos" / "predictions.csv").exists()
    for wrong in ("class=dog", "top=0", "pictures=no"):
        code, _, errors = script("predict.py", f"checkpoint={net}", "photos/a.png", wrong)
        assert code == 2 and errors.startswith(f"error: {wrong}: ")


def test_pictures_in_the_output_folder_are_not_left_out_without_a_word(net, script, tmp_path):
    for name in ("photos/a.png", "photos/sub/b.png", "photos/sub/c.png", "maps/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        gradient().save(tmp_path / name)
    for arguments, number, words in (
        ([".", "pictures=false"], 3, "left out 1 picture in maps, where drawings"),
        (["photos", "out=photos/sub", "pictures=false"], 1, "left out 2 pictures in photos/sub, "),
        (["photos", "out=elsewhere", "pictures=false"], 3, ""),
        (["maps", "pictures=false"], 1, ""),
    ):
        code, said, errors = script("predict.py", f"checkpoint={net}", *arguments)
        assert code == 0, errors
        assert said.splitlines()[-1].startswith(f"{number} picture") and said.count("left out") == bool(words)
        assert words in said.splitlines()[0 if words else -1]
    (tmp_path / "photos" / "a.png").unlink()
    code, _, errors = script("predict.py", f"checkpoint={net}", "photos", "out=photos/sub")
    assert code == 1 and "photos: this folder contains no picture outside of photos/sub, which is not" in errors
    assert "left out" in script("predict.py", "--help")[1]


def test_no_picture_is_overwritten_and_what_cannot_be_predicted_is_named(net, script, tmp_path):
    names = ("good.png", "good_net.png", "size=big.png")  # the second is where the first's drawing would go
    for name, size in zip(names, (40, 30, 20), strict=True):
        gradient(size, size).save(tmp_path / name)
    before = [(tmp_path / name).read_bytes() for name in names]
    (tmp_path / "folder.png").mkdir()
    gradient(1, 1).save(tmp_path / "one.png")
    code, said, errors = script("predict.py", f"checkpoint={net}", ".", "size=big.png", "size=native", "out=.")
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert code == 1 and len(said.splitlines()) == 1 + 4 + 1
    assert errors.endswith("error: one.png: 1×1 pixels are too few for this net\n")
    assert (tmp_path / "good_net_2.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good.png"], "checkpoint= is required"),
        (["checkpoint=net"], "expected pictures or folders of pictures"),
        (["checkpoint=net", "size=big", "good.png"], "size=big: must be training, native"),
        (["checkpoint=net", "test=some"], "test=some: expected an integer from 0 to 999999999"),
        (["checkpoint=net", "test=" + "9" * 5000], "expected an integer from 0 to 999999999"),
        (["checkpoint=net", "figure=maps"], "figure=maps: must be one of paper, blanking"),
        (["checkpoint=net", "figure=paper", "seed=3"], "seed=3: figure=paper takes the first test images"),
        (["checkpoint=net", "figure=blanking", "size=64"], "size=64: figure=blanking takes test images as they are"),
        (["checkpoint=net", "figure=blanking", "test=1"], "test=1: figure=blanking requires at least 2"),
        (["checkpoint=net", "figure=paper", "a.png"], "figure=paper: takes test images, got a.png"),
    ],
)
def test_a_wrong_command_is_one_sentence(script, tmp_path, arguments, words):
    code, said, errors = script("predict.py", *arguments)
    assert (code, said) == (2, "")
    assert errors.startswith("error: ") and words in errors and len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checkpoint", ["cifar10-gap", "mnist-gap"])  # an archive, and files one by one
def test_what_is_advised_where_a_set_cannot_be_downloaded_is_a_setting_of_the_command(
    checkpoint, script, tmp_path, monkeypatch
):
    asked = []

    def unreachable(urls, *_):
        asked.append(urls)
        raise DataError("no address has it (http://a: gone)")

    monkeypatch.setattr(archive, "download", unreachable)
    net, root = f"checkpoint={checkpoint}", f"data.root={tmp_path / 'sets'}"
    for name, arguments, accepted in (
        ("predict.py", ["test=2"], predict.DEFAULTS),
        ("predict.py", ["figure=paper"], predict.DEFAULTS),
        ("claims.py", ["claim=size"], claims.DEFAULTS),
        ("evaluate.py", [], evaluate.SETTINGS),
    ):
        code, _, errors = script(name, net, root, *arguments)
        assert code == 1 and errors.count("no address has it") == 1
        assert set(re.findall(r"set (data\.\w+)=", errors)) <= set(accepted), name
        (advice,) = re.findall(r"the command train or evaluate (data\.urls='\S+')", errors)
    words = shlex.split(advice.replace("URL", "http://127.0.0.1:9/x"))
    assert script("evaluate.py", net, root, *words)[0] == 1
    assert asked[-1][0].startswith("http://127.0.0.1:9/x")


def test_help_is_the_docstring(script, tmp_path):
    code, said, _ = script("predict.py", "--help")
    assert code == 0 and "figure=blanking" in said
    assert script("predict.py", "checkpoint=nope", "a.png")[0] == 1
    assert list(tmp_path.iterdir()) == []
