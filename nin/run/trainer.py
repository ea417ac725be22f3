"""Lightning's Trainer for a run: what training and evaluation have in common."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from nin.checks import one_line
from nin.config import Config, TrainerConfig
from nin.errors import RunError
from nin.optim import computes_bfloat16
from nin.run.progress import RunProgress


def build_trainer(
    config: Config, precision: str, callbacks: Sequence[Callback] = (), *, evaluates: str = "test set", **arguments: Any
) -> L.Trainer:
    """Lightning's Trainer of these settings.

    Args:
        config: the settings.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        callbacks: besides the progress bar.
        evaluates: the images that a test evaluates, for the progress bar.
        arguments: of Lightning's Trainer.
    """
    trainer = config.trainer
    bars = [RunProgress(evaluates)] if trainer.progress_bar else []
    return L.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=trainer.strategy,
        sync_batchnorm=trainer.sync_batchnorm and trainer.processes > 1 and device_type(trainer) == "cuda",
        precision=precision,
        limit_test_batches=trainer.limit_test_batches,
        callbacks=[*callbacks, *bars],
        enable_progress_bar=trainer.progress_bar,
        enable_model_summary=False,
        deterministic=_deterministic(trainer),
        **arguments,
    )


def _deterministic(trainer: TrainerConfig) -> bool | None:
    """Lightning's argument; None leaves torch as it is. A CPU is deterministic here without it."""
    if not trainer.deterministic or device_type(trainer) != "cuda":
        return None
    torch.utils.deterministic.fill_uninitialized_memory = False  # a launch for each empty tensor, which none reads
    return True


def device_type(trainer: TrainerConfig) -> str:
    """The type of device that the Trainer of these settings takes on this machine: "cuda", "mps" or "cpu"."""
    if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if trainer.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def precision_of(trainer: TrainerConfig) -> str:
    """The precision of a run on this machine. trainer.precision=auto is bf16 where the hardware computes with it, fp16
    on a GPU without bf16, else fp32."""
    if trainer.precision != "auto":
        return trainer.precision
    device = device_type(trainer)
    if computes_bfloat16(device):
        return "bf16-mixed"
    return "16-mixed" if device == "cuda" else "32-true"


@contextmanager
def exact_fp32() -> Iterator[None]:
    """In the block NVIDIA's GPUs compute in full fp32. By torch's default their convolutions are in TF32, with 10 bits
    of mantissa."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turns a GPU's lack of memory in the block into RunError.

    Args:
        advice: what to do, the end of the sentence.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(f"{one_line(error).partition('. GPU')[0]}; {advice}") from error


def quiet() -> None:
    """Hides Lightning's advice to developers; errors and our own lines stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
