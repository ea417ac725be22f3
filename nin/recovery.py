"""What lets a run be interrupted at any moment and go on as if nothing had happened.

An epoch's start is all that has to be remembered: order, augmentation and dropout are functions of seed and epoch. So
the checkpoint of the last whole epoch, which holds the rows of metrics.csv too, is enough, and at most one epoch is
done again. It is replaced as a whole or not at all.
"""

from __future__ import annotations

import csv
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO


class RunError(RuntimeError):
    """A run that cannot begin, go on or be written; the message says why."""


class LeftAloneError(RunError):
    """A process whose run's other processes have ended."""


class InterruptedRunError(RuntimeError):
    """A run that was told to stop; `exit_code` is 130 after Ctrl-C and 143 after SIGTERM."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def replace(file: Path, content: str | Callable[[Path], None]) -> None:
    """Writes a file as a whole or not at all; `content` is its text, or what writes it to a given path.

    Raises:
        RunError: it cannot be written, on a full disk say; the file is as it was.
    """
    part = file.with_name("part." + file.name)
    try:
        if isinstance(content, str):
            part.write_text(content)
        else:
            content(part)
        os.replace(part, file)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise RunError(f"{file} cannot be written ({error}); what was there before is as it was") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and then moves: a kill or a full disk leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        part = f"{path}.part"
        try:
            super().save_checkpoint(checkpoint, part, storage_options)
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                Path(part).unlink(missing_ok=True)
            raise RunError(f"the checkpoint {path} cannot be written ({error}); the one before is as it was") from error


class MetricsFile(Checkpoint):
    """Writes metrics.csv, one row an epoch, and keeps the rows in the checkpoint; process 0 does.

    A `Checkpoint` because Lightning calls those after the task has logged, in the order given: before the one that
    saves.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        measured = {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **measured})
        if not trainer.is_global_zero:
            return
        text = io.StringIO()
        names = dict.fromkeys(name for row in self.rows for name in row)
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        replace(self.file, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


STARTER = "NIN_STARTER"  # environment variable: the process that started this one as one of several
_received: list[int] = []  # signals, since `stoppable` began


def orphaned() -> bool:
    """Whether the process that started this one as one of several is gone; killed, it could not tell."""
    parent = str(os.getppid())
    return os.environ.get(STARTER, parent) != parent


class HeedSignals(Callback):
    """Stops before the next batch where a signal's exception was lost, as Python loses those raised in a destructor, or
    where the process that started this one is gone.

    Puts `stoppable`'s handler of SIGTERM back, too: Lightning's talks to the other processes in the middle of whatever
    they are doing, and they wait for each other for ever. Its handler of SIGUSR1, with which SLURM announces that it
    will take the machine away, stays: it puts the job into the queue again.
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
        if orphaned():
            _received.append(signal.SIGTERM)
        if _received:
            raise KeyboardInterrupt


@contextmanager
def stoppable(how_to_go_on: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end what runs inside within a step, as InterruptedRunError."""

    def stop(number: int, _: Any) -> None:
        _received.append(number)
        raise KeyboardInterrupt

    _received.clear()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (KeyboardInterrupt, SystemExit, LeftAloneError) as error:  # Lightning makes the first into the second
        if not _received:
            raise
        raise InterruptedRunError(f"stopped; {how_to_go_on}", 128 + _received[0]) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
