"""More than one process: one command starts them, they train one net, and they end together.

Every process has the whole set in memory and takes its share of each batch (`nin.data.Batches`), gradients are averaged
(DistributedDataParallel), process 0 alone prints and writes. All of them are on one machine. torchrun and SLURM's srun
start the processes themselves, and need hydra.run.dir=FOLDER; a torchrun whose processes fail ends with its own exit
code and report.

On SLURM a job that is announced its end (`--signal=SIGUSR1@90`) is put into the queue again by Lightning. It goes on
where it was if its command has resume=auto and hydra.run.dir=FOLDER: from last.ckpt, after the last whole epoch.
Lightning's own hpc_ckpt_N.ckpt, of the middle of an epoch, is not used and is removed.

Batch normalisation takes its moments over the whole batch on GPUs (SyncBatchNorm), so that a run is the same whatever
the number of processes. There is no such thing for the CPU: there each process normalises its own share, and the
running moments are process 0's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from nin.recovery import STARTER, LeftAloneError, orphaned

GRACE = 20  # seconds that the others have to end by themselves when one has failed


def rank() -> int:
    """This process's number; 0 writes and prints."""
    return rank_zero_only.rank


def started() -> int:
    """How many processes `start`, torchrun or srun has started for this run; 1 where none did."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)


def start(processes: int, command: Sequence[str]) -> int:
    """Runs a command in several processes and gives its exit code: that of the first to fail, 0 where none does.

    Ctrl-C and SIGTERM are passed on, and where the process that started this one is gone the others are told to end.
    Lightning's own launcher would make this process the first of them and kill it when another ends, so that neither
    sentence nor exit code were left.
    """
    shared = {**os.environ, "WORLD_SIZE": str(processes), STARTER: str(os.getpid())}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    shared.pop("SLURM_NTASKS", None)  # else Lightning takes srun for the one that started them
    shared.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each warns where this machine's name has no address
    running: list[subprocess.Popen] = []
    early: list[int] = []  # signals that came before all were running

    def pass_on(number: int, _: object) -> None:
        if len(running) < processes:
            early.append(number)
            return
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    for i in range(processes):  # in sessions of their own: the terminal's Ctrl-C comes once, from here
        environment = {**shared, "LOCAL_RANK": str(i)}
        running.append(subprocess.Popen(command, env=environment, start_new_session=True))
    for number in early:
        pass_on(number, None)
    code, deadline, told = 0, float("inf"), False
    while any(process.poll() is None for process in running):
        if orphaned() and not told:
            told = True
            pass_on(signal.SIGTERM, None)
        if not code and (code := next((p.returncode for p in running if p.returncode), 0)):
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(0.1)
    code = code or next((p.returncode for p in running if p.returncode), 0)
    return 128 - code if code < 0 else code


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Ends this process, one of several, with what is inside, and with its exit code.

    Python would first take down its interpreter, under the threads of a connection on which another process has left a
    call unanswered: they end in "terminate called without an active exception" or a segmentation fault
    (github.com/pytorch/pytorch/issues/190489).
    """
    code: int | str | None = 0
    try:
        yield
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        traceback.print_exc()
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    os._exit(code if isinstance(code, int) else code is not None)


def join(trainer: L.Trainer) -> None:
    """Connects this process to the others; without others there is nothing to do."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.setup_environment()


@contextmanager
def first(trainer: L.Trainer) -> Iterator[None]:
    """What is inside is done by process 0 first, so that what fails fails there."""
    if not trainer.is_global_zero:
        trainer.strategy.barrier()
    yield
    if trainer.is_global_zero:
        trainer.strategy.barrier()


@contextmanager
def ending_together() -> Iterator[None]:
    """Makes what a connection says when the process at its other end is gone into LeftAloneError."""
    try:
        yield
    except RuntimeError as error:
        if not left_alone(error):
            raise
        raise LeftAloneError("another process of this run has ended") from error


def left_alone(error: Exception) -> bool:
    """Whether this is what a connection says when the process at its other end is gone."""
    return isinstance(error, torch.distributed.DistError) or (type(error) is RuntimeError and "gloo" in str(error))
