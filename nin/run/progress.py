"""What a training prints as it goes: a bar with the time left, a line an epoch, an estimate where it is long."""

from __future__ import annotations

import sys
import time
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar
from tqdm import tqdm

from nin.data.module import Batches, Images
from nin.run.callbacks import ends_step

QUICK_EPOCHS = 8  # of conf/recipe/quick.yaml, which the estimate recommends
FORWARD = 1 / 3  # of the time of a training step: the backward pass computes twice as much as the forward pass


def in_words(seconds: float) -> str:
    """4000 ─► "67 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(trainer: L.Trainer, line: str) -> None:
    """Prints a line above the progress bar, where there is one; process 0 prints."""
    if trainer.is_global_zero and sys.stdout is not None:  # it is None where the terminal has closed it
        tqdm.write(line)
        sys.stdout.flush()


class EpochLines(Checkpoint):
    """Prints a line after each epoch: losses, errors and learning rate.

    It is a `Checkpoint` for the reason that `MetricsFile` is one.
    """

    STAGES: ClassVar = {"train": "training", "val": "held-out", "test_curve": "test"}

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        measured = trainer.callback_metrics
        parts = [
            f"{name} loss {measured[f'{stage}/loss']:.3f}, error {measured[f'{stage}/error']:.2f} %"
            for stage, name in self.STAGES.items()
            if f"{stage}/loss" in measured
        ]
        if "lr" in measured:
            parts.append(f"rate {measured['lr']:.3g}")
        say(trainer, f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {'; '.join(parts)}")


class RunProgress(TQDMProgressBar):
    """Lightning's bar with the time left until the run's end, evaluations included, and with the names of the evaluated
    images. Lightning's own shows the time left of an epoch, and "DataLoader 0". The numbers come before the bar, so
    that a narrow terminal cuts the bar.

    Args:
        evaluates: the images that a test evaluates.
    """

    BAR_FORMAT = "{desc}: {n_fmt}/{total_fmt}{postfix} |{bar}|"
    EVALUATION_FORMAT = "{desc}: {n_fmt}/{total_fmt}, {remaining} left |{bar}|"

    def __init__(self, evaluates: str = "test set") -> None:
        super().__init__(refresh_rate=1 if sys.stdout and sys.stdout.isatty() else 20)  # fewer lines in a log file
        self.evaluates = evaluates

    @property
    def test_description(self) -> str:
        return f"Evaluating the {self.evaluates}"

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.leave = False  # the line of the last epoch stays
        return bar

    def on_train_start(self, trainer: L.Trainer, *rest: Any) -> None:
        super().on_train_start(trainer, *rest)
        self.started = time.monotonic()
        self.after_epoch, self.at_end = evaluations_in_steps(trainer)
        self.done_before = self._done(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.train_progress_bar.set_description_str(epoch, refresh=False)
        self.train_progress_bar.reset(self.total_train_batches)

    def on_validation_batch_start(
        self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            stage = getattr(trainer.datamodule, "val_stages", ("val/",))[dataloader_idx]
            part = {"val/": "held-out images", "test_curve/": "test set"}[stage]
            self._begin(self.val_progress_bar, f"Evaluating the {part}", self.total_val_batches_current_dataloader)

    def on_test_batch_start(
        self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            self._begin(self.test_progress_bar, self.test_description, self.total_test_batches_current_dataloader)

    def get_metrics(self, trainer: L.Trainer, *rest: Any) -> dict[str, Any]:
        """The time left; losses and errors are in the epochs' lines."""
        done = self._done(trainer)
        if not trainer.training or done <= self.done_before:
            return {}
        pace = (time.monotonic() - self.started) / (done - self.done_before)
        total = trainer.estimated_stepping_batches + trainer.max_epochs * self.after_epoch + self.at_end
        return {"left": in_words(pace * (total - done))}

    def _done(self, trainer: L.Trainer) -> float:
        """Steps so far, with the evaluations after whole epochs."""
        return trainer.global_step + trainer.current_epoch * self.after_epoch

    def _begin(self, bar: Any, description: str, batches: int | float) -> None:
        """Begins a bar of an evaluation."""
        bar.bar_format = self.EVALUATION_FORMAT
        bar.set_description_str(description, refresh=False)
        bar.reset(batches)


def evaluations_in_steps(trainer: L.Trainer) -> tuple[float, float]:
    """The evaluations after each epoch and those after the last one, as numbers of training steps that take as long."""
    data, limit = trainer.datamodule, trainer.limit_val_batches
    if not isinstance(data, Images):
        return 0.0, 0.0

    images_of_step = data.batch_size * trainer.accumulate_grad_batches

    def steps(loader: Batches) -> float:
        batches = limit * len(loader) if isinstance(limit, float) else min(limit, len(loader))
        return FORWARD * batches / len(loader) * len(loader.labels) / images_of_step

    after_epoch = dict(zip(data.val_stages, map(steps, data.val_dataloader()), strict=True))
    at_end = steps(data.test_dataloader()) + steps(data.train_as_test_dataloader()) + after_epoch.get("val/", 0.0)
    return sum(after_epoch.values()), at_end


class Estimate(Callback):
    """Prints an estimate of how long a long training on a CPU takes, from the pace of its first steps.

    Args:
        least: an estimate is printed if training takes at least so many seconds.
    """

    FIRST, LAST = 2, 5  # steps of this process between which the pace is measured

    def __init__(self, least: float = 600) -> None:
        self.least = least

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.begun_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        done = trainer.global_step - self.begun_at
        if done == self.FIRST:
            self.clock = time.monotonic()
        if done != self.LAST or trainer.strategy.root_device.type != "cpu" or not trainer.is_global_zero:
            return
        pace = (time.monotonic() - self.clock) / (self.LAST - self.FIRST)
        steps = trainer.estimated_stepping_batches - trainer.global_step
        if pace * steps < self.least:
            return
        advice = ""
        if trainer.max_epochs > QUICK_EPOCHS and trainer.lightning_module.recipe.name != "quick":
            quick = pace * trainer.num_training_batches / trainer.accumulate_grad_batches * QUICK_EPOCHS
            advice = f"; recipe=quick takes about {in_words(quick)}"
        say(trainer, f"training takes about {in_words(pace * steps)} on this CPU{advice}")
