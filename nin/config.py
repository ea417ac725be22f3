"""The typed schema of conf/.

A field here has a type and the reason it exists. Its default is its constructor's, its bounds are checked there too:
a configuration is tried out, on no memory, before any data or weights are touched.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from omegaconf import OmegaConf

from nin.backbones import Backbone
from nin.bounds import shown, whole
from nin.cost import activations
from nin.data import Images
from nin.data.module import CLASSES, SIZES
from nin.model import NIN, Block
from nin.provenance import memory_gb
from nin.task import Classifier


class ConfigError(ValueError):
    """A setting that cannot be; the message names field, value and choices."""


def of(constructor: Callable, parameter: str) -> Any:
    """A field whose default is the one that `constructor` gives this parameter."""
    default = inspect.signature(constructor).parameters[parameter].default
    return field(default_factory=lambda: list(default)) if isinstance(default, tuple) else field(default=default)


@dataclass
class ModelConfig:
    """The net, without its head: arguments of `nin.NIN`."""

    blocks: Any = of(NIN, "blocks")  # the plan: a name, or a list of blocks as in `nin.Block`
    last_pool: str = of(NIN, "last_pool")  # max or average: the authors' two releases differ in it
    dropout: float = of(NIN, "dropout")  # the paper's regulariser, after blocks 1 and 2
    norm: str = of(NIN, "norm")  # none or batch: what has changed most since 2013
    last_relu: bool = of(NIN, "last_relu")  # the authors' last ReLU, which most ports leave out
    init: str = of(NIN, "init")  # gaussian or kaiming
    backbone: str | None = None  # vgg19 or inception_v3 in place of NIN; the fields above then say nothing
    weights: str = of(Backbone, "weights")  # of a backbone: imagenet, which is downloaded, a file, or none


@dataclass
class HeadConfig:
    """What turns class maps into scores."""

    name: str = of(NIN, "head")  # gap, gmp, fc or fc_dropout: the paper's Table 5; of a backbone also *_article


@dataclass
class DataConfig:
    """The images: arguments of `nin.data.Images`."""

    name: str = of(Images, "name")  # cifar10, flowers17, or digits, which needs no network
    root: str | None = of(Images, "root")  # folder of the set; null: the environment variable NIN_DATA, else data
    size: int = of(Images, "size")  # pixels a side of flowers17's photographs
    download: bool = of(Images, "download")  # whether to download what is not there
    urls: list[str] = of(Images, "urls")  # addresses of CIFAR-10's archive, tried in turn
    val: int = of(Images, "val")  # images held out for tuning, from the end of the training set
    share: float = of(Images, "share")  # of each class's training images, how much is trained on
    batch_size: int = of(Images, "batch_size")  # images a step
    preprocessing: str = of(Images, "preprocessing")  # normalise, imagenet, or whiten: the authors' GCN + ZCA
    pad: int = of(Images, "pad")  # pixels around the image before the random crop; 0 for no crop
    pad_mode: str = of(Images, "pad_mode")  # zero or reflect
    flip: bool = of(Images, "flip")  # mirror at random, where the set allows it


@dataclass
class RecipeConfig:
    """How it is trained: arguments of `nin.task.Classifier`."""

    name: str = "unnamed"  # for the record; the constructor's defaults are the authors' settings
    optimiser: str = of(Classifier, "optimiser")  # sgd, muon or rmsprop
    lr: float = of(Classifier, "lr")  # of the weights
    bias_lr: float = of(Classifier, "bias_lr")  # of the biases, as a multiple of lr
    last_lr: float = of(Classifier, "last_lr")  # of the last layer's weights, as a multiple of lr
    last_bias_lr: float = of(Classifier, "last_bias_lr")  # of its bias, as a multiple of lr
    momentum: float = of(Classifier, "momentum")
    nesterov: bool = of(Classifier, "nesterov")
    weight_decay: float = of(Classifier, "weight_decay")  # on weights, never on biases
    schedule: str = of(Classifier, "schedule")  # step, linear or cosine
    drops: list[float] = of(Classifier, "drops")  # shares of the run's length at which step divides by 10
    warmup: float = of(Classifier, "warmup")  # epochs of linear rise to lr
    label_smoothing: float = of(Classifier, "label_smoothing")


@dataclass
class TrainerConfig:
    """Lightning's Trainer."""

    max_epochs: int = 1  # the run's only length: every recipe sets it, the schedules read it
    gradient_clip_val: float | None = None  # the norm that a step's gradient is scaled down to; null: as it is
    accelerator: str = "auto"  # auto takes CUDA, then Apple's MPS, then the CPU
    devices: int = 1  # processes, each on its own GPU or all on the CPU; data.batch_size is shared among them
    strategy: str = "auto"  # auto takes ddp for more than one device; ddp: each has the net, gradients are averaged
    precision: str = "auto"  # auto takes bf16-mixed where the hardware gains by it, else 32-true
    limit_train_batches: int | float | None = None  # a number of batches or a share of them, to try things out
    limit_test_batches: int | float | None = None
    progress_bar: bool = True

    def __post_init__(self) -> None:
        for name, choices in (
            ("accelerator", ("auto", "cpu", "gpu", "cuda", "mps")),
            ("precision", ("auto", "32-true", "bf16-mixed")),
            ("strategy", ("auto", "ddp")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"trainer.{name}={shown(getattr(self, name))}: choose one of {', '.join(choices)}")
        if not 1 <= self.max_epochs <= 10**6:
            raise ConfigError(f"trainer.max_epochs={shown(self.max_epochs)}: at least 1 and at most {10**6}")
        if self.gradient_clip_val is not None and not 0 < self.gradient_clip_val < math.inf:
            raise ConfigError(
                f"trainer.gradient_clip_val={shown(self.gradient_clip_val)}: a norm greater than 0, or null"
            )
        for name in ("limit_train_batches", "limit_test_batches"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit <= (10**9 if isinstance(limit, int) else 1):
                raise ConfigError(
                    f"trainer.{name}={shown(limit)}: a number of batches from 1 to {10**9}, or a share from 0.0 to 1.0"
                )
        missing = {"gpu": torch.cuda, "cuda": torch.cuda, "mps": torch.backends.mps}.get(self.accelerator)
        if missing is not None and not missing.is_available():
            raise ConfigError(f"trainer.accelerator={self.accelerator}: this machine has none; choose auto or cpu")
        if self.devices < 1:
            raise ConfigError(f"trainer.devices={self.devices}: at least 1")
        if self.accelerator != "cpu":
            if self.strategy == "ddp" and torch.backends.mps.is_available():
                raise ConfigError("trainer.strategy=ddp: Apple's MPS is for one process; take trainer.accelerator=cpu")
            gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
            if 0 < gpus < self.devices:
                raise ConfigError(
                    f"trainer.devices={self.devices}: this machine has {gpus} GPU{'s' * (gpus > 1)}; take as many, or "
                    "trainer.accelerator=cpu"
                )


@dataclass
class LoggerConfig:
    """Where metrics go besides the run's metrics.csv."""

    name: str = "csv"  # csv alone, or tensorboard as well

    def __post_init__(self) -> None:
        if self.name not in ("csv", "tensorboard"):
            raise ConfigError(f"logger.name={shown(self.name)}: choose one of csv, tensorboard")


@dataclass
class Config:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0  # of weights, order, augmentation and dropout
    eval_curve: bool = of(Images, "eval_curve")  # record the test error after each epoch; nothing is chosen by it
    resume: str | None = None  # auto: go on with the run in hydra.run.dir, if there is one
    checkpoint: str | None = None  # name, run's folder or weights file: where training starts, what is evaluated
    freeze: bool = False  # train only what the checkpoint does not bring: what depends on head or number of classes

    def __post_init__(self) -> None:
        try:
            whole(0, 2**32 - 1, seed=self.seed)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.resume not in (None, "auto"):
            raise ConfigError(
                f"resume={shown(self.resume)}: auto, which goes on with the run in hydra.run.dir, or null"
            )
        if self.freeze and not self.checkpoint:
            raise ConfigError("freeze=true: it freezes what checkpoint= brings, and none is given")
        if self.data.batch_size % self.trainer.devices:
            raise ConfigError(
                f"data.batch_size={shown(self.data.batch_size)}: trainer.devices={self.trainer.devices} have no equal "
                "shares of it; take a multiple"
            )
        self.check()

    def build_net(self) -> NIN | Backbone:
        """The net for this set. Raises nin.backbones.WeightsError where a backbone's weights cannot be had."""
        arguments = asdict(self.model)
        of_set = {"head": self.head.name, "num_classes": CLASSES[self.data.name], "image_size": self.data.size}
        backbone, weights = arguments.pop("backbone"), arguments.pop("weights")
        if backbone is not None:
            return Backbone(backbone, weights=weights, **of_set)
        if not isinstance(arguments["blocks"], str):
            arguments["blocks"] = _blocks(arguments["blocks"])
        return NIN(**arguments, **of_set)

    def build_data(self) -> Images:
        """The data module."""
        return Images(**asdict(self.data), eval_curve=self.eval_curve, seed=self.seed)

    def build_task(self, net: NIN) -> Classifier:
        """The training task of this net."""
        arguments = asdict(self.recipe)
        del arguments["name"]
        return Classifier(net, **arguments)

    def check(self) -> None:
        """Builds everything without memory; raises ConfigError for what the constructors refuse."""
        node = "data"
        try:
            self.build_data()
            node = "model"
            with torch.device("meta"):
                net = self.build_net()
                node = "recipe"
                self.build_task(net)
        except (ValueError, TypeError) as error:
            of_others = {"head": "head.name", "image_size": "data.size"}  # what the net calls otherwise
            name, _, rest = str(error).partition("=")
            raise ConfigError(f"{of_others.get(name, f'{node}.{name}')}={rest}") from error
        self._check_step(net)

    def _check_step(self, net: NIN) -> None:
        """A training step without memory; raises ConfigError where it cannot be, or cannot fit into this machine."""
        images = min(self.data.batch_size, SIZES[self.data.name] - self.data.val)
        try:
            outputs = activations(net, images, 3, self.data.size, self.data.size)
        except ValueError as error:
            raise ConfigError(
                f"data.batch_size={self.data.batch_size}, data.val={self.data.val}: batch norm needs two values a "
                f"channel, and a batch of {images} leaves it one; take larger batches, or model.norm=none"
            ) from error
        weights = sum(p.numel() for p in net.parameters())
        # fp32 weights, gradients and momentum, and in bf16 what the backward pass needs: the least there can be
        needed, there = (3 * 4 * weights + 2 * sum(outputs)) / 1e9, _memory_gb(self.trainer.accelerator)
        if needed > there:
            raise ConfigError(
                f"model.blocks={shown(self.model.blocks)}, data.batch_size={self.data.batch_size}: a training step "
                f"holds {needed:,.1f} GB at the least, and this machine has {there:,.1f} GB"
            )


def _memory_gb(accelerator: str) -> float:
    """The memory for training: of all GPUs where they are taken, else of the machine."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        gpus = range(torch.cuda.device_count())
        return sum(torch.cuda.get_device_properties(n).total_memory for n in gpus) / 1e9
    return memory_gb()


def _blocks(blocks: Any) -> list[Block]:
    """Blocks from plain lists and dictionaries."""
    if not isinstance(blocks, list | tuple):
        raise ConfigError(f"blocks={shown(blocks)}: choose one of cifar10, imagenet, or give a list of blocks")
    names = [f.name for f in fields(Block)]
    made = []
    for number, block in enumerate(blocks, 1):
        unknown = [name for name in block if name not in names] if isinstance(block, dict) else [block]
        if unknown or "widths" not in block:
            raise ConfigError(
                f"blocks={shown(blocks)}: block {number} is not a mapping with widths and, where they differ, "
                f"{', '.join(names[1:])}"
            )
        try:
            made.append(Block(**block))
        except ValueError as error:
            raise ConfigError(f"blocks={shown(blocks)}: block {number} has {error}") from error
    return made


# a run's result does not depend on them
OF_NO_CONSEQUENCE = ("data.root", "data.download", "data.urls", "trainer.progress_bar", "logger.name", "resume")


def consequential(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration as a dictionary, by dotted name: those that a run's result depends on."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name not in OF_NO_CONSEQUENCE}


def resolved(config: Config) -> str:
    """The whole configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
