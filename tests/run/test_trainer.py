import pytest
import torch

from nin.config import Config
from nin.run import trainer
from nin.run.trainer import build_trainer, exact_fp32, precision_of


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
        assert precision_of(config.trainer) == ("bf16-mixed" if can else "16-mixed" if asked == "cuda" else "32-true")
    config.trainer.precision = "bf16-mixed"
    assert precision_of(config.trainer) == "bf16-mixed"


def test_fp32_is_exact_in_an_evaluation_alone():
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = True
    with pytest.raises(KeyError), exact_fp32():
        assert not any(flag.allow_tf32 for flag in flags)
        raise KeyError
    assert all(flag.allow_tf32 for flag in flags)
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


def test_bit_for_bit_is_asked_of_a_gpu_alone(monkeypatch):
    config = Config()
    config.trainer.deterministic = True
    assert trainer._deterministic(config.trainer) is None  # a CPU is, and torch would refuse more there
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    assert trainer._deterministic(config.trainer) is True
    assert not torch.utils.deterministic.fill_uninitialized_memory
    config.trainer.deterministic = False
    assert trainer._deterministic(config.trainer) is None


def test_the_trainer_is_that_of_the_settings():
    config = Config()
    config.trainer.accelerator, config.trainer.limit_test_batches, config.trainer.progress_bar = "cpu", 3, False
    built = build_trainer(config, "32-true", logger=False, enable_checkpointing=False)
    assert (built.precision, built.limit_test_batches, built.progress_bar_callback) == ("32-true", 3, None)
    config.trainer.progress_bar = True
    built = build_trainer(config, "32-true", evaluates="test set", logger=False, enable_checkpointing=False)
    assert built.progress_bar_callback.evaluates == "test set"
