"""How fast training is: the Lightning run, the bare step, and the loop that the usual port has, side by side.

Three ways to train the same net on images of the same size, timed in turn, round after round, so that a drift of the
machine's speed falls on all of them:

- *lightning*: what `scripts/train.py` runs: batches cut, flipped and normalised in memory, Lightning, metrics.
- *bare step*: forward, backward and the recipe's optimiser step on one batch again and again: the most that this net,
  precision and memory format allow.
- *usual port*: fp32, channels first, SGD, torchvision transforms of PIL images in a DataLoader with worker processes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from nin.config import Config, ConfigError
from nin.data import Images, ImageSet
from nin.provenance import device_name
from nin.run import build_trainer, keep_freed_memory, precision, quiet

WARMUP = 3  # steps before the clock starts
SIDE = 32  # pixels, as CIFAR-10 has them


class PILImages(Dataset):
    """Images as torchvision's CIFAR-10 gives them: arrays made into PIL pictures, then transformed, one by one."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Clock(L.Callback):
    """Seconds from the end of the warm-up to the end of the last step."""

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        if trainer.global_step == WARMUP:
            self.start = _now()

    def on_train_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self.seconds = _now() - self.start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def benchmark(config: Config, steps: int = 20, rounds: int = 3) -> dict[str, Any]:
    """Training images per second of the three ways: the median of `rounds` rounds of `steps` steps each.

    Images are random, of CIFAR-10's size: what they show does not matter here. Gives also the ratios lightning : bare
    step and lightning : usual port (medians of the rounds' ratios). Raises ConfigError for a net of images of another
    size.
    """
    quiet()
    keep_freed_memory()
    if config.data.size != SIDE:
        raise ConfigError(f"data.size={config.data.size}: what is timed are steps on images of {SIDE} pixels")
    config.data.val, config.data.share, config.eval_curve = 0, 1, False
    L.seed_everything(config.seed, verbose=False)
    count = max(2000, (steps + WARMUP) * config.data.batch_size)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    data = config.build_data()
    data.set = ImageSet(images, labels, images[:500], labels[:500], tuple("0123456789"), flip=True)
    data.setup()

    ways = {"lightning": _lightning, "bare step": _bare_step, "usual port": _usual_port}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, way in ways.items():
            speeds[name].append(steps * config.data.batch_size / way(config, data, steps))
    ratios = {
        other: statistics.median(a / b for a, b in zip(speeds["lightning"], speeds[other], strict=True))
        for other in ("bare step", "usual port")
    }
    return {
        "images_per_second": {name: round(statistics.median(found), 1) for name, found in speeds.items()},
        "lightning : bare step": round(ratios["bare step"], 3),
        "lightning : usual port": round(ratios["usual port"], 2),
        "device": device_name(data.trainer.strategy.root_device),
    }


def _lightning(config: Config, data: Images, steps: int) -> float:
    clock = Clock()
    trainer = build_trainer(
        config,
        precision(config),
        [clock],
        max_epochs=1,
        gradient_clip_val=config.trainer.gradient_clip_val,
        limit_train_batches=steps + WARMUP,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
    )
    net = config.build_net().to(memory_format=torch.channels_last)
    trainer.fit(config.build_task(net), datamodule=data)
    return clock.seconds


def _bare_step(config: Config, data: Images, steps: int) -> float:
    trainer = build_trainer(config, precision(config), logger=False, enable_checkpointing=False)
    device = trainer.strategy.root_device
    images = torch.randn(data.batch_size, 3, SIDE, SIDE).to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (data.batch_size,), device=device)
    net = config.build_net().to(device, memory_format=torch.channels_last)
    optimizer = config.build_task(net).build_optimizer()

    def step() -> None:
        with trainer.precision_plugin.forward_context():
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _time(step, steps)


def _usual_port(config: Config, data: Images, steps: int) -> float:
    augment = [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip()]
    scale = [transforms.ToTensor(), transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))]
    pictures = PILImages(data.train_images, data.train_labels, transforms.Compose([*augment, *scale]))
    device = data.trainer.strategy.root_device
    net = config.build_net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    loader = iter(DataLoader(pictures, data.batch_size, shuffle=True, num_workers=2, drop_last=True))

    def step() -> None:
        images, labels = (part.to(device) for part in next(loader))
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _time(step, steps)


def _time(step: Callable[[], None], steps: int) -> float:
    for _ in range(WARMUP):
        step()
    start = _now()
    for _ in range(steps):
        step()
    return _now() - start
