"""The whole training step on fake CUDA tensors, which compute nothing: a tensor on the wrong device is refused.

Whatever waits for the device is refused too: a step that does cannot be captured. Without a GPU torch cannot run a
backward pass on fake CUDA tensors. There the gradients are made, and the same step runs on torch's meta device with its
backward pass: it refuses mixed devices too.
"""

import itertools
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torchmetrics import Metric

from builders import CONF, NARROW
from nin.cli import compose
from nin.config import OPTIMISERS
from nin.data import module
from nin.data.preprocess import PREPROCESSINGS, Whiten
from nin.plan import CLASS_MAP_HEADS, HEADS
from nin.run import build, capture
from nin.run.watch import DeadNetWatch

RECIPES = sorted(file.stem for file in (CONF / "recipe").glob("*.yaml"))
CASES = [(recipe, "gap") for recipe in RECIPES] + [("modern", head) for head in CLASS_MAP_HEADS if head != "gap"]
OF_FEATURES = [name for name, head in HEADS.items() if head.of_features]


@pytest.fixture
def device():
    return "cuda"


@pytest.fixture
def fake(monkeypatch, device):
    """A mode in which CUDA tensors are fake. No generator of a device exists there; draws have none."""
    monkeypatch.setattr(module.torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    warnings.filterwarnings("ignore", "CUDA is not available")
    with FakeTensorMode() if device == "cuda" else nullcontext():
        yield


def one_step(config, device):
    """Makes a batch, trains a step, watches over it, and evaluates: all that a run computes, on a device."""
    size = config.data.size
    with torch.device(device):
        net = channels_last(build.build_net(config, classes=10, channels=3))
        images = torch.empty(300, size, size, 3, dtype=torch.uint8)
        labels = torch.empty(300, dtype=torch.int64)
    kind = PREPROCESSINGS[config.data.preprocessing]
    preprocess = torch.nn.Identity() if kind is Whiten else fitted(kind, device)
    images = images.float() if kind is Whiten else images
    data = build.build_data(config)
    data.set = SimpleNamespace(flip=True)
    batches = module.Batches(images, labels, 64, preprocess, augment=data._augment, ahead=3)
    task = task_of(config, net, device)
    task._trainer = SimpleNamespace(
        global_step=0,
        current_epoch=0,
        strategy=SimpleNamespace(reduce=lambda x, **_: x),
        datamodule=None,
        precision_plugin=SimpleNamespace(forward_context=lambda: torch.autocast(device)),
        barebones=False,
    )
    optimizer, watch = task.build_optimizer(), DeadNetWatch()
    for batch in itertools.islice(batches, 2):
        out = task.training_step(batch, 0)
        if device == "meta":
            out["loss"].backward()
        else:
            for parameter in net.parameters():
                parameter.grad = torch.empty_like(parameter)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        watch.losses = watch.losses.to(out["cross_entropy"].device)
        watch.losses[0] = out["cross_entropy"]
    task.eval()
    with torch.no_grad():
        logits = task._evaluate("test/", batch)
    for tensor in (out["loss"], task.sums, logits, *net.parameters(), *(p.grad for p in net.parameters())):
        assert tensor.device.type == device
    assert batch[0].is_contiguous(memory_format=torch.channels_last)


def task_of(config, net, device):
    """The task with its metrics' states on the device, as Lightning moves them."""
    with unset_fake_temporarily():  # metrics copy their states, which fake ones refuse
        task = build.build_task(config, net)
    for metric in filter(lambda module: isinstance(module, Metric), task.modules()):
        for name, start in metric._defaults.items():
            setattr(metric, name, torch.zeros(start.shape, dtype=start.dtype, device=device))
    task.sums = torch.zeros(3, device=device)
    return task


def channels_last(net):
    """As `to` makes it, which cannot exchange fake parameters."""
    for layer in net.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.ndim == 4:
                dense = parameter.detach().contiguous(memory_format=torch.channels_last)
                setattr(layer, name, torch.nn.Parameter(dense))
    return net


def fitted(kind, device):
    """A preprocessing whose numbers are fake and on the device; those of a constructor are looked at."""
    with unset_fake_temporarily():
        preprocess = kind(torch.zeros(3), torch.ones(3))
    for name, number in preprocess.named_buffers():
        setattr(preprocess, name, torch.empty(number.shape, device=device))
    return preprocess


@pytest.mark.parametrize("device", ["cuda", "meta"])
@pytest.mark.parametrize(("recipe", "head"), CASES)
def test_every_recipe_and_head_stays_on_its_device(recipe, head, device, fake):
    one_step(compose([f"recipe={recipe}", f"head={head}", NARROW]), device)


@pytest.mark.parametrize("device", ["cuda", "meta"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_optimiser_stays_on_its_device(optimiser, device, fake):
    one_step(compose([f"recipe.optimiser={optimiser}", NARROW, "model.norm=none", "model.dropout=0.5"]), device)


@pytest.mark.parametrize("head", OF_FEATURES)
def test_every_head_of_features_stays_on_its_device(head, fake):
    one_step(compose(["model=vgg19", f"head={head}", "recipe=article", "model.weights=none"]), "cuda")


def test_a_slip_is_noticed(fake, monkeypatch):
    """A tensor of the CPU in the step, or a look at a value."""
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3, 4) + torch.zeros(4, device="cuda")
    monkeypatch.setattr(module, "random_flip", lambda images, generator: images * torch.ones(len(images), 1, 1, 1))
    with pytest.raises(RuntimeError, match="device"):
        one_step(compose([NARROW]), "cuda")
    monkeypatch.setattr(module, "random_flip", lambda images, generator: images * images.max().item())
    with pytest.raises(DataDependentOutputException):
        one_step(compose([NARROW]), "cuda")


def test_the_captured_step_reads_its_rates_on_the_device(fake, monkeypatch):
    config = compose([NARROW, "data.batch_size=64"])
    with torch.device("cuda"):
        net = channels_last(build.build_net(config, classes=10, channels=3))
    with unset_fake_temporarily():
        task = capture.CapturedClassifier(net, config.recipe)
    optimizer = task.build_optimizer()
    task.rates, task.numbers = torch.zeros(len(optimizer.param_groups), device="cuda"), [0.0] * 4
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter)
    rates = []

    def fused(weights, gradients, buffers, *, lr, **rest):  # it has no fake form
        rates.append(lr.device.type)
        for weight, gradient in zip(weights, gradients, strict=True):
            assert weight.stride() == gradient.stride() and weight.device == gradient.device

    monkeypatch.setattr(torch, "_fused_sgd_", fused)
    with task._rates_in_a_tensor(optimizer):
        assert all(group["lr"].device.type == "cuda" and group["fused"] for group in optimizer.param_groups)
        optimizer.step()
    assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)
    assert rates == ["cuda"] * 4
