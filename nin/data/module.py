"""The data as Lightning takes it: a set in memory, batches made on the device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence

import lightning as L
import torch
from torch import Tensor, nn

from nin.bounds import is_number, one_of, shown, truth, whole
from nin.data.augment import PAD_MODES, random_crop, random_flip
from nin.data.flowers import fetch_flowers17, load_flowers17
from nin.data.preprocess import PREPROCESSINGS, Whiten
from nin.data.sets import CIFAR10_URLS, ImageSet, fetch_cifar10, load_cifar10, load_digits

EVALUATION_BATCH = 250  # images of 32×32; more gain no speed on a CPU and take memory
SIZES = {"cifar10": 50_000, "digits": 1_437, "flowers17": 1_190}  # training images of each set
CLASSES = {"cifar10": 10, "digits": 10, "flowers17": 17}


def draw_seed(seed: int, epoch: int, purpose: str, rank: int = 0) -> int:
    """Where the random numbers of an epoch begin: other ones for each seed, epoch, purpose and process."""
    seed += rank * 1_000_000_007  # far from the seeds that people give
    return (seed * 1_000_003 + epoch) * 2 + {"batches": 0, "dropout": 1}[purpose]


class Batches:
    """All images of a set once, a batch at a time: (images (B, C, H, W) float32, labels (B) int64), on the device.

    Order and augmentation are a function of seed and epoch alone. Of several processes each takes every
    `processes`-th image of a batch, from the `rank`-th on: together they have one process's batches in one process's
    order, and each augments by draws of its own.

    Args:
        images: (N, H, W, C), channels last in memory; `preprocess` is given them as (B, C, H, W).
        labels: (N) int64.
        batch_size: B, of all processes together; without `augment` the last batch holds what is left, with it that
            rest is dropped (another rest each epoch) unless it is all there is.
        preprocess: what turns images into the net's input, a batch at a time.
        augment: what changes the preprocessed images in training, given a generator; None keeps images and order.
        seed, epoch: of the draws; `epoch` is asked for when an epoch begins.
        rank, processes: this process's number, from 0, and how many there are.
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
        draws = torch.Generator(device).manual_seed(draw_seed(self.seed, self.epoch(), "batches"))
        shuffled = self.augment is not None
        order = torch.randperm(n, generator=draws, device=device) if shuffled else torch.arange(n, device=device)
        if self.rank:
            draws.manual_seed(draw_seed(self.seed, self.epoch(), "batches", self.rank))
        for i in range(len(self)):
            chosen = order[i * self.batch_size : (i + 1) * self.batch_size]
            if shuffled:  # equal shares, since gradients are averaged over processes
                chosen = chosen[: len(chosen) // self.processes * self.processes]
            chosen = chosen[self.rank :: self.processes]
            if len(chosen) == 0:
                return  # the last batch had fewer images than there are processes
            images = self.preprocess(self.images[chosen].permute(0, 3, 1, 2))
            if self.augment is not None:
                images = self.augment(images, draws)
            yield images.contiguous(memory_format=torch.channels_last), self.labels[chosen]


class Images(L.LightningDataModule):
    """A set of images, whole in memory and on the device; no worker processes.

    Args:
        name: "cifar10", "digits" or "flowers17".
        root: folder of the sets; by default the environment variable NIN_DATA, else "data".
        size: height and width in pixels to which flowers17's photographs are brought; the other sets have 32.
        download: whether to download a set that is not there.
        urls: addresses of CIFAR-10's archive, tried in turn.
        val: how many images at the end of the training set are held out for tuning; the paper holds out 10,000.
        share: of the other training images, how much of each class is trained on, above 0 and at most 1, drawn from
            `seed`; a smaller share is part of a larger one. An epoch gets shorter by it: for as many steps, epochs
            are to be divided by it.
        batch_size: images a step, of all processes together; 128 is the authors'.
        preprocessing: "normalise" (each channel to mean 0, standard deviation 1), "whiten" (the authors' GCN + ZCA) or
            "imagenet" (ImageNet's means and deviations, for weights trained there).
        pad: pixels of padding before the random crop; 0 for no crop. 4 is the authors' in their augmented runs.
        pad_mode: "zero" or "reflect".
        flip: whether images are mirrored at random, where the set allows it (digits do not).
        eval_curve: whether the test error after each epoch is recorded too, as `test_curve/error`. It is for learning
            curves; nothing may be chosen by it.
        seed: of order and augmentation.

    Raises:
        ValueError: a value outside the choices.
        nin.data.sets.DataError: in `prepare_data` and `setup`, a set that is missing or damaged.
    """

    def __init__(
        self,
        name: str = "cifar10",
        root: str | None = None,
        *,
        size: int = 32,
        download: bool = True,
        urls: Sequence[str] = CIFAR10_URLS,
        val: int = 0,
        share: float = 1.0,
        batch_size: int = 128,
        preprocessing: str = "normalise",
        pad: int = 4,
        pad_mode: str = "zero",
        flip: bool = True,
        eval_curve: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        one_of(SIZES, name=name)
        one_of(PREPROCESSINGS, preprocessing=preprocessing)
        one_of(PAD_MODES, pad_mode=pad_mode)
        whole(8, 1024, size=size)
        if name != "flowers17" and size != 32:
            raise ValueError(f"size={size}: the images of {name} have 32 pixels a side; size is for flowers17")
        whole(0, SIZES[name] - 1, val=val)
        whole(1, SIZES[name], batch_size=batch_size)
        whole(0, 31, pad=pad)
        whole(0, 2**32 - 1, seed=seed)
        truth(download=download, flip=flip, eval_curve=eval_curve)
        if not is_number(share) or not 0 < share <= 1:
            raise ValueError(f"share={shown(share)}: above 0 and at most 1")
        if root is not None and (not isinstance(root, str | os.PathLike) or "\0" in os.fspath(root)):
            raise ValueError(f"root={shown(root)}: the path of a folder")
        if not isinstance(urls, list | tuple) or not all(isinstance(url, str) for url in urls):
            raise ValueError(f"urls={shown(urls)}: a list of addresses")
        self.name = name
        self.root = os.path.expanduser(root or os.environ.get("NIN_DATA") or "data")
        self.size = size
        self.download = download
        self.urls = tuple(urls)
        self.val = val
        self.share = share
        self.batch_size = batch_size
        self.preprocessing = preprocessing
        self.pad = pad
        self.pad_mode = pad_mode
        self.flip = flip
        self.eval_curve = eval_curve
        self.seed = seed
        self.set: ImageSet | None = None
        self.preprocess: nn.Module | None = None
        self._on_device: dict[str, tuple[Tensor, Tensor]] = {}

    def prepare_data(self) -> None:
        if self.name == "cifar10" and self.set is None:
            fetch_cifar10(self.root, download=self.download, urls=self.urls)
        elif self.name == "flowers17" and self.set is None:
            fetch_flowers17(self.root, download=self.download)

    def setup(self, stage: str | None = None) -> None:
        """Loads the set and fits the preprocessing on the images that are trained on, where `set` and `preprocess` are
        not there yet: a trained net brings its own preprocessing."""
        if self.set is None:
            self.set = {
                "cifar10": lambda: load_cifar10(self.root, download=self.download, urls=self.urls),
                "digits": load_digits,
                "flowers17": lambda: load_flowers17(self.root, self.size, download=self.download),
            }[self.name]()
        kept = len(self.set.train_labels) - self.val
        self.train_images, self.val_images = self.set.train_images[:kept], self.set.train_images[kept:]
        self.train_labels, self.val_labels = self.set.train_labels[:kept], self.set.train_labels[kept:]
        if self.share < 1:
            chosen = self._draw_share()
            self.train_images, self.train_labels = self.train_images[chosen], self.train_labels[chosen]
        seen = torch.bincount(self.train_labels, minlength=len(self.set.classes))
        if missing := [name for name, count in zip(self.set.classes, seen.tolist(), strict=True) if not count]:
            warnings.warn(f"no training image shows {', '.join(missing)}: the net cannot learn them", stacklevel=1)
        if self.preprocess is None:
            self.preprocess = PREPROCESSINGS[self.preprocessing].fit(self.train_images)

    def _draw_share(self) -> Tensor:
        draws, labels = torch.Generator().manual_seed(self.seed), self.train_labels
        order = torch.randperm(len(labels), generator=draws)
        classes = [order[labels[order] == k] for k in range(len(self.set.classes))]
        return torch.cat([one[: max(1, round(self.share * len(one)))] for one in classes]).sort().values

    @property
    def val_stages(self) -> tuple[str, ...]:
        """What `val_dataloader` evaluates after each epoch, in its order."""
        return ("val/",) * (self.val > 0) + ("test_curve/",) * self.eval_curve

    def train_dataloader(self) -> Batches:
        return self._batches("train", augment=self._augment)

    def train_as_test_dataloader(self) -> Batches:
        """The training images as a test set: in order, all of them, unaugmented."""
        return self._batches("train")

    def val_dataloader(self) -> list[Batches]:
        return [self._batches("val" if stage == "val/" else "test") for stage in self.val_stages]

    def test_dataloader(self) -> Batches:
        return self._batches("test")

    def _augment(self, images: Tensor, draws: torch.Generator) -> Tensor:
        images = random_crop(images, self.pad, self.pad_mode, draws)
        return random_flip(images, draws) if self.flip and self.set.flip else images

    def _batches(self, part: str, augment: Callable | None = None) -> Batches:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        preprocess = self.preprocess.to(device)
        if part not in self._on_device or self._on_device[part][0].device != device:
            images, labels = {
                "train": (self.train_images, self.train_labels),
                "val": (self.val_images, self.val_labels),
                "test": (self.set.test_images, self.set.test_labels),
            }[part]
            # channels last in memory: what convolutions are fastest with, and a gather copies whole rows of pixels
            images = images.permute(0, 2, 3, 1).contiguous().to(device)
            if isinstance(preprocess, Whiten):  # a matrix product of 6 % of a CPU step: done once, not every epoch
                whitened = torch.empty(images.shape, device=device)
                for raw, out in zip(images.split(1000), whitened.split(1000), strict=True):
                    out.copy_(preprocess(raw.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
                images = whitened
            self._on_device[part] = images, labels.to(device)
        images, labels = self._on_device[part]
        return Batches(
            images,
            labels,
            self.batch_size if augment else max(self.batch_size, EVALUATION_BATCH * 32 * 32 // self.size**2),
            nn.Identity() if isinstance(preprocess, Whiten) else preprocess,
            augment=augment,
            seed=self.seed,
            epoch=lambda: trainer.current_epoch if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            processes=trainer.world_size if trainer else 1,
        )
