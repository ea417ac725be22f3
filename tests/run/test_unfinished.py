"""A run that has not finished is used as it was after its last whole epoch."""

import json
import shutil

import pytest
import torch

from nin import pretrained
from nin.errors import CheckpointError
from nin.run import unfinished


@pytest.fixture
def stopped(ended, tmp_path):
    """A folder as a run leaves it that was killed after its last epoch, and the folder of the same run, finished."""
    folder = shutil.copytree(ended[0], tmp_path / "stopped")
    (folder / "model.safetensors").unlink()
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    return folder, ended[0]


def test_it_is_the_net_of_the_last_whole_epoch(stopped, capsys):
    folder, finished = stopped
    trained, whole = unfinished.load(str(folder)), pretrained.load(finished)
    epochs = whole.facts["epochs"]
    assert capsys.readouterr().out == f"{folder} has not finished: this is its net after epoch {epochs} of {epochs}\n"
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(trained(images), whole(images))
        torch.testing.assert_close(unfinished.load(str(folder), fold=True)(images), whole(images), atol=1e-4, rtol=1e-4)
    assert trained.classes == whole.classes and not trained.training
    capsys.readouterr()
    assert unfinished.load(str(finished)).sha256 == whole.sha256 and capsys.readouterr().out == ""


def test_it_is_evaluated_and_predicts(stopped, script):
    folder, finished = stopped
    error = pretrained.load(finished).facts["test_error"]
    code, said, errors = script("evaluate.py", f"checkpoint={folder}", "trainer.progress_bar=false", "trainer=cpu")
    assert code == 0, errors
    assert f"test error {error:.2f} %" in said and "has not finished: this is its net after epoch" in said
    code, said, errors = script("predict.py", f"checkpoint={folder}", "test=1")
    assert code == 0 and "has not finished" in said and "knows 10 classes" in said, errors


@pytest.mark.parametrize("damage", ["empty", "other", "none"])
def test_a_damaged_checkpoint_is_one_sentence(stopped, damage):
    checkpoint = stopped[0] / "last.ckpt"
    if damage == "none":
        checkpoint.unlink()
    elif damage == "empty":
        checkpoint.write_bytes(b"")
    else:
        torch.save({"state_dict": {"net.a": torch.zeros(1)}, "epoch": 0}, checkpoint)
    reason = "has not finished; resume it" if damage == "none" else r"last\.ckpt is damaged or of another run"
    with pytest.raises(CheckpointError, match=reason) as error:
        unfinished.load(str(stopped[0]))
    assert "\n" not in str(error.value)
