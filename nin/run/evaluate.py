"""The error of a net on a part of its set."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nin.checks import one_line
from nin.config import Config
from nin.data.module import Batches, Images
from nin.data.sets import SETS
from nin.errors import CheckpointError, SettingError
from nin.pretrained import Pretrained
from nin.run.callbacks import HeedSignals, stoppable
from nin.run.machine import keep_freed_memory
from nin.run.trainer import build_trainer, precision, quiet
from nin.task import Classifier

PARTS = {"test": "test set", "train": "training images", "val": "held-out images"}


@dataclass(frozen=True)
class Evaluation:
    """What a net answers on a part of a set.

    Attributes:
        error: 100 · (1 − micro-averaged accuracy), in %.
        confusion: (K, K) int64, number of images by true class (row) and answer (column).
        classes: the K names.
    """

    error: float
    confusion: Tensor
    classes: tuple[str, ...]

    @property
    def images(self) -> int:
        """Number of evaluated images."""
        return int(self.confusion.sum())

    @property
    def chance_error(self) -> float:
        """Error in % of a net that always answers the most frequent class of these images."""
        return 100 * (1 - self.confusion.sum(1).max().item() / self.images)


def evaluate(config: Config, task: Classifier, data: Images, part: str) -> Evaluation:
    """Evaluates a task's net in eval mode, on unaugmented images.

    The test set and the held-out images are evaluated in fp32, the training images in the run's precision. NVIDIA's
    GPUs compute convolutions of fp32 in TF32 by torch's default; published errors are the CPU's.

    Args:
        config: the settings of the Trainer.
        task: the net's.
        data: set up.
        part: "test", "train" (what was trained on) or "val" (what was held out).
    """
    trainer = build_trainer(
        config,
        precision(config) if part == "train" else "32-true",
        [HeedSignals()],
        evaluates=PARTS[part],
        logger=False,
        enable_checkpointing=False,
    )
    data.trainer = trainer  # the batches are made on its device
    error = trainer.test(task, _loader(data, part), verbose=False)[0]["test/error"]
    return Evaluation(error, task.confusion_matrix, tuple(data.set.classes))


def _loader(data: Images, part: str) -> Batches:
    if part == "val":
        return data.val_dataloader()[0]
    return data.test_dataloader() if part == "test" else data.train_as_test_dataloader()


def evaluate_pretrained(trained: Pretrained, config: Config) -> Evaluation:
    """Evaluates a trained net on its test set, in fp32, with the preprocessing that it was trained with.

    Args:
        trained: the net.
        config: the settings of the Trainer, and where the set is.

    Raises:
        CheckpointError: the net does not say on which set it was trained.
        DataError: the set is missing or damaged.
        InterruptedRunError: Ctrl-C or SIGTERM.
    """
    quiet()
    keep_freed_memory()
    with stoppable("run the same command again"):
        data = images_of(trained, config.data.root, download=config.data.download, urls=config.data.urls)
        check_limit(config.trainer.limit_test_batches, "test", data.test_dataloader())
        task = Classifier(trained.net.to(memory_format=torch.channels_last))
        return evaluate(config, task, data, "test")


def images_of(trained: Pretrained, root: str | None = None, **settings: Any) -> Images:
    """The set that a net was trained on, at its size and with its preprocessing, set up.

    Args:
        trained: the net.
        root: folder of the sets, as in `nin.data.Images`.
        settings: other arguments of `nin.data.Images`.

    Raises:
        CheckpointError: the net does not say on which set it was trained.
        DataError: the set is missing or damaged.
    """
    name, size = trained.facts.get("data"), trained.net.arguments["image_size"]
    if not isinstance(name, str) or name not in SETS:
        raise CheckpointError(f"the net was trained on data={one_line(name)}, which is not one of {', '.join(SETS)}")
    data = Images(name, root=root, size=size if isinstance(size, int) else size[0], **settings)
    data.preprocess = trained.preprocess
    data.prepare_data()
    data.setup()
    return data


def check_limits(config: Config, data: Images) -> None:
    """Raises SettingError where a limit is less than one batch, before Lightning does so after the training."""
    check_limit(config.trainer.limit_train_batches, "train", data.train_dataloader())
    for loader in (data.test_dataloader(), data.train_as_test_dataloader(), *data.val_dataloader()):
        check_limit(config.trainer.limit_test_batches, "test", loader)


def check_limit(limit: int | float | None, name: str, loader: Sized) -> None:
    """As `check_limits`, for one loader."""
    if isinstance(limit, float) and limit * len(loader) < 1:
        raise SettingError(f"trainer.limit_{name}_batches", limit, f"is less than one of the {len(loader)} batches")
