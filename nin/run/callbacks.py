"""What accompanies a training: progress, metrics.csv, checkpoints, signals, and the watch for dead nets.

A run may be interrupted at any moment and resumes as if nothing had happened. Order, augmentation and dropout are
functions of seed and epoch, so the checkpoint of the last whole epoch is enough; it holds the rows of metrics.csv too.
At most one epoch is repeated. Each file is replaced as a whole or not at all.
"""

from __future__ import annotations

import csv
import io
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from nin import files
from nin.checks import is_number, is_real
from nin.data.module import Batches, Images
from nin.errors import DeadNetError, InterruptedRunError
from nin.run.processes import is_orphaned

QUICK_EPOCHS = 8  # of conf/recipe/quick.yaml, which the estimate recommends
FORWARD = 1 / 3  # of the time of a training step: the backward pass computes twice as much as the forward pass

# hooks of each step, which Lightning calls for every callback, whether it has them or not
STEP_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward")
STEP_HOOKS += ("on_after_backward", "on_before_optimizer_step")


def drop_empty_hooks(callbacks: Sequence[Callback]) -> None:
    """Makes Lightning skip the hooks of a step that a callback does not override. Each call of an empty hook enters
    Lightning's profiler; with seven callbacks that is a quarter of a millisecond a step."""
    for callback in callbacks:
        for hook in STEP_HOOKS:
            if hook not in vars(callback) and getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning calls callable hooks only


# progress -------------------------------------------------------------------------------------------------------------


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


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the optimiser makes a step after this batch; with accumulated gradients it does so every few batches."""
    batches = batch_idx + 1
    return batches % trainer.accumulate_grad_batches == 0 or batches == trainer.num_training_batches


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

    def steps(loader: Batches) -> float:
        batches = limit * len(loader) if isinstance(limit, float) else min(limit, len(loader))
        return FORWARD * batches / len(loader) * len(loader.labels) / data.batch_size

    after_epoch = dict(zip(data.val_stages, map(steps, data.val_dataloader()), strict=True))
    at_end = steps(data.test_dataloader()) + steps(data.train_as_test_dataloader()) + after_epoch.get("val/", 0.0)
    return sum(after_epoch.values()), at_end


class Estimate(Callback):
    """Prints how long training takes, where it is long and on the CPU: from the pace of its first steps, so that
    nothing is computed for it.

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


class Stopwatch(Callback):
    """Seconds of training: all of them, and those spent on evaluations after an epoch."""

    seconds = evaluating = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.started = time.monotonic() - self.seconds

    def on_validation_start(self, *_: Any) -> None:
        self.paused = time.monotonic()

    def on_validation_end(self, *_: Any) -> None:
        self.evaluating += time.monotonic() - self.paused

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds = time.monotonic() - self.started

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "evaluating": self.evaluating}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        if not all(is_number(state_dict[name]) for name in ("seconds", "evaluating")):
            raise ValueError("seconds, evaluating: expected numbers")
        self.seconds, self.evaluating = state_dict["seconds"], state_dict["evaluating"]


# files ----------------------------------------------------------------------------------------------------------------


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
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        files.write(self.file, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows = state_dict["rows"]
        is_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        if not is_rows or not all(isinstance(name, str) and is_real(row[name]) for row in rows for name in row):
            raise ValueError("rows: expected the rows of metrics.csv")
        self.rows = list(rows)


# averaged weights -----------------------------------------------------------------------------------------------------


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


# dead nets ------------------------------------------------------------------------------------------------------------


class DeadNetWatch(Callback):
    """Ends the training of a net that cannot learn any more, as DeadNetError.

    A net has died when its loss is not finite, or when it has collapsed: the mean loss of the last 100 steps is within
    0.01 of ln K, and the scores have lost their spread over images. Either sign alone proves nothing: a slow net has
    the loss of chance too, and a spread that was small from the start has not been lost. All processes compare the
    same numbers, so they end together.
    """

    EVERY = 50  # steps between two checks; each check waits for the device
    WINDOW = 100  # losses that a check reads
    COLLAPSE_FROM = 300  # steps before which a loss near ln K is normal; a run that is shorter has WINDOW instead
    NEAR_CHANCE = 0.01  # distance from ln K
    NO_SPREAD = 1e-4  # standard deviation of the scores over images

    def __init__(self) -> None:
        self.losses = torch.zeros(self.WINDOW)
        self.first_spread = math.inf

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == batch_idx == 0:
            self.first_spread = spread(trainer, task, batch[0])

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        step, last = trainer.global_step, trainer.estimated_stepping_batches
        loss = outputs["cross_entropy"]
        self.losses = self.losses.to(loss.device)
        self.losses[(step - 1) % self.WINDOW] = loss
        if step % self.EVERY and step != last:
            return
        recent = self._recent(trainer)
        chance = math.log(task.net.num_classes)
        watched_from = self.WINDOW if last < self.COLLAPSE_FROM else self.COLLAPSE_FROM
        if step < watched_from or abs(recent.mean().item() - chance) > self.NEAR_CHANCE:
            return
        now = spread(trainer, task, batch[0])
        if now < self.NO_SPREAD and now <= 0.1 * self.first_spread:  # it was larger at the start: not a slow net
            raise DeadNetError(
                f"the net has collapsed by step {step}: the mean loss of the last {self.WINDOW} steps is ln "
                f"{task.net.num_classes} = {chance:.4f}, and its scores no longer depend on the image; choose "
                f"{remedies(task)}"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._recent(trainer)  # before the checkpoint of this epoch is saved

    def _recent(self, trainer: L.Trainer) -> Tensor:
        """The mean over processes of the last losses. Raises DeadNetError where one is not finite."""
        step, recipe = trainer.global_step, trainer.lightning_module.recipe
        first = max(step - self.WINDOW, 0) + 1
        recent = trainer.strategy.reduce(self.losses[: min(step, self.WINDOW)].clone())
        if not recent.isfinite().all():
            raise DeadNetError(
                f"the loss is not finite any more (steps {first} to {step}): training has diverged; lower recipe.lr "
                f"(now {recipe.lr:g}) or lengthen recipe.warmup (now {recipe.warmup:g} epochs)"
            )
        return recent

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses.cpu(), "first_spread": self.first_spread}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        losses, first_spread = state_dict["losses"], state_dict["first_spread"]
        if not isinstance(losses, Tensor) or losses.shape != (self.WINDOW,) or not is_real(first_spread):
            raise ValueError(f"losses, first_spread: expected {self.WINDOW} losses and a number")
        self.losses, self.first_spread = losses.float(), first_spread


def remedies(task: L.LightningModule) -> str:
    """Settings that may keep a net from collapsing, for people: "another seed, … or model.norm=batch". Those that the
    net already has are left out."""
    recipe, plan = task.recipe, getattr(task.net, "plan", None)  # other nets than NIN have no plan
    choices = ["another seed", f"a longer recipe.warmup (now {recipe.warmup:g} epochs)"]
    choices.append(f"a lower recipe.lr (now {recipe.lr:g})")
    choices += ["model.init=kaiming"] if plan is not None and plan.init != "kaiming" else []
    choices += ["model.norm=batch"] if plan is not None and plan.norm != "batch" else []
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


@torch.no_grad()
def spread(trainer: L.Trainer, task: L.LightningModule, images: Tensor) -> float:
    """How much the logits depend on the image: their standard deviation over these images and an all-zero one, for the
    class where it is largest; the mean over processes. In eval mode, because dropout's noise would count as spread."""
    task.eval()
    with trainer.precision_plugin.forward_context():
        logits = task.net(torch.cat([images, torch.zeros_like(images[:1])])).float()
    task.train()
    return trainer.strategy.reduce(logits.std(dim=0).max()).item()


# signals --------------------------------------------------------------------------------------------------------------

_received: list[int] = []  # signals, since `stoppable` began


class HeedSignals(Callback):
    """Stops before the next batch if a signal arrived whose exception was lost, as Python loses exceptions in
    destructors, or if the process that started this one has exited.

    It also restores `stoppable`'s handler of SIGTERM. Lightning's handler communicates with the other processes in the
    middle of their work, which can deadlock. Lightning's handler of SIGUSR1 stays: SLURM
    announces the end of a job with it, and the handler puts the job into the queue again.
    """

    def setup(self, *_: Any, **__: Any) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self.handler)

    def on_test_start(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self.handler)

    def on_train_batch_start(self, *_: Any) -> None:
        self._heed()

    def on_validation_batch_start(self, *_: Any) -> None:
        self._heed()

    def on_test_batch_start(self, *_: Any) -> None:
        self._heed()

    def _heed(self) -> None:
        if is_orphaned():
            _received.append(signal.SIGTERM)
        if _received:
            raise KeyboardInterrupt


@contextmanager
def stoppable(how_to_resume: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block within a step, as InterruptedRunError. Lightning's own handlers would leave a
    traceback, or exit code 0.

    Whatever the block raises after a signal counts as the signal's doing: Lightning turns KeyboardInterrupt into
    SystemExit, and C++ that calls Python turns it into RuntimeError.

    Args:
        how_to_resume: end of the sentence "stopped; …".
    """

    def stop(number: int, _: Any) -> None:
        _received.append(number)
        raise KeyboardInterrupt

    def hook_unless_stopped(lost: Any) -> None:  # an exception in a destructor; HeedSignals ends the run
        if not (_received and issubclass(lost.exc_type, KeyboardInterrupt)):
            python_hook(lost)

    _received.clear()
    python_hook, sys.unraisablehook = sys.unraisablehook, hook_unless_stopped
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (KeyboardInterrupt, SystemExit, Exception) as error:
        if not _received:
            raise
        raise InterruptedRunError(f"stopped; {how_to_resume}", 128 + _received[0]) from error
    finally:
        sys.unraisablehook = python_hook
        for number, handler in before.items():
            signal.signal(number, handler)
