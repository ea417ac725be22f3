"""Lightning's Trainer for a run: as far as training and evaluation share it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from nin.config import Config
from nin.optim import computes_bfloat16
from nin.run.callbacks import RunProgress


def build_trainer(
    config: Config, precision: str, callbacks: Sequence[Callback] = (), *, evaluates: str = "test set", **arguments: Any
) -> L.Trainer:
    """Lightning's Trainer of these settings.

    Args:
        config: the settings.
        precision: "32-true" or "bf16-mixed".
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
        sync_batchnorm=trainer.processes > 1 and trainer.accelerator != "cpu" and torch.cuda.is_available(),
        precision=precision,
        limit_test_batches=trainer.limit_test_batches,
        callbacks=[*callbacks, *bars],
        enable_progress_bar=trainer.progress_bar,
        enable_model_summary=False,
        **arguments,
    )


def precision(config: Config) -> str:
    """The precision that trainer.precision=auto selects here: bf16 where the hardware computes with it, else fp32."""
    if config.trainer.precision != "auto":
        return config.trainer.precision
    accelerator, device = config.trainer.accelerator, "cpu"
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        device = "cuda"
    elif accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        device = "mps"
    return "bf16-mixed" if computes_bfloat16(device) else "32-true"


def quiet() -> None:
    """Hides Lightning's advice to developers; errors and our own lines stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
