import os
import pickle
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders import NARROW, Payload
from nin import files, pretrained
from nin.cli import compose
from nin.errors import InterruptedRunError, LeftAloneError, RunError
from nin.run import record
from nin.run.callbacks import MovingAverage
from nin.run.checkpoint import AtomicCheckpointIO, checksum
from nin.run.signals import stoppable
from nin.run.train import train
from nin.task import Classifier
from runs import Command, results

SHORT = ["data=digits", NARROW, "trainer.max_epochs=30", "trainer.limit_train_batches=4", "trainer.progress_bar=false"]
SHORT += ["model.dropout=0.5", "data.batch_size=16", "eval_curve=true", "resume=auto", "trainer.accelerator=cpu"]
TWO_EPOCHS = [*SHORT, "trainer.max_epochs=2"]
TRAIN = ["train.py", *SHORT, "hydra.run.dir=run"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(compose(SHORT), folder)
    return folder


def written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


@pytest.mark.slow
def test_ten_kills_change_nothing(uninterrupted, tmp_path):
    folder, moments = tmp_path / "run", random.Random(7)
    first_epoch = 0.0  # seconds from the start of a process to its first checkpoint, as the last one took
    for kill in range(10):
        before, began = written(folder / "last.ckpt"), time.monotonic()
        process = Command(TRAIN, tmp_path)
        if kill % 2:  # while the process starts, the checkpoint is read or the first steps are made
            time.sleep(moments.uniform(0.1, 0.9) * first_epoch)
        else:  # after an epoch of its own, in the next or while that is written
            while written(folder / "last.ckpt") == before:
                assert process.is_running, process.wait()
                time.sleep(0.01)
            first_epoch = time.monotonic() - began
            time.sleep(moments.uniform(0, 0.2))
        process.kill(signal.SIGKILL)
        _, said, _ = process.wait()
        assert kill % 2 or kill == 0 or "resumed after epoch" in said
    assert not (folder / "model.safetensors").exists()  # ten kills of a run that had not ended
    code, said, errors = Command(TRAIN, tmp_path).wait()
    assert code == 0, errors
    assert "resumed after epoch" in said
    assert results(folder) == results(uninterrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_its_code_and_a_way_to_resume(uninterrupted, tmp_path, number, code):
    folder = tmp_path / "run"
    process = Command(TRAIN, tmp_path)
    while not (folder / "last.ckpt").exists():
        assert process.is_running
        time.sleep(0.05)
    process.kill(number)
    ended, said, errors = process.wait()
    assert ended == code, errors
    assert said.startswith("resume=auto: run has no whole epoch to resume; training starts at epoch 1\n")
    assert errors == (
        "error: stopped; to resume after the last whole epoch, run the same command with resume=auto "
        "hydra.run.dir=run\n"
    )
    assert record.read(folder).status == "running"
    ended, said, errors = Command(TRAIN, tmp_path).wait()
    assert (ended, errors) == (0, "")
    assert "resumed after epoch" in said
    assert results(folder) == results(uninterrupted)


# a run of two epochs -------------------------------------------------------------------------------------------------


def stopped(monkeypatch, hook: str, when, settings: list[str], folder: Path) -> InterruptedRunError:
    """A run that gets SIGTERM in a method of its task."""
    method = getattr(Classifier, hook)

    def told(task, *arguments):
        if when(task):
            os.kill(os.getpid(), signal.SIGTERM)
        return method(task, *arguments)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError) as error:
        patch.setattr(Classifier, hook, told)
        train(compose(settings), folder)
    return error.value


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run of two epochs, finished."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(compose(TWO_EPOCHS), folder)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """The folder of the same run, stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch:
        error = stopped(patch, "on_train_epoch_start", lambda task: task.current_epoch == 1, TWO_EPOCHS, folder)
    assert error.exit_code == 143
    return folder


@pytest.fixture
def copy(half, tmp_path) -> Path:
    return shutil.copytree(half, tmp_path / "run")


def test_a_moving_average_resumes_and_is_what_remains(whole, tmp_path, monkeypatch):
    settings, states = [*TWO_EPOCHS, "recipe.ema=0.7"], []
    step = MovingAverage.on_train_batch_end

    def noted(callback, trainer, task, *rest):
        states.append({name: value.clone() for name, value in task.net.state_dict().items()})
        return step(callback, trainer, task, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(MovingAverage, "on_train_batch_end", noted)
        train(compose(settings), tmp_path / "uninterrupted")
    assert len(states) == 8
    average = {name: value for name, value in states[0].items() if value.is_floating_point()}
    for state in states[1:]:
        average = {name: value.lerp(state[name], 0.3) for name, value in average.items()}
    saved, plain = (pretrained.load(run).net.state_dict() for run in (tmp_path / "uninterrupted", whole))
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value)
    assert not any(torch.equal(saved[name], states[-1][name]) for name in average)
    assert not any(torch.equal(saved[name], plain[name]) for name in average)
    stopped(monkeypatch, "on_train_epoch_start", lambda task: task.current_epoch == 1, settings, tmp_path / "run")
    train(compose(settings), tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "uninterrupted")
    stopped(monkeypatch, "test_step", lambda task: task.trainer.state.fn == "test", settings, tmp_path / "evaluated")
    train(compose(settings), tmp_path / "evaluated")  # nothing is left to train
    assert results(tmp_path / "evaluated") == results(tmp_path / "uninterrupted")


def test_a_signal_during_the_last_evaluation_is_no_success(whole, copy, monkeypatch):
    error = stopped(monkeypatch, "test_step", lambda task: True, TWO_EPOCHS, copy)
    assert error.exit_code == 143 and str(error).startswith("stopped; to resume after the last whole epoch")
    kept = record.read(copy)
    assert (kept.status, kept.test_error) == ("running", None)
    assert not (copy / "model.safetensors").exists()
    train(compose(TWO_EPOCHS), copy)
    assert results(copy) == results(whole)


def test_an_ignored_ctrl_c_stays_ignored():
    """As in a job that a script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable("go on"):
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("raised", [RuntimeError, OSError, RunError, SystemExit, LeftAloneError, MemoryError])
def test_a_signal_that_comes_back_as_another_error_is_a_signal(raised):
    """A callback called from C++ turns KeyboardInterrupt into RuntimeError, say."""
    with pytest.raises(InterruptedRunError) as error, stoppable("go on"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise raised("the file could not be written") from None
    assert (error.value.exit_code, str(error.value)) == (143, "stopped; go on")
    with pytest.raises(raised), stoppable("go on"):  # without a signal it is itself
        raise raised("the file could not be written")


def test_a_run_whose_starter_is_gone_ends(copy, monkeypatch):
    monkeypatch.setenv("NIN_STARTER", "1" if os.getppid() != 1 else "2")
    with pytest.raises(InterruptedRunError) as error:
        train(compose(TWO_EPOCHS), copy)
    assert error.value.exit_code == 143


def test_a_checkpoint_from_before_the_watch_was_a_callback_resumes(whole, copy):
    """Until then the task held what the watch remembers."""
    file = copy / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["sha256"]  # of the parts; it came later too
    remembered = checkpoint["callbacks"].pop("DeadNetWatch")
    checkpoint["state_dict"]["recent_losses"] = remembered["losses"]
    checkpoint["state_dict"]["first_spread"] = torch.tensor(remembered["first_spread"])
    torch.save(checkpoint, file)
    train(compose(TWO_EPOCHS), copy)
    assert results(copy) == results(whole)
    again = torch.load(file, weights_only=True)
    assert "recent_losses" not in again["state_dict"]
    assert again["callbacks"]["DeadNetWatch"]["first_spread"] == pytest.approx(remembered["first_spread"])
    assert torch.equal(again["callbacks"]["DeadNetWatch"]["losses"][:4], remembered["losses"][:4])


def test_another_precision_or_start_is_refused(copy):
    kept = record.read(copy)
    record.write(copy, replace(kept, precision="bf16-mixed" if kept.precision == "32-true" else "32-true"))
    with pytest.raises(RunError, match=r"was trained in .* so far, and trainer\.precision=auto is .* on this machine"):
        train(compose(TWO_EPOCHS), copy)


def test_the_record_of_a_resumed_run_knows_of_another_commit(whole, copy):
    kept = record.read(copy)
    record.write(copy, replace(kept, commit="f" * 40, clean=True))
    resumed = train(compose(TWO_EPOCHS), copy)
    assert resumed.commit != "f" * 40 and not resumed.clean


def test_a_start_that_was_published_anew_is_refused(whole, tmp_path):
    net = shutil.copytree(whole, tmp_path / "net")
    settings = [*TWO_EPOCHS, f"checkpoint={net}"]
    with pytest.MonkeyPatch.context() as patch:
        stopped(patch, "on_train_epoch_start", lambda task: task.current_epoch == 1, settings, tmp_path / "run")
    kept = record.read(tmp_path / "run")
    assert kept.start.sha256 == files.sha256((net / "model.safetensors").read_bytes())
    record.write(tmp_path / "run", replace(kept, start=replace(kept.start, sha256="0" * 64)))
    with pytest.raises(RunError, match=rf"checkpoint={net}: .*/run started from weights with sha256 0000"):
        train(compose(settings), tmp_path / "run")


def hostile(kind: str, marker: Path, file: Path) -> None:
    """A checkpoint that makes `marker` when it is unpickled."""
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "pytorch-lightning_version")
    payload = {**{part: {} for part in parts}, "epoch": 0, "global_step": 1, "hyper_parameters": Payload(marker)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_the_hostile_checkpoints_are_hostile(tmp_path, kind):
    hostile(kind, tmp_path / "marker", tmp_path / "file")
    if kind == "pickle":
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", ["pickle", "zip", "legacy", "plain", "tensor", "cut", "empty", "text"])
def test_a_bad_checkpoint_is_refused_and_runs_nothing(copy, tmp_path, content):
    file, marker = copy / "last.ckpt", tmp_path / "marker"
    good = file.read_bytes()
    if content in ("pickle", "zip", "legacy"):
        hostile(content, marker, file)
    elif content == "plain":
        torch.save({"epoch": 0, "global_step": 3}, file)
    elif content == "tensor":
        torch.save(torch.zeros(3), file)
    else:
        file.write_bytes({"cut": good[: len(good) // 2], "empty": b"", "text": b"hi"}[content])
    bad = file.read_bytes()
    with pytest.raises(RunError, match=r"last\.ckpt is damaged or not a checkpoint of a run") as error:
        train(compose(TWO_EPOCHS), copy)
    assert "\n" not in str(error.value) and file.read_bytes() == bad
    assert "weights_only" not in str(error.value)  # torch's advice is to unpickle whatever it is
    assert not marker.exists()


def test_a_pipe_in_place_of_a_checkpoint_holds_no_one(copy):
    (copy / "last.ckpt").unlink()
    os.mkfifo(copy / "last.ckpt")
    with pytest.raises(RunError, match="is not a regular file"):
        train(compose(TWO_EPOCHS), copy)


@pytest.mark.parametrize(
    "part", ["state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "shapes", "another net"]
)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(copy, part):
    file = copy / "last.ckpt"
    found = torch.load(file, weights_only=True)
    del found["sha256"]
    if part == "shapes":
        states = found["optimizer_states"][0]["state"]
        states |= {key: {name: torch.zeros(7) for name in state} for key, state in states.items()}
        found["state_dict"] = {name: tensor[:0] for name, tensor in found["state_dict"].items() if tensor.ndim}
    elif part == "another net":
        found["state_dict"] = {f"x.{name}": tensor for name, tensor in found["state_dict"].items()}
    else:
        found[part] = {"epoch": "one", "loops": {"fit_loop": 3}, "callbacks": [1]}.get(part, [{"x": 1}])
    torch.save(found, file)
    with pytest.raises(RunError, match=r"last\.ckpt is damaged or not a checkpoint of a run"):
        train(compose(TWO_EPOCHS), copy)
    assert torch.load(file, weights_only=True).keys() == found.keys()


def leaves(value, path=()):
    """The places of a nested value: (path, value) of each thing that contains nothing else."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    inner = list(inner)
    if not inner:
        yield path, value
    for name, each in inner:
        yield from leaves(each, (*path, name))


def replaced(value, path, odd):
    """A nested value with another one at this place."""
    if not path:
        return odd
    if isinstance(value, dict):
        return {**value, path[0]: replaced(value[path[0]], path[1:], odd)}
    return [replaced(each, path[1:], odd) if n == path[0] else each for n, each in enumerate(value)]


ODD = ["text", None, [1], {"x": 1}, float("nan"), -1, torch.ones(3)]


@pytest.mark.tries(120)
def test_a_checkpoint_that_was_altered_anywhere_is_refused_by_its_part(copy, tried):
    file, moments = copy / "last.ckpt", random.Random(5)
    found = torch.load(file, weights_only=True)
    places = [path for path, _ in leaves({part: found[part] for part in found if part != "sha256"})]
    for _ in range(120):
        path, odd = moments.choice(places), moments.choice(ODD)
        while checksum(replaced(found, path, odd)) == checksum(found):
            odd = moments.choice(ODD)
        torch.save(replaced(found, path, odd), file)
        with pytest.raises(ValueError, match=f"{path[0]} is not what was saved"):
            AtomicCheckpointIO().check(file)
        tried((path, odd))
    before = {each.name: each.read_bytes() for each in copy.iterdir() if each.is_file()}
    with pytest.raises(RunError, match=rf"last\.ckpt is damaged .*\({path[0]} is not what was saved\)"):
        train(compose(TWO_EPOCHS), copy)
    assert {each.name: each.read_bytes() for each in copy.iterdir() if each.is_file()} == before


OF_ITS_PARTS = ["callbacks", "lr_schedulers", "optimizer_states", "loops"]


@pytest.mark.parametrize("part", OF_ITS_PARTS)
@pytest.mark.tries(3)
def test_an_older_checkpoint_with_other_types_is_refused_or_trains(copy, part, tried):
    """Without checksums: whatever it contains shows until its first step has ended."""
    good, moments = torch.load(copy / "last.ckpt", weights_only=True), random.Random(OF_ITS_PARTS.index(part))
    del good["sha256"]
    places = [path for path, _ in leaves({part: good[part]})]
    for _ in range(3):
        path, odd = moments.choice(places), moments.choice(ODD[:4])
        torch.save(replaced(good, path, odd), copy / "last.ckpt")
        try:
            train(compose(TWO_EPOCHS), copy)
        except RunError as refused:
            assert "last.ckpt is damaged or not a checkpoint of a run" in str(refused)
            assert "\n" not in str(refused) and len(str(refused)) < 600
        else:
            (copy / "summary.json").write_text((copy / "summary.json").read_text().replace("finished", "running"))
        tried((path, odd))


@pytest.mark.parametrize(
    ("befalls", "refusal", "words"),
    [
        (torch.distributed.DistNetworkError("closed"), LeftAloneError, "process"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"), LeftAloneError, "process"),
        (torch.OutOfMemoryError("CUDA out of memory. GPU 0 has …"), RunError, "^CUDA out of memory; choose a data"),
    ],
)
def test_what_befalls_a_resumed_run_before_its_first_step_is_not_its_checkpoints_fault(
    copy, monkeypatch, befalls, refusal, words
):
    def fit_start(self):
        raise befalls

    monkeypatch.setattr(Classifier, "on_fit_start", fit_start)
    with pytest.raises(refusal, match=words):
        train(compose(TWO_EPOCHS), copy)


# disks ---------------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_in_the_second_epoch_costs_that_epoch(whole, tmp_path, monkeypatch):
    write, checkpoints = files.write, []

    def full(file, content):
        checkpoints.extend([file] * (Path(file).name == "last.ckpt"))
        if len(checkpoints) == 2:
            raise RunError(f"{file} cannot be written (No space left on device); the file before is as it was")
        return write(file, content)

    with monkeypatch.context() as faulty:
        faulty.setattr(files, "write", full)
        with pytest.raises(RunError, match=r"last\.ckpt cannot be written .*No space left"):
            train(compose(TWO_EPOCHS), tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 0
    train(compose(TWO_EPOCHS), tmp_path / "run")
    assert results(tmp_path / "run") == results(whole)


def test_a_full_disk_is_one_sentence_and_the_run_can_be_repeated(whole, tmp_path):
    command = ["train.py", *TWO_EPOCHS, "hydra.run.dir=run"]
    code, _, errors = Command(command, tmp_path, {"TEST_LARGEST_FILE": "9000"}).wait()
    assert code == 1
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert "last.ckpt cannot be written (" in errors
    train(compose(TWO_EPOCHS), tmp_path / "run")
    assert results(tmp_path / "run") == results(whole)


def test_a_disk_that_is_full_for_the_run_itself_is_one_sentence(script, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("nin.run.train.train", full)
    code, _, errors = script("train.py", *TWO_EPOCHS, "hydra.run.dir=run")
    assert code == 1 and errors.startswith("error: ") and errors.count("\n") == 1
    assert "No space left on device" in errors
