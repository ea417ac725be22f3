import json
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import yaml

from nin.config import Config, flat, settings_of, to_yaml
from nin.errors import RunError, one_line
from nin.run import record
from nin.run.record import Record, Start

RECORD = Record(
    status="finished",
    settings=settings_of(Config(checkpoint="cifar10-gap", freeze=True)),
    start=Start("cifar10-gap", "0" * 64, "gap", "cifar10"),
    parameters=966_986,
    precision="32-true",
    device="cpu: a processor, 2 threads",
    versions={"python": "3.12.3", "torch": "2.11.0"},
    commit="f" * 40,
    clean=True,
    test_error=8.42,
    train_error=0,
    seconds=600.5,
    images_per_second=2500.0,
    peak_memory_gb=1.5,
    test_images=10_000,
    chance_error=90.0,
    weights_sha256="a" * 64,
)
FORMAT_1 = {
    **{"data": "cifar10", "head": "gap", "recipe": "paper", "started_from": "nets/a", "frozen": False, "epochs": 150},
    **{"seed": 0, "parameters": 966986, "precision": "bf16-mixed", "device": "NVIDIA H200"},
    **{"versions": {"torch": "2.11.0"}, "commit": f"{'f' * 40}+changes", "test_error": 9.07, "train_error": 0.0},
    **{"images_per_second": 15365.0, "seconds": 519.3, "peak_memory_gb": 2.39},
}


def test_a_record_comes_back_from_its_file(tmp_path):
    assert record.read(tmp_path) is None
    for kept in (RECORD, replace(RECORD, status="running", start=None, test_error=None, weights_sha256=None)):
        record.write(tmp_path, kept)
        assert record.read(tmp_path) == kept


def test_the_object_says_first_what_people_look_for():
    facts = RECORD.to_dict()
    first = ("format", "status", "data", "head", "recipe", "seed", "epochs", "frozen")
    assert tuple(facts)[: len(first)] == first
    assert {name: facts[name] for name in first} == {
        **{"format": 2, "status": "finished", "data": "cifar10", "head": "gap"},
        **{"recipe": "unnamed", "seed": 0, "epochs": 1, "frozen": True},
    }
    assert facts["start"] == {"name": "cifar10-gap", "sha256": "0" * 64, "head": "gap", "data": "cifar10"}
    assert "val_error" not in facts  # nothing was held out
    assert Record.from_dict({**facts, "golden_logits": []}, "a card") == RECORD  # a card has more entries


def test_settings_that_were_added_later_get_their_defaults():
    facts = RECORD.to_dict()
    del facts["settings"]["trainer"]["gradient_clip_val"], facts["settings"]["eval_curve"]
    assert Record.from_dict(facts, "here") == RECORD


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 3),
        ("status", "ok"),
        ("settings", None),
        ("settings", {"data": {"nosuch": 1}}),
        ("start", "cifar10-gap"),
        ("start", {"sha256": "0"}),
        ("parameters", -1),
        ("precision", None),
        ("versions", {"torch": 2}),
        ("commit", None),
        ("clean", "yes"),
        ("test_error", "8.42"),
        ("test_error", 101),
        ("train_error", float("nan")),
        ("seconds", float("inf")),
        ("images_per_second", -3),
        ("weights_sha256", "a"),
    ],
)
def test_a_fact_of_another_type_is_refused_by_name(tmp_path, name, value):
    (tmp_path / "summary.json").write_text(json.dumps({**RECORD.to_dict(), name: value}))
    with pytest.raises(RunError, match=rf"summary\.json: {name}") as error:
        record.read(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


ODD = [None, True, -1, 10**400, float("nan"), float("inf"), "", "x" * 5000, "\x1b[2J\n", [], [[1]], {}, {"a": [1]}]
CHECKED = [name for name in RECORD.to_dict() if name not in ("data", "head", "recipe", "seed", "epochs", "frozen")]


def drawn(names, number):
    """So many pairs of a name and an odd value, each name at least once."""
    pairs = random.Random(number)
    return [(names[n % len(names)], pairs.choice(ODD)) for n in range(number)]


@pytest.mark.tries(200)
def test_a_fact_with_any_value_is_read_or_refused_by_name(tmp_path, tried):
    for name, odd in drawn(CHECKED, 200):
        (tmp_path / "summary.json").write_text(json.dumps({**RECORD.to_dict(), name: odd}))
        try:
            assert record.read(tmp_path).title == RECORD.title
        except RunError as refused:
            assert f"summary.json: {name}" in str(refused) and len(str(refused)) < 1000 and "\n" not in str(refused)
        tried((name, odd))


SETTINGS = sorted(flat(settings_of(Config())))


@pytest.mark.tries(400)
def test_a_setting_with_any_value_is_read_or_refused_by_name(tried):
    facts = RECORD.to_dict()
    for name, odd in drawn(SETTINGS, 400):
        group, _, key = name.rpartition(".")
        settings = json.loads(json.dumps(facts["settings"]))
        (settings[group] if group else settings)[key] = odd
        try:
            Record.from_dict({**facts, "settings": settings}, "summary.json")
        except RunError as refused:
            assert f"summary.json: settings: {name}" in str(refused) and len(str(refused)) < 1000
        tried((name, odd))


LINES = [f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in pairwise("abcdefghijklmnopqrstuvw")]
BOMB = "\n".join(["a: &a [x, x]", *LINES])
BOMBS = [BOMB, BOMB.replace("a: &a", "seed: &a"), f"seed: {'[' * 5000}", "&x [*x]", "a: &a {b: *a}"]


@pytest.mark.parametrize("content", BOMBS)
def test_a_description_of_format_1_that_stands_for_gigabytes_is_refused_at_once(tmp_path, content):
    (tmp_path / "summary.json").write_text(json.dumps(FORMAT_1))
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(RunError, match=r"config\.yaml is damaged or cannot be read"):
        record.read(tmp_path)


def test_a_list_that_takes_gigabytes_to_write_is_one_line_at_once():
    bomb = ["x"]
    for _ in range(200):
        bomb = [bomb, bomb]
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert len(one_line(bomb)) == 301 and len(one_line(deep)) < 302
    for value in ({"a": [1, (2,), ()], "b": {}}, [None, True, "x"], (1, 2)):
        assert one_line(value) == str(value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000, '{"format": 2}', "\0"])
def test_a_damaged_record_is_refused(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(RunError, match=r"summary\.json"):
        record.read(tmp_path)


def test_a_summary_of_format_1_is_read_with_the_settings_beside_it(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(FORMAT_1))
    with pytest.raises(RunError, match=r"config\.yaml is damaged or cannot be read"):
        record.read(tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(Config(seed=5, checkpoint="nets/a")))
    read = record.read(tmp_path)
    assert (read.status, read.seed, read.data, read.test_error) == ("finished", 5, "cifar10", 9.07)
    assert (read.commit, read.clean, read.start) == ("f" * 40, False, Start("nets/a"))
    for commit, clean in (("f" * 40, True), ("unknown", False)):
        facts = {**FORMAT_1, "commit": commit, "started_from": None}
        del facts["test_error"]
        read = Record.from_dict(facts, "here", settings_of(Config()))
        assert (read.status, read.commit, read.clean, read.start) == ("running", commit, clean, None)


def test_the_settings_of_format_1_run_nothing(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(FORMAT_1))
    marker = tmp_path / "marker"
    for content in (f"!!python/object/apply:os.mkdir ['{marker}']", "[1, 2]", yaml.safe_dump({"nosuch": 1}), "a: b: c"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(RunError):
            record.read(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(("error", "images", "at_chance"), [(90, 100, True), (81.1, 100, True), (80.9, 100, False)])
def test_chance_is_three_standard_errors_wide(error, images, at_chance):
    assert replace(RECORD, test_error=error, test_images=images).at_chance is at_chance
    assert not replace(RECORD, test_error=None).at_chance


def test_what_a_run_is_known_by_needs_neither_lightning_nor_torchvision():
    code = "import sys, nin.run.record, nin.run.folder, nin.run.processes\n"
    code += "print([name for name in ('lightning', 'torchvision', 'torchmetrics', 'hydra', 'pandas', 'matplotlib') "
    code += "if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
