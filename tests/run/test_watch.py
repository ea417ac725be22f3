import math
from contextlib import nullcontext

import lightning as L
import pytest
import torch
from torch import nn

from fits import fit, loader, small_net
from nin import NIN
from nin.errors import DeadNetError
from nin.run.watch import DeadNetWatch, remedies
from nin.task import Classifier


def test_a_loss_that_is_not_finite_is_named():
    with pytest.raises(DeadNetError, match=r"not finite.*lower recipe.lr \(now 1e\+12\)"):
        fit(Classifier(small_net(), lr=1e12), loader(64), DeadNetWatch())


def collapsed() -> NIN:
    net = small_net(last_relu=True)
    nn.init.zeros_(net.blocks.block2.conv3.weight)
    nn.init.constant_(net.blocks.block2.conv3.bias, -1.0)  # every score is zero for every image, and stays so
    return net


@pytest.mark.parametrize(
    ("steps", "died_at"),
    [(400, 300), (300, 300), (299, 100), (150, 100), (120, 100), (100, 100), (99, None)],
)
def test_the_collapse_is_named_once_it_is_certain(steps, died_at):
    """A long run has 300 steps to find its way, a short one 100."""
    expected = pytest.raises(DeadNetError, match=rf"collapsed by step {died_at}.*ln 10") if died_at else nullcontext()
    with expected:
        fit(Classifier(collapsed(), lr=0.01), loader(steps, size=1), DeadNetWatch())


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_no_remedy_is_what_the_net_has_already(init, norm):
    said = remedies(Classifier(small_net(init=init, norm=norm)))
    assert ("model.init=kaiming" in said) == (init != "kaiming") and ("model.norm=batch" in said) == (norm != "batch")
    assert said.startswith("another seed, a longer recipe.warmup (now 0 epochs)") and said.count(" or ") == 1
    another = nn.Linear(2, 2)
    another.num_classes = 2
    assert "model." not in remedies(Classifier(another))


def test_the_last_step_is_looked_at_too():
    class Late(L.Callback):
        """Keeps the mean loss away from chance until the window has passed."""

        def on_train_batch_end(self, trainer, task, outputs, *_):
            if trainer.global_step <= 20:
                outputs["cross_entropy"] += 1

    with pytest.raises(DeadNetError, match="collapsed by step 120"):
        fit(Classifier(collapsed(), lr=0.01), loader(120, size=1), Late(), DeadNetWatch())


@pytest.mark.parametrize("steps", [150, 400])
@pytest.mark.parametrize("kind", ["slow", "small from the start"])
def test_a_slow_net_is_left_alone(steps, kind):
    if kind == "slow":
        net = small_net(last_relu=False)
        with torch.no_grad():
            net.blocks.block2.conv3.weight.mul_(0.01)  # the loss is near ln 10, and yet the images count
    else:
        net = small_net(init="gaussian")  # scores that differ by 1e-7 from the start: slow, not collapsed
    trainer = fit(Classifier(net, lr=1e-9), loader(steps, noise=True), DeadNetWatch())
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(math.log(10), abs=0.01)
    assert trainer.global_step == steps


def test_a_learning_net_is_left_alone_and_learns():
    task = Classifier(small_net(norm="batch", dropout=0.1), schedule="linear", lr=0.05, last_lr=1)
    trainer = fit(task, loader(400), DeadNetWatch(), max_epochs=2)
    assert trainer.callback_metrics["train/loss"].item() < 1.8


def test_the_watch_changes_no_weight():
    weights = []
    for callbacks in ([DeadNetWatch()], []):
        torch.manual_seed(0)
        net = small_net(dropout=0.5, norm="batch")
        fit(Classifier(net, lr=0.01), loader(110), *callbacks)
        weights.append(net.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_watch_remembers_over_an_interruption():
    watch = DeadNetWatch()
    fit(Classifier(collapsed(), lr=0.01), loader(60, size=1), watch)
    state = watch.state_dict()
    assert (state["losses"] > 0).sum() == 60 and state["first_spread"] == 0
    again = DeadNetWatch()
    again.load_state_dict(state)
    assert torch.equal(again.losses, watch.losses) and again.first_spread == 0
