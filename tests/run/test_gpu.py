"""Runs on a GPU: training, evaluation, resumption, precisions, a folder. Capture is in test_capture.py."""

import pytest
import torch

from builders import NARROW
from nin import pretrained
from nin.cli import compose
from nin.data import Images
from nin.errors import InterruptedRunError
from nin.optim import computes_bfloat16
from nin.run.callbacks import MetricsFile
from nin.run.evaluate import evaluate_pretrained
from nin.run.train import train
from photographs import make_folder
from runs import SHORT, results

pytestmark = pytest.mark.gpu
ON_GPU = [*SHORT, "trainer.accelerator=gpu"]


@pytest.mark.parametrize("precision", ["auto", "32-true", "16-mixed"])
def test_a_run_is_evaluated_alike_on_the_gpu_and_on_the_cpu(precision, tmp_path):
    kept = train(compose([*ON_GPU, f"trainer.precision={precision}"]), tmp_path)
    auto = "bf16-mixed" if computes_bfloat16("cuda") else "16-mixed"
    assert kept.precision == (auto if precision == "auto" else precision)
    assert 0 < kept.device_memory_gb < 80
    for accelerator in ("gpu", "cpu"):
        again = evaluate_pretrained(pretrained.load(tmp_path), compose([*SHORT, f"trainer.accelerator={accelerator}"]))
        assert again.error == pytest.approx(kept.test_error, abs=0.3)  # of 360 images: one


@pytest.mark.parametrize("capture", ["false", "true"])
def test_a_deterministic_run_resumes_to_the_last_bit(capture, tmp_path, monkeypatch):
    run = [*ON_GPU, "trainer.deterministic=true", f"trainer.compile={capture}", "resume=auto", "model.dropout=0.5"]
    train(compose(run), tmp_path / "whole")
    write = MetricsFile.on_train_epoch_end

    def stop(callback, trainer, task):
        write(callback, trainer, task)
        if trainer.current_epoch == 1:
            raise InterruptedRunError("stopped", 130)

    monkeypatch.setattr(MetricsFile, "on_train_epoch_end", stop)
    with pytest.raises(InterruptedRunError):
        train(compose(run), tmp_path / "halves")
    monkeypatch.undo()
    train(compose(run), tmp_path / "halves")
    assert results(tmp_path / "whole") == results(tmp_path / "halves")


def test_a_run_learns(tmp_path):
    kept = train(compose([*ON_GPU, "trainer.limit_train_batches=null"]), tmp_path)
    assert kept.test_error < 60


FOLDER = ["data=folder", "data.batch_size=8", "trainer.max_epochs=3", "trainer.progress_bar=false", "recipe.warmup=0"]
FOLDER += ["trainer.accelerator=gpu", "trainer.deterministic=true"]


@pytest.mark.filterwarnings("ignore:under 10 pictures")
def test_a_run_is_the_same_wherever_its_pictures_are(tmp_path, monkeypatch):
    """On the GPU, in the machine's memory, on the disk; several batches are made at once."""
    own = [*FOLDER, f"data.root={make_folder(tmp_path / 'photos', (23, 22, 21))}", "data.size=16", NARROW]
    train(compose(own), tmp_path / "gpu")
    train(compose([*own, "data.memory=1e-6", "data.workers=1"]), tmp_path / "disk")
    monkeypatch.setattr(Images, "_room", lambda data, device: 0)
    train(compose(own), tmp_path / "memory")
    assert results(tmp_path / "gpu") == results(tmp_path / "disk") == results(tmp_path / "memory")


@pytest.mark.filterwarnings("ignore:under 10 pictures")
def test_frozen_features_are_the_same_kept_or_computed_anew(tmp_path, monkeypatch):
    own = [*FOLDER, f"data.root={make_folder(tmp_path / 'photos')}", "data.size=32", "model=squeezenet1_1"]
    own += ["model.weights=none", "data.pad=0", "data.flip=false", "recipe.optimiser=sgd", "recipe.lr=0.001"]
    train(compose([*own, "head=gap_article", "trainer.max_epochs=1"]), tmp_path / "first")
    then = [*own, "head=fc_article", f"checkpoint={tmp_path / 'first'}", "freeze=true"]
    train(compose(then), tmp_path / "kept")
    monkeypatch.setattr(Images, "_room", lambda data, device: 0)
    train(compose(then), tmp_path / "anew")
    kept, anew = (pretrained.load(tmp_path / name).net.state_dict() for name in ("kept", "anew"))
    for name, value in kept.items():
        torch.testing.assert_close(anew[name], value, atol=1e-4, rtol=1e-4)
