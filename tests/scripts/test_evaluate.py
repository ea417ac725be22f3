"""scripts/evaluate.py"""

import os
import re
import signal

import pytest
import torch

from claims import tiny
from nin import pretrained
from nin.data.sets import SETS
from nin.task import Classifier

QUIET = ("trainer.progress_bar=false", "trainer=cpu")


@pytest.fixture
def run(tmp_path):
    """A folder with a net of the digits, as a run leaves it."""
    (tmp_path / "run").mkdir()
    pretrained.save(tmp_path / "run" / "model.safetensors", tiny())
    return tmp_path / "run"


def test_a_run_is_evaluated_in_its_own_folder(run, script, tmp_path):
    code, said, errors = script("evaluate.py", "checkpoint=run", *QUIET)
    assert code == 0, errors
    digits = SETS["digits"].parse({}, 32)
    with torch.no_grad():
        answers = tiny()(digits.test_images).argmax(1)
    assert f"\ntest error {100 * (answers != digits.test_labels).double().mean():.2f} %\n" in said
    true, taken_for, count = map(int, re.search(r"of 360 images\n *(\d) taken for (\d) +(\d+) \(", said).groups())
    assert ((digits.test_labels == true) & (answers == taken_for)).sum() == count
    assert said.endswith("\nall confusions: run/confusion_run.png\n")
    assert (run / "confusion_run.png").stat().st_size > 10_000
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_the_picture_of_a_weights_file_is_named_after_its_run(run, script, tmp_path):
    assert script("evaluate.py", "checkpoint=run/model.safetensors", *QUIET)[0] == 0
    (run / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert script("evaluate.py", "checkpoint=weights.safetensors", *QUIET)[0] == 0
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["confusion_run.png", "confusion_weights.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["checkpoint=run", "head=fc"], 2, "head=fc: "),
        (["checkpoint=run", "recipe.lr=1"], 2, "recipe.lr=1: "),
        (["checkpoint=run", "trainer.accelerator=mps"], 2, "trainer.accelerator=mps: "),
        ([], 2, "checkpoint= is required"),
        (["checkpoint=nope"], 1, "checkpoint=nope: does not exist"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_leaves_nothing(script, tmp_path, arguments, code, words):
    ended, said, errors = script("evaluate.py", *arguments)
    assert (ended, said) == (code, "")
    assert errors.startswith(f"error: {words}") and len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_evaluation_says_so(run, script, monkeypatch, number, code):
    step = Classifier.test_step

    def stopped(*arguments):
        os.kill(os.getpid(), number)
        return step(*arguments)

    monkeypatch.setattr(Classifier, "test_step", stopped)
    ended, said, errors = script("evaluate.py", "checkpoint=run", *QUIET)
    assert (ended, said) == (code, "")
    assert "run the same command again" in errors and len(errors.splitlines()) == 1
