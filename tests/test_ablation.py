import json
import re
import runpy
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from conftest import NARROW, ROOT

from nin.command import compose, sweep
from nin.config import ConfigError
from nin.studies import ablation, report
from nin.studies.rows import COLUMNS, Row, RowsError, append, ended, epochs_to, interval, read

CONF = ROOT / "conf"
CAPTURED = {"capture_output": True, "text": True, "check": True}


def row(head="gap", seed=0, error=10.0, status="ok", overrides="", curve=""):
    overrides = f"head={head} recipe=quick seed={seed} {overrides}".strip()
    errors = (error, error / 2) if status == "ok" else (None, None)
    return Row(overrides, "cifar10", head, "quick", seed, 8, status, *errors, test_curve=curve)


def test_every_combination_is_a_point():
    assert sweep(CONF, ["head=gap,fc", "seed=range(2)", "recipe=quick"]) == [
        ["head=gap", "seed=0", "recipe=quick"],
        ["head=gap", "seed=1", "recipe=quick"],
        ["head=fc", "seed=0", "recipe=quick"],
        ["head=fc", "seed=1", "recipe=quick"],
    ]
    assert sweep(CONF, ["head=glob([fc*,g*],exclude=*_article)"]) == [
        ["head=fc"],
        ["head=fc_dropout"],
        ["head=gap"],
        ["head=gmp"],
    ]
    for wrong in ("head=[gap", "recipe.lr=interval(0.01, 0.1)", "data.val=glob(*)"):
        with pytest.raises(ConfigError):
            sweep(CONF, [wrong])


def test_rows_survive_the_file(tmp_path):
    rows = [row(), row("fc", 1, 11.5, curve="50.00 20.00"), row("fc", 2, status="dead")]
    for each in rows:
        append(tmp_path / "runs.csv", each)
    assert read(tmp_path / "runs.csv") == rows


def test_a_file_that_holds_no_rows_is_named(tmp_path):
    file = tmp_path / "runs.csv"
    file.write_text("")
    append(file, row())
    assert read(file) == [row()]
    file.write_text(file.read_text()[:-30])
    with pytest.raises(RowsError, match=r"runs\.csv: row 1 is not a row"):
        read(file)
    with pytest.raises(RowsError):
        read(tmp_path)
    with pytest.raises(RowsError, match="a row cannot be added"):
        append(tmp_path, row())
    good = ",".join(COLUMNS) + "\nhead=gap,cifar10,gap,quick,0,8,ok,9,4,,1,2,bf16,cpu,2,c,True,20.00 9.00"
    for wrong in (
        good[: good.index("bf16")],  # cut
        good.replace(",gap,", ",gpa,"),
        good.replace(",ok,", ",fine,"),
        good.replace(",9,4,", ",9,,"),
        good.replace("20.00 9.00", "20.00 9.00head=fc"),
        good.replace("head=gap", "head='gap"),
    ):
        file.write_text(wrong)
        with pytest.raises(RowsError, match=r"runs\.csv: row 1 is not a row"):
            read(file)
    file.write_text(good)  # without the last line's end
    append(file, row())
    assert len(read(file)) == 2 and read(file)[1] == row()
    file.write_text(good.replace("seed,epochs", "epochs,seed"))
    with pytest.raises(RowsError, match="the columns of a study are overrides, data, head"):
        append(file, row())


def test_the_interval_is_the_t_interval():
    low, high = interval([1.0, 2.0, 3.0, 6.0])  # mean 3, s.d. 2.160, t(0.975, 3) = 3.182
    assert (low, high) == pytest.approx((3 - 3.18245 * 2.16025 / 2, 3 + 3.18245 * 2.16025 / 2), abs=1e-3)


def test_the_table():
    rows = [row("gap", s, e) for s, e in ((0, 10.0), (1, 10.4), (2, 10.2))]
    rows += [row("fc", s, e) for s, e in ((1, 11.4), (0, 11.2), (2, 11.5), (7, 30.0))]
    rows += [row("fc_dropout", 0, status="dead"), row("gap", 0, 12.0, overrides="model.dropout=0.5")]
    lines = report.table(rows).splitlines()
    assert lines[0] == "**cifar10, recipe quick, 8 epochs**"
    assert "| `gap` | 10.00, 10.40, 10.20 | 10.20 ± 0.20 | 3 | 5.10 ± 0.10 |  |" in lines
    (fc,) = (line for line in lines if line.startswith("| `fc` |"))
    assert "11.20, 11.40, 11.50, 30.00" in fc  # by seed
    assert "| 4 |" in fc
    assert "+1.17 (+0.79 to +1.55; 3 pairs)" in fc  # the three seeds in common: 1.2, 1.0, 1.3
    (dead,) = (line for line in lines if line.startswith("| `fc_dropout` |"))
    assert "| dead | none | 0 |" in dead
    (variant,) = (line for line in lines if "model.dropout=0.5" in line)
    assert "+2.00 (one seed)" in variant


def test_variants_without_a_plain_gap_are_compared_with_the_first():
    rows = [
        row("gap", s, e + s, overrides=f"model.dropout={d}") for d, e in (("0.5", 11.0), ("0", 10.0)) for s in (0, 1)
    ]
    rows += [
        row("fc", 0, 12.0, overrides="model.dropout=0.5"),
        row("gap", 2, status="dead", overrides="model.dropout=0.5"),
    ]
    lines = report.table(rows).splitlines()
    assert "| `gap` `model.dropout=0` | 10.00, 11.00 | 10.50 ± 0.71 | 2 | 5.25 ± 0.35 |  |" in lines
    (half,) = (line for line in lines if line.startswith("| `gap` `model.dropout=0.5`"))
    assert "| 11.00, 12.00, dead | 11.50 ± 0.71, 1 of 3 died | 2 |" in half
    assert half.endswith("| against `model.dropout=0`: +1.00 (2 times the same) |")
    (fc,) = (line for line in lines if line.startswith("| `fc`"))
    assert fc.endswith("| +1.00 (one seed) |")  # with gap under the same dropout


def test_held_out_images_are_compared_by_their_own_error():
    rows = [
        replace(row(head, 0, 50.0, overrides="data.val=1000"), val_error=e) for head, e in (("gap", 9.0), ("fc", 9.5))
    ]
    text = report.table([*rows, row()])
    assert "**cifar10, recipe quick, 8 epochs, 1,000 training images held out**" in text
    assert "| head | held-out error of each seed (%) |" in text and "| head | test error of each seed (%) |" in text
    assert "| `fc` | 9.50 | 9.50 | 1 | 25.00 | +0.50 (one seed) |" in text


def test_a_run_recorded_twice_counts_once(tmp_path):
    for each in (row(error=10.0), row(error=11.0, overrides="trainer.progress_bar=false eval_curve=true"), row("fc")):
        append(tmp_path / "runs.csv", each)
    append(tmp_path / "runs.csv", row("fc", 1, status="stopped"))
    assert [(r.head, r.error) for r in ended(tmp_path / "runs.csv")] == [("gap", 11.0), ("fc", 10.0)]


def test_a_run_of_auto_precision_and_the_same_of_a_named_one_are_both_recorded(tmp_path):
    """They are two runs of a study and one of a table: where auto means fp32 the one was made again after the other."""
    asked, file = {}, tmp_path / "runs.csv"
    for given in ("eval_curve=false", "eval_curve=false trainer.precision=32-true", "eval_curve=false"):
        one = replace(row(overrides=given), precision="32-true")
        config = compose(CONF, shlex.split(one.overrides))
        asked[ablation._identity(config)] = (one.overrides, config)
        append(file, one)
        assert ablation._without_row(asked, file) == []
    append(file, row("fc", status="stopped"))
    config = compose(CONF, ["head=fc", "recipe=quick", "seed=0"])
    assert ablation._without_row({"fc": ("", config)}, file) == ["fc"]


def test_epochs_to_an_accuracy():
    curve = row(curve="30.00 19.00 21.00 14.00")
    assert [epochs_to(curve, a) for a in (70, 80, 86, 90)] == [1, pytest.approx(1 + 10 / 11), 4, None]
    rows = [curve, row(seed=1, curve="18.00 17.00")]
    assert "| `gap` | 1.45 ± 0.64 | 4.00 (1 never) | (2 never) |" in report.epochs_table(rows, (80, 86, 90))


def test_figures_are_drawn(tmp_path):
    rows = [row(head, s, 10 + s, curve="30.00 19.00") for head in ("gap", "fc") for s in range(2)]
    report.plot_heads(rows, tmp_path / "heads.png", "title")
    report.plot_curves(rows, tmp_path / "curves.png", "title")
    first = (tmp_path / "heads.png").read_bytes()
    report.plot_heads(rows, tmp_path / "heads.png", "title")
    assert (tmp_path / "heads.png").read_bytes() == first
    assert (tmp_path / "curves.png").stat().st_size > 5000


SMALL = [
    "data=digits",
    NARROW,
    "seed=0",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.progress_bar=false",
]


def ablate(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "ablate.py"), f"study={tmp_path / 'runs.csv'}", *overrides]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_study_records_its_runs_and_repeats_none(tmp_path):
    points = [[*SMALL, f"recipe.lr={lr}", "recipe.optimiser=sgd", "eval_curve=true"] for lr in ("0.01", "1e30")]
    ablation.study(points, tmp_path / "runs.csv", tmp_path / "runs", jobs=2)
    first = (tmp_path / "runs.csv").read_bytes()
    good, dead = sorted(read(tmp_path / "runs.csv"), key=lambda row: row.status, reverse=True)
    assert (good.status, dead.status) == ("ok", "dead")
    assert 0 < good.test_error < 100 and float(good.test_curve) == pytest.approx(good.test_error, abs=3)
    assert len(good.commit) == 40 or good.commit == "unknown"
    folders = {folder: folder.stat().st_mtime_ns for folder in (tmp_path / "runs").iterdir()}
    again = [[override.replace("=true", "=True") for override in reversed(point)] for point in points]
    ablation.study(again, tmp_path / "runs.csv", tmp_path / "runs")
    assert (tmp_path / "runs.csv").read_bytes() == first
    assert {folder: folder.stat().st_mtime_ns for folder in (tmp_path / "runs").iterdir()} == folders


def test_a_run_is_known_however_it_was_spelled(tmp_path, capfd):
    tiny = [*SMALL, "model.blocks=[{widths: [8, 8, 10]}]"]
    (found,) = ablation.study([tiny], tmp_path / "runs.csv", tmp_path / "runs")
    same = ["recipe=modern", "head=gap", "model.dropout=0", "data.root=elsewhere", "data.flip=true", "trainer=cpu"]
    points = [[o for o in [*tiny, *same] if o != "seed=0"]]
    points.append(
        [*tiny, "model.dropout=5e-1", "logger=tensorboard", "model=cifar10", 'data.val="100"', "data.share=1.0"]
    )
    rows = ablation.study(points, tmp_path / "runs.csv", tmp_path / "it's elsewhere")
    assert "2 runs, 1 of them recorded already" in capfd.readouterr().out
    assert found == rows[0] and read(tmp_path / "runs.csv") == rows
    varied = [(row.given.get("model.dropout"), row.varied.keys() - found.varied.keys()) for row in rows]
    assert varied == [(None, set()), ("0.5", {"model.dropout"})]  # as tables know them, too
    assert [row.condition.held_out for row in rows] == [0, 100]
    assert row(overrides="recipe.lr=5e-4 freeze=True").variant == row(overrides="recipe.lr=0.0005 freeze=true").variant


def test_a_run_that_fails_does_not_keep_the_others_from_theirs(tmp_path):
    tiny = [*SMALL, "model.blocks=[{widths: [8, 8, 10]}]", "eval_curve=false"]
    points = [[*tiny, "checkpoint=nothing"], tiny]
    with pytest.raises(ablation.StoppedError, match=r"checkpoint=nothing.* ended with exit code 1, .*/log\.txt$"):
        ablation.study(points, tmp_path / "runs.csv", tmp_path / "runs", jobs=2)
    assert [(row.status, row.variant.count("checkpoint")) for row in read(tmp_path / "runs.csv")] == [("ok", 0)]


def test_two_studies_share_a_file(tmp_path):
    points = [[*SMALL, "model.blocks=[{widths: [8, 8, 10]}]", f"recipe.lr={lr}"] for lr in (0.01, 0.02)]
    code = f"""
from itertools import product
from pathlib import Path
from nin.studies import ablation
print(len(ablation.study({points}, Path({str(tmp_path / "runs.csv")!r}), Path({str(tmp_path / "runs")!r}))))
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [study.communicate()[0].splitlines()[-1] for study in both] == ["2", "2"]
    assert sorted(row.given["recipe.lr"] for row in read(tmp_path / "runs.csv")) == ["0.01", "0.02"]


def test_another_machines_precision_is_told(tmp_path, monkeypatch, capfd):
    tiny = [*SMALL, "model.blocks=[{widths: [8, 8, 10]}]"]
    (found,) = ablation.study([tiny], tmp_path / "runs.csv", tmp_path / "runs")
    other = {"32-true": "bf16-mixed", "bf16-mixed": "32-true"}[found.precision]
    monkeypatch.setattr(ablation, "_start", lambda *_: subprocess.Popen(["false"]))
    for recorded, told in ((found.precision, False), (other, True)):
        (tmp_path / "runs.csv").unlink()
        append(tmp_path / "runs.csv", replace(found, precision=recorded))
        with pytest.raises(ablation.StoppedError):
            ablation.study([tiny, [*tiny, "recipe.lr=0.01"]], tmp_path / "runs.csv", tmp_path / "runs")
        said = capfd.readouterr().out
        assert (f"recorded in {other}, still to come in {found.precision}, which is" in said) == told
        ablation.study([tiny], tmp_path / "runs.csv", tmp_path / "runs")
        assert "still to come" not in capfd.readouterr().out


def test_a_study_that_waits_for_another_says_so_once(tmp_path, monkeypatch, capfd):
    points = [[*SMALL, "model.blocks=[{widths: [8, 8, 10]}]", f"recipe.lr={lr}"] for lr in (0.01, 0.02)]
    (tmp_path / "runs").mkdir()
    claim = ablation._claim(tmp_path / "runs" / ablation._folder_name(compose(CONF, points[0])))
    started, waits = [], []

    def start(overrides, *_):
        started.append(overrides)
        return subprocess.Popen(["false"])

    def sleep(_):
        waits.append(len(started))
        if waits.count(1) == 50:  # the second has ended long since
            claim.close()
        real_sleep(0.02)

    real_sleep = time.sleep
    monkeypatch.setattr(ablation, "_start", start)
    monkeypatch.setattr(ablation.time, "sleep", sleep)
    with pytest.raises(ablation.StoppedError, match="exit code 1"):
        ablation.study(points, tmp_path / "runs.csv", tmp_path / "runs")
    assert [("lr=0.02" in overrides) for overrides in started] == [True, False] and waits.count(1) >= 50
    said = capfd.readouterr().out
    assert said.count("another study trains what is left (1), and its end is waited for") == 1


def test_a_run_without_a_curve_is_run_again_for_one(tmp_path):
    tiny = [*SMALL, "model.blocks=[{widths: [8, 8, 10]}]"]
    for wanted, runs in (("false", 1), ("true", 2), ("false", 2), ("true", 2)):
        (found,) = ablation.study([[*tiny, f"eval_curve={wanted}"]], tmp_path / "runs.csv", tmp_path / "runs")
        assert len(read(tmp_path / "runs.csv")) == runs
        assert bool(found.test_curve) == (runs == 2)
    append(tmp_path / "runs.csv", replace(found, test_curve="", test_error=1.0))
    assert ended(tmp_path / "runs.csv") == [found]  # the one with a curve
    same = [*tiny, "eval_curve=true", "freeze=false", "checkpoint=null", "logger.name=csv", "trainer.devices=1"]
    ablation.study([same], tmp_path / "runs.csv", tmp_path / "runs")
    assert len(read(tmp_path / "runs.csv")) == 3


def test_a_stopped_run_is_run_again(tmp_path):
    overrides = sorted([*SMALL, "eval_curve=true", "model.blocks=[{widths: [8, 8, 10]}]"])
    stopped = Row(shlex.join(overrides), "digits", "gap", "modern", 0, 1, "stopped")
    append(tmp_path / "runs.csv", stopped)
    (done,) = ablation.study([overrides], tmp_path / "runs.csv", tmp_path / "runs")
    assert done.status == "ok"


def test_a_study_that_is_killed_outright_goes_on_and_repeats_nothing(tmp_path):
    small = [
        "data=digits",
        "trainer.max_epochs=30",
        "trainer.limit_train_batches=4",
        "model.blocks=[{widths: [8, 8, 10]}]",
        "trainer.progress_bar=false",
    ]
    points, file = [[*small, f"seed={seed}"] for seed in (0, 1)], tmp_path / "runs.csv"
    code = f"""
from itertools import product
from pathlib import Path
from nin.studies import ablation
ablation.study({points}, Path({str(file)!r}), Path({str(tmp_path / "runs")!r}))
"""
    study = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    patience = time.monotonic() + 400
    while not list(tmp_path.glob("runs/*_1-*/last.ckpt")) and time.monotonic() < patience:
        time.sleep(0.05)
    study.kill()  # in the second run
    study.wait()
    (first,) = read(file)
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "2 runs, 1 of them recorded already" in again.stdout
    rows = read(file)
    assert [(r.seed, r.status) for r in rows] == [(0, "ok"), (1, "ok")] and rows[0] == first


def test_a_refused_run_leaves_no_row_of_an_older_one(tmp_path):
    point = [*SMALL, "eval_curve=false", "model.blocks=[{widths: [8, 8, 10]}]"]
    ablation.study([point], tmp_path / "runs.csv", tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))  # the recipe has changed, say
    with pytest.raises(ablation.StoppedError, match="exit code 2"):
        ablation.study([point], tmp_path / "other.csv", tmp_path / "runs")
    assert read(tmp_path / "other.csv") == []


def test_a_typo_is_refused_before_anything_runs(tmp_path):
    ended = ablate(tmp_path, "head=gap,gpa")
    assert ended.returncode == 2
    heads = ", ".join(sorted(file.stem for file in (ROOT / "conf" / "head").glob("*.yaml")))
    assert ended.stderr == f"error: head=gpa: choose one of {heads}\n"
    assert not (tmp_path / "runs.csv").exists()


@pytest.mark.parametrize(
    ("given", "found"),
    [([], ["eval_curve=true"]), (["eval_curve=false"], ["eval_curve=false"]), (["data.val=100"], [])],
)
def test_the_curve_is_recorded_unless_it_is_refused(monkeypatch, given, found):
    seen = []
    monkeypatch.setattr(ablation, "study", lambda points, *_: seen.extend(points) or [])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert runpy.run_path(str(ROOT / "scripts" / "ablate.py"))["main"](["data=digits", "head=gap,fc", *given]) == 0
    assert [[o for o in point if o.startswith("eval_curve=")] for point in seen] == [found] * 2


def test_the_report_of_a_study(tmp_path):
    for each in (row("gap", 0, 10.0, curve="30.00 10.00"), row("fc", 0, 11.0, curve="35.00 11.00")):
        append(tmp_path / "runs.csv", each)
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), f"study={tmp_path / 'runs.csv'}"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    assert "| `fc` | 11.00 |" in first and "epochs to 80 %" in first
    assert len(list((tmp_path / "figures").glob("*.png"))) == 2
    for head in ("gap", "fc"):  # what all have in common is no variant among them
        append(tmp_path / "runs.csv", row(head, overrides="data.size=64", curve="9 8"))
    subprocess.run(command, check=True)
    found = {file.stem for file in (tmp_path / "figures").glob("*data.size-64*.png")}
    assert found == {"cifar10-quick-8-data.size-64-heads", "cifar10-quick-8-data.size-64-curves"}
    for head, more in product(("gap", "fc"), ("", "data.share=0.5")):  # where images are held out no test error is seen
        held_out = row(head, overrides=f"data.val=100 {more}", curve="9 8")
        append(tmp_path / "runs.csv", replace(held_out, val_error=1.0))
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [f.stem for f in (tmp_path / "figures").glob("*val100*")] == ["cifar10-quick-8-val100-heads"]
    assert (
        "](figures/cifar10-quick-8-val100-heads.png)" in said and "`scripts/claims.py study=runs.csv` reports" in said
    )


PUBLISHED = ROOT / "checkpoints" / "runs.csv"
COMPOSE = """
import json, os, shlex, sys
from itertools import product
from pathlib import Path
import hydra, lightning, scipy.stats, torchvision  # once, not for each commit
for folder, overrides in json.load(sys.stdin).items():
    if (child := os.fork()) == 0:
        os.chdir(folder)
        sys.path.insert(0, folder)
        if Path("nin/command.py").exists():
            from nin.command import compose
        else:  # an early commit
            from nin.config import compose
        assert sys.modules["nin"].__file__.startswith(folder)
        for line in overrides:
            compose(Path("conf").resolve(), shlex.split(line))
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"the overrides of {folder} do not compose at it")
"""


@pytest.mark.skipif(not PUBLISHED.exists(), reason="no rows are published")
def test_readme_has_the_tables_of_the_published_rows_and_nets():
    script = runpy.run_path(str(ROOT / "scripts" / "report.py"))
    rows = ended(PUBLISHED)
    readme = (ROOT / "README.md").read_text()
    assert f"<!-- rows -->\n{script['of_rows'](rows, PUBLISHED, ROOT)[0]}\n<!-- end of" in readme
    assert f"<!-- nets -->\n{script['of_nets']()}\n<!-- end of" in readme
    for figure in re.findall(r"\]\((checkpoints/.*\.png)\)", readme):
        assert (ROOT / figure).stat().st_size > 0


@pytest.mark.skipif(not (PUBLISHED.exists() and (ROOT / ".git").exists()), reason="no rows, or no history")
def test_the_overrides_of_every_published_row_compose_at_its_commit(tmp_path):
    rows = read(PUBLISHED)
    shallow = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--is-shallow-repository"], **CAPTURED).stdout
    if shallow.strip() == "true":
        pytest.skip("a shallow clone has no history")
    overrides: dict[str, list[str]] = {}  # by the folder that holds the project as it was
    for commit in {row.commit for row in rows}:
        folder = tmp_path / commit
        folder.mkdir()
        tree = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "nin", "conf"], capture_output=True)
        assert tree.returncode == 0, f"{commit} is not in the history: {tree.stderr}"
        subprocess.run(["tar", "-x", "-C", str(folder)], input=tree.stdout, check=True)
        overrides[str(folder)] = [row.overrides for row in rows if row.commit == commit]
    command = [sys.executable, "-c", COMPOSE]
    composed = subprocess.run(command, input=json.dumps(overrides), capture_output=True, text=True, cwd=tmp_path)
    assert composed.returncode == 0, composed.stderr


def test_heads_of_a_backbone_have_their_rows_too(tmp_path):
    rows = [row(head, error=10.0 + n) for n, head in enumerate(("gap_article", "fc_article", "gap"))]
    assert report.table(rows).index("`gap`") < report.table(rows).index("`gap_article`")
    assert "| `fc_article` | 11.00 | 11.00 | 1 | 5.50 | +1.00 (one seed) |" in report.table(rows)
    assert "| minus `gap_article` (95 %) |" in report.table(rows[:2])
    report.plot_heads(rows, tmp_path / "heads.png", "title")
    assert (tmp_path / "heads.png").stat().st_size > 0
