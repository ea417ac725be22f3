import pytest
import torch

from nin.config import Config
from nin.run import trainer
from nin.run.trainer import build_trainer, precision


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
    config = Config()
    config.trainer.accelerator = accelerator
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    for can in (True, False):
        monkeypatch.setattr(trainer, "computes_bfloat16", lambda device, can=can: can if device == asked else not can)
        assert precision(config) == ("bf16-mixed" if can else "32-true")
    config.trainer.precision = "bf16-mixed"
    assert precision(config) == "bf16-mixed"


def test_the_trainer_is_that_of_the_settings():
    config = Config()
    config.trainer.accelerator, config.trainer.limit_test_batches, config.trainer.progress_bar = "cpu", 3, False
    built = build_trainer(config, "32-true", logger=False, enable_checkpointing=False)
    assert (built.precision, built.limit_test_batches, built.progress_bar_callback) == ("32-true", 3, None)
    config.trainer.progress_bar = True
    built = build_trainer(config, "32-true", evaluates="test set", logger=False, enable_checkpointing=False)
    assert built.progress_bar_callback.evaluates == "test set"
