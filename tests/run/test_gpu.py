"""Runs on a GPU: training, evaluation, resumption, the precisions. Capture is in test_capture.py."""

import pytest

from nin import pretrained
from nin.cli import compose
from nin.errors import InterruptedRunError
from nin.optim import computes_bfloat16
from nin.run.callbacks import MetricsFile
from nin.run.evaluate import evaluate_pretrained
from nin.run.train import train
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
