"""Evaluation: the errors of a net on the test set, the training images or the held-out images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sized
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nin.checks import memory_gb, one_line
from nin.config import Config
from nin.cost import inference_cost
from nin.data.module import Batches, Images
from nin.data.sets import SETS
from nin.errors import CheckpointError, DataError, SettingError
from nin.pretrained import NOT_FINITE, Pretrained, check_fit
from nin.run.machine import keep_freed_memory
from nin.run.signals import HeedSignals, stoppable
from nin.run.trainer import build_trainer, enough_memory, exact_fp32, precision_of, quiet
from nin.task import Classifier

MAY_BE_TRAINED_ON = "a test picture that was trained on makes the error too low"
PARTS = {"test": "test set", "train": "training images", "val": "held-out images"}


@dataclass(frozen=True)
class Evaluation:
    """The errors of a net on a part of its set.

    Attributes:
        error: 100 · (1 − micro-averaged accuracy), in %.
        confusion: (K, K) int64, number of images by true class (row) and answer (column).
        classes: the K names.
        loss: mean cross-entropy; NaN or infinite where the net's scores are.
        top5_error: % of images whose class is not among the five best answers; None for few classes.
    """

    error: float
    confusion: Tensor
    classes: tuple[str, ...]
    loss: float
    top5_error: float | None = None

    @property
    def images(self) -> int:
        """Number of evaluated images."""
        return int(self.confusion.sum())

    @property
    def class_errors(self) -> dict[str, dict[str, float]]:
        """Number of images, and their error in %, of each class that has one."""
        numbers, right = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        return {
            name: {"images": number, "error": round(100 * (1 - hits / number), 4)}
            for name, number, hits in zip(self.classes, numbers, right, strict=True)
            if number
        }

    @property
    def chance_error(self) -> float:
        """Error in % of a net that always answers the most frequent class of these images."""
        return 100 * (1 - self.confusion.sum(1).max().item() / self.images)


def evaluate(config: Config, task: Classifier, data: Images, part: str) -> Evaluation:
    """Evaluates a task's net in eval mode, on unaugmented images.

    The test set and the held-out images are evaluated in fp32, without TF32 on NVIDIA's GPUs, and the training images
    in the run's precision. Published errors are the CPU's.

    Args:
        config: the settings of the Trainer.
        task: the net's.
        data: set up.
        part: "test", "train" (what was trained on) or "val" (what was held out).
    """
    trainer = build_trainer(
        config,
        precision_of(config.trainer) if part == "train" else "32-true",
        [HeedSignals()],
        evaluates=PARTS[part],
        logger=False,
        enable_checkpointing=False,
    )
    data.trainer = trainer  # the batches are made on its device
    with nullcontext() if part == "train" else exact_fp32():
        (measured,) = trainer.test(task, _loader(data, part), verbose=False)
    error, loss = measured["test/error"], measured["test/loss"]
    return Evaluation(error, task.confusion_matrix, tuple(data.set.classes), loss, task.top5_error)


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
        CheckpointError: the net does not say on which set it was trained, does not fit it, needs more memory than this
            machine has, or has scores that are not finite.
        DataError: the set is missing or damaged.
        RunError: the GPU has too little memory.
        InterruptedRunError: Ctrl-C or SIGTERM.
    """
    quiet()
    keep_freed_memory()
    with stoppable("run the same command again"), enough_memory("set trainer.accelerator=cpu"):
        own = {name: getattr(config.data, name) for name in ("download", "urls", "memory", "workers")}
        own["processes"] = config.trainer.devices
        data = images_of(trained, config.data.root, **own)
        check_limit(config.trainer.limit_test_batches, "test", data.test_dataloader())
        _check_memory(trained, data.test_dataloader().batch_size, data)
        task = Classifier(trained.net.to(memory_format=torch.channels_last))
        evaluation = evaluate(config, task, data, "test")
    if not math.isfinite(evaluation.loss):
        raise CheckpointError(NOT_FINITE)
    return evaluation


def _check_memory(trained: Pretrained, batch: int, data: Images) -> None:
    """Raises CheckpointError where a batch of the set needs more memory than this machine has."""
    number, there = min(batch, len(data.set.test_labels)), memory_gb()
    needed, _ = inference_cost(trained.net, number, *data.set.test_images.shape[1:])
    if needed > there:
        raise CheckpointError(
            f"{number} images at a time need at least {needed:,.1f} GB of memory, this machine has {there:,.1f} GB; "
            "evaluate the net on a larger machine"
        )


def images_of(trained: Pretrained, root: str | None = None, **settings: Any) -> Images:
    """The set that a net was trained on, at its size and with its preprocessing, set up.

    Args:
        trained: the net.
        root: folder of the sets, as in `nin.data.Images`; by default a folder of pictures is where the net found it.
        settings: other arguments of `nin.data.Images`.

    Raises:
        CheckpointError: the net does not say on which set it was trained, or does not fit it.
        DataError: the set is missing or damaged, or a folder's drawn test pictures may have been trained on.
    """
    name, size = set_of(trained), trained.net.arguments["image_size"]
    facts = facts_of_folder(trained)
    pixels = size if isinstance(size, int) else size[0]
    own = {"root": root or facts.get("root"), "seed": facts.get("seed", 0), **settings}
    own["preprocessing"] = trained.preprocess.name  # whitened images need more memory
    try:
        data = Images(name, **({} if SETS[name].size else {"size": pixels}), **own)
    except SettingError as error:
        if error.setting != "size":
            raise
        raise CheckpointError(f"the net does not fit data={name}: {error}") from error
    data.preprocess = trained.preprocess
    try:
        data.prepare_data()
    except DataError as error:
        if root is None and data.entry.is_folder:
            raise DataError(f"{error}; if the training's pictures have moved, set data.root=FOLDER") from error
        raise
    if data.listing:
        _check_folder(data, trained, facts.get("sha256"))
    data.setup()
    check_fit(trained, data.set, name)
    return data


def set_of(trained: Pretrained) -> str:
    """The name of the set that a net was trained on. Raises CheckpointError if its record has none that is known."""
    name = trained.facts.get("data")
    if not isinstance(name, str) or name not in SETS:
        raise CheckpointError(f"the net's record has data={one_line(name)}: must be one of {', '.join(SETS)}")
    return name


def facts_of_folder(trained: Pretrained) -> dict[str, Any]:
    """Root, sha256 and seed of the folder that a net was trained on, as far as its record has them: they decide on its
    test images. Empty for other sets."""
    if not SETS[set_of(trained)].is_folder:
        return {}
    settings = trained.facts.get("settings")
    data = settings.get("data") if isinstance(settings, dict) else None
    known = {**(data if isinstance(data, dict) else {}), "seed": trained.facts.get("seed")}
    kinds = {"root": str, "sha256": str, "seed": int}
    return {name: known[name] for name, kind in kinds.items() if isinstance(known.get(name), kind)}


def _check_folder(data: Images, trained: Pretrained, sha256: str | None) -> None:
    """Raises CheckpointError or DataError where a net cannot be tested on a folder."""
    if tuple(map(one_line, data.listing.classes)) != trained.classes:
        there, here = (one_line(", ".join(names)) for names in (trained.classes, data.listing.classes))
        reason = f"its classes are {here}, the net's are {there}; choose the pictures that the net was trained on"
        raise CheckpointError(f"data.root={data.root}: {reason}")
    if not data.listing.is_split and data.listing.sha256 != sha256:
        raise DataError(
            f"data.root={data.root}: the pictures are not those of the training, so drawn test pictures may have been "
            "trained on; put the test pictures into subfolders of test/, and any others into train/"
        )
    if data.listing.sha256 != sha256:
        warnings.warn(f"data.root={data.root}: not the pictures of the training; {MAY_BE_TRAINED_ON}", stacklevel=1)


def check_start(start: Pretrained, config: Config, data: Images) -> None:
    """Raises SettingError where test or held-out images of a run are images that the net it starts from was trained on.

    Args:
        start: the net.
        config, data: of the run; the images are set up.
    """
    if start.facts.get("data") != config.data.name:
        return
    name, facts = f"checkpoint={one_line(config.checkpoint)}", facts_of_folder(start)
    if data.listing and facts.get("sha256") != data.listing.sha256:
        if {*start.classes} & {*map(one_line, data.listing.classes)}:
            warnings.warn(f"{name} was trained on other pictures; {MAY_BE_TRAINED_ON}", stacklevel=1)
        return
    if data.listing and not data.listing.is_split and facts.get("seed") != config.seed:
        reason = f"{name} was trained on this folder with seed={facts.get('seed')}, which drew other test pictures"
        raise SettingError("seed", config.seed, f"{reason}; set that seed, or put the test pictures into test/")
    settings = start.facts.get("settings")
    of_data = settings.get("data") if isinstance(settings, dict) else None
    held_out = of_data.get("val", 0) if isinstance(of_data, dict) else 0
    if config.data.val > held_out:
        reason = f"{name} held out {held_out} of these images and was trained on the others; hold out no more of them"
        raise SettingError("data.val", config.data.val, reason)


def check_limits(config: Config, data: Images) -> None:
    """Raises SettingError where a limit is less than one batch, before Lightning does so after the training. Warns if
    an epoch's last step accumulates fewer batches than the others: Lightning divides its gradient by as many."""
    limit, batches = config.trainer.limit_train_batches, len(data.train_dataloader())
    check_limit(limit, "train", data.train_dataloader())
    if limit is not None:
        batches = int(limit * batches) if isinstance(limit, float) else min(limit, batches)
    number = config.trainer.accumulate_grad_batches
    if rest := batches % number:
        small = f"the last step of an epoch has {rest} of them, and a gradient of {rest}/{number} of its size"
        warnings.warn(f"trainer.accumulate_grad_batches={number}: {small}", stacklevel=1)
    for loader in (data.test_dataloader(), data.train_as_test_dataloader(), *data.val_dataloader()):
        check_limit(config.trainer.limit_test_batches, "test", loader)


def check_limit(limit: int | float | None, name: str, loader: Sized) -> None:
    """As `check_limits`, for one loader."""
    if isinstance(limit, float) and limit * len(loader) < 1:
        raise SettingError(
            f"trainer.limit_{name}_batches", limit, f"is less than one of {len(loader)} batches; raise it"
        )
