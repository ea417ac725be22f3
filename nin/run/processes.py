"""Several processes: one command launches them, they train one net, and they end together.

Each process takes its share of each batch (`nin.data.Batches`) and has the whole set in memory, unless a folder is
streamed. Gradients are averaged (DistributedDataParallel). Process 0 alone prints and writes. `launch` starts the
processes of one machine. torchrun and SLURM's srun launch the processes themselves, on several machines too, and
require hydra.run.dir=FOLDER; a torchrun whose processes fail ends with its own exit code and report.

On SLURM, Lightning puts a job that receives the announcement of its end (`--signal=SIGUSR1@90`) into the queue again.
The job resumes if its command has resume=auto and hydra.run.dir=FOLDER: from last.ckpt, after the last whole epoch.
Lightning's own hpc_ckpt_N.ckpt, of the middle of an epoch, is deleted instead.

Batch normalisation takes its moments over the whole batch on GPUs (SyncBatchNorm). On the CPU there is no
SyncBatchNorm: each process normalises its own share, and the running moments are those of process 0. Augmentation and
dropout draw other numbers in each process, so the number of processes changes a run that has any.

Neither torch nor Lightning is imported before it is needed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nin.checks import cores
from nin.errors import LeftAloneError, SettingError

if TYPE_CHECKING:
    import lightning as L

GRACE = 20  # seconds that the other processes have to end by themselves when one has failed
STARTER = "NIN_STARTER"  # environment variable: number of the process that started this one
DIGITS = 6  # the most digits of a number of processes
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # environment variables, in Lightning's order


def rank() -> int:
    """This process's number; process 0 prints and writes."""
    values = [os.environ[name] for name in RANKS if name in os.environ]
    return int(values[0]) if values and values[0].isdecimal() and len(values[0]) <= DIGITS else 0


def world_size() -> int:
    """Number of processes that `launch`, torchrun or srun has started for this run; 1 where none did.

    WORLD_SIZE alone starts nothing, nor does the number of tasks of a SLURM job: in its script, or in an interactive
    shell, only srun starts processes.
    """
    name = next((name for name in _SIZES if name in os.environ), None)
    value = os.environ[name] if name and _SIZES[name]() else "1"
    return int(value) if value.isdecimal() else 1


def _by_srun() -> bool:
    return "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


# variables with the number of processes, and whether a launcher has set them for this process
_SIZES = {"WORLD_SIZE": lambda: not {"RANK", "LOCAL_RANK"}.isdisjoint(os.environ), "SLURM_NTASKS": _by_srun}


def check_environment() -> None:
    """Raises SettingError if a launcher's environment variable is not a number.

    If no launcher started this process, removes variables that another program has set: a rank, with which this process
    would print and write nothing, and the tasks of a SLURM job, from which Lightning would expect other processes."""
    for name in (*RANKS, *_SIZES):
        value = os.environ.get(name, "0")
        if not value.isdecimal() or len(value) > DIGITS:
            raise SettingError(name, value, "expected a whole number below 1,000,000; unset this environment variable")
    if world_size() > 1:
        return
    for name in RANKS:
        if os.environ.get(name, "0") != "0":
            del os.environ[name]
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        os.environ["SLURM_NTASKS"] = "1"
        for name in ("SLURM_NTASKS_PER_NODE", "SLURM_NNODES"):
            os.environ.pop(name, None)


def is_orphaned() -> bool:
    """Whether the process that started this one has exited. If it was killed, it could not tell this one to end."""
    parent = str(os.getppid())
    return os.environ.get(STARTER, parent) != parent


def heeded() -> list[signal.Signals]:
    """Ctrl-C and SIGTERM, but those that are ignored, as Ctrl-C is in a job that a script runs in the background."""
    return [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]


def launch(processes: int, command: Sequence[str]) -> int:
    """Runs a command in several processes and returns its exit code: that of the first to fail, or 0.

    Ctrl-C and SIGTERM are passed on. If the process that started this one exits, the others get SIGTERM.
    Lightning's own launcher makes this process one of them and kills it when another ends: neither a sentence nor an
    exit code is left.
    """
    environment = _shared_environment(processes)
    running: list[subprocess.Popen] = []
    early: list[int] = []  # signals that arrived before all processes were running

    def pass_on(number: int, _: object) -> None:
        if len(running) < processes:
            early.append(number)
            return
        for process in running:
            process.send_signal(number)

    for number in heeded():
        signal.signal(number, pass_on)
    for i in range(processes):  # in sessions of their own: the terminal's Ctrl-C comes once, from here
        own = {**environment, "LOCAL_RANK": str(i)}
        running.append(subprocess.Popen(command, env=own, start_new_session=True))
    for number in early:
        pass_on(number, None)
    code = _wait_for(running)
    return 128 - code if code < 0 else code


def _shared_environment(processes: int) -> dict[str, str]:
    shared = {**os.environ, "WORLD_SIZE": str(processes), STARTER: str(os.getpid())}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    shared.pop("SLURM_NTASKS", None)  # with it Lightning believes that srun launched them
    shared.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each would warn where this machine's name has no address
    return shared


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(running: Sequence[subprocess.Popen]) -> int:
    """Waits until all have ended and returns the first exit code that is not 0, or 0. GRACE seconds after the first
    failure the others are killed."""
    code, deadline, has_terminated = 0, float("inf"), False
    while None in [process.poll() for process in running]:  # all are polled, which updates their exit codes
        if is_orphaned() and not has_terminated:
            has_terminated = True
            for process in running:
                process.send_signal(signal.SIGTERM)
        if not code and (code := _first_failure(running)):
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(0.1)
    return code or _first_failure(running)


def _first_failure(processes: Sequence[subprocess.Popen]) -> int:
    return next((process.returncode for process in processes if process.returncode), 0)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Ends this process, one of several, at the end of the block and with its exit code.

    Python frees its interpreter while threads of an unanswered connection still run. Such a thread ends in "terminate
    called without an active exception" or a segmentation fault (github.com/pytorch/pytorch/issues/190489).
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


def connect(trainer: L.Trainer) -> None:
    """Connects this process to the others; a single process has nothing to connect."""
    from lightning.pytorch.strategies import DDPStrategy

    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.setup_environment()


@contextmanager
def rank_zero_first(trainer: L.Trainer) -> Iterator[None]:
    """Process 0 runs the block first, so that what fails fails there."""
    if not trainer.is_global_zero:
        trainer.strategy.barrier()
    yield
    if trainer.is_global_zero:
        trainer.strategy.barrier()


@contextmanager
def ending_together() -> Iterator[None]:
    """Turns the error of a connection whose other end has exited into LeftAloneError."""
    try:
        yield
    except RuntimeError as error:
        if not is_left_alone(error):
            raise
        raise LeftAloneError("another process of this run has exited") from error


def is_left_alone(error: Exception) -> bool:
    """Whether this is the error of a connection whose other end has exited. gloo raises a plain RuntimeError."""
    import torch

    return isinstance(error, torch.distributed.DistError) or (type(error) is RuntimeError and "gloo" in str(error))
