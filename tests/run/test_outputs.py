"""Outputs that close and Ctrl-C: a run ends with its files, and no command with a traceback."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from builders import ROOT
from runs import SHORT, Command, results

TRAIN = ["train.py", *SHORT, "trainer.progress_bar=true", "hydra.run.dir=run"]


@pytest.mark.parametrize("how", ["pipe", "terminal", "closed"])
def test_a_run_whose_output_closes_is_finished(how, tmp_path, ended):
    settings = ["data.val=100", "eval_curve=true"]  # those of the run `ended`
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as `ended`: sums depend on their number
    code, _, _ = Command([*TRAIN, *settings], tmp_path, {"TEST_OUTPUT": how, **threads}).wait()
    assert code == 0
    assert results(tmp_path / "run")[1] == results(ended[0])[1]


@pytest.mark.parametrize("how", ["pipe", "terminal", "closed"])
@pytest.mark.parametrize("arguments", [["train.py", "--help"], ["train.py", "head=gpa"], ["report.py"]])
def test_a_command_whose_output_closes_ends_with_its_own_code(how, arguments, tmp_path):
    file = tmp_path / "runs.csv"
    file.write_bytes((ROOT / "checkpoints" / "runs.csv").read_bytes().splitlines(keepends=True)[0])
    more = [f"study={file}"] if arguments == ["report.py"] else []
    code, said, errors = Command([*arguments, *more], tmp_path, {"TEST_OUTPUT": how}).wait()
    assert (code, said, errors) == (2 if "head=gpa" in arguments else 0, "", "")


COMMANDS = [
    ["predict.py", "checkpoint=cifar10-gap-quick", str(ROOT / "scripts" / "chelsea.png")],
    ["report.py", "study=runs.csv"],
    ["benchmark.py", "data=digits", "trainer.progress_bar=false", "trainer.accelerator=cpu"],
    ["cost.py", "model=vgg_regressor"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=[command[0] for command in COMMANDS])
@pytest.mark.tries(2)
def test_ctrl_c_ends_any_command_with_a_word(arguments, tmp_path, tried):
    (tmp_path / "runs.csv").write_bytes((ROOT / "checkpoints" / "runs.csv").read_bytes())
    moments = random.Random(arguments[0])
    for _ in range(2):
        process = Command(arguments, tmp_path)
        while not process.begun.exists():
            assert process.is_running
            time.sleep(0.01)
        time.sleep(moments.uniform(0.1, 1.5))
        process.kill(signal.SIGINT)
        code, _, errors = process.wait()
        assert code in (0, 130, -signal.SIGINT) and "Traceback" not in errors, errors
        assert code != 130 or errors.endswith("error: stopped\n")
        tried(code)


@pytest.mark.slow
@pytest.mark.tries(3)
def test_ctrl_c_while_a_command_imports_leaves_no_traceback(tmp_path, tried):
    moments = random.Random(2)
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "train.py"), *SHORT, "hydra.run.dir=run"]
    for _ in range(3):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for line in process.stderr:  # each import in turn, as it ends
            if line.endswith(" nin.commands\n"):
                break
        time.sleep(moments.uniform(0, 3))
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
        assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in errors, errors[-3000:]
        tried(process.returncode)
