import copy
import itertools
import math

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nin import NIN, Block
from nin.config import RecipeConfig
from nin.data import Batches, Normalise
from nin.errors import SettingError
from nin.optim import Muon
from nin.task import Classifier


def small_net(**arguments) -> NIN:
    blocks = [Block(8, dropout=True), Block((8, 8, None))]
    return NIN(blocks, image_size=8, **{"init": "kaiming", **arguments})


def loader(n=256, size=4):
    torch.manual_seed(0)
    labels = torch.arange(n) % 10
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8)
    images = (images // 8 + (labels * 20)[:, None, None, None]).to(torch.uint8)
    normalise = Normalise(torch.full((3,), 120.0), torch.full((3,), 60.0))
    return Batches(images.permute(0, 2, 3, 1), labels, size, normalise, augment=lambda x, g: x)


def fit(task, train, epochs=1, val=None, **arguments):
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(task, train, val)
    return trainer


# parameter groups and schedule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["gap", "fc"])
def test_the_authors_rates_and_decay(head):
    net = NIN(head=head)
    groups = {g["name"]: g for g in Classifier(net).parameter_groups()}
    rates = {name: (round(g["lr"], 6), g["weight_decay"]) for name, g in groups.items()}
    assert rates == {
        "weights": (0.1, 1e-4),
        "biases": (0.2, 0.0),
        "last weights": (0.01, 1e-4),
        "last bias": (0.02, 0.0),
    }
    last = net.head.linear if head == "fc" else net.blocks.block3.conv3
    assert groups["last weights"]["params"][0] is last.weight
    assert groups["last bias"]["params"][0] is last.bias
    grouped = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())
    assert all(p.ndim > 1 for p in groups["weights"]["params"])
    assert all(p.ndim == 1 for p in groups["biases"]["params"])


def test_muon_takes_the_weights_but_the_last_and_shrinks_all_alike():
    task = Classifier(NIN(norm="batch"), optimiser="muon", lr=0.02, last_lr=5, bias_lr=5, weight_decay=0.1)
    groups = {g["name"]: g for g in task.parameter_groups()}
    assert groups["weights"]["orthogonal"]
    assert not any(g.get("orthogonal") for name, g in groups.items() if name != "weights")
    assert all(p.ndim == 4 for p in groups["weights"]["params"])
    watched = [groups[name]["params"][0] for name in ("weights", "last weights", "biases")]
    norms = [p.norm().item() for p in watched]
    optimiser = Muon(list(groups.values()), momentum=task.recipe.momentum)
    for _ in range(200):
        for p in task.net.parameters():
            p.grad = torch.zeros_like(p)
        optimiser.step()
    shrink = [1 - (p.norm().item() / norm) ** (1 / 200) for p, norm in zip(watched, norms, strict=True)]
    assert shrink == pytest.approx([0.002, 0.002, 0], rel=0.1)


def test_adamw_is_torchs():
    torch.manual_seed(0)
    net = NIN([Block((8, 8, 4), 3)], 4)
    task = Classifier(copy.deepcopy(net), optimiser="adamw", lr=1e-3, momentum=0.8, weight_decay=0.1)
    ours, biases = task.build_optimizer(), [p for p in net.parameters() if p.ndim < 2]
    last = [*net.parameters()][-2:]
    rates = {id(p): (2 if p.ndim < 2 else 1) for p in net.parameters()} | {id(last[0]): 0.1, id(last[1]): 0.2}
    groups = [
        {"params": [p], "lr": 1e-3 * rates[id(p)], "weight_decay": 0.0 if any(p is b for b in biases) else 0.1}
        for p in net.parameters()
    ]
    theirs = torch.optim.AdamW(groups, betas=(0.8, 0.999))
    images = torch.randn(4, 3, 32, 32)
    for _ in range(3):
        for each, optimizer in ((task.net, ours), (net, theirs)):
            optimizer.zero_grad()
            each(images).square().mean().backward()
            optimizer.step()
    for mine, other in zip(task.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_authors_schedule():
    task = Classifier(NIN())
    per_epoch = 390
    factors = [task.lr_factor(epoch * per_epoch, 260 * per_epoch, per_epoch) for epoch in (0, 199, 200, 229, 230, 259)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_rise_over_the_warmup_and_end_near_zero(schedule):
    task = Classifier(NIN(), schedule=schedule, warmup=2)
    factors = [task.lr_factor(step, 100, 10) for step in range(100)]
    assert factors[:3] == pytest.approx([0.05, 0.1, 0.15])
    assert max(factors) <= 1 and factors.index(max(factors)) in (19, 20)
    assert all(a > b for a, b in itertools.pairwise(factors[20:]))
    assert 0 < factors[-1] < 0.03
    short = Classifier(NIN(), schedule=schedule, warmup=100)
    assert max(short.lr_factor(step, 100, 10) for step in range(100)) > 0.95  # at most half of the run


def test_the_schedule_reads_the_trainers_length():
    task = Classifier(small_net(), schedule="linear", lr=0.01)
    trainer = fit(task, loader(), epochs=3)
    assert trainer.global_step == 3 * 64
    assert task.optimizers().param_groups[0]["lr"] < 0.01 * 0.02


def test_the_logged_rate_is_the_epochs_own():
    task = Classifier(small_net(), lr=0.01, drops=[0.5])
    rates = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, task):
            rates.append(round(trainer.callback_metrics["lr"].item(), 6))

    fit(task, loader(), epochs=2, callbacks=[Watch()])
    assert rates == [0.01, 0.001]


def test_a_length_in_steps_keeps_the_warmup_in_epochs():
    task = Classifier(small_net(), schedule="linear", warmup=1)
    trainer = L.Trainer(
        max_steps=200, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    factors = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, task, *rest):
            factors.append(task.optimizers().param_groups[0]["lr"] / task.recipe.lr)

    trainer.callbacks.append(Watch())
    trainer.fit(task, loader())
    assert factors[0] == pytest.approx(1 / 64)
    assert max(factors) == pytest.approx(1, abs=0.02) and factors.index(max(factors)) in (62, 63, 64)


def test_dropout_follows_the_users_seed_without_our_data():
    def weights(seed):
        L.seed_everything(1)
        net, train = small_net(), loader(n=40)
        L.seed_everything(seed)
        fit(Classifier(net, lr=0.01), train)
        return net.blocks.block1.conv1.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


# metrics -------------------------------------------------------------------------------------------------------------


def test_error_is_micro_averaged_and_loss_weighs_images():
    class Constant(nn.Module):
        num_classes = 3

        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

        def forward(self, x):
            return self.bias.expand(len(x), 3)

    labels = torch.tensor([0] * 7 + [1, 2, 2])
    same = Normalise(torch.zeros(3), torch.ones(3))
    test = Batches(torch.zeros(10, 2, 2, 3, dtype=torch.uint8), labels, 4, same)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    found = trainer.test(Classifier(Constant()), test, verbose=False)[0]
    assert found["test/error"] == pytest.approx(30)  # macro-averaged it would be 66.7
    z = math.log(math.e + 2)
    assert found["test/loss"] == pytest.approx((7 * (z - 1) + 3 * z) / 10, abs=1e-6)


def test_what_is_logged():
    task = Classifier(small_net(), schedule="linear", lr=0.01)
    trainer = fit(task, loader(), val=loader(40))
    assert {"train/loss", "train/error", "lr", "val/loss", "val/error"} <= set(trainer.callback_metrics)


# settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1}, "lr=-1: expected a number above 0"),
        ({"lr": 0}, "lr=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"momentum": 1}, "momentum=1"),
        ({"nesterov": True, "momentum": 0}, "nesterov=true: requires a momentum above 0, got momentum=0"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"schedule": "exp"}, "schedule=exp: must be one of step, linear, cosine"),
        ({"optimiser": "adam"}, "optimiser=adam: must be one of sgd, muon"),
        ({"drops": [1.5]}, r"drops=\[1.5\]"),
        ({"warmup": -1}, "warmup=-1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments, message):
    with pytest.raises(SettingError, match=message):
        Classifier(NIN(), **arguments)


def test_settings_are_an_object_or_keywords():
    recipe = RecipeConfig(lr=0.5, warmup=3)
    task = Classifier(small_net(), recipe, warmup=2)
    assert (task.recipe.lr, task.recipe.warmup, recipe.warmup) == (0.5, 2, 3)
    assert Classifier(small_net()).recipe == RecipeConfig()
    with pytest.raises(TypeError, match="nosuch"):
        Classifier(small_net(), nosuch=1)


def test_a_schedule_requires_a_length():
    with pytest.raises(SettingError, match="max_epochs=-1: the schedule requires max_epochs or max_steps"):
        fit(Classifier(small_net()), loader(), epochs=-1)


def test_label_smoothing_changes_what_is_minimised_and_not_what_is_logged():
    logged = {}
    for smoothing in (0.0, 0.1):
        torch.manual_seed(0)
        net = small_net(dropout=0.0)
        trainer = fit(Classifier(net, lr=1e-12, label_smoothing=smoothing), loader(40))
        gradient = net.blocks.block1.conv1.weight.grad.clone()
        logged[smoothing] = trainer.callback_metrics["train/loss"].item(), gradient
    assert logged[0.0][0] == pytest.approx(logged[0.1][0], abs=1e-5)
    assert not torch.allclose(logged[0.0][1], logged[0.1][1], rtol=1e-3)


def test_batch_norms_without_parameters_follow_the_task():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    net.num_classes = 4
    net[3].requires_grad_(False)
    task = Classifier(net)
    task.train()
    assert [layer.training for layer in net] == [True, True, True, False]
    task.eval()
    assert not any(layer.training for layer in net)


def test_top_5_errors_of_many_classes_are_counted():
    class Sorted(nn.Module):
        """Scores class 0 best, then class 1, …"""

        num_classes = 60

        def forward(self, images):
            return -torch.arange(60.0).expand(len(images), 60)

    task = Classifier(Sorted())
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    images = TensorDataset(torch.zeros(8, 1), torch.arange(8))
    trainer.test(task, DataLoader(images, batch_size=8), verbose=False)
    assert task.top5_error == pytest.approx(100 * 3 / 8)
    assert Classifier(small_net()).top5 is None
