import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import CONF, NARROW, ROOT
from lightning.pytorch.plugins.io import TorchCheckpointIO

from nin import run
from nin.command import compose
from nin.config import ConfigError
from nin.recovery import AtomicCheckpointIO, LeftAloneError, RunError
from nin.task import Classifier

SHORT = ["data=digits", NARROW, "trainer.max_epochs=60", "trainer.limit_train_batches=4", "trainer.progress_bar=false"]
SHORT += ["model.dropout=0.5", "data.batch_size=16", "eval_curve=true", "resume=auto"]


def start(folder: Path, overrides: list[str] = SHORT) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *overrides, f"hydra.run.dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent)


def results(folder: Path) -> tuple[bytes, bytes]:
    """What must not depend on interruptions. The header of the weights file holds times, so its tensors alone count."""
    weights = (folder / "model.safetensors").read_bytes()
    header = int.from_bytes(weights[:8], "little")
    return weights[8 + header :], (folder / "metrics.csv").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start(folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder


def written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


@pytest.mark.slow
def test_ten_kills_change_nothing(uninterrupted, tmp_path):
    folder, moments = tmp_path / "run", random.Random(7)
    first_epoch = 0.0  # seconds from the start of a process to its first checkpoint, as the last one took
    for kill in range(10):
        before, began = written(folder / "last.ckpt"), time.monotonic()
        process = start(folder)
        if kill % 2:  # while Python starts, the checkpoint is read or the first steps are made
            time.sleep(moments.uniform(0.1, 0.9) * first_epoch)
        else:  # after an epoch of its own, in the next or while that is written
            while written(folder / "last.ckpt") == before:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.01)
            first_epoch = time.monotonic() - began
            time.sleep(moments.uniform(0, 0.2))
        process.kill()
        said, _ = process.communicate()
        assert kill % 2 or kill == 0 or "resumed at epoch" in said
    assert not (folder / "model.safetensors").exists()  # ten kills of a run that had not ended
    process = start(folder)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resumed at epoch" in said
    assert results(folder) == results(uninterrupted)
    again = start(folder)
    said, _ = again.communicate()
    assert again.returncode == 0 and "holds this run, finished" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_its_code_and_a_way_to_go_on(uninterrupted, tmp_path, number, code):
    folder = tmp_path / "run"
    process = start(folder)
    while not (folder / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    told = time.monotonic()
    _, errors = process.communicate()
    assert time.monotonic() - told < 90  # 6 on a busy machine
    assert process.returncode == code
    assert (
        errors.strip().splitlines()[-1].startswith("error: stopped; the same command with resume=auto hydra.run.dir=")
    )
    assert "Traceback" not in errors
    process = start(folder)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resumed at epoch" in said
    assert results(folder) == results(uninterrupted)


def test_a_signal_during_the_last_evaluation_is_no_success(tmp_path):
    folder = tmp_path / "run"
    wide = [*SHORT, "model.blocks=cifar10", "trainer.max_epochs=1"]  # the evaluation takes a while
    run.train(compose(CONF, wide), folder)
    ended = results(folder)
    (folder / "model.safetensors").unlink()
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "test_error"}))
    process = start(folder, wide)
    assert process.stdout.readline().startswith("resumed at epoch 1, step 4")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143 and "stopped; the same command" in errors
    assert "test_error" not in json.loads((folder / "summary.json").read_text())
    process = start(folder, wide)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert results(folder) == ended


def test_another_configuration_is_refused_by_its_field(uninterrupted):
    settings = compose(CONF, [*SHORT, "recipe.lr=0.5"])
    with pytest.raises(ConfigError, match=r"another configuration: recipe\.lr is 0\.04 there and 0\.5 here"):
        run.train(settings, uninterrupted)
    with pytest.raises(ConfigError, match="holds a run already"):
        run.train(compose(CONF, SHORT[:-1]), uninterrupted)


def test_a_damaged_description_of_a_run_is_named(tmp_path):
    settings = compose(CONF, [*SHORT, "trainer.max_epochs=1"])
    run.train(settings, tmp_path / "run")
    for name in ("config.yaml", "summary.json"):
        good = (tmp_path / "run" / name).read_bytes()
        (tmp_path / "run" / name).write_bytes(good[: len(good) // 2])
        with pytest.raises(RunError, match="damaged"):
            run.train(settings, tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(good)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("content", ["pickle", "torch", "plain", "tensor", "cut", "empty", "text"])
def test_a_bad_checkpoint_is_refused_and_runs_nothing(tmp_path, content):
    folder, marker = tmp_path / "run", tmp_path / "marker"
    settings = compose(CONF, [*SHORT, "trainer.max_epochs=1"])
    run.train(settings, folder)
    (folder / "model.safetensors").unlink()
    file = folder / "last.ckpt"
    good = file.read_bytes()
    if content == "torch":
        torch.save({"epoch": 0, "global_step": 1, "state_dict": Payload(str(marker))}, file)
    elif content == "plain":
        torch.save({"epoch": 0, "global_step": 3}, file)
    elif content == "tensor":
        torch.save(torch.zeros(3), file)
    else:
        bad = {"pickle": pickle.dumps(Payload(str(marker))), "cut": good[: len(good) // 2], "empty": b"", "text": b"hi"}
        file.write_bytes(bad[content])
    with pytest.raises(RunError, match=r"last\.ckpt is damaged or not a checkpoint of a run"):
        run.train(settings, folder)
    assert not marker.exists()
    file.write_bytes(good)
    run.train(settings, folder)


def test_what_befalls_a_resumed_run_before_its_first_step_is_not_its_checkpoints_fault(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    settings = compose(CONF, [*SHORT, "trainer.max_epochs=1"])
    run.train(settings, folder)
    (folder / "model.safetensors").unlink()
    for befalls, told in (
        (torch.distributed.DistNetworkError("closed"), LeftAloneError),
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"), LeftAloneError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
    ):

        def fit_start(self, befalls=befalls):
            raise befalls

        monkeypatch.setattr(Classifier, "on_fit_start", fit_start)
        with pytest.raises(told):
            run.train(settings, folder)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, file)

    def full(self, checkpoint, path, storage_options=None):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", full)
    with pytest.raises(RunError, match=r"cannot be written .*No space left.* the one before is as it was"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, file)
    assert torch.load(file, weights_only=True) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]
