"""The whole training step on fake CUDA tensors, which compute nothing: a tensor on the wrong device is refused.

Whatever waits for the device is refused too: a step that does cannot be captured. The captured step's own parts, its
matrix products and fused optimiser, are computed too, up to the backward pass. Without a GPU torch cannot run a
backward pass on fake CUDA tensors. There the gradients are made, and the same step runs on torch's meta device with its
backward pass: it refuses mixed devices too.
"""

import itertools
import warnings
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import Metric

from builders import CONF, NARROW
from nin.cli import compose
from nin.config import OPTIMISERS
from nin.data import module
from nin.data.preprocess import PREPROCESSINGS, Whiten
from nin.data.streamed import Streamed
from nin.plan import CLASS_MAP_HEADS, HEADS
from nin.run import build, capture
from nin.run.watch import DeadNetWatch
from nin.task import Classifier

RECIPES = sorted(file.stem for file in (CONF / "recipe").glob("*.yaml"))
CASES = [(recipe, "gap") for recipe in RECIPES] + [("modern", head) for head in CLASS_MAP_HEADS if head != "gap"]
CAPTURED = ("muon", "sgd")  # optimisers whose step can be captured
OF_FEATURES = [name for name, head in HEADS.items() if head.of_features]


@pytest.fixture
def device():
    return "cuda"


@pytest.fixture
def fake(monkeypatch, device):
    """A mode in which CUDA tensors are fake. No generator of a device exists there; draws have none."""
    monkeypatch.setattr(module.torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    monkeypatch.setattr(torch, "_fused_sgd_", fused)
    warnings.filterwarnings("ignore", "CUDA is not available")
    with FakeTensorMode() if device == "cuda" else nullcontext():
        yield


def fused(weights, gradients, momenta, *, lr, **_):
    """In place of fused SGD, which has no fake form: what it requires of its tensors."""
    for tensors in zip(weights, gradients, *([momenta] if momenta else []), strict=True):
        assert len({(tensor.device, tensor.stride()) for tensor in tensors}) == 1
        assert lr.device == weights[0].device


def one_step(config, device, captured=False):
    """Makes batches, trains two steps, watches over them, and evaluates: all that a run computes, on a device."""
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
    task = task_of(config, net, device, capture.CapturedClassifier if captured else Classifier)
    task._trainer = SimpleNamespace(
        global_step=0,
        current_epoch=0,
        strategy=SimpleNamespace(reduce=lambda x, **_: x),
        datamodule=None,
        precision_plugin=SimpleNamespace(forward_context=lambda: torch.autocast(device)),
        barebones=False,
        precision="bf16-mixed" if captured else "32-true",
    )
    optimizer, watch = task.build_optimizer(), DeadNetWatch()
    task.optimizers = lambda **_: optimizer
    task.on_fit_start()
    for number, batch in enumerate(itertools.islice(batches, 2)):
        if captured:
            task.on_train_batch_start(batch, number)
        with in_bf16(device) if captured else nullcontext():
            out = task.training_step(batch, number)
        if device == "meta":
            out["loss"].backward()
        else:
            for parameter in net.parameters():
                parameter.grad = torch.empty_like(parameter)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        with task._rates_in_a_tensor(optimizer) if captured else nullcontext():
            optimizer.step()
        watch.losses = watch.losses.to(out["cross_entropy"].device)
        watch.losses[0] = out["cross_entropy"]
    task.eval()
    with torch.no_grad():
        logits = task._evaluate("test/", batch)
    for tensor in (out["loss"], task.sums, logits, *net.parameters(), *(p.grad for p in net.parameters())):
        assert tensor.device.type == device
    assert batch[0].is_contiguous(memory_format=torch.channels_last)


@contextmanager
def in_bf16(device):
    """torch.autocast, which is off where there is no GPU."""
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.set_autocast_enabled(device, True)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, False)


def task_of(config, net, device, kind):
    """The task with its metrics' states on the device, as Lightning moves them."""
    with unset_fake_temporarily():  # metrics copy their states, which fake ones refuse
        task = kind(net, config.recipe)
    task._device = torch.device(device, 0)
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
    one_step(compose([f"recipe={recipe}", f"head={head}", NARROW, "data.cutout=8"]), device)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipes_captured_step_stays_on_its_device(recipe, fake):
    config = compose([f"recipe={recipe}", NARROW])
    if config.recipe.optimiser in CAPTURED:
        one_step(config, "cuda", captured=True)


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
    config, rates = compose([NARROW]), []
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *lists, lr, **rest: rates.append(lr) or fused(*lists, lr=lr))
    one_step(config, "cuda", captured=True)
    assert len(rates) == 2 * 4  # steps and groups
    assert all(rate.device.type == "cuda" and rate.ndim == 0 for rate in rates)


class Copies(TorchDispatchMode):
    """Notes copies between the machine's memory and the GPU, and whether the host waits for them."""

    def __init__(self):
        super().__init__()
        self.to_gpu, self.from_gpu = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            source, target = args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type
            if (source, target) == ("cpu", "cuda"):
                self.to_gpu.append(bool(kwargs.get("non_blocking")))
            elif (source, target) == ("cuda", "cpu"):
                self.from_gpu.append(len(args[0]))
        return func(*args, **kwargs)


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("streamed", [False, True])
def test_no_batch_of_a_folder_waits_for_the_gpu(streamed, ahead, fake, monkeypatch):
    """Of images that are streamed, or stay in the machine's memory because the GPU's is too small."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda images: pinned.append(images) or images)

    def read(images, batches, pin):
        assert pin
        for batch in batches:
            yield torch.empty(len(batch) - 1, 8, 8, 3, dtype=torch.uint8), torch.arange(1, len(batch))

    monkeypatch.setattr(Streamed, "read", read)
    images = Streamed([None] * 50, 8) if streamed else torch.empty(50, 8, 8, 3, dtype=torch.uint8)
    labels, device = torch.empty(50, dtype=torch.int64, device="cuda"), torch.device("cuda")
    prepare = fitted(PREPROCESSINGS["normalise"], "cuda")
    made = module.Batches(images, labels, 10, prepare, augment=lambda x, generator: x, device=device, ahead=ahead)
    with Copies() as copies:
        batches = list(made)
    assert [part.device.type for batch in batches for part in batch] == ["cuda"] * 10
    assert copies.to_gpu and all(copies.to_gpu)
    assert copies.from_gpu == ([] if streamed else [50])  # the order, once an epoch
    assert len(pinned) == (0 if streamed else len(copies.to_gpu))


@pytest.mark.parametrize("encodes", [True, False])
@pytest.mark.parametrize(("free", "held", "fits"), [(3, 0, True), (1, 0, False), (1, 2, True), (0, 3, True)])
def test_a_gpu_keeps_what_its_free_memory_holds(encodes, free, held, fits, fake, monkeypatch):
    """Images of a folder, or what frozen layers make of them. Memory that torch holds and does not use is free."""
    images = torch.empty(120, 3, 8, 8, dtype=torch.uint8)
    needed = images.numel() * (16 if encodes else 1)  # bytes; half of the memory may be taken
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * needed, 99 * needed))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: (5 + held) * needed)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * needed)
    data = build.build_data(compose([]))
    data.entry, data.preprocess = SimpleNamespace(is_folder=True), fitted(PREPROCESSINGS["normalise"], "cuda")
    data.train_images = data.val_images = images
    data.train_labels = data.val_labels = torch.empty(120, dtype=torch.int64)
    data.set = SimpleNamespace(test_images=images, test_labels=data.train_labels)
    data.encode = (lambda batch: batch.repeat(1, 4, 1, 1)) if encodes else None
    kept, labels, prepare = data._moved("train", torch.device("cuda", 0))
    assert labels.device.type == "cuda"
    if encodes:
        assert kept.dtype == (torch.float32 if fits else torch.uint8)
        assert isinstance(prepare, torch.nn.Identity) == fits
    else:
        assert kept.device.type == ("cuda" if fits else "cpu")
