"""Any values at all: each is built into something that computes, or refused in a sentence with its name."""

import math
import re
import warnings
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
import torch
from conftest import CONF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nin import FC, GAP, GMP, NIN, Block, DepthPool, MLPConv
from nin.command import compose
from nin.config import Config, ConfigError
from nin.data.module import CLASSES
from nin.optim import Muon
from nin.task import Classifier

SMALL = 2_000_000  # parameters up to which a net is built and run; larger ones stay without memory
# the same examples everywhere, so that a failure is the change's and not the draw's
settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("fixed")

huge = st.sampled_from([2**31, 2**63, 10**25, 10**400, -(10**400)])
odd = st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0, 1e-320])
text = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\\"), max_size=8)
scalar = st.none() | st.booleans() | st.integers(-3, 70_000) | huge | st.floats() | odd | text
anything = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcw_", min_size=1, max_size=4), inner),
    max_leaves=5,
)


# the configuration ---------------------------------------------------------------------------------------------------


def schema(node=Config, prefix=""):
    for each in fields(node):
        kind = get_type_hints(node)[each.name]
        yield from schema(kind, f"{prefix}{each.name}.") if is_dataclass(kind) else [prefix + each.name]


FIELDS = sorted(schema())

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
    "data.name": st.sampled_from(["cifar10", "digits", "flowers17"]),
    "data.size": st.sampled_from([32, 32, 64, 96]),
    "data.root": st.none() | st.just("/data"),
    "data.download": st.booleans(),
    "data.urls": st.lists(st.just("http://localhost/x.tar.gz"), max_size=2),
    "data.val": st.integers(0, 1436),
    "data.share": st.floats(0.01, 1),
    "data.batch_size": st.integers(1, 256),
    "data.preprocessing": st.sampled_from(["normalise", "whiten"]),
    "data.pad": st.integers(0, 31),
    "data.pad_mode": st.sampled_from(["zero", "reflect"]),
    "data.flip": st.booleans(),
    "recipe.name": st.just("mine"),
    "recipe.optimiser": st.sampled_from(["sgd", "muon"]),
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
    "trainer.max_epochs": st.integers(1, 1000),
    "trainer.gradient_clip_val": st.none() | st.floats(0.01, 10),
    "trainer.devices": st.integers(1, 4),
    "trainer.strategy": st.sampled_from(["auto", "ddp"]),
    "trainer.accelerator": st.sampled_from(["auto", "cpu", "cuda"]),
    "trainer.precision": st.sampled_from(["auto", "32-true", "bf16-mixed"]),
    "trainer.limit_train_batches": st.none() | st.integers(1, 9) | st.floats(0.01, 1),
    "trainer.limit_test_batches": st.none() | st.integers(1, 9) | st.floats(0.01, 1),
    "trainer.progress_bar": st.booleans(),
    "logger.name": st.sampled_from(["csv", "tensorboard"]),
    "seed": st.integers(0, 2**32 - 1),
    "eval_curve": st.booleans(),
    "resume": st.none() | st.just("auto"),
    "checkpoint": st.none() | st.just("somewhere"),
    "freeze": st.booleans(),
}


def test_no_field_of_the_schema_is_forgotten():
    assert sorted(GOOD) == FIELDS


@st.composite
def overrides(draw):
    """Some fields with values that are meant well, and up to two with values that are not."""
    chosen = {name: draw(GOOD[name]) for name in draw(st.lists(st.sampled_from(FIELDS), max_size=5, unique=True))}
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=2, unique=True)):
        bad = st.lists(odd_block | last_block, max_size=4) | anything if name == "model.blocks" else anything
        chosen[name] = draw(bad)
    return chosen


def written(value) -> str:
    """A value as Hydra's command line has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def as_floats(value):
    """A value with its whole numbers as a setting of floats holds them."""
    if isinstance(value, list):
        return [as_floats(each) for each in value]
    return float(value) if isinstance(value, int) and abs(value) <= 1e308 else value


def forms(value) -> set[str]:
    """How a message may show a value: as it was written, as Python has it, or the beginning of these."""
    found = {written(value), str(value), str(as_floats(value))}
    if isinstance(value, int) and value in (0, 1):  # of a setting that is true or false
        found.add(str(bool(value)).lower())
    return {" ".join(form.split())[:250] for form in found}


def assert_named(message: str, chosen: dict) -> None:
    """One line that begins with a field of the schema, and shows its value, or what of it, and a reason."""
    assert len(message) < 1500 and "\n" not in message, message
    named = re.match(r"\+?([\w.]+)(=|: | must be given)", message)
    assert named and any(named[1] == name or named[1].startswith(f"{name}.") for name in FIELDS), message
    if named[2] == "=":
        if named[1] in chosen:
            shown = " ".join(message.split())
            assert any(form in shown for form in forms(chosen[named[1]])), (message, chosen)
        assert re.search(r"(: |needs|scores each) ?\S", message[named.end() :]), message
    else:
        assert len(message) > named.end() + 10, message


def test_a_configuration_is_built_or_refused_by_name():
    ended = {"built": 0, "refused": 0}

    @settings(max_examples=220)
    @given(overrides())
    def one(chosen):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                config = compose(CONF, [f"{name}={written(value)}" for name, value in chosen.items()])
            except ConfigError as refused:
                ended["refused"] += 1
                assert_named(str(refused), chosen)
                return
            ended["built"] += 1
            with torch.device("meta"):
                count = sum(p.numel() for p in config.build_net().parameters())
            config.build_data()
            if count <= SMALL and config.model.backbone is None:
                torch.manual_seed(0)
                net = config.build_net()
                config.build_task(net)
                logits = net.eval()(torch.randn(2, 3, config.data.size, config.data.size))
                assert logits.shape == (2, CLASSES[config.data.name]) and logits.isfinite().all()

    one()
    assert min(ended.values()) > 40, ended


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (["model.blocks=[{widths: 60000, kernel_size: 1000}, {widths: [1, 1, null]}]"], "GB at the least"),
        (["model.blocks=[{widths: [8, 8, null], padding: 10000}]", "data.batch_size=1000"], "GB at the least"),
        (["model.blocks=[" + ",".join(["{widths: [1, 1, null], padding: 3}"] * 1001) + "]"], "1001 of them, where"),
        (["data.batch_size=1", "model.blocks=[{widths: [8, 8, null], stride: 40}]"], "batch of 1 leaves it one"),
        (["data=digits", "data.val=1436", "model.blocks=[{widths: [8, 8, null], stride: 40}]"], "batch of 1 leaves"),
        (["seed=" + "9" * 5000], "seed=999"),
        (["recipe.lr=" + "9" * 400], "recipe.lr=999"),
        (["trainer.max_epochs=" + "9" * 400], "trainer.max_epochs=999"),
        (["model.blocks={a: 1}"], "model.blocks={'a': 1}: choose one of cifar10"),
        (["recipe.drops={a: 1}"], "recipe.drops={a: 1}: "),
        (["model=[1]"], "model=[1]: give the name of a file in conf/model"),
        (["data=null"], "data=null: give the name of a file in conf/data"),
        (["model.blocks=${model.blocks}"], "Recursive interpolation"),
        (["model.norm=???"], "model.norm must be given"),
    ],
)
def test_what_was_once_let_through_is_refused(given_, words):
    with pytest.raises(ConfigError) as refused:
        compose(CONF, given_)
    assert words in str(refused.value) and len(str(refused.value)) < 1500


# the constructors ----------------------------------------------------------------------------------------------------


def one_with_anything(good: dict):
    """Arguments that are meant well, of which up to two are replaced by anything."""

    @st.composite
    def arguments(draw):
        chosen = {name: draw(value) for name, value in good.items()}
        for name in draw(st.lists(st.sampled_from(sorted(good)), max_size=2, unique=True)):
            chosen[name] = draw(anything)
        return chosen

    return arguments()


def build(constructor, arguments: dict):
    """What is built, or None where it is refused by the name of one of its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return constructor(**arguments)
        except ValueError as refused:
            message = str(refused)
            assert len(message) < 1500 and "\n" not in message, message
            named = re.match(r"(\w+)(=|: | )", message)
            assert named and named[1] in arguments, (message, arguments)
            return None


blocks = st.builds(lambda body, last: [Block(**b) for b in (*body, last)], st.lists(block, max_size=2), last_block)
NETS = {
    "blocks": blocks,
    "num_classes": st.integers(1, 12),
    "head": GOOD["head.name"],
    "in_channels": st.integers(1, 4),
    "image_size": st.integers(1, 40) | st.lists(st.integers(1, 40), min_size=1, max_size=2),
    **{name: GOOD[f"model.{name}"] for name in ("last_pool", "dropout", "norm", "last_relu", "init")},
}


@settings(max_examples=250)
@given(one_with_anything(NETS))
def test_nin(arguments):
    with torch.device("meta"):
        net = build(NIN, arguments)
    if net is None or sum(p.numel() for p in net.parameters()) > SMALL:
        return
    size = arguments["image_size"]
    sides = size if isinstance(size, list) else [size]
    if max(sides) > 100:
        return
    net = NIN(**arguments).eval()
    height, width = sides * 2 if len(sides) == 1 else sides
    logits = net(torch.randn(2, arguments["in_channels"], height, width))
    assert logits.shape == (2, arguments["num_classes"]) and logits.isfinite().all()


@settings(max_examples=250)
@given(
    one_with_anything(
        {
            "widths": widths,
            "kernel_size": st.integers(1, 7),
            "stride": st.integers(1, 3),
            "padding": st.none() | st.integers(0, 3),
            "dropout": st.booleans(),
        }
    )
)
def test_block_and_mlpconv(arguments):
    made = build(Block, arguments)
    layer = {name: value for name, value in arguments.items() if name != "dropout"}
    layer |= {"in_channels": 3, "norm": "batch"}
    with torch.device("meta"):
        convolution = build(MLPConv, layer)
        if made is not None:  # None as the last width is the net's to replace
            assert (convolution is None) == (made.widths[-1] is None)
        if made is not None and convolution is not None:
            side = max(made.kernel_size, 8)
            padding = made.kernel_size // 2 if made.padding is None else made.padding
            out = (side + 2 * padding - made.kernel_size) // made.stride + 1
            assert convolution(torch.zeros(2, 3, side, side)).shape == (2, made.widths[-1], out, out)


@settings(max_examples=80)
@given(one_with_anything({"in_channels": width, "norm": GOOD["model.norm"], "last_relu": st.booleans()}))
def test_what_surrounds_an_mlpconv(arguments):
    with torch.device("meta"):
        convolution = build(MLPConv, {**arguments, "widths": 4, "kernel_size": 3})
        if convolution is not None:
            assert convolution(torch.zeros(2, arguments["in_channels"], 8, 8)).shape == (2, 4, 8, 8)


SIDE = st.integers(1, 6)


@settings(max_examples=150)
@given(
    one_with_anything(
        {"num_maps": width, "num_classes": width, "map_size": st.tuples(SIDE, SIDE), "dropout": fraction}
    ),
    SIDE,
    SIDE,
)
def test_heads(arguments, height, width):
    maps = torch.randn(2, 5, height, width)
    for head in (GAP(), GMP()):
        assert head(maps).shape == (2, 5) and head(maps).isfinite().all()
    with torch.device("meta"):
        head = build(FC, arguments)
        if head is not None:
            given_ = torch.zeros(2, arguments["num_maps"], *head.map_size)
            assert head(given_).shape == (2, arguments["num_classes"])


@settings(max_examples=30)
@given(st.sampled_from(["average", "max"]) | anything)
def test_depth_pool(kind):
    if (pool := build(DepthPool, {"kind": kind})) is not None:
        assert pool(torch.zeros(2, 5, 3, 4)).shape == (2, 1, 3, 4)


class Two(torch.nn.Module):
    num_classes = 2

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

    def forward(self, images):
        return self.second(self.first(images))


CLASSIFIER = {name.removeprefix("recipe."): GOOD[name] for name in FIELDS if name.startswith("recipe.")}
del CLASSIFIER["name"]


@settings(max_examples=200)
@given(one_with_anything(CLASSIFIER), st.integers(1, 2000), st.floats(1, 500))
def test_classifier(arguments, total, per_epoch):
    task = build(lambda **a: Classifier(Two(), **a), arguments)
    if task is not None:
        factors = [task.lr_factor(step, total, per_epoch) for step in (0, total // 2, total - 1)]
        assert all(0 <= factor <= 1 for factor in factors), factors
        assert sum(len(group["params"]) for group in task.parameter_groups()) == 4


@settings(max_examples=120)
@given(one_with_anything({"momentum": fraction, "nesterov": st.booleans()}), st.lists(SIDE, max_size=4), st.booleans())
def test_muon(arguments, shape, orthogonal):
    weight = torch.nn.Parameter(torch.ones(shape))
    group = {"params": [weight], "lr": 0.1, "orthogonal": orthogonal}

    def make(params, **rest):
        return Muon(params, **rest)

    optimiser = build(make, {"params": [group], **arguments})
    if optimiser is not None:
        weight.grad = torch.ones(shape)
        optimiser.step()
        assert weight.isfinite().all() and not torch.equal(weight, torch.ones(shape))
