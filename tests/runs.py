"""Short runs for tests, in this process and in others that need no new start of Python."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from builders import NARROW, ROOT

SHORT = ["data=digits", NARROW, "trainer.max_epochs=2", "trainer.limit_train_batches=6", "trainer.progress_bar=false"]
SHORT += ["trainer.accelerator=cpu"]

# Each process is a copy of one that has imported everything, torch and Lightning included.
forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["nin.cli", "nin.run.train", "matplotlib.figure", "sklearn.datasets"])


class Command:
    """A script of the project as a process of its own, with its own environment and folder.

    Args:
        arguments: the script's name and its arguments.
        folder: where it runs; what it prints goes to files beside it.
        environment: variables that differ from this process's.
    """

    def __init__(self, arguments: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        number = len(list(folder.glob("out.*")))
        self.files = folder / f"out.{number}", folder / f"err.{number}"
        for file in self.files:
            file.touch()
        self.begun = folder / f"begun.{number}"  # is there once the script runs
        variables = {**os.environ, **(environment or {})}
        words = [str(argument) for argument in arguments]
        self.process = forked.Process(target=run_script, args=(words, folder, self.files, self.begun, variables))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.is_alive()

    def kill(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def wait(self) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        self.process.join()
        return self.process.exitcode, *(file.read_text() for file in self.files)


def run_script(
    arguments: list[str], folder: Path, files: Sequence[Path], begun: Path, variables: Mapping[str, str]
) -> None:
    """Runs a script as if it had been started from a shell."""
    import torch

    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(int(variables.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    if "TEST_LARGEST_FILE" in variables:  # bytes: the system itself refuses more, whatever library writes
        import resource

        limit = int(variables["TEST_LARGEST_FILE"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os.chdir(folder)
    for stream, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    if "TEST_OUTPUT" in variables:
        leave(variables["TEST_OUTPUT"])
    streams = [os.fdopen(stream, "w", buffering=1) if is_open(stream) else None for stream in (1, 2)]  # as Python does
    sys.stdout, sys.stderr = streams
    script = str(ROOT / "scripts" / arguments[0])
    sys.argv = [script, *arguments[1:]]
    begun.touch()
    runpy.run_path(script, run_name="__main__")


def leave(how: str) -> None:
    """Leaves this process with an output and an error output that no one reads any more."""
    import pty

    if how == "closed":
        os.close(1)
        os.close(2)
        return
    reader, writer = os.pipe() if how == "pipe" else pty.openpty()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)


def is_open(stream: int) -> bool:
    try:
        os.fstat(stream)
    except OSError:
        return False
    return True


def results(folder: Path) -> tuple[bytes, bytes]:
    """What must not depend on interruptions: the tensors of the weights file, whose header holds times, and the
    metrics."""
    weights = (folder / "model.safetensors").read_bytes()
    header = int.from_bytes(weights[:8], "little")
    return weights[8 + header :], (folder / "metrics.csv").read_bytes()


def in_a_fork(function, *arguments):
    """Returns what a function of this module returns in a process of its own."""
    with forked.Pool(1) as pool:
        return pool.apply(function, arguments)


def pages_mapped(kept: bool) -> int:
    """Pages of a tensor of 120 MB that the system maps anew, where freed memory is kept or not."""
    import resource

    import torch

    from nin.run.machine import keep_freed_memory

    if kept:
        keep_freed_memory()
    for _ in range(8):  # the heap has to find its shape
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(30_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def race(folder: Path, rounds: int, barrier) -> int:
    """Tries to train in a folder, each round together with the other processes; counts how often it was let in. Fails
    where another process is inside at the same time."""
    from nin.errors import RunError
    from nin.run.folder import training_in

    let_in = 0
    for _ in range(rounds):
        barrier.wait()
        try:
            with training_in(folder):
                inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)
                os.close(inside)
                let_in += 1
                os.unlink(folder / "inside")
        except RunError:
            pass
    return let_in


def hold(folder: Path, inside) -> None:
    """Trains in a folder until it is killed."""
    import time

    from nin.run.folder import training_in

    with training_in(folder):
        inside.set()
        time.sleep(300)


# several processes ----------------------------------------------------------------------------------------------------


def two(arguments: Sequence[object], folder: Path) -> list[Command]:
    """Two processes of one run, as torchrun starts them."""
    from nin.run.processes import free_port

    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    shared["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    return [Command(arguments, folder, {**shared, "LOCAL_RANK": str(rank)}) for rank in range(2)]


def first_step(rank: int, processes: int, port: int, file: Path) -> None:
    """Trains a step, without normalisation and dropout, and saves its gradient and what is measured after it."""
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)} if processes > 1 else {}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import lightning as L
    import torch

    from nin import NIN
    from nin.data import Images
    from nin.task import Classifier

    class Keep(L.Callback):
        def on_before_optimizer_step(self, trainer, task, optimiser):
            self.gradient = [p.grad.clone() for p in task.parameters()]

    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    data, keep = Images("digits", batch_size=32, pad=0, val=101), Keep()
    task = Classifier(NIN(dropout=0.0, init="kaiming"), lr=0.01)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=1,
        callbacks=[keep],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, data)
    measured = trainer.validate(task, data, verbose=False)[0]
    if trainer.is_global_zero:
        torch.save((keep.gradient, measured), file)
    if processes > 1:
        torch.distributed.destroy_process_group()


def launched(code: str, told: int | None = None, grace: float = 20) -> int:
    """Exit code of `launch` for two processes that run `code`; where `told`, the first is told to end with this signal
    while the second has not been started."""
    import signal
    import subprocess

    from nin.run import processes

    processes.GRACE = grace
    if told is not None:
        start = subprocess.Popen

        class Told(start):
            def __init__(self, *command, **rest):
                super().__init__(*command, **rest)
                subprocess.Popen = start
                signal.raise_signal(told)

        subprocess.Popen = Told
    try:
        return processes.launch(2, [sys.executable, "-S", "-c", code])
    finally:  # a process of a pool is ended by SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def abandon(folder: Path) -> None:
    """Leaves a process alone that has launched two others; it writes its exit code."""
    import signal

    from nin import files
    from nin.run.processes import STARTER

    os.environ[STARTER] = str(os.getpid())
    if os.fork() == 0:
        with files.lock(folder / "alive"):
            (folder / "begun").touch()
            (folder / "code").write_text(str(launched("import time; time.sleep(300)")))
        os._exit(0)
    while not (folder / "begun").exists():
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def end(how: str, folder: Path) -> None:
    """Ends at once, in one of the ways in which a process ends; the block's files stay unflushed."""
    from nin.run.processes import ending_at_once

    sys.stdout, sys.stderr = open(folder / "out", "w"), open(folder / "err", "w")  # noqa: SIM115
    with ending_at_once():
        print("said")
        exec(how)


def peak_of_a_run(overrides: list[str], folder: Path) -> float:
    """The most memory, in GB, of a process that trains."""
    from nin.cli import compose
    from nin.run.train import train

    return train(compose(overrides), folder).peak_memory_gb
