"""Callbacks of a training: metrics.csv, averaged weights, a stopwatch.

A run may be interrupted at any moment and resumes as if nothing had happened. Order, augmentation and dropout are
functions of seed and epoch, so the checkpoint of the last whole epoch is enough; it holds the rows of metrics.csv too.
At most one epoch is repeated. Each file is replaced as a whole or not at all.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nin import files
from nin.checks import is_number, is_real
from nin.run.machine import now

# hooks of each step, which Lightning calls for every callback, whether it has them or not
STEP_HOOKS: tuple[str, ...] = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


def drop_empty_hooks(callbacks: Sequence[Callback]) -> None:
    """Makes Lightning skip the hooks of a step that a callback does not override. Each call of an empty hook enters
    Lightning's profiler; with seven callbacks that is a quarter of a millisecond a step."""
    for callback in callbacks:
        for hook in STEP_HOOKS:
            if hook not in vars(callback) and getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning calls callable hooks only


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the optimiser makes a step after this batch; with accumulated gradients it does so every few batches."""
    batches = batch_idx + 1
    return batches % trainer.accumulate_grad_batches == 0 or batches == trainer.num_training_batches


class Stopwatch(Callback):
    """Seconds of training: all of them, and those spent on evaluations after an epoch. Each reading waits for the
    device: a GPU's host is many steps ahead, and those steps would count as the evaluation's."""

    seconds = evaluating = 0.0

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.started = now(trainer.strategy.root_device) - self.seconds

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.paused = now(trainer.strategy.root_device)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.evaluating += now(trainer.strategy.root_device) - self.paused

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds = now(trainer.strategy.root_device) - self.started

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "evaluating": self.evaluating}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        if not all(is_number(state_dict[name]) for name in ("seconds", "evaluating")):
            raise ValueError("seconds, evaluating: expected numbers")
        self.seconds, self.evaluating = state_dict["seconds"], state_dict["evaluating"]


class MetricsFile(Checkpoint):
    """Writes metrics.csv, one row an epoch, and keeps the rows in the checkpoint; process 0 writes. Lightning's
    CSVLogger appends to its file, and a resumed run would repeat rows there.

    It is a `Checkpoint` because Lightning calls those after the task has logged, in the order given: before the one
    that saves.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        measured = {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **measured})
        if trainer.is_global_zero:
            self.write()

    def write(self) -> None:
        """Writes the rows so far. Raises RunError where the file cannot be written."""
        text = io.StringIO()
        names = dict.fromkeys(name for row in self.rows for name in row)
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            whole = {name: value for name, value in row.items() if isinstance(value, int)}
            writer.writerow({name: f"{value:.6g}" for name, value in row.items()} | whole)
        files.write(self.file, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows = state_dict["rows"]
        is_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        if not is_rows or not all(isinstance(name, str) and is_real(row[name]) for row in rows for name in row):
            raise ValueError("rows: expected the rows of metrics.csv")
        self.rows = list(rows)


class MovingAverage(WeightAveraging):
    """An exponential moving average of the weights, which is evaluated, and is the trained net.

    Lightning's leaves the average on the CPU, as it makes it before the task is moved; asks the device at every step
    whether it is the first one; and leaves the weights that were not averaged in a run that resumes after its last
    epoch.

    Args:
        decay: per step, of the average.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.blend = get_ema_multi_avg_fn(decay)

    def setup(self, trainer: L.Trainer, task: L.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, task, stage)

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._latest_update_step == 0:
            super().on_train_batch_end(trainer, task, outputs, batch, batch_idx)  # copies the weights
        elif trainer.global_step > self._latest_update_step:
            averages, weights = (
                [value.detach() for value in [*net.parameters(), *net.buffers()] if value.is_floating_point()]
                for net in (self._average_model.module, task)
            )
            self.blend(averages, weights, self._average_model.n_averaged)
            self._latest_update_step = trainer.global_step

    def on_fit_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._copy_average_to_current(task)
