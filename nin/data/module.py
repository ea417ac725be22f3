"""The data as Lightning expects it: a set in memory, batches made on the device."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import lightning as L
import torch
from torch import Tensor, nn

from nin import config
from nin.checks import integer, memory_gb, one_of, some_of
from nin.config import DataConfig
from nin.data.augment import random_crop, random_cutout, random_flip
from nin.data.folder import Listing, list_folder, scan
from nin.data.preprocess import PREPROCESSINGS, Whiten
from nin.data.sets import SETS, ImageSet, data_folder
from nin.data.streamed import Streamed, workers_of
from nin.errors import DataError, SettingError

MOST_FITTED = 2000  # images of a folder that its preprocessing is fitted on
ENCODED_AT_ONCE = 50  # images of frozen layers
LARGEST_WHITENED = 64  # pixels a side; the matrix for larger images does not fit into memory
EVALUATION_BATCH = 250  # images of 32×32 at a time; more are no faster on a CPU and need more memory
GPU_EVALUATION_BATCH = 2000  # a GPU is idle between small batches; they take up to 6 GB
EVALUATED_PER_GB = 125  # on a GPU with little memory fewer, so that they take under half of it
GPU_AHEAD = 16 * 128 * 32 * 32  # pixels that a GPU crops and mirrors at once: 16 usual batches, in 14 launches for all

Transform = Callable[[Tensor], Tensor]  # a module or a function


def evaluation_batch(device: torch.device, pixels: int) -> int:
    """Returns how many images of so many pixels an evaluation takes at a time on a device."""
    most = EVALUATION_BATCH
    if device.type == "cuda":
        gigabytes = torch.cuda.get_device_properties(device).total_memory / 1e9
        most = min(GPU_EVALUATION_BATCH, int(EVALUATED_PER_GB * gigabytes))
    return max(1, most * 32 * 32 // pixels)


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

    The order depends on seed and epoch alone. Of several processes each takes every `processes`-th image
    of a batch, starting with the `rank`-th: together they have the batches and the order of one process. Each augments
    with random numbers of its own.

    Args:
        images: (N, H, W, C), channels last in memory, or streamed; `preprocess` receives them as (B, C, H, W).
        labels: (N) int64.
        batch_size: B, of all processes together. Without `augment` the last batch has the images that are left. With
            `augment` these are dropped, other ones each epoch, unless they are the only batch.
        preprocess: a module or function that turns a batch of images into the input of the net.
        augment: changes preprocessed images in training, given a generator; None keeps images and order.
        seed: of order and augmentation.
        epoch: returns the epoch's number; called when an epoch begins.
        rank: number of this process, from 0.
        processes: how many there are.
        device: where the batches are made; None is where the images are.
        ahead: number of batches that are made at once, in as many launches as one. The random numbers depend on it.

    Raises:
        DataError: in iteration, all streamed pictures of a training batch are damaged.
    """

    def __init__(
        self,
        images: Tensor | Streamed,
        labels: Tensor,
        batch_size: int,
        preprocess: Transform,
        *,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        processes: int = 1,
        device: torch.device | None = None,
        ahead: int = 1,
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
        self.device = device or labels.device
        self.ahead = ahead

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 0 and (self.augment is None or full == 0))

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.labels)
        generator = torch.Generator(self.device).manual_seed(draw_seed(self.seed, self.epoch(), "batches"))
        order = torch.arange(n, device=self.device)
        if self.augment is not None:
            order = torch.randperm(n, generator=generator, device=self.device)
        if self.rank:
            generator.manual_seed(draw_seed(self.seed, self.epoch(), "batches", self.rank))
        for pixels, labels, sizes in self._read(order):
            images = self.preprocess(pixels.permute(0, 3, 1, 2))
            if self.augment is not None:
                images = self.augment(images, generator)
            images = images.contiguous(memory_format=torch.channels_last)
            yield from zip(images.split(sizes), labels.split(sizes), strict=True)

    def _read(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """This process's shares of the batches, on the device: pixels (B, H, W, C), labels (B) and the size of each
        share. The shares of `ahead` batches come joined. No copy waits for a GPU, which has earlier steps to do."""
        groups = self._groups(order)
        if isinstance(self.images, Streamed):
            yield from self._stream(groups, self.images)
            return
        stay = self.images.device.type != self.device.type  # in the machine's memory
        pin = stay and self.device.type == "cuda"
        places = self._groups(order.to(self.images.device)) if stay else groups
        for group, there in zip(groups, places, strict=True):
            pixels = self.images[torch.cat(there)]
            pixels = (pixels.pin_memory() if pin else pixels).to(self.device, non_blocking=pin)
            yield pixels, self.labels[torch.cat(group)], [len(share) for share in group]

    def _groups(self, order: Tensor) -> list[list[Tensor]]:
        """The indices of this process's shares of the batches, by the batches that are made at once."""
        batches = list(order[: len(self) * self.batch_size].split(self.batch_size))
        if self.augment is not None:  # equal shares, since gradients are averaged over processes
            batches = [batch[: len(batch) // self.processes * self.processes] for batch in batches]
        # the last batch may have fewer images than there are processes
        shares = [share for share in (batch[self.rank :: self.processes] for batch in batches) if len(share)]
        return [shares[first : first + self.ahead] for first in range(0, len(shares), self.ahead)]

    def _stream(self, groups: list[list[Tensor]], images: Streamed) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """As `_read`, of images that are decoded as they are needed; damaged ones are left out of their batches."""
        pin = self.device.type == "cuda"
        batches = images.read([share for group in groups for share in group], pin)
        for group in groups:
            pixels, labels = [], []
            for share in group:
                decoded, places = next(batches)
                if not len(places) and self.augment is None:
                    continue
                if not len(places):  # as many steps in each process, since they wait for each other
                    raise DataError(f"all {len(share)} pictures of a training batch are damaged; remove them")
                pixels.append(decoded.to(self.device, non_blocking=pin))
                labels.append(self.labels[share[places.to(self.device, non_blocking=pin)]])
            if labels:
                joined = torch.cat(pixels) if len(pixels) > 1 else pixels[0]
                yield joined, torch.cat(labels), [len(part) for part in labels]


class Images(L.LightningDataModule):
    """A set of images: whole in memory and on the device, without worker processes, or streamed from a folder.

    data = Images("cifar10", batch_size=64, val=10_000)
    data = Images("folder", root="photos", size=64)  # one subfolder a class

    Args:
        data: name of the set, one of `nin.data.SETS`, or the settings; each is explained in `nin.config.DataConfig`.
        seed: of order, augmentation and the sampled share.
        eval_curve: whether the test error after each epoch is recorded too, as `test_curve/error`. It is for learning
            curves: nothing may be chosen by it.
        processes: number of processes on this machine; each holds a folder's images and gets its share of the memory.
        settings: fields of `nin.config.DataConfig` that differ from `data`. For a set of one size, `size` is that size.

    Attributes:
        entry: the set's entry in the table of sets.
        listing: of a folder, its pictures and their split; None before `prepare_data`.
        set: the images; None before `setup`. If they are assigned before, nothing is fetched.
        preprocess: turns images into the input of the net, fitted by `setup` on the images that are trained on. If it
            is assigned before, because a trained net brings its own, nothing is fitted.
        encode: frozen layers, where nothing augments: batches are their outputs, computed once if they fit into memory.
        train_images, train_labels, val_images, val_labels: the two splits of the training set, after `setup`.

    Raises:
        SettingError: a value that is not allowed, or that this set does not support.
        DataError: in `prepare_data` and `setup`, a set that is missing or damaged and cannot be downloaded.
    """

    def __init__(
        self,
        data: str | DataConfig = "cifar10",
        *,
        seed: int = 0,
        eval_curve: bool = False,
        processes: int = 1,
        **settings: object,
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
        self.processes = processes
        self.listing: Listing | None = None
        self.set: ImageSet | None = None
        self.preprocess: nn.Module | None = None
        self.encode: Callable[[Tensor], Tensor] | None = None
        self._has_warned = False
        self._files: dict[str, bytes] | None = None  # verified, and not read yet
        self._on_device: dict[str, tuple[Tensor | Streamed, Tensor, Transform]] = {}

    def prepare_data(self) -> None:
        """Fetches the set: downloads what is missing, verifies it, and keeps its bytes until `setup` reads them."""
        if self.set is not None:
            return
        if self.entry.is_folder and self.listing is None:
            self.listing = listed(self.root, self.settings.sha256)
        if not self.entry.is_folder and self._files is None:
            download, urls = self.settings.download, self.settings.urls
            self._files = self.entry.fetch(self.root, download=download, urls=urls)

    def setup(self, stage: str | None = None) -> None:
        """Reads the set, holds out images, samples the share that is trained on, and fits the preprocessing to it."""
        if self.set is None:
            self.prepare_data()
            self.set = self._parsed()
        count = len(self.set.train_labels)
        integer(0, count - 1, val=self.settings.val)
        kept = count - self.settings.val
        self.train_images, self.val_images = self.set.train_images[:kept], self.set.train_images[kept:]
        self.train_labels, self.val_labels = self.set.train_labels[:kept], self.set.train_labels[kept:]
        if self.settings.share < 1:
            chosen = self._sample_share()
            self.train_images, self.train_labels = self.train_images[chosen], self.train_labels[chosen]
        seen = torch.bincount(self.train_labels, minlength=len(self.set.classes)).tolist()
        unseen = [name for name, count in zip(self.set.classes, seen, strict=True) if not count]
        if unseen and not self._has_warned:  # Lightning calls this for the training and for each evaluation
            self._has_warned = True
            warnings.warn(f"no training image shows {some_of(unseen, 20)}: the net cannot learn it", stacklevel=1)
        if self.preprocess is None:
            self.preprocess = PREPROCESSINGS[self.settings.preprocessing].fit(self._to_fit())

    def _parsed(self) -> ImageSet:
        """The set, read from what `prepare_data` left."""
        if self.listing is None:
            files, self._files = self._files, None
            return self.entry.parse(files, self.settings.size)
        for note in self.listing.notes:
            warnings.warn(note, stacklevel=1)
        workers = workers_of(self.processes) if self.settings.workers is None else self.settings.workers
        copies = 5 if self.settings.preprocessing == Whiten.name else 1  # whitened images are kept too, in fp32
        own = {"seed": self.seed, "memory": self._memory() / copies, "workers": workers}
        return self.entry.parse(self.listing, self.settings.size, **own)

    def _memory(self) -> float:
        """GB that a folder's images may take in this process."""
        limit = memory_gb() / 2 if self.settings.memory is None else self.settings.memory
        return limit / self.processes

    def _to_fit(self) -> Tensor | Streamed:
        """The training images that the preprocessing is fitted on: all, of a folder at most MOST_FITTED."""
        if not self.entry.is_folder:
            return self.train_images
        chosen = torch.linspace(0, len(self.train_labels) - 1, min(MOST_FITTED, len(self.train_labels))).long()
        return self.train_images[chosen]

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

    def predict_dataloader(self) -> Batches:
        """The test images, in order, for `Trainer.predict`."""
        return self.test_dataloader()

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        images = random_crop(images, self.settings.pad, self.settings.pad_mode, generator)
        images = random_flip(images, generator) if self.settings.flip and self.set.flip else images
        return random_cutout(images, self.settings.cutout, generator)

    def _batches(self, split: str, augment: Callable | None = None) -> Batches:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        self.preprocess.to(device)
        if split not in self._on_device or self._on_device[split][1].device != device:
            self._on_device[split] = self._moved(split, device)
        images, labels, prepare = self._on_device[split]
        pixels = math.prod(self.train_images.shape[2:])
        return Batches(
            images,
            labels,
            self.batch_size if augment else max(self.batch_size, evaluation_batch(device, pixels)),
            prepare,
            augment=augment,
            seed=self.seed,
            epoch=lambda: trainer.current_epoch if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            processes=trainer.world_size if trainer else 1,
            device=device,
            ahead=max(1, GPU_AHEAD // (self.batch_size * pixels)) if device.type == "cuda" else 1,
        )

    def _moved(self, split: str, device: torch.device) -> tuple[Tensor | Streamed, Tensor, Transform]:
        """Images (N, H, W, C) and labels of a split, on the device, and what makes the net's input of a batch of them.

        Whitened images and the outputs of `encode` are kept, and need nothing more. Streamed images stay on the disk. A
        folder's images stay in the machine's memory if they need over half of the GPU's.
        """
        images, labels = {
            "train": (self.train_images, self.train_labels),
            "val": (self.val_images, self.val_labels),
            "test": (self.set.test_images, self.set.test_labels),
        }[split]
        preprocess, encode, labels = self.preprocess, self.encode, labels.to(device)
        prepare: Transform = preprocess if encode is None else lambda batch: encode(preprocess(batch))
        if isinstance(images, Streamed):
            return images, labels, prepare
        # channels last in memory: convolutions are fastest with it, and a gather copies whole rows of pixels
        images = images.permute(0, 2, 3, 1).contiguous()
        if encode and (encoded := self._encoded(images, prepare, device)) is not None:
            return encoded, labels, nn.Identity()
        whitens = isinstance(preprocess, Whiten) and encode is None
        on_gpu = device.type == "cuda" and self.entry.is_folder
        if on_gpu and images.numel() * (4 if whitens else 1) > self._room(device):
            return images, labels, prepare
        images = images.to(device)
        if not whitens:
            return images, labels, prepare
        whitened = torch.empty(images.shape, device=device)  # once: its matrix product takes 6 % of a CPU step
        for raw, out in zip(images.split(1000), whitened.split(1000), strict=True):
            out.copy_(preprocess(raw.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return whitened, labels, nn.Identity()

    @torch.no_grad()
    def _encoded(self, images: Tensor, prepare: Transform, device: torch.device) -> Tensor | None:
        """The net's input (N, h, w, C), on the device, of images (N, H, W, C); None where it takes too much memory."""
        encoded: Tensor | None = None
        for start in range(0, len(images), ENCODED_AT_ONCE):
            some = images[start : start + ENCODED_AT_ONCE].to(device)
            maps = prepare(some.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            if encoded is None:
                if len(images) * maps[0].numel() * maps.element_size() > self._room(device):
                    return None
                encoded = maps.new_empty(len(images), *maps.shape[1:])
            encoded[start : start + len(maps)] = maps
        return encoded

    def _room(self, device: torch.device) -> float:
        """Bytes that images or features may take: half of a GPU's free memory, else this process's share."""
        if device.type != "cuda":
            return self._memory() * 1e9
        # torch holds freed memory, which CUDA counts as used, and gives it to the next tensors
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + held) / 2

    @property
    def augments(self) -> bool:
        """Whether training images differ from epoch to epoch; known after `setup`."""
        return bool(self.settings.pad or self.settings.cutout or (self.settings.flip and self.set.flip))


@cache
def _listed(root: str, state: tuple) -> Listing:
    return list_folder(root)


def listed(root: str, sha256: str | None = None) -> Listing:
    """Returns the pictures of a folder, as `list_folder` does. A process reads an unchanged folder once.

    Raises:
        DataError: as `list_folder`, and where its pictures do not have the sha256.
    """
    paths = [file for part in scan(root).parts for one in part.values() for file in one]
    listing = _listed(root, tuple((str(file), file.lstat().st_size, file.stat().st_mtime_ns) for file in paths))
    if sha256 not in (None, listing.sha256):
        raise DataError(f"data.sha256={sha256}: the pictures in {root} have sha256 {listing.sha256}")
    return listing


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
    if entry.is_folder and settings.root is None:
        raise SettingError("root", None, f"data={entry.name} requires a folder with one subfolder of pictures a class")
    if settings.preprocessing == Whiten.name and settings.size > LARGEST_WHITENED:
        values = 3 * settings.size**2
        reason = f"preprocessing=whiten requires at most {LARGEST_WHITENED}, its matrix would have {values:,}² values"
        raise SettingError("size", settings.size, f"{reason}; choose normalise")
    if entry.train is not None:
        integer(0, entry.train - 1, val=settings.val)
        integer(1, entry.train, batch_size=settings.batch_size)
    channels = PREPROCESSINGS[settings.preprocessing].channels
    if None not in (channels, entry.channels) and channels != entry.channels:
        reason = f"requires images with {channels} channels, those of {entry.name} have {entry.channels}"
        raise SettingError("preprocessing", settings.preprocessing, reason)
    if settings.cutout >= settings.size:
        raise SettingError("cutout", settings.cutout, f"requires less than the size, {settings.size} pixels")
    if settings.pad_mode == "reflect" and settings.pad >= settings.size:
        raise SettingError("pad", settings.pad, f"pad_mode=reflect requires less than the size, {settings.size} pixels")
