"""Published nets: names, cards, shared whitening."""

import hashlib
import json
import resource
import shlex
from contextlib import contextmanager
from dataclasses import replace

import pytest
import safetensors.torch
import torch

import nin
from claims import tiny
from nin import NIN, Block, cli, config, files, pretrained, publish
from nin.data.preprocess import Whiten
from nin.errors import CheckpointError, RunError
from nin.pretrained import Pretrained, golden_images
from nin.run import record
from nin.run.evaluate import Evaluation, evaluate_pretrained
from nin.run.record import Record
from nin.run.train import train
from runs import NARROW

SHORT = ["data=digits", NARROW, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.progress_bar=false"]


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty folder of published nets."""
    monkeypatch.setattr(pretrained, "CHECKPOINTS", tmp_path / "shelf")
    return tmp_path / "shelf"


def test_a_card_describes_its_weights_file(shelf):
    file = publish.publish_net(tiny(), "small", {"data": "digits", "test_error": 12.34})
    card = json.loads(file.read_text())
    content = (shelf / card["file"]).read_bytes()
    assert file == shelf / "small.json" and card["test_error"] == 12.34
    assert hashlib.sha256(content).hexdigest() == card["sha256"]
    assert (card["file"], card["bytes"]) == (f"small-{card['sha256'][:8]}.safetensors", len(content))
    torch.testing.assert_close(
        nin.load("small")(golden_images()), torch.tensor(card["golden_logits"]), atol=1e-4, rtol=0
    )
    assert card["multiply_accumulates"] == nin.multiply_accumulates(tiny().net, 3, 32, 32)
    assert card["classes"] == list(tiny().classes) and card["preprocessing"] == "normalise"
    assert card["licence"] == "weights: Apache-2.0; trained on digits, whose images are not part of this"
    assert sorted(each.name for each in shelf.iterdir()) == sorted([card["file"], "small.json"])


def test_a_name_is_given_once_and_stays_on_the_shelf(shelf):
    publish.publish_net(tiny(), "small", {"data": "digits"})
    for name, words in (("small", "already contains this name"), ("../esc", "small letters"), ("a/b", "small letters")):
        with pytest.raises(CheckpointError, match=words):
            publish.publish_net(tiny(), name, {"data": "digits"})
    publish.publish_net(nin.load("small"), "again", {"data": "digits"})
    assert json.loads((shelf / "again.json").read_text())["file"].startswith("again-")
    torch.testing.assert_close(nin.load("again")(golden_images()), nin.load("small")(golden_images()))


def test_a_card_that_a_power_cut_left_half_written_is_no_net(shelf):
    publish.publish_net(tiny(), "small", {"data": "digits"})
    (shelf / f"{files.TEMPORARY}abc-other.json").write_text("")
    assert pretrained.available() == ["small"]


def test_a_card_that_cannot_be_written_leaves_no_weights(shelf, monkeypatch):
    describe = publish.describe

    def taken(file):
        (shelf / "small.json").mkdir()  # meanwhile
        return describe(file)

    monkeypatch.setattr(publish, "describe", taken)
    with pytest.raises(RunError, match=r"small\.json cannot be written"):
        publish.publish_net(tiny(), "small", {"data": "digits"})
    assert [each.name for each in shelf.iterdir()] == ["small.json"]


@contextmanager
def room_for(size: int):
    """No file grows beyond `size` bytes: the system refuses, whatever library writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(shelf):
    publish.publish_net(tiny(), "small", {"data": "digits"})
    pretrained.save(shelf / "model.safetensors", tiny())
    before = {file.name: file.read_bytes() for file in shelf.iterdir()}
    writers = (
        lambda: publish.publish_net(tiny(), "other", {"data": "digits"}),
        lambda: publish.publish_whitening(Whiten(torch.zeros(192), torch.eye(192), (3, 8, 8))),
        lambda: pretrained.save(shelf / "model.safetensors", tiny(seed=1)),
    )
    for write in writers:
        with room_for(4000), pytest.raises(RunError, match=r"cannot be written \(.*\); the file before is as it was"):
            write()
        assert {file.name: file.read_bytes() for file in shelf.iterdir()} == before
        write()
        assert {file.name: file.read_bytes() for file in shelf.iterdir()} != before
        before = {file.name: file.read_bytes() for file in shelf.iterdir()}


def test_whitened_nets_share_one_file(shelf):
    images = torch.randint(0, 256, (4000, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whiten = Whiten.fit(images)
    blocks = [Block(8), Block((8, 8, None))]
    small_nets = [NIN(blocks, head=head, image_size=8, init="kaiming").eval() for head in ("gap", "gmp")]
    nets = [Pretrained(net, whiten, tiny().classes, {"data": "digits"}) for net in small_nets]
    whitening, published = publish.publish_whitening(whiten)
    nearly = Whiten(whiten.mean, whiten.matrix + 1e-4, whiten.shape)
    assert publish.publish_whitening(nearly)[0] == whitening  # fitted again, on another machine for example
    lighter = Whiten(whiten.mean + 1, whiten.matrix, whiten.shape)
    assert publish.publish_whitening(lighter)[0] != whitening
    assert publish.publish_whitening(Whiten.fit(images[:2000]))[0] != whitening
    small = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    small[0, 0, 2:5] = 200
    for trained, name in zip(nets, ("one", "two"), strict=True):
        pretrained.save(shelf / f"{name}.safetensors", trained, whitening)
        back = pretrained.load(shelf / f"{name}.safetensors")
        torch.testing.assert_close(back(small), trained(small), atol=0.05, rtol=0.01)
        assert torch.equal(back.preprocess(small), published(small))
        assert (shelf / f"{name}.safetensors").stat().st_size < 30_000
    assert whitening.stat().st_size < 192 * 193 + 192 * 4 + 400  # half of the matrix in fp16, and the mean
    whole = shelf / "whitening-whole.safetensors"  # as older files are
    safetensors.torch.save_file({"preprocess.mean": whiten.mean, "preprocess.matrix": whiten.matrix.half()}, whole)
    pretrained.save(shelf / "older.safetensors", nets[0], whole)
    assert torch.equal(pretrained.load(shelf / "older.safetensors").preprocess(small), published(small))
    whitening.write_bytes(whitening.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"whitening-.* has sha256 .* expected .* states"):
        pretrained.load(shelf / "one.safetensors")


# runs -----------------------------------------------------------------------------------------------------------------


def test_a_card_states_the_command_that_trained_its_net(shelf, script, tmp_path):
    settings = cli.compose([*SHORT, "head=fc", "seed=7"])
    kept = train(cli.compose([*SHORT, "head=fc", "seed=7", f"data.root={tmp_path}"]), tmp_path / "run")
    code, said, errors = script("publish.py", "run", "digits-fc")
    assert code == 0 and said.endswith(f"digits-fc: {shelf / 'digits-fc.json'}\n"), errors
    card = json.loads((shelf / "digits-fc.json").read_text())
    python, name, *overrides = shlex.split(card["command"])
    assert (python, name) == ("python", "scripts/train.py")
    assert cli.compose([*overrides, "trainer.progress_bar=false"]) == settings
    assert card["schedule"] == "the recipe's, scaled from 4 epochs to 1"
    published = replace(kept, settings=config.settings_of(settings), weights_sha256=None)
    assert Record.from_dict(card, "digits-fc.json") == published
    assert str(tmp_path) not in (shelf / "digits-fc.json").read_text()  # where the images were
    assert nin.load("digits-fc").facts == card


def test_the_cards_error_is_that_of_the_net_with_its_whitening_as_published(shelf, script, tmp_path):
    """Of a folder as a run on whitened images leaves it; the whitening is not exact in fp16."""
    folder, settings = tmp_path / "run", config.settings_of(cli.compose(["data=digits", "recipe=paper", "head=fc"]))
    folder.mkdir()
    matrix = torch.eye(3072) / 10 + torch.randn(3072, generator=torch.Generator().manual_seed(0)).diag() / 100
    whiten = Whiten(torch.zeros(3072), matrix, (3, 32, 32))
    of_run = {"data": "digits", "head": "fc", "recipe": "paper", "seed": 0, "epochs": settings["trainer"]["max_epochs"]}
    pretrained.save(folder / "model.safetensors", Pretrained(tiny("fc").net, whiten, tiny().classes, of_run))
    facts = {"parameters": 1, "precision": "32-true", "device": "cpu", "versions": {}, "commit": "unknown"}
    record.write(folder, Record("finished", settings, None, clean=False, test_error=99.0, **facts))
    code, _, errors = script("publish.py", "run", "digits-paper")
    assert code == 0, errors
    card = pretrained.read_card("digits-paper")
    on_cpu = config.Config()
    on_cpu.trainer.accelerator = "cpu"
    assert card["test_error"] == pytest.approx(evaluate_pretrained(nin.load("digits-paper"), on_cpu).error, abs=1e-4)
    assert card["test_error"] < 99
    assert "schedule" not in card and "epochs" in card
    file = shelf / card["whitening"]["file"]
    assert 0 < card["whitening"]["changes_a_pixel_by"] < 0.1 and card["whitening"]["matrix"] == "fp16"
    assert file.stat().st_size < 10e6


@pytest.mark.tries(7)
def test_a_record_of_another_run_is_not_published(shelf, tmp_path, tried):
    run = tmp_path / "run"
    kept = train(cli.compose(SHORT), run)
    altered = [
        replace(kept, weights_sha256="0" * 64),
        replace(kept, weights_sha256=None, settings=config.settings_of(config.Config())),
    ]
    for group, name, value in (("head", "name", "fc"), ("recipe", "name", "x"), ("data", "name", "cifar10")):
        altered.append(replace(kept, settings={**kept.settings, group: {**kept.settings[group], name: value}}))
    altered.append(replace(kept, settings={**kept.settings, "seed": 7}))
    altered.append(replace(kept, status="running"))
    for other in altered:
        record.write(run, other)
        with pytest.raises(CheckpointError, match=r"does not match the weights|contains no finished run"):
            publish.publish(run, "net", command="train")
        tried(other)
    record.write(run, kept)
    (run / "config.yaml").write_text("")  # for people alone
    assert json.loads(publish.publish(run, "net", command="train").read_text())["data"] == "digits"


def test_what_cannot_be_published_is_refused(shelf, script, tmp_path):
    (tmp_path / "run").mkdir()
    pretrained.save(tmp_path / "run" / "model.safetensors", tiny())  # a net without the record of a run
    refused = {
        (): 2,
        ("run",): 2,
        ("nosuch", "name"): 1,
        ("run", "Name"): 1,
        ("run", "name"): 1,
        ("run", "whitening"): 1,
    }
    for arguments, expected in refused.items():
        code, said, errors = script("publish.py", *arguments)
        assert (code, said) == (expected, "")
        assert errors.startswith("error: ") and len(errors.splitlines()) == 1
    with pytest.raises(CheckpointError, match=r"name=whitening: .* choose another"):  # its file would look like one
        publish.check_name("whitening")
    assert record.read(tmp_path / "run") is None
    assert not shelf.exists()


def test_a_card_has_one_evaluation():
    matrix = torch.tensor([[30, 10], [5, 55]])
    facts = {"parameters": 1, "precision": "32-true", "device": "cpu", "versions": {}, "commit": "unknown"}
    settings = config.settings_of(config.Config())
    run = Record("finished", settings, None, clean=True, test_error=2.0, test_images=3, **facts)
    measured = publish.measured_again(run, Evaluation(15.0, matrix, ("a", "b"), 0.5))
    assert (measured.test_error, measured.test_images, measured.chance_error) == (15.0, 100, 40.0)
    assert measured.class_errors is None
    of_folder = replace(run, class_errors={"a": {"images": 1, "error": 0.0}})
    measured = publish.measured_again(of_folder, Evaluation(15.0, matrix, ("a", "b"), 0.5, 1.0))
    assert measured.class_errors["b"] == {"images": 60, "error": 8.3333} and measured.top5_error == 1.0
