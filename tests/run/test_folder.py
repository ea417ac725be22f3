import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import yaml

from nin.cli import compose
from nin.errors import RunError, SettingError
from nin.run.folder import WRITTEN, finished_run, is_training_in, training_in
from nin.run.train import train
from runs import SHORT, forked, hold, race, results

OF_ENDED = [*SHORT, "data.val=100", "eval_curve=true", "logger=tensorboard"]

# one process a folder ------------------------------------------------------------------------------------------------


@pytest.mark.tries(60)
def test_three_processes_that_race_for_a_folder_are_never_inside_together(tmp_path):
    manager = forked.Manager()
    with manager, forked.Pool(3) as pool:
        barrier = manager.Barrier(3)
        let_in = pool.starmap(race, [(tmp_path, 60, barrier)] * 3, chunksize=1)
    assert sum(let_in) >= 60  # each round one at least
    assert (tmp_path / ".lock").exists() and not (tmp_path / "inside").exists()
    assert not is_training_in(tmp_path)


def test_one_run_at_a_time_trains_in_a_folder(tmp_path):
    settings = compose([*SHORT, "resume=auto"])
    words = rf"hydra\.run\.dir={tmp_path}: another process is training there .*{os.getpid()}"
    with training_in(tmp_path):
        assert is_training_in(tmp_path)
        with pytest.raises(RunError, match=words), training_in(tmp_path):
            pass
        with pytest.raises(RunError, match=words):
            train(settings, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    assert not is_training_in(tmp_path)


def test_the_lock_of_a_killed_process_keeps_no_one_out(tmp_path):
    inside = forked.Event()
    holder = forked.Process(target=hold, args=(tmp_path, inside))
    holder.start()
    inside.wait()
    with pytest.raises(RunError, match=f"training there .*{holder.pid}"), training_in(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (tmp_path / ".lock").exists() and not is_training_in(tmp_path)
    with training_in(tmp_path):
        assert is_training_in(tmp_path)


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file/run: cannot be created"), training_in(tmp_path / "file" / "run"):
        pass


# what a folder contains ----------------------------------------------------------------------------------------------


@pytest.fixture
def copy(ended, tmp_path):
    return shutil.copytree(ended[0], tmp_path / "run")


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("config.yaml", "summary.json", "last.ckpt")])
@pytest.mark.parametrize("resume", ["null", "auto"])
def test_a_file_of_another_is_not_replaced(tmp_path, name, resume):
    (tmp_path / name).write_text("mine")
    with pytest.raises(SettingError, match=rf"contains no run, but {name}, which a run would replace"):
        train(compose([*SHORT, f"resume={resume}"]), tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]


def test_a_folder_holds_one_run(ended):
    folder, kept = ended
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with pytest.raises(SettingError, match="already contains a run; choose another folder, or set resume=auto"):
        train(compose(SHORT), folder)
    with pytest.raises(SettingError, match=r"other settings: recipe\.lr is 0\.04 there, 0\.5 here"):
        train(compose([*OF_ENDED, "recipe.lr=0.5", "resume=auto"]), folder)
    assert train(compose([*OF_ENDED, "resume=auto"]), folder) == kept
    same = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    del before[folder / ".lock"], same[folder / ".lock"]
    assert same == before


def test_a_finished_run_is_one_whose_weights_are_whole(ended, copy):
    settings = compose([*OF_ENDED, "resume=auto"])
    assert finished_run(settings, copy) == ended[1]
    weights = copy / "model.safetensors"
    good = weights.read_bytes()
    for bad in (good[:-1], good[:-1] + bytes([good[-1] ^ 1]), b""):
        weights.write_bytes(bad)
        assert finished_run(settings, copy) is None
    weights.unlink()
    assert finished_run(settings, copy) is None
    weights.mkdir()
    assert finished_run(settings, copy) is None


def test_what_can_be_made_again_from_the_checkpoint_is_made_again(ended, copy, capsys):
    (copy / "model.safetensors").write_bytes(b"half")
    for name in ("curves.png", "metrics.csv", "config.yaml"):
        (copy / name).unlink()
    again = train(compose([*OF_ENDED, "resume=auto"]), copy)
    assert "resumed after epoch 2 of 2, step 12" in capsys.readouterr().out
    assert again.test_error == ended[1].test_error and again.status == "finished"
    assert results(copy) == results(ended[0])
    assert {"model.safetensors", "curves.png", "config.yaml"} <= {file.name for file in copy.iterdir()}


def test_a_damaged_record_is_named_where_there_is_a_checkpoint(ended, copy):
    settings = compose([*OF_ENDED, "resume=auto"])
    good = (copy / "summary.json").read_bytes()
    (copy / "summary.json").write_bytes(good[: len(good) // 2])
    with pytest.raises(RunError, match="contains a checkpoint, but its record is damaged"):
        train(settings, copy)
    (copy / "summary.json").unlink()
    with pytest.raises(RunError, match=r"summary\.json is missing"):
        train(settings, copy)
    (copy / "last.ckpt").unlink()
    assert finished_run(settings, copy) is None  # it ended before its first epoch did


@pytest.fixture
def of_format_1(ended, copy):
    """The folder as it was left before records had a format."""
    kept = ended[1]
    old = {name: value for name, value in kept.to_dict().items() if name not in ("format", "status", "settings")}
    del old["weights_sha256"]
    (copy / "summary.json").write_text(json.dumps({**old, "started_from": None, "commit": f"{kept.commit}+changes"}))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    del config["freeze"], config["trainer"]["gradient_clip_val"]  # settings that came later
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return copy


def test_a_finished_run_of_format_1_is_still_finished(ended, of_format_1):
    found = finished_run(compose([*OF_ENDED, "resume=auto"]), of_format_1)
    assert found == replace(ended[1], clean=False, weights_sha256=None)
    with pytest.raises(SettingError, match="checkpoint is null there, cifar10-gap here, freeze is false there"):
        finished_run(compose([*OF_ENDED, "resume=auto", "freeze=true", "checkpoint=cifar10-gap"]), of_format_1)
    weights = of_format_1 / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert finished_run(compose([*OF_ENDED, "resume=auto"]), of_format_1) is None


def test_a_description_of_format_1_that_is_damaged_is_named(of_format_1):
    for name in ("config.yaml", "summary.json"):
        good = (of_format_1 / name).read_bytes()
        (of_format_1 / name).write_bytes(good[: len(good) // 2])
        with pytest.raises(RunError, match=rf"{name.replace('.', '[.]')} is damaged"):
            train(compose([*OF_ENDED, "resume=auto"]), of_format_1)
        (of_format_1 / name).write_bytes(good)
