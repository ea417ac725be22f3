"""Any values at all, from the command line to a net that computes: built, or refused in a sentence with its name."""

import json
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Ended, anything, one_with_anything
from nin.cli import compose
from nin.config import Config, flat, settings_of
from nin.data import SETS
from nin.errors import NINError, SettingError
from nin.optim import Muon
from nin.run import build
from nin.task import Classifier

SMALL = 2_000_000  # parameters up to which a net is built and run; larger ones stay on the meta device

FIELDS = sorted(flat(settings_of(Config())))

width = st.integers(1, 12)
widths = width | st.lists(width, min_size=3, max_size=3) | st.lists(width, min_size=1, max_size=1)
block = st.fixed_dictionaries(
    {"widths": widths},
    optional={
        "kernel_size": st.integers(1, 7),
        "stride": st.integers(1, 3),
        "padding": st.none() | st.integers(0, 3),
        "dropout": st.booleans(),
    },
)
last_block = st.builds(lambda a, b: {**b, "widths": [a, a, None]}, width, block)
plan = st.sampled_from(["cifar10", "imagenet"]) | st.builds(
    lambda b, z: [*b, z], st.lists(block, max_size=3), last_block
)
odd_block = st.fixed_dictionaries(
    {"widths": widths | anything},
    optional={name: st.integers(-1, 70_000) | anything for name in ("kernel_size", "stride", "padding", "dropout")},
)
fraction = st.floats(0, 0.99)
GOOD = {
    "model.blocks": plan,
    "model.last_pool": st.sampled_from(["max", "average"]),
    "model.dropout": fraction,
    "model.norm": st.sampled_from(["none", "batch"]),
    "model.last_relu": st.booleans(),
    "model.init": st.sampled_from(["gaussian", "kaiming"]),
    "head.name": st.sampled_from(["gap", "gmp", "fc", "fc_dropout"]),
    "model.backbone": st.none() | st.just("vgg19"),
    "model.weights": st.sampled_from(["imagenet", "none", "weights.pth"]),
    "model.weights_sha256": st.none(),
    "data.name": st.sampled_from(["cifar10", "digits", "flowers17"]),
    "data.sha256": st.none() | st.just("5" * 64),
    "data.memory": st.none() | st.floats(0.1, 1000),
    "data.workers": st.none() | st.integers(0, 8),
    "data.size": st.sampled_from([32, 32, 64, 96]),
    "data.root": st.none() | st.just("/data"),
    "data.download": st.booleans(),
    "data.urls": st.none() | st.lists(st.just("http://localhost/x.tar.gz"), max_size=2),
    "data.val": st.integers(0, 1436),
    "data.share": st.floats(0.01, 1),
    "data.batch_size": st.integers(1, 256),
    "data.preprocessing": st.sampled_from(["normalise", "whiten"]),
    "data.pad": st.integers(0, 7),
    "data.pad_mode": st.sampled_from(["zero", "reflect"]),
    "data.flip": st.booleans(),
    "data.cutout": st.integers(0, 7),
    "recipe.name": st.just("mine"),
    "recipe.optimiser": st.sampled_from(["sgd", "muon", "adamw", "rmsprop"]),
    "recipe.lr": st.floats(1e-6, 10),
    "recipe.bias_lr": st.floats(0, 10),
    "recipe.last_lr": st.floats(0, 10),
    "recipe.last_bias_lr": st.floats(0, 10),
    "recipe.momentum": fraction,
    "recipe.nesterov": st.booleans(),
    "recipe.weight_decay": st.floats(0, 1),
    "recipe.schedule": st.sampled_from(["step", "linear", "cosine"]),
    "recipe.drops": st.lists(st.floats(0.01, 0.99), max_size=3),
    "recipe.warmup": st.floats(0, 100),
    "recipe.label_smoothing": fraction,
    "recipe.ema": fraction,
    "trainer.max_epochs": st.integers(1, 1000),
    "trainer.accumulate_grad_batches": st.integers(1, 9),
    "trainer.gradient_clip_val": st.none() | st.floats(0.01, 10),
    "trainer.devices": st.integers(1, 4),
    "trainer.num_nodes": st.integers(1, 3),
    "trainer.strategy": st.sampled_from(["auto", "ddp"]),
    "trainer.accelerator": st.sampled_from(["auto", "cpu", "cuda"]),
    "trainer.precision": st.sampled_from(["auto", "32-true", "bf16-mixed"]),
    "trainer.compile": st.none() | st.booleans(),
    "trainer.deterministic": st.booleans(),
    "trainer.sync_batchnorm": st.booleans(),
    "trainer.limit_train_batches": st.none() | st.integers(1, 9) | st.floats(0.01, 1),
    "trainer.limit_test_batches": st.none() | st.integers(1, 9) | st.floats(0.01, 1),
    "trainer.progress_bar": st.booleans(),
    "logger.project": st.just("mine"),
    "logger.name": st.sampled_from(["csv", "tensorboard", "wandb"]),
    "seed": st.integers(0, 2**32 - 1),
    "eval_curve": st.booleans(),
    "resume": st.none() | st.just("auto"),
    "checkpoint": st.none() | st.just("somewhere"),
    "freeze": st.booleans(),
}


@st.composite
def overrides(draw):
    """Some fields with values that are meant well, and up to two with values that are not."""
    chosen = {name: draw(GOOD[name]) for name in draw(st.lists(st.sampled_from(FIELDS), max_size=5, unique=True))}
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=2, unique=True)):
        bad = st.lists(odd_block | last_block, max_size=4) | anything if name == "model.blocks" else anything
        chosen[name] = draw(bad)
    return chosen


def written(value) -> str:
    """A value as Hydra's command line spells it: JSON without quotes around keys."""
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{written(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return str(value) if isinstance(value, float | int) and not isinstance(value, bool) else json.dumps(value)


def assert_named(error: NINError, chosen: dict) -> None:
    """One line that begins with a setting of the schema and gives a reason; a SettingError carries both as data."""
    message = str(error)
    assert len(message) < 1500 and "\n" not in message, message
    named = re.match(r"\+?([\w.]+)(=|: )", message)
    assert named and any(named[1] == name or named[1].startswith(f"{name}.") for name in FIELDS), message
    if isinstance(error, SettingError):
        assert error.setting == named[1] and len(error.reason) > 10, message


def test_no_field_of_the_schema_is_forgotten():
    assert sorted(GOOD) == FIELDS


def test_a_configuration_is_built_or_refused_by_name():
    ended = Ended()

    @settings(max_examples=220)
    @given(overrides())
    def one(chosen):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                config = compose([f"{name}={written(value)}" for name, value in chosen.items()])
                build.check(config)
            except NINError as refused:
                ended["refused"] += 1
                assert refused.exit_code == 2
                assert_named(refused, chosen)
                return
            ended["built"] += 1
            classes = SETS[config.data.name].classes
            with torch.device("meta"):
                net = build.build_net(config, classes=classes, channels=3)
            if sum(p.numel() for p in net.parameters()) <= SMALL and config.model.backbone is None:
                torch.manual_seed(0)
                net = build.build_net(config, classes=classes, channels=3)
                logits = net.eval()(torch.randn(2, 3, config.data.size, config.data.size))
                assert logits.shape == (2, classes) and logits.isfinite().all()

    one()
    ended.assert_both(40)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (["model.blocks=[{widths: 60000, kernel_size: 1000}, {widths: [1, 1, null]}]"], "needs at least"),
        (["model.blocks=[{widths: [8, 8, null], padding: 10000}]", "data.batch_size=1000"], "from 0 to 2"),
        (["model.blocks=[" + ",".join(["{widths: [1, 1, null], padding: 3}"] * 1001) + "]"], "blocks, got 1001"),
        (["data.batch_size=1", "model.blocks=[{widths: [8, 8, null], stride: 40}]"], "a batch of 1"),
        (["data=digits", "data.val=1436", "model.blocks=[{widths: [8, 8, null], stride: 40}]"], "a batch of 1"),
        (["seed=" + "9" * 5000], "seed=999"),
        (["recipe.lr=" + "9" * 400], "recipe.lr=999"),
        (["trainer.max_epochs=" + "9" * 400], "trainer.max_epochs=999"),
        (["model.blocks={a: 1}"], "model.blocks={'a': 1}: must be one of cifar10"),
        (["recipe.drops={a: 1}"], "recipe.drops={'a': 1}: expected a list"),
        (["model=[1]"], "model=[1]: must be one of"),
        (["data=null"], "data=null: must be one of"),
        (["model.blocks=${model.blocks}"], "model.blocks"),
        (["model.norm=???"], "model.norm"),
    ],
)
def test_what_was_once_let_through_is_refused(given_, words):
    with pytest.raises(NINError) as refused:
        build.check(compose(given_))
    assert words in str(refused.value) and len(str(refused.value)) < 1500


# the task and its optimiser -------------------------------------------------------------------------------------------


class Two(torch.nn.Module):
    num_classes = 2

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

    def forward(self, images):
        return self.second(self.first(images))


CLASSIFIER = {name.removeprefix("recipe."): GOOD[name] for name in FIELDS if name.startswith("recipe.")}
del CLASSIFIER["name"]


def test_any_recipe_is_a_task_or_is_refused_by_name():
    ended = Ended()

    @settings(max_examples=200)
    @given(one_with_anything(CLASSIFIER), st.integers(1, 2000), st.floats(1, 500))
    def one(arguments, total, per_epoch):
        task = ended.build(lambda **a: Classifier(Two(), **a), arguments)
        if task is not None:
            factors = [task.lr_factor(step, total, per_epoch) for step in (0, total // 2, total - 1)]
            assert all(0 <= factor <= 1 for factor in factors), factors
            assert sum(len(group["params"]) for group in task.parameter_groups()) == 4

    one()
    ended.assert_both(40)


def test_any_muon_steps_or_is_refused_by_name():
    ended = Ended()
    good = {"momentum": fraction, "nesterov": st.booleans()}

    @settings(max_examples=120)
    @given(one_with_anything(good), st.lists(st.integers(1, 6), max_size=4), st.booleans())
    def one(arguments, shape, orthogonal):
        weight = torch.nn.Parameter(torch.ones(shape))
        group = {"params": [weight], "lr": 0.1, "orthogonal": orthogonal}
        optimiser = ended.build(lambda params, **rest: Muon(params, **rest), {"params": [group], **arguments})
        if optimiser is not None:
            weight.grad = torch.ones(shape)
            optimiser.step()
            assert weight.isfinite().all() and not torch.equal(weight, torch.ones(shape))

    one()
    ended.assert_both(20)
