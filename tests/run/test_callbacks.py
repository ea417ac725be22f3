import resource
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nin.errors import RunError
from nin.run import machine
from nin.run.callbacks import MetricsFile, Stopwatch
from nin.run.checkpoint import AtomicCheckpointIO


@contextmanager
def room_for(size: int):
    """Files cannot grow beyond `size` bytes: the system itself refuses, whatever library writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_metrics(file: Path, n: int) -> None:
    callback = MetricsFile(file)
    callback.load_state_dict({"rows": [{"epoch": n, "train/loss": 0.5}] * 900})
    callback.write()


@pytest.mark.parametrize(
    "save",
    [lambda file, n: AtomicCheckpointIO().save_checkpoint({"n": n, "x": torch.zeros(9000)}, file), save_metrics],
    ids=["last.ckpt", "metrics.csv"],
)
def test_a_full_disk_leaves_the_file_before(tmp_path, save):
    file = tmp_path / "file"
    save(file, 1)
    before = file.read_bytes()
    with room_for(4000), pytest.raises(RunError, match=r"cannot be written \(.*\); the file before is as it was"):
        save(file, 2)
    assert [each.name for each in tmp_path.iterdir()] == ["file"] and file.read_bytes() == before
    save(file, 2)
    assert file.read_bytes() != before


def test_steps_are_written_as_they_are(tmp_path):
    """Svhn has 1.2 million in the paper's regime."""
    callback = MetricsFile(tmp_path / "metrics.csv")
    callback.load_state_dict({"rows": [{"epoch": 259, "step": 1_227_564, "train/loss": 0.123456789}]})
    callback.write()
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,train/loss\n259,1227564,0.123457\n"


def test_a_checkpoint_is_written_beside_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nonexistent")  # where Lightning's own would write
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["epoch"] == 1


def test_the_stopwatch_waits_for_a_gpu(monkeypatch):
    """Steps and evaluations take their time on the GPU; its host goes on at once."""
    clock = SimpleNamespace(seconds=5.0, queued=0.0)

    def wait(device):
        clock.seconds, clock.queued = clock.seconds + clock.queued, 0.0

    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    trainer, stopwatch = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0))), Stopwatch()
    stopwatch.on_train_start(trainer, None)
    for _ in range(2):
        clock.queued += 10  # steps
        stopwatch.on_validation_start(trainer, None)
        clock.queued += 3
        stopwatch.on_validation_end(trainer, None)
        clock.queued += 1
        stopwatch.on_train_epoch_end(trainer, None)
    assert (stopwatch.seconds, stopwatch.evaluating) == (28, 6)
