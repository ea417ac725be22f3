"""The data as Lightning expects it: a set in memory, batches made on the device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import lightning as L
import torch
from torch import Tensor, nn

from nin import config
from nin.checks import integer, one_of
from nin.config import DataConfig
from nin.data.augment import random_crop, random_flip
from nin.data.preprocess import PREPROCESSINGS, Whiten
from nin.data.sets import SETS, ImageSet, data_folder
from nin.errors import SettingError

EVALUATION_BATCH = 250  # images of 32×32; more are no faster on a CPU and need more memory


def draw_seed(seed: int, epoch: int, purpose: str, rank: int = 0) -> int:
    """Returns the seed of an epoch's random numbers: a different one for each seed, epoch, purpose and process.

    Args:
        seed: the run's.
        epoch: its number, from 0.
        purpose: "batches" or "dropout".
        rank: number of the process, from 0.
    """
    seed += rank * 1_000_000_007  # far from the seeds that people choose
    return (seed * 1_000_003 + epoch) * 2 + {"batches": 0, "dropout": 1}[purpose]


class Batches:
    """All images of a set once, a batch at a time: (images (B, C, H, W) float32, labels (B) int64), on the device.

    Order and augmentation depend on seed and epoch alone. Of several processes each takes every `processes`-th image
    of a batch, starting with the `rank`-th: together they have the batches and the order of one process. Each augments
    with random numbers of its own.

    Args:
        images: (N, H, W, C), channels last in memory; `preprocess` receives them as (B, C, H, W).
        labels: (N) int64.
        batch_size: B, of all processes together. Without `augment` the last batch is smaller if need be. With it that
            rest is dropped (another rest each epoch), unless it is the only batch.
        preprocess: turns a batch of images into the input of the net.
        augment: changes preprocessed images in training, given a generator; None keeps images and order.
        seed: of order and augmentation.
        epoch: returns the epoch's number; called when an epoch begins.
        rank: number of this process, from 0.
        processes: how many there are.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        preprocess: nn.Module,
        *,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 0 and (self.augment is None or full == 0))

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device, n = self.images.device, len(self.labels)
        generator = torch.Generator(device).manual_seed(draw_seed(self.seed, self.epoch(), "batches"))
        shuffled = self.augment is not None
        order = torch.randperm(n, generator=generator, device=device) if shuffled else torch.arange(n, device=device)
        if self.rank:
            generator.manual_seed(draw_seed(self.seed, self.epoch(), "batches", self.rank))
        for i in range(len(self)):
            chosen = order[i * self.batch_size : (i + 1) * self.batch_size]
            if shuffled:  # equal shares, since gradients are averaged over processes
                chosen = chosen[: len(chosen) // self.processes * self.processes]
            chosen = chosen[self.rank :: self.processes]
            if len(chosen) == 0:
                return  # the last batch has fewer images than there are processes
            images = self.preprocess(self.images[chosen].permute(0, 3, 1, 2))
            if self.augment is not None:
                images = self.augment(images, generator)
            yield images.contiguous(memory_format=torch.channels_last), self.labels[chosen]


class Images(L.LightningDataModule):
    """A set of images, whole in memory and on the device; no worker processes.

    data = Images("cifar10", batch_size=64, val=10_000)

    Args:
        data: name of the set, one of `nin.data.SETS`, or the settings; each is explained in `nin.config.DataConfig`.
        seed: of order, augmentation and the sampled share.
        eval_curve: whether the test error after each epoch is recorded too, as `test_curve/error`. It is for learning
            curves: nothing may be chosen by it.
        settings: fields of `nin.config.DataConfig` that differ from `data`. For a set of one size, `size` is that size.

    Attributes:
        entry: the set's entry in the table of sets.
        set: the images; None before `setup`. If they are assigned before, nothing is fetched.
        preprocess: turns images into the input of the net, fitted by `setup` on the images that are trained on. If it
            is assigned before, because a trained net brings its own, nothing is fitted.
        encode: frozen layers that are applied to each image once, where nothing augments: batches are their outputs.
        train_images, train_labels, val_images, val_labels: the two splits of the training set, after `setup`.

    Raises:
        SettingError: a value that is not allowed, or that this set does not support.
        DataError: in `prepare_data` and `setup`, a set that is missing or damaged and cannot be downloaded.
    """

    def __init__(
        self, data: str | DataConfig = "cifar10", *, seed: int = 0, eval_curve: bool = False, **settings: object
    ) -> None:
        super().__init__()
        self.settings = _settings_of(data, settings)
        for name, value in (("seed", seed), ("eval_curve", eval_curve)):
            config.field_named(name).metadata["check"](**{name: value})
        self.entry = SETS[self.settings.name]
        self.root = data_folder(self.settings.root)
        self.batch_size = self.settings.batch_size
        self.seed = seed
        self.eval_curve = eval_curve
        self.set: ImageSet | None = None
        self.preprocess: nn.Module | None = None
        self.encode: Callable[[Tensor], Tensor] | None = None
        self._files: dict[str, bytes] | None = None  # verified, and not read yet
        self._on_device: dict[str, tuple[Tensor, Tensor]] = {}

    def prepare_data(self) -> None:
        """Fetches the set: downloads what is missing, verifies it, and keeps its bytes until `setup` reads them."""
        if self.set is None and self._files is None:
            download, urls = self.settings.download, self.settings.urls
            self._files = self.entry.fetch(self.root, download=download, urls=urls)

    def setup(self, stage: str | None = None) -> None:
        """Reads the set, holds out images, samples the share that is trained on, and fits the preprocessing to it."""
        if self.set is None:
            self.prepare_data()
            files, self._files = self._files, None
            self.set = self.entry.parse(files, self.settings.size)
        count = len(self.set.train_labels)
        integer(0, count - 1, val=self.settings.val)
        kept = count - self.settings.val
        self.train_images, self.val_images = self.set.train_images[:kept], self.set.train_images[kept:]
        self.train_labels, self.val_labels = self.set.train_labels[:kept], self.set.train_labels[kept:]
        if self.settings.share < 1:
            chosen = self._sample_share()
            self.train_images, self.train_labels = self.train_images[chosen], self.train_labels[chosen]
        seen = torch.bincount(self.train_labels, minlength=len(self.set.classes)).tolist()
        if unseen := [name for name, count in zip(self.set.classes, seen, strict=True) if not count]:
            warnings.warn(f"no training image shows {', '.join(unseen)}: the net cannot learn them", stacklevel=1)
        if self.preprocess is None:
            self.preprocess = PREPROCESSINGS[self.settings.preprocessing].fit(self.train_images)

    def _sample_share(self) -> Tensor:
        """Indices of the sampled training images, in order; of each class at least one. A smaller share of the same
        seed is a subset of a larger one."""
        generator, labels = torch.Generator().manual_seed(self.seed), self.train_labels
        order = torch.randperm(len(labels), generator=generator)
        classes = [order[labels[order] == k] for k in range(len(self.set.classes))]
        return torch.cat([one[: max(1, round(self.settings.share * len(one)))] for one in classes]).sort().values

    @property
    def val_stages(self) -> tuple[str, ...]:
        """The prefixes of the metrics of `val_dataloader`, which are recorded after each epoch, in its order."""
        val = ("val/",) if self.settings.val else ()
        return (*val, "test_curve/") if self.eval_curve else val

    def train_dataloader(self) -> Batches:
        """Shuffled and augmented batches of the training images."""
        return self._batches("train", augment=self._augment)

    def train_as_test_dataloader(self) -> Batches:
        """The training images as a test set: in order, all of them, unaugmented."""
        return self._batches("train")

    def val_dataloader(self) -> list[Batches]:
        """One loader for each of `val_stages`."""
        return [self._batches("val" if stage == "val/" else "test") for stage in self.val_stages]

    def test_dataloader(self) -> Batches:
        """The test images, in order."""
        return self._batches("test")

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        images = random_crop(images, self.settings.pad, self.settings.pad_mode, generator)
        return random_flip(images, generator) if self.settings.flip and self.set.flip else images

    def _batches(self, split: str, augment: Callable | None = None) -> Batches:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        preprocess = self.preprocess.to(device)
        if split not in self._on_device or self._on_device[split][0].device != device:
            self._on_device[split] = self._moved(split, device)
        images, labels = self._on_device[split]
        evaluated = EVALUATION_BATCH * 32 * 32 // (images.shape[1] * images.shape[2])
        return Batches(
            images,
            labels,
            self.batch_size if augment else max(self.batch_size, evaluated),
            nn.Identity() if isinstance(preprocess, Whiten) or self.encode else preprocess,
            augment=augment,
            seed=self.seed,
            epoch=lambda: trainer.current_epoch if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            processes=trainer.world_size if trainer else 1,
        )

    def _moved(self, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images (N, H, W, C), whitened if the settings say so, and labels of a split, on the device."""
        images, labels = {
            "train": (self.train_images, self.train_labels),
            "val": (self.val_images, self.val_labels),
            "test": (self.set.test_images, self.set.test_labels),
        }[split]
        # channels last in memory: convolutions are fastest with it, and a gather copies whole rows of pixels
        images = images.permute(0, 2, 3, 1).contiguous().to(device)
        if isinstance(self.preprocess, Whiten):  # a matrix product of 6 % of a CPU step: done once, not every epoch
            whitened = torch.empty(images.shape, device=device)
            for raw, out in zip(images.split(1000), whitened.split(1000), strict=True):
                out.copy_(self.preprocess(raw.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
            images = whitened
        if self.encode:  # frozen layers under no augmentation: their outputs are the same in every epoch
            images = self._encoded(images)
        return images, labels.to(device)

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> Tensor:
        """Outputs (N, h, w, C) of `encode` for images (N, H, W, C) on a device."""
        preprocess = nn.Identity() if isinstance(self.preprocess, Whiten) else self.preprocess
        maps = [self.encode(preprocess(some.permute(0, 3, 1, 2))).permute(0, 2, 3, 1) for some in images.split(50)]
        return torch.cat(maps)

    @property
    def augments(self) -> bool:
        """Whether training images differ from epoch to epoch; known after `setup`."""
        return bool(self.settings.pad or (self.settings.flip and self.set.flip))


def _settings_of(data: str | DataConfig, changed: dict[str, object]) -> DataConfig:
    """The checked settings of a set. A size that is not set is the set's own."""
    if isinstance(changed.get("root"), os.PathLike):
        changed = {**changed, "root": os.fspath(changed["root"])}
    if not isinstance(data, DataConfig):
        changed = {"name": data, **changed}
        one_of(SETS, name=changed["name"])
        changed = {"size": SETS[changed["name"]].size or DataConfig.size, **changed}
        data = DataConfig()
    settings = replace(data, **changed)
    one_of(SETS, name=settings.name)
    config.check(settings)
    _check_against_set(settings)
    return settings


def _check_against_set(settings: DataConfig) -> None:
    """Raises SettingError for a setting that the set does not support."""
    entry = SETS[settings.name]
    if entry.size is not None and settings.size != entry.size:
        raise SettingError("size", settings.size, f"the images of {entry.name} have {entry.size} pixels a side")
    if entry.train is not None:
        integer(0, entry.train - 1, val=settings.val)
        integer(1, entry.train, batch_size=settings.batch_size)
    channels = PREPROCESSINGS[settings.preprocessing].channels
    if None not in (channels, entry.channels) and channels != entry.channels:
        reason = f"requires images with {channels} channels, those of {entry.name} have {entry.channels}"
        raise SettingError("preprocessing", settings.preprocessing, reason)
    if settings.pad_mode == "reflect" and settings.pad >= settings.size:
        raise SettingError("pad", settings.pad, f"pad_mode=reflect requires less than the size, {settings.size} pixels")
