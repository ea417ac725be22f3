import csv
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys

import lightning
import pytest
import torch
import yaml
from conftest import CONF, NARROW, ROOT
from safetensors.torch import load_file

from nin import pretrained, provenance, run
from nin.command import compose
from nin.config import ConfigError
from nin.data import load_digits
from nin.folder import for_people
from nin.optim import computes_bfloat16
from nin.studies import confusion
from nin.task import Classifier, DeadNetError

SHORT = ["data=digits", NARROW, "trainer.max_epochs=2", "trainer.limit_train_batches=6", "trainer.progress_bar=false"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A short run on the digits: its folder and its summary."""
    folder = tmp_path_factory.mktemp("run")
    settings = compose(CONF, [*SHORT, "data.val=100", "eval_curve=true", "logger=tensorboard", "trainer=cpu"])
    return folder, run.train(settings, folder)


def test_the_folder_of_a_run(ended):
    folder, summary = ended
    for name in ("config.yaml", "metrics.csv", "last.ckpt", "curves.png", "summary.json"):
        assert (folder / name).stat().st_size > 0
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert list(folder.glob("events.out.tfevents*"))
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert set(summary) >= {
        *("test_error", "train_error", "epochs", "parameters", "images_per_second", "seconds", "seed", "device"),
        *("versions", "commit"),
    }
    assert summary["epochs"] == 2
    assert 0 < summary["test_error"] < 100
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/error", "train/loss", "val/error", "test_curve/error", "lr"):
        assert sum(bool(row[name]) for row in rows) == 2, name
    assert for_people(summary, folder).count("%") == 3


def test_the_test_error_is_that_of_the_saved_net_computed_by_hand(ended):
    folder, summary = ended
    net = pretrained.load(folder)
    digits = load_digits()
    with torch.no_grad():
        wrong = (net(digits.test_images).argmax(1) != digits.test_labels).double().mean().item()
        wrong_train = (net(digits.train_images[:-100]).argmax(1) != digits.train_labels[:-100]).double().mean().item()
        wrong_val = (net(digits.train_images[-100:]).argmax(1) != digits.train_labels[-100:]).double().mean().item()
    assert summary["test_error"] == pytest.approx(100 * wrong, abs=1e-3)
    assert summary["val_error"] == pytest.approx(100 * wrong_val, abs=1e-3)
    within = 0.1 if summary["precision"] == "32-true" else 2  # measured in the run's precision
    assert summary["train_error"] == pytest.approx(100 * wrong_train, abs=within)


def test_evaluate_prints_the_summarys_error(ended):
    folder, summary = ended
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), f"checkpoint={folder}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == f"test error {summary['test_error']:.2f} %"
    assert (folder / f"confusion_{folder.name}.png").stat().st_size > 0
    error, matrix, classes = run.evaluate_checkpoint(compose(CONF, [f"checkpoint={folder}"]))
    assert (matrix.shape, matrix.sum()) == ((10, 10), 360)
    assert 100 - 100 * matrix.trace() / 360 == pytest.approx(error, abs=1e-3)
    assert matrix.sum(1).tolist() == load_digits().test_labels.bincount().tolist()  # the true class is the row's
    wrong = matrix - matrix.diag().diag()
    worst = re.match(r"(\d) taken for (\d) +(\d+) ", confusion.worst_pairs(matrix, classes))
    true, taken_for, count = map(int, worst.groups())
    assert wrong[true, taken_for] == count == wrong.max()
    assert confusion.worst_pairs(matrix.diag().diag(), classes) == "no image is confused"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_evaluation_says_so(ended, script, monkeypatch, number, code):
    batch = Classifier.test_step

    def told(*arguments):
        os.kill(os.getpid(), number)
        return batch(*arguments)

    monkeypatch.setattr(Classifier, "test_step", told)
    stopped, said, errors = script("evaluate.py", f"checkpoint={ended[0]}", "trainer.progress_bar=false")
    assert (stopped, said) == (code, "")
    assert errors == "error: stopped; the same command evaluates it again\n"


def test_evaluate_refuses_what_the_checkpoint_brings_itself(ended):
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), f"checkpoint={ended[0]}", "head=fc"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr.startswith("error: head=fc: the checkpoint brings its own")


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(tmp_path):
    found = []
    for seed in (5, 5, 6):
        folder = tmp_path / str(len(found))
        run.train(compose(CONF, [*SHORT, "model.dropout=0.5", f"seed={seed}"]), folder)
        found.append(load_file(folder / "model.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_the_test_curve_changes_nothing(tmp_path):
    weights = []
    for curve in ("true", "false"):
        run.train(compose(CONF, [*SHORT, "model.dropout=0.5", f"eval_curve={curve}"]), tmp_path / curve)
        weights.append(load_file(tmp_path / curve / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_commit_says_whether_anything_was_changed_that_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "nin" / "provenance.py"))
    assert provenance.commit() == "unknown"
    for name in ("net.py", "runs.csv"):
        (tmp_path / name).write_text("before")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    clean = provenance.commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "runs.csv").write_text("a row more")  # of this very study
    assert provenance.commit() == clean
    (tmp_path / "net.py").write_text("after")
    assert provenance.commit() == f"{clean}+changes"
    (tmp_path / "net.py").write_text("before")
    (tmp_path / "notes.txt").write_text("on nothing that counts")
    assert provenance.commit() == clean
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text("new")
    assert provenance.commit() == f"{clean}+changes"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library than glibc gives the memory")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_kept(kept):
    code = f"""
import resource, torch
from nin.run import keep_freed_memory
if {kept}:
    keep_freed_memory()
for _ in range(8):  # the heap has to find its shape
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(30_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(said.stdout) < 100) == kept  # pages of a tensor of 120 MB that had to be mapped


def test_training_starts_from_a_checkpoint(ended, tmp_path):
    folder, _ = ended
    start = [*SHORT, "data.val=100", f"checkpoint={folder}", "recipe.lr=1e-9"]
    again = run.train(compose(CONF, start), tmp_path)
    weights = [load_file(f / "model.safetensors")["net.blocks.block1.conv1.weight"] for f in (folder, tmp_path)]
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)
    assert again["epochs"] == 2


def test_a_run_from_before_a_setting_existed_is_still_taken_up(ended, tmp_path):
    folder, summary = ended
    shutil.copytree(folder, tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["freeze"], config["trainer"]["gradient_clip_val"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    again = [*SHORT, "data.val=100", "eval_curve=true", "logger=tensorboard", "trainer=cpu", "resume=auto"]
    assert run.train(compose(CONF, again), tmp_path / "run") == summary
    with pytest.raises(ConfigError, match="checkpoint is None there and cifar10-gap here"):
        run.train(compose(CONF, [*again, "freeze=true", "checkpoint=cifar10-gap"]), tmp_path / "run")


def test_a_folder_holds_one_run(ended):
    folder, _ = ended
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with pytest.raises(ConfigError, match="holds a run already"):
        run.train(compose(CONF, SHORT), folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_settings_that_contradict_a_checkpoint_are_refused(ended, tmp_path):
    folder, _ = ended
    with pytest.raises(ConfigError, match=r"data.preprocessing=whiten: .* choose normalise"):
        run.train(compose(CONF, [*SHORT, f"checkpoint={folder}", "data.preprocessing=whiten"]), tmp_path)
    with pytest.raises(pretrained.CheckpointError, match="another one than these settings make"):
        run.train(compose(CONF, [*SHORT, f"checkpoint={folder}", "model.norm=none"]), tmp_path)


def test_memory_and_pace_of_a_whitened_run_on_cifar10(cifar10_root, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), f"hydra.run.dir={tmp_path}", "recipe=paper"]
    command += ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_test_batches=1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NIN_DATA": cifar10_root})
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["peak_memory_gb"] < 3


def test_a_net_that_dies_ends_with_exit_code_three(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *SHORT, "recipe.lr=1e30", "recipe.optimiser=sgd"]
    died = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert died.returncode == 3
    assert died.stderr.strip().splitlines()[-1].startswith("error: the loss is not a finite number")
    assert "Traceback" not in died.stderr
    with pytest.raises(DeadNetError):
        run.train(compose(CONF, [*SHORT, "recipe.lr=1e30", "recipe.optimiser=sgd"]), tmp_path / "again")


def test_the_estimate_is_printed_where_it_is_long(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "ESTIMATE_FROM", 0)
    run.train(compose(CONF, SHORT), tmp_path)
    assert re.search(r"training takes about \d+ (s|min) on this CPU", capsys.readouterr().out)


def test_the_readmes_plain_python(tmp_path):
    loading, code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    loaded = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "cifar10-gap" in loaded.stdout.splitlines()[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    assert "max_epochs=2" in code  # a minute on a slow core; one is enough here
    code = "import torch; torch.manual_seed(0)\n" + code.replace("max_epochs=2", "max_epochs=1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr
    error = float(re.search(r"'test/error': ([\d.]+)", done.stdout)[1])
    assert error < 15


@pytest.mark.gpu
def test_a_run_on_the_gpu(tmp_path):
    summary = run.train(compose(CONF, [*SHORT, "trainer=gpu"]), tmp_path)
    assert summary["precision"] == ("bf16-mixed" if computes_bfloat16("cuda") else "32-true")
    again = run.evaluate_checkpoint(compose(CONF, [f"checkpoint={tmp_path}", "trainer=gpu"]))[0]
    assert again == pytest.approx(summary["test_error"], abs=1e-3)


@pytest.mark.parametrize(
    ("accelerator", "cuda", "mps", "asked"),
    [
        ("auto", True, False, "cuda"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda", True, True, "cuda"),
        ("mps", False, True, "mps"),
    ],
)
def test_auto_precision_is_what_the_runs_device_can(monkeypatch, accelerator, cuda, mps, asked):
    config = compose(CONF, [])
    config.trainer.accelerator = accelerator
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    for can in (True, False):
        monkeypatch.setattr(run, "computes_bfloat16", lambda device, can=can: can if device == asked else not can)
        assert run.precision(config) == ("bf16-mixed" if can else "32-true")
    config.trainer.precision = "bf16-mixed"
    assert run.precision(config) == "bf16-mixed"


def test_a_gradient_is_scaled_down_to_the_norm_that_is_set(tmp_path):
    """A step of plain SGD at rate 1 is as long as its gradient."""
    one_step = [
        *SHORT,
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "recipe.optimiser=sgd",
        "recipe.lr=1",
    ]
    one_step += ["recipe.nesterov=false", "recipe.momentum=0", "recipe.weight_decay=0", "recipe.warmup=0"]
    one_step += ["recipe.bias_lr=1", "recipe.last_lr=1", "recipe.last_bias_lr=1", "recipe.schedule=step"]
    lengths = {}
    for clip in ("null", "0.01"):
        config = compose(CONF, [*one_step, f"trainer.gradient_clip_val={clip}"])
        run.train(config, tmp_path / clip)
        lightning.seed_everything(config.seed, verbose=False)
        start = config.build_net().parameters()
        ended = pretrained.load(tmp_path / clip).net.parameters()
        lengths[clip] = math.dist(*(torch.cat([p.detach().flatten() for p in net]).tolist() for net in (start, ended)))
    assert lengths["0.01"] == pytest.approx(0.01, rel=1e-3)
    assert lengths["null"] > 0.02
