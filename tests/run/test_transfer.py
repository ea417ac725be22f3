"""From a net of ten classes to seventeen: all layers or the new ones alone."""

import pytest
import torch

from flowers import make_flowers
from nin import pretrained
from nin.cli import compose
from nin.data import Normalise, Whiten
from nin.data.sets import FLOWERS
from nin.errors import CheckpointError, SettingError
from nin.run.build import build_net
from nin.run.train import train

TINY = ["data=flowers17", "recipe=transfer", "model.blocks=[{widths: 8},{widths: [8, 8, null]}]", "data.download=false"]
TINY += ["trainer.max_epochs=2", "trainer.limit_train_batches=3", "eval_curve=true", "trainer.progress_bar=false"]
TINY += ["trainer.accelerator=cpu"]
CHANNELS = Normalise(torch.full((3,), 100.0), torch.full((3,), 50.0))


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """The settings of a short run on photographs that this module makes."""
    return [*TINY, f"data.root={make_flowers(tmp_path_factory.mktemp('flowers'))}"]


def of_ten_classes(file, settings, preprocess=CHANNELS):
    """The untrained net of these settings for the digits, with their weights; saved."""
    torch.manual_seed(0)
    net = build_net(compose([*settings, "data=digits"]), classes=10, channels=3)
    pretrained.save(file, pretrained.Pretrained(net, preprocess, [str(k) for k in range(10)], {"data": "digits"}))
    return net


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("head", ["gap", "fc_dropout"])
def test_a_net_of_ten_classes_is_transferred_to_seventeen(flowers, tmp_path, head, freeze):
    settings = [*flowers, f"head={head}"]
    net = of_ten_classes(tmp_path / "ten.safetensors", settings)
    record = train(
        compose([*settings, f"checkpoint={tmp_path / 'ten.safetensors'}", f"freeze={freeze}"]), tmp_path / "run"
    )
    assert record.frozen == freeze and record.start.head == head
    trained = pretrained.load(tmp_path / "run")
    assert trained.net.num_classes == 17 and trained.classes == FLOWERS
    assert torch.equal(trained.preprocess.mean, CHANNELS.mean)
    before, after = net.state_dict(), trained.net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    new = {"blocks.block2.conv3.weight", "blocks.block2.conv3.bias"}
    new |= {"head.linear.weight", "head.linear.bias"} if head == "fc_dropout" else set()
    assert changed == (new if freeze else set(before))  # frozen: the statistics of batch norm stay, too


@pytest.mark.tries(3)
def test_a_probe_requires_something_to_train_and_the_same_blocks(flowers, tmp_path):
    train(compose(flowers), tmp_path / "run")
    again = [*flowers, f"checkpoint={tmp_path / 'run'}", "freeze=true"]
    with pytest.raises(SettingError, match=r"freeze=true: nothing is left to train"):
        train(compose(again), tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"does not match these settings: blocks is"):
        other = [*again, "data=digits", "model.blocks=[{widths: 8},{widths: [8, 9, null]}]"]
        train(compose(other), tmp_path / "other")


@pytest.mark.parametrize(
    ("head", "preprocess", "kind", "words"),
    [
        ("fc", CHANNELS, "normalise", r"accepts only image_size=32, got image_size=40"),
        (
            "gap",
            Whiten(torch.zeros(3072), torch.eye(3072), (3, 32, 32)),
            "whiten",
            "images have 40×40 pixels, the net's 32×32",
        ),
    ],
)
def test_a_checkpoint_for_another_size_is_refused(flowers, tmp_path, head, preprocess, kind, words):
    of_ten_classes(tmp_path / "ten.safetensors", [*TINY, f"head={head}"], preprocess)
    settings = [*flowers, f"head={head}", f"data.preprocessing={kind}", "data.size=40"]
    with pytest.raises((CheckpointError, SettingError), match=words):
        train(compose([*settings, f"checkpoint={tmp_path / 'ten.safetensors'}"]), tmp_path / "run")
