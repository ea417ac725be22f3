"""A run's data, net and task, made from its settings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nin.backbones import Backbone, weights_sha256
from nin.checks import memory_gb, one_line
from nin.config import NO_FILES, Config, TrainerConfig
from nin.config import check as check_settings
from nin.cost import activations
from nin.data.folder import scan
from nin.data.module import Images
from nin.errors import SettingError
from nin.model import NIN
from nin.run.capture import CapturedClassifier
from nin.run.loggers import check_logger
from nin.run.trainer import device_type, precision_of
from nin.task import Classifier

DRIVER = Path("/proc/driver/nvidia/version")  # on Linux, where NVIDIA's driver is loaded
OF_THE_NET = {"head": "head.name", "image_size": "data.size"}  # a net's arguments whose settings are not in `model`


@contextmanager
def settings_under(group: str, others: dict[str, str] | None = None) -> Iterator[None]:
    """Names the setting of a SettingError in the block as the configuration does: "lr" becomes "recipe.lr".

    Args:
        group: the group of the settings.
        others: dotted names of the arguments that do not belong to the group.
    """
    try:
        yield
    except SettingError as error:
        name = (others or {}).get(error.setting)
        raise (error.renamed(name) if name else error.under(group)) from error


def build_data(config: Config) -> Images:
    """The data module. Raises SettingError."""
    with settings_under("data"):
        return Images(config.data, seed=config.seed, eval_curve=config.eval_curve, processes=config.trainer.devices)


def identified(config: Config) -> Config:
    """The same settings; with the sha256 of a folder's pictures and of a backbone's file of weights, which identify
    their runs, and with paths that any folder can be left for.

    Raises:
        DataError: the folder cannot be read, or has other pictures than the settings say.
        WeightsError: the file cannot be read, or does not have the sha256 in the settings.
    """
    model = config.model
    if model.backbone is not None and model.weights not in NO_FILES:
        sha256 = weights_sha256(model.backbone, model.weights, model.weights_sha256)
        config = replace(config, model=replace(model, weights=os.path.abspath(model.weights), weights_sha256=sha256))
    data = build_data(config)
    if not data.entry.is_folder:
        return config
    data.prepare_data()
    return replace(config, data=replace(config.data, root=os.path.abspath(data.root), sha256=data.listing.sha256))


def build_net(config: Config, classes: int, channels: int) -> NIN | Backbone:
    """The net for images of `channels` channels and `classes` classes.

    Raises:
        SettingError: a value that is not allowed.
        WeightsError: a backbone's weights cannot be downloaded.
    """
    model = config.model
    own: dict[str, Any] = {"head": config.head.name, "num_classes": classes, "image_size": config.data.size}
    with settings_under("model", OF_THE_NET):
        if model.backbone is not None:
            if channels != 3:
                reason = f"takes images of 3 channels, those of data={config.data.name} have {channels}"
                raise SettingError("backbone", model.backbone, reason)
            return Backbone(model.backbone, weights=model.weights, **own)
        return NIN(
            model.blocks,
            last_pool=model.last_pool,
            dropout=model.dropout,
            norm=model.norm,
            last_relu=model.last_relu,
            init=model.init,
            in_channels=channels,
            **own,
        )


def build_task(config: Config, net: NIN | Backbone) -> Classifier:
    """The training task of a net. Raises SettingError."""
    with settings_under("recipe"):
        return (CapturedClassifier if captures(config) else Classifier)(net, config.recipe)


def check(config: Config) -> None:
    """Checks all settings, each by itself and together, by building everything on no memory.

    Raises:
        SettingError: the first setting that is not allowed, or that this machine cannot run.
    """
    check_settings(config)
    check_logger(config)
    with settings_under("trainer"):
        check_devices(config.trainer)
        _check_capture(config)
    data = build_data(config)
    entry = data.entry
    classes = len(scan(data.root).classes) if entry.is_folder else entry.classes
    with torch.device("meta"):
        net = build_net(config, classes=classes or 10, channels=entry.channels or 3)  # stand-ins for unknown ones
        build_task(config, net)
    _check_step(config, net, images=min(config.data.batch_size, (entry.train or 10**9) - config.data.val))


def check_devices(trainer: TrainerConfig) -> None:
    """Raises SettingError if this machine lacks the devices of the settings, or they do not support the settings."""
    is_there = {"gpu": _has_gpu, "cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if trainer.accelerator in is_there and not is_there[trainer.accelerator]():
        reason = "this machine has no Apple GPU" if trainer.accelerator == "mps" else why_no_gpu()
        raise SettingError("accelerator", trainer.accelerator, f"{reason}; choose auto or cpu")
    device = device_type(trainer)
    if trainer.precision == "16-mixed" and device != "cuda":
        raise SettingError("precision", trainer.precision, f"requires an NVIDIA GPU, got {device}; choose auto")
    if trainer.accelerator == "cpu":
        return
    if trainer.strategy == "ddp" and torch.backends.mps.is_available():
        raise SettingError(
            "strategy", trainer.strategy, "Apple's MPS supports one process only; choose trainer.accelerator=cpu"
        )
    gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if 0 < gpus < trainer.devices:
        count = f"{gpus} GPU{'s' * (gpus > 1)}"
        raise SettingError(
            "devices", trainer.devices, f"this machine has {count}; choose at most {gpus}, or trainer.accelerator=cpu"
        )


def captures(config: Config) -> bool:
    """Whether this machine captures the training step of these settings in a CUDA graph."""
    if config.trainer.compile is not None:
        return config.trainer.compile
    return device_type(config.trainer) == "cuda" and not any(_against_capture(config))


def _check_capture(config: Config) -> None:
    """Raises SettingError if trainer.compile=true, but the training step cannot be captured in a CUDA graph."""
    if config.trainer.compile:
        for reason in _against_capture(config):
            raise SettingError("compile", True, reason)


def _against_capture(config: Config) -> Iterator[str]:
    """The reasons why the training step cannot be captured in a CUDA graph; none if it can."""
    trainer, optimiser = config.trainer, config.recipe.optimiser
    if device_type(trainer) != "cuda":
        got = f"got trainer.accelerator={trainer.accelerator}" if torch.cuda.is_available() else f"and {why_no_gpu()}"
        yield f"requires an NVIDIA GPU, {got}; choose trainer.compile=false"
        return
    if trainer.processes > 1:
        yield f"requires one process, got {trainer.processes}"
    if trainer.strategy == "ddp":  # its hooks on the gradients belong to another stream than the graph's
        yield "requires trainer.strategy=auto, got ddp"
    if trainer.accumulate_grad_batches > 1:
        yield f"requires a step for each batch, got accumulate_grad_batches={trainer.accumulate_grad_batches}"
    if optimiser not in ("muon", "sgd"):
        yield f"requires recipe.optimiser=muon or sgd, got {optimiser}"
    if precision_of(trainer) == "16-mixed":
        yield "requires another precision than 16-mixed, whose scaler reads gradients"


def _has_gpu() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def why_no_gpu() -> str:
    """Why torch finds no GPU here, in torch's own words, with the version of NVIDIA's driver where one is loaded."""
    reason = "torch finds no GPU"
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        reason = one_line(error).partition(". ")[0]
    with suppress(OSError):
        version = re.search(r"\d+\.\d+[.\d]*", DRIVER.read_text())
        reason += f" (NVIDIA driver {version[0]})" if version else ""
    return reason


def _check_step(config: Config, net: NIN | Backbone, images: int) -> None:
    """Raises SettingError where a training step with this many images is impossible, or needs more memory than there
    is."""
    batch, size = config.data.batch_size, config.data.size
    try:
        outputs = activations(net, images, net.in_channels, size, size)
    except ValueError as error:
        raise SettingError(
            "data.batch_size",
            batch,
            f"batch norm requires two values a channel, and a batch of {images} (data.val={config.data.val}) leaves "
            "one; choose larger batches, or model.norm=none",
        ) from error
    weights = sum(p.numel() for p in net.parameters())
    # weights, gradients and momentum in fp32, and in bf16 what the backward pass needs: the least possible
    needed, there = (3 * 4 * weights + 2 * sum(outputs)) / 1e9, _memory_gb(config.trainer)
    if needed > there:
        raise SettingError(
            "data.batch_size",
            batch,
            f"a training step needs at least {needed:,.1f} GB, and "
            f"this machine has {there:,.1f} GB; choose smaller batches or a smaller net",
        )


def _memory_gb(trainer: TrainerConfig) -> float:
    """The memory for training: of the GPUs that are used, else of the machine; of all machines together."""
    if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        gpus = range(min(trainer.devices, torch.cuda.device_count()))
        return sum(torch.cuda.get_device_properties(n).total_memory for n in gpus) / 1e9 * trainer.num_nodes
    return memory_gb() * trainer.num_nodes
