"""Ctrl-C, SIGTERM and a parent that has exited end a run within a step, as one sentence and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import Callback

from nin.errors import InterruptedRunError
from nin.run.processes import heeded, is_orphaned

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
    before = {number: signal.signal(number, stop) for number in heeded()}
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
