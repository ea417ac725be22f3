import csv
import io
import json
import random
import subprocess
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from builders import ROOT
from nin import config
from nin.config import Config
from nin.errors import RowsError, SettingError
from nin.run.record import Record, Start
from nin.studies import rows
from nin.studies.ablation import Point

PUBLISHED = ROOT / "checkpoints" / "runs.csv"


def test_rows_survive_the_file(tmp_path, row):
    file = tmp_path / "new" / "runs.csv"
    start = ("cifar10-gap", "ab" * 32, "gap", "cifar10")
    written = [row(), row("fc", 1, 11.5, curve=(50.0, 20.25)), row("fc", 2, status="dead", start=start, variant="a=b")]
    rows.append(file, written[:1])
    rows.append(file, written[1:])
    read = rows.read(file)
    assert list(read.columns[: len(rows.COLUMNS)]) == list(rows.COLUMNS)
    for there, here in zip(read.to_dict("records"), written, strict=True):
        same = {name: None if there[name] != there[name] else there[name] for name in rows.COLUMNS}
        assert same == here
    rows.append(tmp_path / "again.csv", read.to_dict("records"))  # what was read can be written
    assert (tmp_path / "again.csv").read_bytes() == file.read_bytes()
    assert rows.read(tmp_path / "nothing.csv").empty and rows.ended(tmp_path / "nothing.csv").empty


@pytest.mark.parametrize("lacking", [("start_data",), ("curves", "start_data")])
def test_older_rows_stand_beside_those_with_later_columns(tmp_path, row, lacking):
    file, curves = tmp_path / "runs.csv", {"train_loss": [2.0, 1.0], "test_loss": [2.5, 2.25]}
    rows.append(file, [row()])
    before = [line.rsplit(",", len(lacking))[0] for line in file.read_text().splitlines()]
    file.write_text("\n".join(before) + "\n")
    assert list(rows.read(file).curves) == [{}] and list(rows.read(file).start_data) == [""]
    start = ("mine", "ab" * 32, "gap", "digits")
    rows.append(file, [{**row("fc", start=start), "curves": curves}])
    assert list(rows.read(file).curves) == [{}, curves] and list(rows.read(file).start_data) == ["", "digits"]
    assert file.read_text().splitlines()[:2] == [",".join([before[0], *lacking]), before[1]]


def test_what_follows_from_a_row(frame, row):
    read = frame(row(data__val=1000, data__share=0.05, freeze=True, checkpoint="x", val_error=7.0), row("fc"))
    assert (
        list(read.held_out) == [1000, 0] and list(read["share"]) == [0.05, 1.0] and list(read.frozen) == [True, False]
    )
    assert list(read.error) == [7.0, 10.0]
    assert [c.title for c in read.condition] == [
        "cifar10, recipe quick, 8 epochs, 1,000 training images held out",
        "cifar10, recipe quick, 8 epochs",
    ]
    assert [c.stem for c in read.condition] == ["cifar10-quick-8-val1000", "cifar10-quick-8"]
    assert [c.error_name for c in read.condition] == ["held-out error", "test error"]


def test_a_file_that_holds_no_rows_is_named(tmp_path, row):
    file = tmp_path / "runs.csv"
    file.write_text("")
    rows.append(file, [row()])
    good = file.read_text()
    settings = json.dumps(row()["settings"], sort_keys=True).replace('"', '""')
    for wrong, reason in (
        (good[:-300], ""),
        (good.replace(",gap,", ",gpa,"), "head=gpa: must be one of gap"),
        (good.replace(",ok,", ",fine,"), "status=fine: must be one of ok"),
        (good.replace(",10.0,5.0,", ",10.0,,"), "an error is missing"),
        (good.replace(",True,", ",yes,"), "clean=yes"),
        (good.replace(",10.0,", ",ten,"), "could not convert"),
        (good.replace(settings, "{"), ""),
        (good.replace(settings, "[1]"), ""),
        (good.replace('""seed"": 0', '""seed"": 1'), "seed is 0, but its settings have seed=1"),
        (good.replace('""data.share"": 1.0', '""data.share"": 7'), "data.share=7"),
        (good.replace('""freeze"": false', '""freeze"": 3'), "freeze=3"),
        (good.replace("test_curve", "curves"), "it lacks 'test_curve'"),
        (good + "\0", ""),
        (good[:-3] + "50.0 x,,\n", "could not convert"),
        (good[:-2] + "{,\n", ""),
        (good[:-2] + "[1],\n", "expected curves named train_error"),
        (good[:-2] + '"{""loss"": [1.0]}",\n', "expected curves named train_error"),
        (good[:-2] + '"{""test_loss"": [true]}",\n', "test_loss is no list of numbers"),
    ):
        assert wrong != good
        file.write_text(wrong)
        with pytest.raises(RowsError, match=r"runs\.csv: row [12] is not a row of a study") as refused:
            rows.read(file)
        assert reason in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(RowsError, match="cannot be read"):
        rows.read(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RowsError):
        rows.read(file)


def test_rows_are_added_as_a_whole_or_not_at_all(tmp_path, row):
    file = tmp_path / "runs.csv"
    rows.append(file, [row()])
    rows.append(file, [row("fc")])
    assert list(rows.read(file)["head"]) == ["gap", "fc"]
    for content in ("seed,epochs\n", "data,head\n1,2\n"):
        file.write_text(content)
        with pytest.raises(RowsError, match="expected the columns data, head, recipe"):
            rows.append(file, [row()])
        assert file.read_text() == content
    for nowhere in (tmp_path, tmp_path / "runs.csv" / "runs.csv"):
        with pytest.raises(RowsError, match="a row cannot be added"):
            rows.append(nowhere, [row()])


ODD = ["nan", "inf", "-inf", "1e308", "-1", "1e400", "x", "\0", "\x1b[31m", "1\n2", "{}", "[1]", "null", "Ä", "9" * 400]


@pytest.mark.tries(300)
def test_a_row_with_any_value_is_read_or_refused(tmp_path, row, tried):
    file, moments = tmp_path / "runs.csv", random.Random(6)
    rows.append(file, [row(curve=(50.0, 20.25))])
    (good,) = csv.DictReader(io.StringIO(file.read_text(), newline=""))
    for number in range(300):
        column, odd = rows.COLUMNS[number % len(rows.COLUMNS)], moments.choice(ODD)
        text = io.StringIO()
        writer = csv.DictWriter(text, rows.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerow({**good, column: odd})
        file.write_text(text.getvalue(), newline="")
        try:
            (read,) = rows.read(file).itertuples()
            assert read.status == "ok" and 0 <= read.error <= 100 and all(0 <= each <= 100 for each in read.test_curve)
            assert column not in (*rows.NUMBERS, "test_curve"), (column, odd)
            assert odd.isprintable()
        except RowsError as error:
            assert "runs.csv: row 1 is not a row of a study" in str(error)
            assert str(error).isprintable() and len(str(error)) < 900
        tried((column, odd))


@pytest.mark.tries(40)
def test_a_file_of_rows_that_was_cut_anywhere_is_refused_and_left_alone(tmp_path, row, tried):
    file = tmp_path / "runs.csv"
    rows.append(file, [row(curve=(50.0, 20.25)), row("fc", curve=(50.0, 20.25))])
    good = file.read_bytes()
    ways = [good[:-cut] for cut in range(1, 36)]
    ways += [good.decode().encode("utf-16"), good.replace(b"\n", b"\r"), good + b"\0", good + b"gap", good[:3]]
    for bad in ways:
        file.write_bytes(bad)
        with pytest.raises(RowsError, match=r"runs\.csv"):
            rows.read(file)
        with pytest.raises(RowsError, match=r"runs\.csv"):
            rows.append(file, [row("gmp")])
        assert file.read_bytes() == bad
        tried(bad)


@pytest.mark.tries(250)
def test_what_a_study_adds_it_can_read_again(tmp_path, row, tried):
    file, moments = tmp_path / "runs.csv", random.Random(7)
    rows.append(file, [row()])
    before = file.read_bytes()
    numbers = [float("inf"), float("-inf"), float("nan"), -1.0, 101.0, 1e13]
    texts = [*ODD, "a\u00a0b", "\u3000", "\udcff", "a\rb", 'a"b', "a,b", "é👩\u200d💻"]
    numeric = dict.fromkeys(rows.NUMBERS, numbers) | {"test_curve": [(each,) for each in numbers]}
    numeric["curves"] = [{"test_loss": [1.0, each]} for each in numbers]
    for number in range(250):
        column = rows.COLUMNS[number % len(rows.COLUMNS)]
        odd = moments.choice(numeric.get(column, texts))
        file.write_bytes(before)
        try:
            rows.append(file, [{**row("fc"), column: odd}])
        except RowsError as error:
            assert "a row cannot be added" in str(error) and str(error).isprintable()
            assert file.read_bytes() == before
        assert len(rows.read(file)) == file.read_bytes().count(b"\n") - 1
        tried((column, odd))


@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.sampled_from(["a\nb", "../up", "a\u3000b", "x" * 81, "été 日本", "=,[]'"]))
def test_a_recipe_of_any_name_is_refused_or_recorded(tmp_path, row, name):
    file = tmp_path / "runs.csv"
    try:
        config.check(Config(recipe=config.RecipeConfig(name=name)))
    except SettingError as error:
        assert error.setting == "recipe.name" and not (name.isascii() and name.isalnum() and len(name) <= 80)
        return
    file.unlink(missing_ok=True)
    rows.append(file, [row(recipe__name=name)])
    (read,) = rows.read(file).itertuples()
    assert read.recipe == name and Path(Point((), Config(recipe=config.RecipeConfig(name=name))).folder).name


@pytest.mark.parametrize(
    "name", ["a\tb", "a\nb", "C:\u202fnet", "\u3000", "caf\udce9", "\x1b[31m", "a,b=[c]", "👩\u200d💻"]
)
def test_a_run_that_started_from_a_file_of_any_name_is_recorded(tmp_path, name):
    settings = config.settings_of(Config(checkpoint=name))
    facts = {"parameters": 1, "precision": "32-true", "device": f"cpu: {name}", "versions": {}, "commit": "c" * 40}
    facts |= {"clean": True, "start": Start(name, "ab" * 32, "gap"), "settings": settings}
    record = Record(status="finished", **facts, test_error=9.0, train_error=4.0)
    rows.append(tmp_path / "runs.csv", [rows.row_of(record, variant=f"checkpoint={name}")])
    (read,) = rows.read(tmp_path / "runs.csv").itertuples()
    assert read.start_name.isprintable() and read.settings["checkpoint"] == name


def test_a_spreadsheets_mark_and_a_link_to_a_study_change_nothing(tmp_path, row):
    file, link = tmp_path / "runs.csv", tmp_path / "link.csv"
    rows.append(file, [row()])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    link.symlink_to(file)
    assert len(rows.read(link)) == 1
    rows.append(link, [row("fc")])
    assert link.is_symlink() and list(rows.read(file)["head"]) == list(rows.read(link)["head"]) == ["gap", "fc"]


def test_a_run_recorded_twice_counts_once(frame, row):
    read = frame(
        *(row(error=10.0), row(error=11.0, eval_curve=True, trainer__accelerator="cpu"), row("fc")),
        *(row("fc", 1, status="stopped"), row("gmp", curve=(9.0,)), row("gmp", error=1.0)),
        *(row("fc", 3, trainer__precision="auto", precision="32-true", error=1.0),),
        *(row("fc", 3, trainer__precision="32-true", precision="32-true", error=2.0),),
    )
    assert [(r.head, r.seed, r.error) for r in read.itertuples()] == [
        *(("gap", 0, 11.0), ("fc", 0, 10.0), ("gmp", 0, 10.0), ("fc", 3, 2.0))
    ]


def test_an_edited_recipe_and_a_republished_start_are_other_runs(frame, row):
    a, b = (("net", digit * 64, "gap") for digit in "ab")
    read = frame(
        *(row(recipe__lr=0.04), row(recipe__lr=0.05), row("fc", recipe__lr=0.05), row(seed=1, recipe__name="other")),
        *(row(checkpoint="net", variant="checkpoint=net", start=start) for start in (a, b)),
    )
    assert list(read.label) == [
        *("recipe.lr=0.04", "recipe.lr=0.05", "recipe.lr=0.05", ""),
        *("checkpoint=net start=aaaaaaaa", "checkpoint=net start=bbbbbbbb"),
    ]
    elsewhere = row(error=9.0, checkpoint="runs/net", variant="checkpoint=runs/net", start=b)
    assert list(frame(row(checkpoint="net", start=b), elsewhere).error) == [9.0]  # the same weights: the same run


def test_rows_of_the_same_settings_have_one_label_however_their_variant_is_spelled(frame, row):
    made = [row(seed=seed, recipe__lr=1.0, variant=text) for seed, text in ((0, "recipe.lr=1"), (1, "recipe.lr=1.0"))]
    assert list(frame(*made).label) == ["recipe.lr=1"] * 2


@pytest.mark.tries(30)
def test_rows_of_different_settings_never_have_one_label(frame, row, tried):
    draws = random.Random(8)
    for number in range(30):
        chosen = {
            (draws.choice((0.1, 0.3)), draws.choice((0.04, 0.05)), draws.choice((1.0, 2.0)), draws.choice(VARIANTS))
            for _ in range(6)
        }
        made = [
            row(seed=seed, model__dropout=dropout, recipe__lr=lr, recipe__warmup=warmup, variant=variant)
            for seed, (dropout, lr, warmup, variant) in enumerate(sorted(chosen))
        ]
        made += [{**row("fc"), "settings": {**row("fc")["settings"], "recipe.newer": number}}]
        read = frame(*made)
        settings = [json.dumps({**each, "seed": 0, "head.name": ""}, sort_keys=True) for each in read.settings]
        assert len(set(zip(settings, read.label, strict=True))) == len(set(settings)) == read.label.nunique()
        tried((made[0]["settings"]["recipe.lr"], number))


VARIANTS = ("", "model.dropout=0.3", "model.dropout=0.3 recipe.lr=0.05")


def test_a_row_from_before_a_setting_came_is_recognised(frame, row):
    old = row()
    del old["settings"]["recipe.warmup"]
    (read,) = frame(old).itertuples()
    assert read.settings["recipe.warmup"] == Config().recipe.warmup
    settings = config.consequential(config.settings_of(Config()))
    assert read.identity != rows.identity(settings, "")
    assert rows.identity(old["settings"], "") == rows.identity(row()["settings"], "") == read.identity


def test_the_row_of_a_record():
    settings = config.settings_of(Config(seed=3, checkpoint="cifar10-gap"))
    facts = {"parameters": 1, "precision": "32-true", "device": "cpu: x", "versions": {"torch": "2.14"}}
    facts |= {"commit": "c" * 40, "clean": False, "start": Start("cifar10-gap", "ab" * 32, "gap"), "settings": settings}
    row = rows.row_of(Record(status="finished", **facts, test_error=9.0, train_error=4.0), (50.0, 9.0), "a=b")
    assert set(row) == set(rows.COLUMNS)
    assert (row["status"], row["test_error"], row["val_error"], row["clean"]) == ("ok", 9.0, None, False)
    assert (row["start_name"], row["start_sha256"], row["start_head"]) == ("cifar10-gap", "ab" * 32, "gap")
    assert row["settings"]["seed"] == row["seed"] == 3 and "data.root" not in row["settings"]
    for status, called in (("dead", "dead"), ("running", "stopped")):
        row = rows.row_of(Record(status=status, **{**facts, "start": None}, test_error=9.0))
        assert (row["status"], row["test_error"], row["start_sha256"]) == (called, None, "")


@pytest.mark.skipif(not PUBLISHED.exists(), reason="no rows are published")
def test_the_settings_of_the_published_rows_are_complete_and_allowed():
    published, known = rows.read(PUBLISHED), config.consequential(config.settings_of(Config()))
    for row in published.itertuples():
        assert set(row.settings) == set(known)
        nested = {}
        for name, value in row.settings.items():
            group, _, key = name.rpartition(".")
            (nested.setdefault(group, {}) if group else nested)[key] = value
        config.check(config.from_settings(nested))
        assert bool(row.start_name) == bool(row.settings["checkpoint"]) == (len(row.start_sha256) == 64)
    assert len(rows.ended(PUBLISHED)) == len(published)


@pytest.mark.skipif(not (PUBLISHED.exists() and (ROOT / ".git").exists()), reason="no rows, or no history")
def test_the_commits_of_the_published_rows_are_in_the_history():
    def git(*arguments, **more):
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, **more).stdout

    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("a shallow clone has no history")
    commits = set(rows.read(PUBLISHED).commit)
    types = git("cat-file", "--batch-check=%(objecttype)", input="\n".join(commits)).split()
    assert types == ["commit"] * len(commits)
