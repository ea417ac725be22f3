import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from builders import ROOT
from nin import cli, config, files
from nin.config import Config, DataConfig, RecipeConfig, TrainerConfig, settings_of
from nin.errors import NINError, RowsError, StudyStoppedError
from nin.run.record import Record, Start
from nin.studies import ablation, rows
from nin.studies.ablation import Point

STAND_IN = r"""
import json, os, pathlib, signal, sys, time
overrides = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
folder = pathlib.Path(overrides["hydra.run.dir"][1:-1].replace("\\'", "'"))
with open(overrides["log"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\n")
print("in a log")
if "record" in overrides:
    (folder / "summary.json").write_text(pathlib.Path(overrides["record"]).read_text())
if "curve" in overrides:
    errors = "\n2,".join(overrides["curve"].split())
    (folder / "metrics.csv").write_text("epoch,test_curve/error\n0,\n1," + errors + "\n")
if "interrupts" in overrides:
    os.kill(os.getppid(), signal.SIGINT)
    signal.pause()
sys.exit(int(overrides["exit"]))
"""
FACTS = {"parameters": 1, "device": "cpu", "versions": {"torch": "2.14.1"}, "commit": "c" * 40, "clean": True}


@pytest.fixture
def study(tmp_path):
    """A study in which a small script stands in for scripts/train.py."""
    (tmp_path / "train.py").write_text(STAND_IN)
    return Study(tmp_path)


class Study:
    def __init__(self, folder: Path) -> None:
        self.file, self.runs, self.log, self.folder = folder / "runs.csv", folder / "runs", folder / "log", folder

    def __call__(self, *points: Point, jobs: int = 1):
        command = (sys.executable, "-S", str(self.folder / "train.py"))
        return ablation.study(points, self.file, self.runs, jobs, command)

    def point(self, seed=0, code=0, status="finished", curve="", start=None, record=None, more=(), **settings) -> Point:
        """A point whose run ends with exit code `code` and the record of `record`, by default the point's own."""
        settings = {"data": DataConfig(name="digits"), "trainer": TrainerConfig(precision="32-true"), **settings}
        made = Config(seed=seed, eval_curve=bool(curve), **settings)
        overrides = [f"seed={seed}", f"log={self.log}", f"exit={code}", *more]
        if status:
            errors = {"test_error": 9.0, "train_error": 4.0, "val_error": 5.0} if status == "finished" else {}
            own = config.settings_of(record or made)
            precision = Point((), made).precision
            facts = Record(status=status, settings=own, start=start, precision=precision, **FACTS, **errors).to_dict()
            file = self.folder / f"{len(list(self.folder.glob('*.json')))}.json"
            file.write_text(json.dumps(facts))
            overrides.append(f"record={file}")
        return Point((*overrides, *([f"curve={curve}"] if curve else [])), made, "a=b")

    @property
    def trained(self) -> list[list[str]]:
        """The arguments of each run so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


def test_a_study_records_its_runs_and_repeats_none(study, capfd):
    points = [study.point(curve="50.123 9"), study.point(1, 3, "dead"), study.point(2)]
    ended = study(*points, points[0], jobs=2)
    assert capfd.readouterr().out.startswith(f"3 runs, 0 already recorded in {study.file}\n")
    assert sorted(zip(ended.seed, ended.status, ended.test_curve, strict=True)) == [
        *((0, "ok", (50.12, 9.0)), (1, "dead", ()), (2, "ok", ())),
    ]
    assert list(ended.sort_values("seed").test_error)[::2] == [9.0, 9.0] and set(ended.variant) == {"a=b"}
    assert len(study.trained) == 3
    assert not any("resume=auto" in arguments for arguments in study.trained)  # there is nothing to resume
    assert [log.read_text() for log in study.runs.glob("*/log.txt")] == ["in a log\n"] * 3
    before = study.file.read_bytes()
    elsewhere = replace(points[0], overrides=("other=spelling",), variant="c=d", config=replace(
        points[0].config, resume="auto", data=replace(points[0].config.data, root="elsewhere"),
    ))  # fmt: skip
    assert list(study(points[1], elsewhere).seed) == sorted([0, 1], key=list(ended.seed).index)
    assert "2 runs, 2 already recorded" in capfd.readouterr().out
    assert study.file.read_bytes() == before and len(study.trained) == 3


def test_a_curve_that_is_not_finite_ends_before_and_the_study_stays_readable(study):
    ended = study(*(study.point(seed, curve=f"50 20 {odd} 9") for seed, odd in enumerate(("inf", "nan", "-inf", ""))))
    assert set(ended.test_curve) == {(50.0, 20.0), (50.0, 20.0, 9.0)}


def test_a_damaged_record_costs_its_own_run_alone(study, tmp_path):
    (tmp_path / "damaged").write_text("{")
    damaged = study.point(status="", more=(f"record={tmp_path / 'damaged'}",))
    with pytest.raises(StudyStoppedError, match=r"seed=0 \S.* left a record that cannot be read: .*summary\.json"):
        study(damaged, study.point(1))
    assert list(rows.ended(study.file).seed) == [1]


def test_an_edited_recipe_is_trained_anew(study):
    for lr in (0.04, 0.05, 0.04, 0.05):
        ended = study(study.point(recipe=RecipeConfig(name="quick", lr=lr)))
        assert [settings["recipe.lr"] for settings in ended.settings] == [lr]
    assert len(study.trained) == 2 and len(set(os.listdir(study.runs))) == 2
    assert list(rows.ended(study.file).label) == ["a=b recipe.lr=0.04", "a=b recipe.lr=0.05"]


def test_a_republished_start_is_trained_from_anew(study, tmp_path):
    import torch

    from nin import NIN, pretrained
    from nin.data.preprocess import Normalise

    net = NIN([{"widths": [4, 4, 10]}], dropout=0.0)
    net_file = tmp_path / "net.safetensors"
    trained = pretrained.Pretrained(net, Normalise(torch.zeros(3), torch.ones(3)), list("abcdefghij"), {})
    for published in range(2):
        with torch.no_grad():
            next(net.parameters()).add_(1)
        pretrained.save(net_file, trained)
        start = Start(str(net_file), files.sha256(net_file.read_bytes()), "gap")
        for _ in range(2):
            (row,) = study(study.point(checkpoint=str(net_file), start=start)).itertuples()
            assert (row.start_name, row.start_sha256, row.start_head) == (start.name, start.sha256, "gap")
        assert len(study.trained) == published + 1
    assert len(rows.ended(study.file)) == 2


def test_a_run_without_a_curve_is_run_again_for_one(study):
    for curve, runs in (("", 1), ("9", 2), ("", 2), ("9", 2)):
        (row,) = study(study.point(curve=curve)).itertuples()
        assert len(study.trained) == len(rows.read(study.file)) == runs
        assert bool(row.test_curve) == (runs == 2)
    study(study.point(1, 3, "dead"))
    study(study.point(1, 3, "dead", curve="9"))  # a dead net gets no further
    assert len(study.trained) == 3


def test_a_stopped_run_ends_the_study_and_is_run_again(study):
    with pytest.raises(StudyStoppedError, match=r"ended with exit code 143; the same command continues") as stopped:
        study(study.point(0, 143, "running"), study.point(1))
    assert stopped.value.exit_code == 1
    assert [(row.seed, row.status) for row in rows.read(study.file).itertuples()] == [(0, "stopped")]
    assert list(study(study.point(0), study.point(1)).status) == ["ok", "ok"]
    assert ["resume=auto" in arguments for arguments in study.trained] == [False, True, False]
    assert len(rows.read(study.file)) == 3 and len(rows.ended(study.file)) == 2


def test_ctrl_c_ends_the_runs_and_the_study(study):
    with pytest.raises(StudyStoppedError, match=r"interrupted; .*runs\.csv has the rows so far") as stopped:
        study(study.point(0, more=["interrupts="]), study.point(1))
    assert stopped.value.exit_code == 130 and len(study.trained) == 1
    assert len(study(study.point(0), study.point(1))) == 2


def test_a_run_that_fails_keeps_no_other_from_training(study):
    with pytest.raises(StudyStoppedError, match=r"exit=1.* ended with exit code 1; .*log\.txt says why; the same"):
        study(study.point(0, 1, ""), study.point(1), jobs=2)
    assert list(rows.read(study.file).seed) == [1]
    with pytest.raises(StudyStoppedError, match="exit code 2"):  # it leaves no row of an older record
        study(study.point(2, 2))
    assert list(rows.read(study.file).seed) == [1]
    missing = study.point(3, 1, "", checkpoint="no-such-net")  # the run says so
    with pytest.raises(StudyStoppedError, match="exit code 1"):
        study(missing)


def test_a_run_that_was_trained_with_other_settings_is_told_and_recorded_as_what_it_is(study):
    edited = Config(data=DataConfig(name="digits"), recipe=RecipeConfig(lr=0.5))
    with pytest.raises(StudyStoppedError, match="was trained with other settings than this study began with"):
        study(study.point(record=edited))
    assert [settings["recipe.lr"] for settings in rows.read(study.file).settings] == [0.5]


def test_held_out_images_are_printed_as_what_they_are(study, capfd):
    study(study.point(data=DataConfig(name="digits", val=100)), study.point(1, 3, "dead"))
    printed = capfd.readouterr().out
    assert "held-out error 5.00 %, 1 to go" in printed and ": dead, 0 to go" in printed


@pytest.mark.parametrize("name", ["it's ${here}", "a\\${b}", "a\\'b\n"])
def test_a_folder_with_any_name_reaches_the_run(study, tmp_path, name):
    study.runs = tmp_path / name
    with pytest.raises(StudyStoppedError, match="left no record in"):
        study(study.point(status=""))
    ((*_, argument),) = study.trained
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert Path(OmegaConf.create({"folder": override.value()}).folder).parent == study.runs


def test_another_machines_precision_is_told(study, capfd):
    automatic = TrainerConfig(precision="auto")
    here = Point((), Config()).precision
    other = {"32-true": "bf16-mixed", "bf16-mixed": "32-true"}[here]
    study(study.point(0, trainer=TrainerConfig(precision=other)), study.point(1, trainer=automatic))
    capfd.readouterr()
    study(study.point(0, trainer=automatic), study.point(1, trainer=automatic), study.point(2, trainer=automatic))
    printed = capfd.readouterr().out
    assert f"1 of the remaining runs is recorded in {other}; trainer.precision=auto selects {here} on this" in printed
    assert "3 runs, 1 already recorded" in printed and len(study.trained) == 4
    study(study.point(0, trainer=TrainerConfig(precision=other)), study.point(1, trainer=TrainerConfig(precision=here)))
    printed = capfd.readouterr().out
    assert "2 already recorded" in printed and "selects" not in printed and len(study.trained) == 4


def test_two_studies_share_a_file(study):
    points = [study.point(seed) for seed in range(4)]
    results = []
    both = [threading.Thread(target=lambda: results.append(study(*points))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert [sorted(each.seed) for each in results] == [[0, 1, 2, 3]] * 2
    assert len(study.trained) == len(rows.read(study.file)) == 4


def test_a_study_that_waits_for_another_says_so_once(study, capfd, monkeypatch):
    points = [study.point(0), study.point(1)]
    (study.runs / points[0].folder).mkdir(parents=True)
    waits = []

    def sleep(_):
        waits.append(len(rows.read(study.file)))
        if waits.count(1) == 20:  # the second run has long been recorded
            held.__exit__(None, None, None)
        wait(0.02)

    wait = time.sleep
    monkeypatch.setattr(time, "sleep", sleep)
    held = files.lock(study.runs / points[0].folder / ablation.CLAIM)
    held.__enter__()
    study(*points)
    assert list(rows.read(study.file).seed) == [1, 0] and waits.count(1) >= 20
    assert capfd.readouterr().out.count("waiting for another study to finish 1 remaining run\n") == 1


def test_a_file_that_is_no_studys_is_refused_before_anything_runs(study):
    study.file.write_text("a,b\n")
    with pytest.raises(RowsError, match="expected the columns"):
        study(study.point())
    study.file.unlink()
    study.runs.write_text("a file")
    with pytest.raises(RowsError, match="no run can be trained there"):
        study(study.point())
    assert study.trained == []


# the script -----------------------------------------------------------------------------------------------------------


def test_a_typo_is_refused_before_anything_runs(script, tmp_path):
    code, printed, error = script("ablate.py", f"study={tmp_path / 'runs.csv'}", "head=gap,gpa")
    assert (code, printed) == (2, "") and error.startswith("error: head=gpa: ") and "gap_article" in error
    for jobs in ("0", "-1", "two", "9" * 5000):
        code, _, error = script("ablate.py", f"jobs={jobs}", "head=gap")
        assert code == 2 and error.startswith(f"error: jobs={jobs[:100]}") and "expected an integer from 1" in error
    for train, reason in (("yes", "must be one of true, false"), ("true", "requires table=")):
        code, _, error = script("ablate.py", f"train={train}", "head=gap")
        assert code == 2 and error.startswith(f"error: train={train}: {reason}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "curves"),
    [
        ([], [True, True]),
        (["eval_curve=false"], [False, False]),
        (["++eval_curve=false"], [False, False]),
        (["data.val=100"], [False, False]),
        (["data.val=0"], [True, True]),
        (["data.val=0,100"], [True, False] * 2),
    ],
)
def test_the_curve_is_recorded_unless_it_is_refused_or_images_are_held_out(
    script, monkeypatch, frame, row, overrides, curves
):
    seen = []
    monkeypatch.setattr(ablation, "study", lambda points, *rest: seen.append((points, *rest)) or frame(row()))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    code, printed, _ = script("ablate.py", "study=a b.csv", "jobs=2", "data=digits", "head=gap,fc", *overrides)
    ((points, file, _, jobs),) = seen
    assert [point.config.eval_curve for point in points] == curves
    assert [point.overrides[-1] == "eval_curve=true" for point in points] == curves
    assert (code, file, jobs) == (0, Path("a b.csv"), 2)
    assert printed.endswith("1 row in a b.csv; the report: python scripts/report.py 'study=a b.csv'\n")


@pytest.fixture
def read_only_checkout():
    """Nothing below the checkout can be written."""
    is_on = [True]

    def refuse(event, given):  # a hook stays for good
        writes = event == "os.mkdir" or (event == "open" and isinstance(given[2], int) and given[2] & 0o103)
        if is_on and writes and isinstance(given[0], str | Path) and "__pycache__" not in str(given[0]):
            path = Path(os.path.abspath(given[0]))
            if ROOT in path.parents:
                raise OSError(errno.EROFS, "Read-only file system", str(path))

    sys.addaudithook(refuse)
    yield
    is_on.clear()


def test_a_read_only_checkout_has_its_runs_and_its_study_elsewhere(script, tmp_path, monkeypatch, read_only_checkout):
    """runs= names where the runs go; without it one sentence says that they cannot be trained, and nothing is."""
    overrides = ["data=digits", "trainer.precision=32-true", "seed=0,1"]
    points = [point.with_test_curve() for point in cli.points(overrides)]
    for point in points:
        made, errors = settings_of(point.config), {"test_error": 9.0, "train_error": 4.0}
        facts = Record(status="finished", settings=made, start=None, precision="32-true", **FACTS, **errors)
        (tmp_path / f"seed={point.config.seed}").write_text(json.dumps(facts.to_dict()))
    (tmp_path / "train.py").write_text(
        "import pathlib, shutil, sys\n"
        "seed, folder = (next(a for a in sys.argv if a.startswith(n)) for n in ('seed=', 'hydra.run.dir='))\n"
        "folder = folder.partition('=')[2].strip(chr(39))\n"
        "shutil.copy(pathlib.Path(__file__).with_name(seed), folder + '/summary.json')\n"
    )
    monkeypatch.setattr(ablation, "arguments_of", lambda name: [sys.executable, "-S", str(tmp_path / "train.py")])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    study = [*overrides, f"study={tmp_path / 'own' / 'runs.csv'}"]
    code, _, error = script("ablate.py", *study)
    assert code == 1 and error.startswith(f"error: {ROOT / 'runs' / 'ablation'}") and "Read-only" in error
    assert len(error.splitlines()) == 1 and rows.read(tmp_path / "own" / "runs.csv").empty
    code, _, error = script("ablate.py", *study, f"runs={tmp_path / 'elsewhere'}")
    assert (code, error) == (0, "")
    assert list(rows.read(tmp_path / "own" / "runs.csv").test_error) == [9.0, 9.0]
    assert {file.parent.name for file in (tmp_path / "elsewhere").rglob("summary.json")} == {p.folder for p in points}


@pytest.mark.tries(12)
def test_a_log_or_a_claim_that_is_a_link_or_a_folder_is_not_written_through(study, tmp_path, tried):
    """log.txt of a run beside others, and the file that keeps other studies from it: links to a file, to nothing and to
    a folder, and folders."""
    draws = random.Random(13)
    for number, (name, kind) in enumerate(product(("log.txt", ablation.CLAIM), ("file", "nothing", "folder") * 2)):
        point, target = study.point(number), tmp_path / f"target{number}"
        place = study.runs / point.folder / name
        place.parent.mkdir(parents=True)
        content = draws.randbytes(draws.randrange(99))
        if kind == "file":
            target.write_bytes(content)
        if kind == "folder" and draws.random() < 0.5:
            place.mkdir()
        else:
            place.symlink_to(target)
            target.mkdir() if kind == "folder" else None
        with pytest.raises(NINError) as refused:
            study(point, study.point(100 + number), jobs=2)
        assert place.name in str(refused.value) and "\n" not in str(refused.value)
        assert not list(target.iterdir()) if target.is_dir() else kind != "file" or target.read_bytes() == content
        assert target.exists() == (kind == "file" or (place.is_symlink() and kind == "folder"))
        tried(place)


@pytest.mark.slow
def test_a_study_of_real_runs_that_is_killed_continues_and_repeats_nothing(tmp_path):
    small = ["data=digits", "trainer.max_epochs=30", "trainer.limit_train_batches=4", "trainer.progress_bar=false"]
    small += ["model.blocks=[{widths: [8, 8, 10]}]", "trainer.limit_test_batches=1", "seed=0,1"]
    file, runs = tmp_path / "runs.csv", tmp_path / "runs"
    code = f"""
from pathlib import Path
from nin import cli
from nin.studies import ablation
ablation.study(cli.points({small}), Path({str(file)!r}), Path({str(runs)!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    study = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment)
    while not list(runs.glob("*_1-*/last.ckpt")) and study.poll() is None:
        time.sleep(0.05)
    study.kill()  # in the second run
    study.wait()
    (first,) = rows.read(file).itertuples()
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert "2 runs, 1 already recorded" in again.stdout and "resumed after epoch" in again.stdout
    both = rows.read(file)
    assert list(zip(both.seed, both.status, strict=True)) == [(0, "ok"), (1, "ok")]
    assert both.identity[0] == first.identity and both.test_error[0] == first.test_error
    assert both.variant[0] == both.variant[1] and len(both.commit[0]) in (7, 40)
