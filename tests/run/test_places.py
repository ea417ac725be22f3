"""Folders where a run's files go, links in their place, and places that cannot be written."""

import os
import random
import shutil
from pathlib import Path

import pytest

from claims import tiny
from nin import pretrained
from nin.cli import compose
from nin.errors import NINError
from nin.run.folder import LOCK, WRITTEN, WRITTEN_BY_LIBRARIES
from nin.run.train import train
from runs import SHORT

RUN = [*SHORT, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_test_batches=1"]
RUN += ["data.batch_size=16", "resume=auto"]
NAMES = (*WRITTEN, *WRITTEN_BY_LIBRARIES, LOCK)


def contents(folder):
    """All that a folder contains."""
    found = sorted(folder.rglob("*"))
    return [
        (str(p.relative_to(folder)), os.readlink(p) if p.is_symlink() else p.is_dir() or p.read_bytes()) for p in found
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run's folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(compose(RUN), folder)
    return folder


@pytest.mark.tries(24)
def test_a_folder_where_a_run_writes_a_file_is_said_before_it_trains(whole, tmp_path, tried):
    """In the folder of a new run, or of one that resumes; alone or several, empty or not."""
    draws = random.Random(14)
    for number in range(24):
        folder = tmp_path / str(number)
        if number % 2:
            shutil.copytree(whole, folder)
            (folder / "model.safetensors").unlink()  # there is something left to do
        for name in [NAMES[number // 2 % len(NAMES)], *draws.sample(NAMES, draws.randrange(3))]:
            (folder / name).unlink(missing_ok=True) if (folder / name).is_file() else None
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "mine").write_text("mine") if draws.random() < 0.5 else None
        before = contents(folder)
        with pytest.raises(NINError) as refused:
            train(compose(RUN), folder)
        assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
        assert contents(folder) == before
        tried(before)


@pytest.mark.tries(12)
def test_links_in_a_runs_folder_are_not_written_through(tmp_path, tried):
    """Each file that a run writes may be a link to a file or to nothing, TensorBoard's included: a run replaces it, or
    one sentence refuses the folder, and the file that it points to stays as it is."""
    draws, trained = random.Random(15), 0
    for number in range(12):
        folder, targets = tmp_path / str(number), tmp_path / f"targets{number}"
        folder.mkdir()
        targets.mkdir()
        names = ["hparams.yaml", *draws.sample(NAMES, 4)] if number % 2 else ["hparams.yaml"]
        for name in {*names, *draws.sample([*WRITTEN], number % 3)}:
            if number % 4 == 0 or draws.random() < 0.3:
                (targets / name).write_bytes(draws.randbytes(draws.randrange(40)))
            (folder / name).symlink_to(targets / name)
        before = contents(targets)
        try:
            train(compose([*RUN, "logger=tensorboard"]), folder)
            trained += 1
            assert not any((folder / name).is_symlink() for name in {*names} - {"split.csv"})
        except NINError as refused:
            assert "\n" not in str(refused) and number
        assert contents(targets) == before
        tried(before)
    assert trained >= 3


def places(tmp_path):
    """Folders that cannot be made, or in which nothing can be written."""
    (tmp_path / "file").write_text("a file")
    yield from (Path(place) for place in ("/proc/nowhere", "/proc/self/task/nowhere", "/dev/null/nowhere"))
    yield from (tmp_path / place for place in ("file", "file/deeper", "x" * 300, "/".join(["long"] * 1500)))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    yield tmp_path / "loop"
    if os.getuid():  # the superuser may write anywhere
        (tmp_path / "forbidden").mkdir(mode=0o500)
        yield tmp_path / "forbidden"


@pytest.mark.tries(48)
def test_a_place_that_cannot_be_written_is_one_sentence(script, tmp_path, tried):
    pretrained.save(tmp_path / "net.safetensors", tiny())
    (tmp_path / "work").mkdir()
    picture = Path(__file__).parents[2] / "scripts" / "chelsea.png"
    found = list(places(tmp_path / "work"))
    before = contents(tmp_path / "work")
    for place in found[:8]:
        checkpoint = f"checkpoint={tmp_path / 'net.safetensors'}"
        commands = [
            ("train.py", *RUN, f"hydra.run.dir={place}"),
            ("ablate.py", "data=digits", f"study={place}/runs.csv"),
            ("ablate.py", "data=digits", f"study={tmp_path / 'runs.csv'}", f"runs={place}"),
            ("predict.py", checkpoint, f"out={place}", picture),
            ("export.py", checkpoint, f"out={place}/net.onnx"),
            ("claims.py", checkpoint, "claim=channels", f"out={place}"),
        ]
        for name, *arguments in commands:
            code, _, errors = script(name, *arguments)
            assert code in (1, 2) and len(errors.splitlines()) == 1 and errors.startswith("error: "), (name, errors)
            tried((place, name))
    assert contents(tmp_path / "work") == before
