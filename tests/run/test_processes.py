import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch

from builders import NARROW, ROOT
from nin import files
from nin.cli import compose
from nin.data import Batches, Normalise
from nin.data.module import draw_seed
from nin.errors import LeftAloneError, SettingError
from nin.pretrained import load
from nin.run import record
from nin.run.evaluate import evaluate_pretrained
from nin.run.processes import (
    RANKS,
    STARTER,
    check_environment,
    ending_together,
    free_port,
    is_orphaned,
    rank,
    world_size,
)
from nin.run.train import train
from runs import Command, abandon, end, first_step, forked, in_a_fork, launched, results, two

TRAIN = str(ROOT / "scripts" / "train.py")
SHORT = ["data=digits", NARROW, "trainer.max_epochs=30", "trainer.limit_train_batches=4", "trainer.progress_bar=false"]
SHORT += ["trainer.accelerator=cpu", "data.batch_size=16", "data.val=101", "model.dropout=0.5"]
TWO = [*SHORT, "trainer=ddp", "trainer.devices=2"]


def wait_for(happened: Callable[[], bool], is_running: Callable[[], bool]) -> None:
    while not happened():
        assert is_running(), "it ended before"
        time.sleep(0.05)


def time_of(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


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


def test_the_gradient_and_the_error_are_those_of_one_process(tmp_path):
    pair, port = tmp_path / "two", free_port()
    processes = [forked.Process(target=first_step, args=(rank, 2, port, pair)) for rank in range(2)]
    processes += [forked.Process(target=first_step, args=(0, 1, 0, tmp_path / "one"))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    (gradient, measured), (expected, of_one) = (torch.load(tmp_path / name) for name in ("two", "one"))
    for ours, theirs in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert any(theirs.abs().max() > 1e-3 for theirs in expected)
    assert measured["val/error"] == of_one["val/error"]
    assert measured["val/loss"] == pytest.approx(of_one["val/loss"], abs=1e-5)


@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_two_processes_train_the_net_of_one(tmp_path, ema):
    """Without draws of their own; a moving average is the same in both."""
    settings = [*SHORT, "trainer.max_epochs=2", "model.dropout=0", "data.pad=0", "data.flip=false", f"recipe.ema={ema}"]
    settings += ["trainer.precision=32-true"]  # bf16 rounds sums of other parts otherwise
    settings += ["model.norm=none", "recipe.optimiser=sgd", "recipe.lr=0.01"]  # no batch norm: on CPUs each has its own
    (code, _, errors), _ = [
        each.wait()
        for each in two(["train.py", *settings, "trainer=ddp", "trainer.devices=2", "hydra.run.dir=two"], tmp_path)
    ]
    assert code == 0, errors
    train(compose(settings), tmp_path / "one")
    ours, theirs = (load(tmp_path / name).net.state_dict() for name in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert (tmp_path / "two" / "metrics.csv").read_text().count("\n") == 1 + 2


# one run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Path, list[tuple[int, str, str]]]:
    """An uninterrupted run in two processes: its folder, and exit code, output and errors of each."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder / "run", [each.wait() for each in two(["train.py", *TWO, "hydra.run.dir=run"], folder)]


def test_two_processes_leave_one_folder_and_speak_once(ended):
    folder, (first, second) = ended
    assert (first[0], first[2], second) == (0, "", (0, "", ""))
    assert first[1].count("test error") == first[1].count("\nfolder  run\n") == 1
    epochs = re.findall(r"^epoch (\d+)/30: training loss .*; held-out loss .*; rate ", first[1], re.M)
    assert epochs == [str(number) for number in range(1, 31)]
    names = ("config.yaml", "curves.png", "last.ckpt", "metrics.csv", "model.safetensors", "summary.json")
    assert sorted(file.name for file in folder.iterdir()) == [".lock", *names]
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 30
    kept = record.read(folder)
    assert kept.device.startswith("2 × cpu") and kept.test_images == 360
    alone = evaluate_pretrained(load(folder), compose(["trainer.progress_bar=false", "trainer.accelerator=cpu"]))
    assert alone.error == pytest.approx(kept.test_error, abs=1e-4)


def test_whatever_ends_one_ends_both_and_the_run_resumes(ended, tmp_path):
    folder = tmp_path / "run"
    arguments = ["train.py", *TWO, "resume=auto", "hydra.run.dir=run"]
    for number, codes in ((signal.SIGKILL, {1, -9}), (signal.SIGINT, {130}), (signal.SIGTERM, {143})):
        saved, pair = time_of(folder / "last.ckpt"), two(arguments, tmp_path)
        wait_for(lambda saved=saved: time_of(folder / "last.ckpt") > saved, lambda pair=pair: pair[0].is_running)
        for process in pair[number == signal.SIGKILL :]:
            process.kill(number)
        (code, said, errors), (other, silent, of_other) = (process.wait() for process in pair)
        assert {code, other} == codes and (silent, of_other) == ("", "")
        expected = "another process of this run has exited" if number == signal.SIGKILL else "stopped; to resume after"
        assert errors.startswith(f"error: {expected}") and len(errors.splitlines()) == 1
        assert said.count("resumed after epoch") == (number != signal.SIGKILL) and "test error" not in said
    (code, said, errors), _ = (process.wait() for process in two(arguments, tmp_path))
    assert code == 0, errors
    assert said.count("resumed after epoch") == 1
    assert results(folder) == results(ended[0])


@pytest.mark.slow
def test_one_command_starts_two_processes_and_passes_a_signal_on(ended, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, TRAIN, *TWO, "resume=auto", f"hydra.run.dir={folder}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=variables
    )
    wait_for((folder / "last.ckpt").exists, lambda: started.poll() is None)
    started.send_signal(signal.SIGTERM)
    said, errors = started.communicate()  # whoever had the pipe open has ended
    assert started.returncode == 143 and "test error" not in said
    assert errors.startswith("error: stopped; to resume after") and len(errors.splitlines()) == 1
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("resumed after epoch") == done.stdout.count("test error") == 1
    assert results(folder) == results(ended[0])


def test_a_dead_net_ends_both_with_exit_code_three(tmp_path):
    dies = ["train.py", *TWO, "recipe.lr=1e30", "recipe.optimiser=sgd", "hydra.run.dir=run"]
    (code, said, errors), other = (process.wait() for process in two(dies, tmp_path))
    assert (code, other) == (3, (3, "", ""))
    assert said.count("device  2 × cpu") == 1 and said.count("epoch 1/30: ") <= 1 and "test error" not in said
    assert errors.startswith("error: the loss is not finite") and len(errors.splitlines()) == 1
    assert record.read(tmp_path / "run").status == "dead"


def test_a_refusal_is_said_once(ended):
    folder = ended[0].parent
    pair = two(["train.py", *TWO, "resume=auto", "recipe.lr=7", "hydra.run.dir=run"], folder)
    (code, said, errors), (other, silent, _) = (process.wait() for process in pair)
    assert (code, said, silent) == (2, "", "") and other != 0
    assert len(errors.splitlines()) == 1 and "recipe.lr is 0.04 there, 7.0 here" in errors


@pytest.mark.slow
def test_torchrun_starts_the_same_run(ended, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", TRAIN, *TWO]
    command += [f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test error") == 1
    assert results(tmp_path / "run") == results(ended[0])


def test_two_nodes_of_a_process_each_are_the_same_run(ended, tmp_path):
    """Started as srun starts them; both nodes are this machine."""
    nodes = {"NTASKS": 2, "NTASKS_PER_NODE": 1, "NNODES": 2, "JOB_ID": 4711, "LOCALID": 0, "STEP_ID": 0}
    nodes["NODELIST"] = "127.0.0.1"
    port = str(free_port())
    command = ["train.py", *TWO, "trainer.devices=1", "trainer.num_nodes=2", "hydra.run.dir=run"]
    pair = []
    for node in range(2):
        variables = {f"SLURM_{name}": str(value) for name, value in {**nodes, "PROCID": node, "NODEID": node}.items()}
        pair.append(Command(command, tmp_path, {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}))
    (code, said, errors), other = (process.wait() for process in pair)
    assert code == 0, errors
    assert other[:2] == (0, "") and "device  2 × cpu" in said
    assert results(tmp_path / "run") == results(ended[0])


def test_without_its_processes_a_run_is_refused(tmp_path, monkeypatch):
    config = compose(TWO)
    with pytest.raises(SettingError, match=r"devices=2: 1 process is running; start with python scripts/train\.py"):
        train(config, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SettingError, match=r"trainer\.devices=2: 3 processes are running"):
        train(config, tmp_path)
    words = r"trainer\.devices=1: 3 processes are running; set trainer=ddp and trainer\.devices=3, or start one process"
    with pytest.raises(SettingError, match=words):
        train(compose(SHORT), tmp_path)
    assert not list(tmp_path.iterdir())


# how processes end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(4)", 4, ""),
        ("raise SystemExit('why')", 1, ""),
        ("raise KeyboardInterrupt", 130, "Traceback .*KeyboardInterrupt\n"),
        ("raise ArithmeticError('a bug')", 1, "Traceback .*ArithmeticError: a bug\n"),
    ],
)
def test_a_process_that_ends_at_once_keeps_its_exit_code_and_its_words(tmp_path, how, code, said):
    process = forked.Process(target=end, args=(how, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == code
    assert (tmp_path / "out").read_text() == "said\n"
    assert re.fullmatch(said, (tmp_path / "err").read_text(), re.DOTALL)


LEAVES_A_CALL = """
import os, sys, time
from pathlib import Path
from torch import distributed, zeros
from nin.run.processes import ending_at_once, rank

class Slow:
    def __del__(self, sleep=time.sleep):  # what an interpreter that ends takes down
        sleep(3)

with ending_at_once():
    distributed.init_process_group("gloo", rank=rank(), world_size=2)
    distributed.barrier()
    if rank():
        while not Path("leaving").exists():
            time.sleep(0.05)
        time.sleep(2)
        os._exit(0)
    distributed.all_reduce(zeros(1), async_op=True).get_future().then(print)
    slow = Slow()
    Path("leaving").touch()
    sys.exit(130)
"""


def test_a_call_that_the_other_leaves_unanswered_does_not_crash_the_end(tmp_path):
    """In the end of an interpreter, gloo's thread would call print."""
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared["PYTHONPATH"] = str(ROOT)
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVES_A_CALL],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**shared, "LOCAL_RANK": str(number), "TORCH_CPP_LOG_LEVEL": "ERROR"},
        )
        for number in range(2)
    ]
    assert [process.communicate() for process in pair] == [("", ""), ("", "")]
    assert [process.returncode for process in pair] == [130, 0]


WAITS = "import time; time.sleep(300)"


def test_the_exit_code_of_a_launch_is_that_of_the_first_to_fail():
    fails = "import os, time; time.sleep(0 if os.environ['LOCAL_RANK'] == '1' else 300); os._exit(5)"
    assert in_a_fork(launched, fails, None, 0.2) == 5  # the other has a grace of 0.2 s
    assert in_a_fork(launched, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)") == 139
    assert in_a_fork(launched, "pass") == 0
    variables = "import os; assert os.environ['WORLD_SIZE'] == '2' and os.environ['MASTER_PORT']"
    assert in_a_fork(launched, variables) == 0


def test_a_signal_that_arrives_before_all_are_running_reaches_them():
    assert in_a_fork(launched, WAITS, signal.SIGTERM) == 143


def test_where_the_launchers_own_starter_is_gone_all_end(tmp_path):
    """A study that is killed outright, say, whose run is in two processes."""
    process = forked.Process(target=abandon, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    with files.lock(tmp_path / "alive", timeout=-1):  # until the launcher has ended
        assert (tmp_path / "code").read_text() == "143"


def test_a_process_knows_its_place(monkeypatch):
    assert (rank(), world_size(), is_orphaned()) == (0, 1, False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert world_size() == 1  # a job of four tasks; srun has started none of them
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert (rank(), world_size()) == (3, 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (rank(), world_size()) == (1, 2)
    monkeypatch.setenv(STARTER, "1")
    assert is_orphaned() == (os.getppid() != 1)


@pytest.mark.parametrize("name", RANKS)
def test_a_number_that_no_launcher_gave_is_forgotten(name, monkeypatch):
    """Else the process would print and write nothing, as a second one does."""
    for number in ("1", "7", "42", "999999"):
        monkeypatch.setenv(name, number)
        check_environment()
        assert rank() == 0
    monkeypatch.setenv(name, "1234567")
    with pytest.raises(SettingError, match=f"{name}=1234567"):
        check_environment()
    assert rank() == 0  # so that the sentence is printed


def test_the_errors_of_a_connection_are_one_sentence():
    for error in (
        torch.distributed.DistNetworkError("closed"),
        RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"),
    ):
        with pytest.raises(LeftAloneError, match="another process of this run has exited"), ending_together():
            raise error
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shapes differ")):
        with pytest.raises(type(error)), ending_together():
            raise error


# SLURM ---------------------------------------------------------------------------------------------------------------


def test_slurm_puts_a_run_into_the_queue_again_and_it_resumes(tmp_path):
    """Lightning's answer to SIGUSR1 is left to it; SIGTERM, which SLURM sends next, ends the run as ever."""
    (tmp_path / "bin").mkdir()
    for name in ("scontrol", "srun"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho $0 $* >> {tmp_path}/called\n")
        (tmp_path / "bin" / name).chmod(0o755)
    alone = Command(["train.py", *SHORT, "hydra.run.dir=expected"], tmp_path)
    slurm = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for name, value in (("NTASKS", 1), ("JOB_ID", 4711), ("PROCID", 0), ("LOCALID", 0), ("NODEID", 0)):
        slurm[f"SLURM_{name}"] = str(value)
    folder, arguments = tmp_path / "run", ["train.py", *SHORT, "resume=auto", "hydra.run.dir=run"]
    process = Command(arguments, tmp_path, slurm)
    wait_for((folder / "last.ckpt").exists, lambda: process.is_running)
    process.kill(signal.SIGUSR1)
    wait_for((tmp_path / "called").exists, lambda: process.is_running)
    process.kill(signal.SIGTERM)
    code, _, errors = process.wait()
    assert code == 143, errors
    assert (tmp_path / "called").read_text().endswith("scontrol requeue 4711\n")
    assert list(folder.glob("hpc_ckpt_*.ckpt"))
    code, said, errors = Command(arguments, tmp_path, slurm).wait()
    assert code == 0, errors
    assert "resumed after epoch" in said and not list(folder.glob("hpc_ckpt_*.ckpt"))
    assert alone.wait()[0] == 0
    assert results(folder) == results(tmp_path / "expected")
