"""Speed of training: this project's run, the bare step, and the loop of a usual port, side by side.

Three ways to train the same net on images of the same size are timed in turn, round after round, so that a drift of the
machine's speed affects all of them:

- *lightning*: the training of `scripts/train.py`: batches cut, flipped and normalised in memory, Lightning, metrics.
- *bare step*: forward, backward and the recipe's optimiser step on one batch again and again: the most that this net,
  precision and memory format allow.
- *usual port*: fp32, channels first, SGD, torchvision transforms of PIL images in a DataLoader with worker processes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from nin.config import Config
from nin.data.module import Images
from nin.data.sets import ImageSet
from nin.errors import SettingError
from nin.run.build import build_data, build_net, build_task
from nin.run.machine import device_name, keep_freed_memory
from nin.run.trainer import build_trainer, precision, quiet

WARMUP = 3  # steps before the clock starts
SIDE = 32  # pixels, as CIFAR-10 has them
CLASSES = 10


@dataclass(frozen=True)
class Speeds:
    """Training images per second of the three ways, one value a round, and the device."""

    rounds: dict[str, list[float]]
    device: str

    def images_per_second(self, way: str) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds[way])

    def ratio(self, other: str) -> float:
        """Speed of lightning : speed of another way, the median of the rounds' ratios."""
        pairs = zip(self.rounds["lightning"], self.rounds[other], strict=True)
        return statistics.median(own / others for own, others in pairs)


def benchmark(config: Config, steps: int = 20, rounds: int = 3) -> Speeds:
    """Times each of the three ways in `rounds` rounds of `steps` steps.

    The images are random and of CIFAR-10's size: their content does not matter here.

    Raises:
        SettingError: a net for images of another size.
    """
    quiet()
    keep_freed_memory()
    if config.data.size != SIDE:
        raise SettingError("data.size", config.data.size, f"the steps are timed on images of {SIDE} pixels a side")
    config = replace(
        config,
        data=replace(config.data, val=0, share=1.0),
        trainer=replace(config.trainer, progress_bar=False),
        eval_curve=False,
    )
    L.seed_everything(config.seed, verbose=False)
    data = random_images(config, count=max(2000, (steps + WARMUP) * config.data.batch_size))
    ways = {"lightning": _lightning, "bare step": _bare_step, "usual port": _usual_port}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, seconds_of in ways.items():
            speeds[name].append(steps * config.data.batch_size / seconds_of(config, data, steps))
    return Speeds(speeds, device_name(_idle_trainer(config).strategy.root_device))


def table(speeds: Speeds) -> str:
    """The medians and the ratios in a few lines."""
    lines = [f"  {way:<12}{speeds.images_per_second(way):>10,.1f} images/s" for way in speeds.rounds]
    lines += ["", f"  lightning is {speeds.ratio('bare step'):.3f} of the bare step"]
    return "\n".join([*lines, f"  lightning is {speeds.ratio('usual port'):.2f} times the usual port"])


def random_images(config: Config, count: int) -> Images:
    """The data module of these settings with `count` random training images, set up."""
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,))
    data = build_data(config)
    data.set = ImageSet(images, labels, images[:500], labels[:500], tuple("0123456789"), flip=True)
    data.setup()
    return data


# the three ways: seconds of `steps` steps -----------------------------------------------------------------------------


class Clock(L.Callback):
    """Seconds from the end of the warm-up to the end of the last step."""

    def on_train_batch_end(self, trainer: L.Trainer, *rest: object) -> None:
        if trainer.global_step == WARMUP:
            self.start = _now()

    def on_train_end(self, trainer: L.Trainer, *rest: object) -> None:
        self.seconds = _now() - self.start


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
    trainer.fit(build_task(config, _net(config).to(memory_format=torch.channels_last)), datamodule=data)
    return clock.seconds


def _bare_step(config: Config, data: Images, steps: int) -> float:
    trainer = _idle_trainer(config)
    device = trainer.strategy.root_device
    images = torch.randn(data.batch_size, 3, SIDE, SIDE).to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (data.batch_size,), device=device)
    net = _net(config).to(device, memory_format=torch.channels_last)
    optimizer = build_task(config, net).build_optimizer()

    def step() -> None:
        with trainer.precision_plugin.forward_context():
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _seconds(step, steps)


def _usual_port(config: Config, data: Images, steps: int) -> float:
    from torchvision import transforms

    augment = [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip()]
    scale = [transforms.ToTensor(), transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))]
    pictures = PILImages(data.train_images, data.train_labels, transforms.Compose([*augment, *scale]))
    device = _idle_trainer(config).strategy.root_device
    net = _net(config).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    loader = iter(DataLoader(pictures, data.batch_size, shuffle=True, num_workers=2, drop_last=True))

    def step() -> None:
        images, labels = (part.to(device) for part in next(loader))
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _seconds(step, steps)


class PILImages(Dataset):
    """Images as torchvision's CIFAR-10 returns them: arrays made into PIL pictures, then transformed, one by one."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def _idle_trainer(config: Config) -> L.Trainer:
    """A trainer for its device and precision alone."""
    return build_trainer(config, precision(config), logger=False, enable_checkpointing=False)


def _net(config: Config) -> nn.Module:
    return build_net(config, classes=CLASSES, channels=3)


def _seconds(step: Callable[[], None], steps: int) -> float:
    for _ in range(WARMUP):
        step()
    start = _now()
    for _ in range(steps):
        step()
    return _now() - start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
