"""Runs on a folder of one's own pictures."""

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import nin
from builders import NARROW
from nin.cli import compose, points
from nin.data.folder import list_folder
from nin.data.streamed import Streamed
from nin.errors import CheckpointError, DataError, SettingError
from nin.predict import predict
from nin.run import unfinished
from nin.run.evaluate import evaluate_pretrained, images_of
from nin.run.train import _load_images, train
from nin.studies.nets import gather
from photographs import COLOURS, make_folder
from runs import results, two

SETTINGS = ["data=folder", "data.size=16", "data.batch_size=8", NARROW, "trainer.max_epochs=2", "model.dropout=0.5"]
SETTINGS += ["trainer.progress_bar=false", "trainer.accelerator=cpu", "recipe.warmup=0"]
CLASSES = tuple(sorted(COLOURS))

pytestmark = pytest.mark.filterwarnings("ignore:under 10 pictures")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder of pictures, and a run on it."""
    here = tmp_path_factory.mktemp("photographs")
    settings = [*SETTINGS, f"data.root={make_folder(here / 'photos', (13, 12, 11))}"]
    return here, settings, train(compose(settings), here / "run")


def test_a_run_has_the_folders_classes_and_the_error_of_each(ran):
    here, _settings, record = ran
    trained = nin.load(here / "run")
    assert trained.classes == CLASSES and trained.net.num_classes == 3
    assert {name: found["images"] for name, found in record.class_errors.items()} == {
        "rose": 3,
        "tulip": 2,
        "violet": 2,
    }
    wrong = sum(found["images"] * found["error"] for found in record.class_errors.values()) / 7
    assert wrong == pytest.approx(record.test_error, abs=1e-3)
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["class_errors"] == record.class_errors
    lines = (here / "run" / "split.csv").read_text().splitlines()
    assert len(lines) == 1 + 36 and sum(line.startswith("test,") for line in lines) == 7
    assert record.settings["data"]["sha256"] in (here / "run" / "config.yaml").read_text()


def test_the_run_is_evaluated_on_its_own_split_and_predicts(ran):
    here, _settings, record = ran
    trained = nin.load(here / "run")
    evaluation = evaluate_pretrained(trained, compose(["trainer.accelerator=cpu", "trainer.progress_bar=false"]))
    assert round(evaluation.error, 4) == record.test_error and evaluation.class_errors == record.class_errors
    (prediction,) = predict(trained, [Image.new("RGB", (60, 40), COLOURS["violet"])])
    assert trained.classes[prediction.best(1)[0]] in CLASSES
    assert images_of(trained).set.test_images.shape == (7, 3, 16, 16)


def test_a_run_on_streamed_pictures_is_the_same_run_and_resumes(ran, tmp_path):
    here, settings, _ = ran
    streamed = [*settings, "data.memory=1e-6", "data.workers=1"]
    train(compose(streamed), tmp_path / "run")
    assert results(tmp_path / "run") == results(here / "run")
    half = [*streamed, "resume=auto"]
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    (tmp_path / "again" / "model.safetensors").unlink()
    train(compose(half), tmp_path / "again")  # after its last epoch
    assert results(tmp_path / "again") == results(here / "run")


def test_another_folder_is_another_run(ran, tmp_path):
    here, settings, record = ran
    other = make_folder(tmp_path / "photos", (13, 12, 11), shift=50)
    moved = shutil.copytree(here / "photos", tmp_path / "moved")
    again = [*settings, "resume=auto"]
    assert train(compose([*again, f"data.root={moved}"]), here / "run") == record  # finished
    with pytest.raises(
        SettingError,
        match=r"settings: the pictures in data\.root are others than those of the training; choose another folder",
    ):
        train(compose([*again, f"data.root={other}"]), here / "run")
    first, second, third = (points([*settings, f"data.root={root}"])[0] for root in (here / "photos", moved, other))
    assert first.identity == second.identity != third.identity and first.folder != third.folder
    with pytest.raises(DataError, match="the pictures are not those of the training"):
        images_of(nin.load(here / "run"), str(other))
    with pytest.raises(CheckpointError, match=r"its classes are rose, tulip, the net's are rose, tulip, v"):
        images_of(nin.load(here / "run"), str(make_folder(tmp_path / "two", (5, 5))))
    tests = make_folder(make_folder(tmp_path / "split", (2, 2, 2), "train"), (4, 4, 4), "test", shift=90)
    assert len(images_of(nin.load(here / "run"), str(tests)).set.test_labels) == 12


@pytest.mark.parametrize("freeze", [False, True])
def test_a_published_net_is_fine_tuned_at_another_size(ran, tmp_path, freeze):
    here, _settings, _ = ran
    small = ["data=folder", f"data.root={here / 'photos'}", "recipe=transfer", "trainer.max_epochs=1", "data.size=24"]
    small += [f"freeze={freeze}", "checkpoint=cifar10-gap", "trainer.progress_bar=false", "data.batch_size=8"]
    train(compose([*small, "trainer.limit_train_batches=1", "trainer.accelerator=cpu"]), tmp_path / "run")
    start, ended = nin.load("cifar10-gap"), nin.load(tmp_path / "run")
    assert ended.classes == CLASSES and ended.net.plan.image_size == 24
    assert torch.equal(ended.preprocess.mean, start.preprocess.mean)
    same = torch.equal(start.net.blocks.block1.conv1.weight, ended.net.blocks.block1.conv1.weight)
    assert same == freeze


def test_claims_ask_each_net_about_its_own_test_pictures(ran, tmp_path):
    here, settings, _ = ran
    train(compose([*settings, "seed=1"]), tmp_path / "other")
    subjects = gather([str(here / "run"), str(tmp_path / "other")])
    own = [images_of(subject.trained).set for subject in subjects]
    assert all(torch.equal(subject.images, whole.test_images) for subject, whole in zip(subjects, own, strict=True))
    assert not torch.equal(own[0].test_images, own[1].test_images)


def test_an_evaluation_counts_the_copies_that_the_training_counted(ran, tmp_path):
    here, settings, _ = ran
    whiten = ["data.preprocessing=whiten", "trainer.max_epochs=1", "recipe.optimiser=sgd"]
    train(compose([*settings, *whiten]), tmp_path / "run")
    enough = 36 * 3 * 16 * 16 * 1.2 / 1e9  # for the images, not for five copies
    for folder, kept in ((here / "run", torch.Tensor), (tmp_path / "run", Streamed)):
        assert isinstance(images_of(nin.load(folder), memory=enough).set.test_images, kept)


def test_a_net_of_the_same_folder_never_brings_test_or_held_out_pictures(ran, tmp_path):
    here, settings, _ = ran
    again = [*settings, f"checkpoint={here / 'run'}", "trainer.max_epochs=1"]
    with pytest.raises(SettingError, match=r"seed=1: checkpoint=.* was trained on this folder with seed=0"):
        train(compose([*again, "seed=1"]), tmp_path / "run")
    with pytest.raises(SettingError, match=r"data\.val=5: checkpoint=.* held out 0 of these images"):
        train(compose([*again, "data.val=5"]), tmp_path / "run")
    assert train(compose(again), tmp_path / "run").status == "finished"
    held_out = [*settings, "data.val=6", "trainer.max_epochs=1"]
    train(compose(held_out), tmp_path / "held")
    train(compose([*held_out, f"checkpoint={tmp_path / 'held'}"]), tmp_path / "more")
    other = make_folder(tmp_path / "photos", (13, 12, 11), shift=50)
    with pytest.warns(UserWarning, match="was trained on other pictures; a test picture that was trained on makes"):
        train(compose([*again, f"data.root={other}", "seed=1"]), tmp_path / "other")


def test_another_split_than_the_trainings_is_named(tmp_path):
    for part, numbers in (("train", (4, 4)), ("test", (2, 2))):
        make_folder(tmp_path / "photos", numbers, part, shift=9 * len(part))
    train(compose([*SETTINGS, f"data.root={tmp_path / 'photos'}"]), tmp_path / "run")
    trained = nin.load(tmp_path / "run")
    images_of(trained)
    moved = next((tmp_path / "photos" / "train" / "rose").iterdir())
    moved.rename(tmp_path / "photos" / "test" / "rose" / f"moved{moved.suffix}")
    with pytest.warns(UserWarning, match="not the pictures of the training; a test picture that was trained on"):
        images_of(trained)


def test_a_resumed_run_names_all_its_machines(ran, tmp_path):
    here, settings, _ = ran
    shutil.copytree(here / "run", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    file = tmp_path / "run" / "summary.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({**before, "status": "running", "device": "NVIDIA H200", "clean": True}))
    after = train(compose([*settings, "resume=auto"]), tmp_path / "run")
    assert after.device == f"NVIDIA H200, then {before['device']}"


def test_two_classes_of_three_pictures(tmp_path):
    settings = [*SETTINGS, f"data.root={make_folder(tmp_path / 'photos', (3, 3))}"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        record = train(compose(settings), tmp_path / "run")
    assert record.test_images == 2 and nin.load(tmp_path / "run").classes == ("rose", "tulip")
    assert any("under 10 pictures: rose 3, tulip 3" in str(each.message) for each in said)


def test_process_0_alone_lists_a_folder(ran, monkeypatch):
    here, settings, _ = ran
    config = compose([*settings, f"data.root={here / 'photos'}"])
    listing = list_folder(here / "photos")
    strategy = SimpleNamespace(barrier=lambda: None, broadcast=lambda own: own or listing)
    trainer = SimpleNamespace(is_global_zero=False, strategy=strategy)
    run = SimpleNamespace(config=config, writes=False, trainer=trainer, folder=here / "run")
    monkeypatch.setattr("nin.data.module.listed", lambda *_: pytest.fail("another process lists the folder"))
    data, start = _load_images(run)
    assert start is None and data.listing == listing and len(data.train_images) == 29


@pytest.mark.slow
def test_two_processes_train_on_streamed_pictures(ran, tmp_path):
    _here, settings, _ = ran
    streamed = [*settings, "data.memory=1e-6", "data.workers=1", "trainer=ddp", "trainer.devices=2"]
    ended = [each.wait() for each in two(["train.py", *streamed, "hydra.run.dir=run"], tmp_path)]
    assert [code for code, *_ in ended] == [0, 0], ended
    assert "violet" in ended[0][1] and nin.load(tmp_path / "run").classes == CLASSES


def test_frozen_features_come_from_the_run_that_it_started_from(tmp_path):
    """They are in no checkpoint: an unfinished run, and one whose pictures are streamed, compute the same net."""
    common = [
        "data=folder",
        f"data.root={make_folder(tmp_path / 'photos', (13, 12, 11))}",
        "data.size=32",
        "trainer=cpu",
    ]
    common += ["data.batch_size=8", "trainer.max_epochs=1", "trainer.progress_bar=false", "recipe.warmup=0"]
    common += ["model=squeezenet1_1", "model.weights=none", "data.pad=0", "data.flip=false", "recipe.optimiser=adamw"]
    common += ["recipe.lr=0.001", "recipe.nesterov=false"]
    train(compose([*common, "head=gap_article"]), tmp_path / "first")
    then = [*common, "head=fc_article", f"checkpoint={tmp_path / 'first'}", "freeze=true"]
    train(compose(then), tmp_path / "held")
    train(compose([*then, "data.memory=1e-9", "data.workers=0"]), tmp_path / "streamed")
    first, held, streamed = (nin.load(tmp_path / name).net.state_dict() for name in ("first", "held", "streamed"))
    for name, value in held.items():
        torch.testing.assert_close(streamed[name], value, atol=1e-4, rtol=1e-4)
        assert not name.startswith("features.") or torch.equal(value, first[name])
    (tmp_path / "held" / "model.safetensors").unlink()
    summary = json.loads((tmp_path / "held" / "summary.json").read_text())
    (tmp_path / "held" / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    moved = (tmp_path / "photos").rename(tmp_path / "elsewhere")
    again = unfinished.load(str(tmp_path / "held"), root=str(moved)).net.state_dict()
    assert all(torch.equal(again[name], value) for name, value in held.items())
    start = json.loads((tmp_path / "held" / "summary.json").read_text())["start"]
    changed = {**summary, "status": "running", "start": {**start, "sha256": "0" * 64}}
    (tmp_path / "held" / "summary.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=r"damaged or of another run .it started from other weights than"):
        unfinished.load(str(tmp_path / "held"), root=str(moved))
