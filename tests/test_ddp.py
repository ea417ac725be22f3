import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import hydra
import lightning as L
import pytest
import torch
from conftest import CONF, NARROW, ROOT
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from test_recovery import results
from torch import multiprocessing

from nin import NIN, run
from nin.command import compose, unused
from nin.config import ConfigError
from nin.data import Batches, Images, Normalise
from nin.data.module import draw_seed
from nin.folder import alone_in
from nin.recovery import STARTER, RunError
from nin.task import Classifier

TRAIN = str(ROOT / "scripts" / "train.py")
SHORT = ["data=digits", NARROW, "trainer.max_epochs=60", "trainer.limit_train_batches=4", "trainer.progress_bar=false"]
SHORT += ["trainer.accelerator=cpu", "data.batch_size=16", "data.val=101", "model.dropout=0.5"]
TWO = [*SHORT, "trainer=ddp", "trainer.devices=2"]


def alive(folder: Path) -> list[str]:
    """The commands of the processes that train in `folder`."""
    listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if f"hydra.run.dir={folder}" in line]


def start(overrides: list[str], folder: Path, *before: str) -> subprocess.Popen:
    command = [*(before or [sys.executable]), TRAIN, *overrides, f"hydra.run.dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def time_of(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0


# shares --------------------------------------------------------------------------------------------------------------


def batches(rank: int, processes: int, n: int = 21, size: int = 8, **rest) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = torch.zeros(n, 2, 2, 3, dtype=torch.uint8)
    same = Normalise(torch.zeros(3), torch.ones(3))
    return list(Batches(images, torch.arange(n), size, same, rank=rank, processes=processes, **rest))


def noise(images: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    return images + torch.rand(images.shape, generator=draws)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(processes):
    for rest in ({"augment": noise, "seed": 3, "epoch": lambda: 2}, {}):
        whole = [sorted(labels.tolist()) for _, labels in batches(0, 1, **rest)]
        shares = [batches(rank, processes, **rest) for rank in range(processes)]
        for number, of_one in enumerate(whole):
            parts = [share[number][1].tolist() for share in shares if number < len(share)]
            assert sorted(chain.from_iterable(parts)) == of_one
    assert [len(labels) for _, labels in batches(0, 2, n=5, augment=noise)] == [2]  # equal shares of a small set


def test_a_last_batch_smaller_than_the_processes_is_seen_once():
    seen = [labels.tolist() for rank in range(4) for _, labels in batches(rank, 4, n=17)]
    assert sorted(chain.from_iterable(seen)) == list(range(17))


def test_each_process_augments_by_draws_of_its_own_and_one_alone_as_ever():
    (zero, one), again = (batches(rank, 2, augment=noise)[0][0] for rank in (0, 1)), batches(1, 2, augment=noise)[0][0]
    assert not torch.equal(zero, one)
    assert torch.equal(one, again)
    draws = torch.Generator().manual_seed(2 * (5 * 1_000_003 + 7))
    order = torch.randperm(21, generator=draws)
    for number, (images, labels) in enumerate(batches(0, 1, augment=noise, seed=5, epoch=lambda: 7)):
        assert torch.equal(labels, order[8 * number : 8 * number + 8])
        assert torch.equal(images, torch.rand(8, 3, 2, 2, generator=draws).contiguous())
    seeds = {  # torch's generator for the CPU takes 32 bits
        draw_seed(seed, epoch, purpose, rank) % 2**32
        for seed in range(5)
        for epoch in range(300)
        for purpose in ("batches", "dropout")
        for rank in range(8)
    }
    assert len(seeds) == 5 * 300 * 2 * 8


# the same gradient, the same error ------------------------------------------------------------------------------------


def first_step(processes: int, file: str) -> None:
    """Trains a step, without normalisation and dropout, saves its gradient and what is then measured."""

    class Keep(L.Callback):
        def on_before_optimizer_step(self, trainer, task, optimiser):
            self.gradient = [p.grad.clone() for p in task.parameters()]

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


def one_of_two(rank: int, port: int, file: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    first_step(2, file)
    torch.distributed.destroy_process_group()


def test_the_gradient_and_the_error_are_those_of_one_process(tmp_path):
    multiprocessing.spawn(one_of_two, (find_free_network_port(), str(tmp_path / "two")), nprocs=2)
    first_step(1, str(tmp_path / "one"))
    (gradient, measured), (expected, of_one) = (torch.load(tmp_path / name) for name in ("two", "one"))
    for ours, theirs in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert any(theirs.abs().max() > 1e-3 for theirs in expected)
    assert measured["val/error"] == of_one["val/error"]
    assert measured["val/loss"] == pytest.approx(of_one["val/loss"], abs=1e-5)


# one run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """A run in two processes: its folder and what it said."""
    folder = tmp_path_factory.mktemp("ddp") / "run"
    process = start(TWO, folder)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ""
    return folder, said


def test_two_processes_leave_one_folder_and_speak_once(ended):
    folder, said = ended
    assert sorted(file.name for file in folder.iterdir()) == [
        *("config.yaml", "curves.png", "last.ckpt", "metrics.csv", "model.safetensors", "summary.json")
    ]
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 60
    assert said.count("test error") == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["device"].startswith("2 × cpu")
    alone = run.evaluate_checkpoint(compose(CONF, [f"checkpoint={folder}"]))[0]
    assert alone == pytest.approx(summary["test_error"], abs=1e-4)


def test_whatever_ends_it_ends_both_and_the_run_goes_on(ended, tmp_path):
    folder = tmp_path / "run"
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        saved = time_of(folder / "last.ckpt")
        process = start([*TWO, "resume=auto"], folder)
        wait_for(lambda saved=saved: time_of(folder / "last.ckpt") > saved, process)
        assert len(alive(folder)) == 3  # the two, and the one that started them
        process.send_signal(number)
        said, errors = process.communicate()
        assert process.returncode == code
        assert len(errors.splitlines()) == 1  # of two whose starter was killed one may notice by the other's end
        expected = "error: " if number == signal.SIGKILL else "error: stopped; the same command with resume=auto"
        assert errors.startswith(expected)
        assert said.count("resumed at epoch") == (number != signal.SIGKILL) and "test error" not in said
        assert not alive(folder)  # whoever had the pipe open has ended
    process = start([*TWO, "resume=auto"], folder)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.count("resumed at epoch") == 1
    assert results(folder) == results(ended[0])


LEAVES_A_CALL = """
import os, sys, time
from pathlib import Path
from torch import distributed, zeros
from nin.command import command
from nin.processes import rank
from nin.recovery import InterruptedRunError

class Slow:
    def __del__(self, sleep=time.sleep):  # what an interpreter that ends takes down
        sleep(3)

def main(settings, folder):
    global slow
    distributed.init_process_group("gloo", rank=rank(), world_size=2)
    distributed.barrier()
    if rank():
        while not Path("leaving").exists():
            time.sleep(0.05)
        time.sleep(2)
        os._exit(0)
    distributed.all_reduce(zeros(1), async_op=True).get_future().then(print)
    slow = Slow()
    del os.environ["WORLD_SIZE"]  # as Lightning does when a trainer has done
    Path("leaving").touch()
    raise ENDS

command(Path(sys.argv.pop(1)), main)
"""


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ('InterruptedRunError("stopped", 130)', 130, "error: stopped\n"),
        ('ArithmeticError("a bug")', 1, "Error executing job.*Traceback .*ArithmeticError: a bug\n"),
        ("SystemExit(4)", 4, ""),
    ],
)
def test_a_call_that_the_other_leaves_unanswered_does_not_crash_the_end(tmp_path, ends, code, said):
    """Of the interpreter, in whose end gloo's thread called print."""
    (tmp_path / "leaves.py").write_text(LEAVES_A_CALL.replace("ENDS", ends))
    command = [sys.executable, "leaves.py", str(CONF), *TWO, "hydra.run.dir=run"]
    left = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150)
    assert (left.returncode, left.stdout) == (code, "")
    assert re.fullmatch(said, left.stderr, re.DOTALL), left.stderr


def test_a_signal_that_comes_before_all_are_running_reaches_them():
    waits = [sys.executable, "-c", "import time; time.sleep(200)"]
    told = f"""
import os, signal, subprocess, sys
from nin.processes import start

class Told(subprocess.Popen):
    def __init__(self, *command, **rest):
        subprocess.Popen = Popen
        os.kill(os.getpid(), signal.SIGTERM)
        super().__init__(*command, **rest)

Popen, subprocess.Popen = subprocess.Popen, Told
sys.exit(start(2, {waits}))
"""
    assert subprocess.run([sys.executable, "-c", told], timeout=150).returncode == 143


def test_where_the_starters_own_starter_is_gone_all_end():
    """A study that is killed outright, say, whose run is in two processes."""
    waits = [sys.executable, "-c", "import time; time.sleep(200)"]
    starts = [sys.executable, "-c", f"from nin.processes import start; start(2, {waits})"]
    killed = f"""
import os, subprocess, time
subprocess.Popen({starts}, env={{**os.environ, {STARTER!r}: str(os.getpid())}})
time.sleep(1)
os.kill(os.getpid(), 9)
"""
    gone = subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True, timeout=150)
    assert (gone.returncode, gone.stderr) == (-9, "")  # whoever had the pipe open has ended


def test_a_dead_net_ends_both_with_exit_code_three(tmp_path):
    process = start([*TWO, "recipe.lr=1e30", "recipe.optimiser=sgd"], tmp_path / "run")
    said, errors = process.communicate()
    assert (process.returncode, said) == (3, "")
    assert len(errors.splitlines()) == 1 and errors.startswith("error: the loss is not a finite number")
    assert not alive(tmp_path / "run")


def test_a_refusal_is_said_once(ended):
    process = start([*TWO, "resume=auto", "recipe.lr=7"], ended[0])
    said, errors = process.communicate()
    assert (process.returncode, said) == (2, "")
    assert len(errors.splitlines()) == 1 and "recipe.lr is 0.04 there and 7.0 here" in errors


@pytest.mark.slow
def test_torchrun_starts_the_same_run(ended, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    process = start(TWO, tmp_path / "run", *torchrun)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.count("test error") == 1
    assert results(tmp_path / "run") == results(ended[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=0"], "trainer.devices=0: at least 1"),
        (["trainer.devices=-1"], "trainer.devices=-1: at least 1"),
        (["trainer.strategy=nosuch"], "trainer.strategy=nosuch: choose one of auto, ddp"),
        (["trainer.devices=3"], "data.batch_size=128: trainer.devices=3 have no equal shares"),
    ],
)
def test_impossible_settings_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(CONF, [*overrides, "trainer.accelerator=cpu"])


def test_a_sweep_of_hydra_in_several_processes_is_refused(tmp_path):
    process = start(["--multirun", *TWO, "seed=0,1", f"hydra.sweep.dir={tmp_path}"], tmp_path / "run")
    said, errors = process.communicate()
    assert (process.returncode, said) == (2, "")
    assert len(errors.splitlines()) == 2  # one a run
    assert errors.startswith("error: trainer.devices=2: --multirun is for one process a run")


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(total_memory=80e9))
    compose(CONF, ["trainer.devices=2", "trainer.accelerator=gpu"])
    for accelerator in ("gpu", "auto"):
        with pytest.raises(ConfigError, match=r"trainer\.devices=4: this machine has 2 GPUs"):
            compose(CONF, ["trainer.devices=4", f"trainer.accelerator={accelerator}"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"trainer\.strategy=ddp: Apple's MPS is for one process"):
        compose(CONF, ["trainer=ddp"])


def test_without_its_processes_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.devices=2: there is another number of processes"):
        run.train(compose(CONF, TWO), tmp_path)


# folders --------------------------------------------------------------------------------------------------------------


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    with ThreadPoolExecutor(8) as many:
        names = list(many.map(unused, [str(tmp_path / "runs" / "a")] * 8))
    assert sorted(names) == sorted(str(folder) for folder in (tmp_path / "runs").iterdir())
    assert {Path(name).name for name in names} == {"a", *(f"a_{i}" for i in range(2, 9))}
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            folders.append(hydra.compose("config", ["data=digits"], return_hydra_config=True).hydra.run.dir)
    assert len(set(folders)) == 3
    assert all(Path(folder).is_dir() and "_digits_gap_0" in folder for folder in folders)


def test_one_run_at_a_time_trains_in_a_folder(tmp_path):
    settings = compose(CONF, [*SHORT, "resume=auto"])
    words = rf"hydra\.run\.dir={tmp_path}: process {os.getpid()} is training there"
    with alone_in(tmp_path):
        with pytest.raises(RunError, match=words), alone_in(tmp_path):
            pass
        with pytest.raises(RunError, match=words):
            run.train(settings, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_keeps_no_one_out(tmp_path):
    code = "import sys, time; from nin.folder import *\n"
    code += "with alone_in(Path(sys.argv[1])): print(flush=True); time.sleep(99)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(RunError, match=f"process {holder.pid} is training there"), alone_in(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    assert (tmp_path / ".lock").exists()
    with alone_in(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


# SLURM ----------------------------------------------------------------------------------------------------------------


def test_slurm_puts_a_run_into_the_queue_again_and_it_goes_on(tmp_path, monkeypatch):
    """Lightning's answer to SIGUSR1 is left to it; SIGTERM, which SLURM sends next, ends the run as ever."""
    (tmp_path / "bin").mkdir()
    for name in ("scontrol", "srun"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho $0 $* >> {tmp_path}/called\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    expected = start(SHORT, tmp_path / "expected")
    assert expected.wait() == 0
    for name, value in (("NTASKS", 1), ("JOB_ID", 4711), ("PROCID", 0), ("LOCALID", 0), ("NODEID", 0)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    folder = tmp_path / "run"
    process = start([*SHORT, "resume=auto"], folder)
    wait_for((folder / "last.ckpt").exists, process)
    process.send_signal(signal.SIGUSR1)
    wait_for((tmp_path / "called").exists, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert (tmp_path / "called").read_text().endswith("scontrol requeue 4711\n")
    assert list(folder.glob("hpc_ckpt_*.ckpt"))
    process = start([*SHORT, "resume=auto"], folder)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resumed at epoch" in said
    assert results(folder) == results(tmp_path / "expected")
    assert not list(folder.glob("hpc_ckpt_*.ckpt"))
