"""The typed schema of conf/, and the way from a command line to a checked configuration.

A field here has a type and the reason it exists. Its default is its constructor's, its bounds are checked there too:
a configuration is tried out, on no memory, before any data or weights are touched.
"""

from __future__ import annotations

import errno
import inspect
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import hydra
import torch
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nin.bounds import activations, shown, whole
from nin.data import DataError, Images
from nin.data.module import SIZES
from nin.model import NIN, Block
from nin.pretrained import CheckpointError
from nin.processes import rank, start, started
from nin.provenance import memory_gb
from nin.recovery import STARTER, InterruptedRunError, RunError
from nin.task import Classifier, DeadNetError


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


@dataclass
class HeadConfig:
    """What turns class maps into scores."""

    name: str = of(NIN, "head")  # gap, gmp, fc or fc_dropout: the paper's Table 5


@dataclass
class DataConfig:
    """The images: arguments of `nin.data.Images`."""

    name: str = of(Images, "name")  # cifar10, or digits, which needs no network
    root: str | None = of(Images, "root")  # folder of the set; null: the environment variable NIN_DATA, else data
    download: bool = of(Images, "download")  # whether to download what is not there
    urls: list[str] = of(Images, "urls")  # addresses of CIFAR-10's archive, tried in turn
    val: int = of(Images, "val")  # images held out for tuning, from the end of the training set
    share: float = of(Images, "share")  # of each class's training images, how much is trained on
    batch_size: int = of(Images, "batch_size")  # images a step
    preprocessing: str = of(Images, "preprocessing")  # normalise, or whiten: the authors' GCN + ZCA
    pad: int = of(Images, "pad")  # pixels around the image before the random crop; 0 for no crop
    pad_mode: str = of(Images, "pad_mode")  # zero or reflect
    flip: bool = of(Images, "flip")  # mirror at random, where the set allows it


@dataclass
class RecipeConfig:
    """How it is trained: arguments of `nin.task.Classifier`."""

    name: str = "authors"  # for the record; the constructor's defaults are the authors' settings
    optimiser: str = of(Classifier, "optimiser")  # sgd or muon
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
    eval_curve: bool = of(Images, "eval_curve")  # record the test error after each epoch; nothing reads it
    resume: str | None = None  # auto: go on with the run in hydra.run.dir, if there is one
    checkpoint: str | None = None  # a run's folder or a weights file: what training starts from, evaluation looks at

    def __post_init__(self) -> None:
        try:
            whole(0, 2**32 - 1, seed=self.seed)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.resume not in (None, "auto"):
            raise ConfigError(
                f"resume={shown(self.resume)}: auto, which goes on with the run in hydra.run.dir, or null"
            )
        if self.data.batch_size % self.trainer.devices:
            raise ConfigError(
                f"data.batch_size={shown(self.data.batch_size)}: trainer.devices={self.trainer.devices} have no equal "
                "shares of it; take a multiple"
            )
        self.check()

    def build_net(self, num_classes: int = 10, image_size: int = 32) -> NIN:
        """The net. Both sets have ten classes of 32×32 images."""
        arguments = asdict(self.model)
        if not isinstance(arguments["blocks"], str):
            arguments["blocks"] = _blocks(arguments["blocks"])
        return NIN(**arguments, head=self.head.name, num_classes=num_classes, image_size=image_size)

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
        node = "model"
        try:
            with torch.device("meta"):
                net = self.build_net()
                node = "recipe"
                self.build_task(net)
            node = "data"
            self.build_data()
        except (ValueError, TypeError) as error:
            of_head = str(error).startswith("head=")
            raise ConfigError(f"head.name{str(error)[4:]}" if of_head else f"{node}.{error}") from error
        self._check_step(net)

    def _check_step(self, net: NIN) -> None:
        """A training step without memory; raises ConfigError where it cannot be, or cannot fit into this machine."""
        images = min(self.data.batch_size, SIZES[self.data.name] - self.data.val)
        try:
            outputs = activations(net, images, 3, 32, 32)
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


# from the command line to a Config -----------------------------------------------------------------------------------


def unused(name: str) -> str:
    """Makes a folder of this name, or of the first of name_2, name_3, … that is not there yet, and gives its name."""
    for number in itertools.count(1):
        folder = name if number == 1 else f"{name}_{number}"
        try:
            os.makedirs(folder)
        except FileExistsError:
            continue
        return folder


ConfigStore.instance().store("schema", Config)
OmegaConf.register_new_resolver("unused", unused, use_cache=True)  # for hydra.run.dir

# the last three come out of Hydra bare: a number too long or too large to be read, a group that is given a list
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError, OverflowError)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
OUR_ERRORS = (ConfigError, DataError, CheckpointError, DeadNetError, RunError, InterruptedRunError)


def command(config_folder: Path, run: Callable[[Config, Path], None], config_name: str = "config") -> None:
    """Runs a script: composes its configuration, checks it and calls `run(config, folder)`.

    Exit code 0; 2 for a configuration that cannot be, 1 for missing or damaged files, 3 for a net that died, 130 after
    Ctrl-C, 143 after SIGTERM: each with one sentence on stderr. A traceback is a bug.

    With several devices it runs the same command in as many processes, where torchrun or srun has not done so already.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, so that the sentence can be written here

    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    began, composed_already, code = time.time(), False, 0
    failed: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(config_folder), config_name=config_name)
    def main(composed: DictConfig) -> None:
        nonlocal composed_already, code
        composed_already = True
        settings = hydra.core.hydra_config.HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        try:
            try:
                config = to_config(composed)
            except OmegaConfBaseException as error:
                raise ConfigError(explain(error, sys.argv[1:])) from error
            if config.trainer.devices > 1 and started() == 1:
                again = [sys.executable, *sys.orig_argv[1:], f"hydra.run.dir='{folder}'"]
                code = start(config.trainer.devices, again)
            elif started() > 1 and not any(o.startswith("hydra.run.dir=") for o in settings.overrides.hydra):
                raise ConfigError("hydra.run.dir=FOLDER must be given, which the processes share")
            else:
                run(config, folder)
        except (*OUR_ERRORS, OSError) as error:
            if isinstance(error, OSError) and error.errno not in DISK_ERRORS:
                raise
            failed.append(error)  # raised through Hydra it would get a line of Hydra's own
        if failed or code:
            with suppress(FileNotFoundError):
                if not any(folder.iterdir()) and folder.stat().st_mtime >= began:
                    folder.rmdir()  # Hydra has made it before anything could be checked

    try:
        main()
    except (*HYDRA_ERRORS, OSError) as error:
        if composed_already:
            raise
        failed.append(ConfigError(explain(error, sys.argv[1:])))
    for error in failed:
        if rank() == 0 or isinstance(error, DataError | CheckpointError):  # the others are process 0's, too
            print(f"error: {error}", file=sys.stderr)
    if failed and rank() and STARTER not in os.environ:
        time.sleep(1)  # torchrun ends all when the first ends, and process 0 is the one to speak
    if failed:
        codes = {ConfigError: 2, DeadNetError: 3}
        code = getattr(failed[-1], "exit_code", codes.get(type(failed[-1]), 1))
    if code:
        sys.exit(code)


def to_config(composed: DictConfig) -> Config:
    """The checked dataclass of a composed configuration. Raises ConfigError."""
    if missing := OmegaConf.missing_keys(composed):
        raise ConfigError(f"{', '.join(sorted(missing))} must be given")
    for key in _keys(composed):  # Hydra lets +key through
        if _known(key) != key:
            raise ConfigError(f"+{key}: there is no such setting; {_choices(key)}")
    return OmegaConf.to_object(composed)


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        yield prefix + str(name)
        if isinstance(node._get_node(name), DictConfig) and is_dataclass(_type(prefix + str(name))):
            yield from _keys(node[name], f"{prefix}{name}.")


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """One sentence for what Hydra or OmegaConf refused: the value, and the choices."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, value = str(error.missing_cfg_file).partition("/")
        return f"{group}={value}: choose one of {', '.join(error.options)}"
    unknown = re.search(r"Could not override '([\w.]+)'", str(error))
    if unknown:
        given = next((a for a in overrides if a.lstrip("+~").split("=")[0] == unknown[1]), unknown[1])
        return f"{given}: there is no such setting; {_choices(unknown[1])}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read: it is NAME=VALUE, with quotes around a value that holds one of , = : ~ ?"
        )
    group = next((o for o in overrides if is_dataclass(_type(o.partition("=")[0]))), None)
    if group and type(error) in (TypeError, ValueError):
        name = group.partition("=")[0]
        return f"{shown(group)}: give the name of a file in conf/{name}, or set one of its fields; {_choices(name)}"
    reason = str(error.__cause__ or error).splitlines()[0]
    given = shown(next((o for o in overrides if o in str(error)), " ".join(overrides)))
    return f"{given}: {reason}" if given else reason


def _known(key: str) -> str:
    """As much of a dotted key as the schema has."""
    node: Any = Config
    known: list[str] = []
    for name in key.split("."):
        hints = get_type_hints(node) if is_dataclass(node) else {}
        if name not in hints:
            break
        known.append(name)
        node = hints[name]
    return ".".join(known)


def _type(key: str) -> Any:
    """The type of a dotted key of the schema, None where it has none."""
    node: Any = Config
    for name in key.split(".") if key else ():
        node = get_type_hints(node).get(name) if is_dataclass(node) else None
    return node


def _choices(key: str) -> str:
    """The settings that stand where `key` was looked for."""
    where = _known(key)
    node = _type(where)
    return f"{where or 'the top level'} has {', '.join(f.name for f in fields(node)) if is_dataclass(node) else 'none'}"


def resolved(config: Config) -> str:
    """The whole configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def load_config(file: Path) -> Config:
    """The configuration that a run has left in its folder. Raises ConfigError."""
    try:
        return to_config(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(file)))
    except (OSError, ValueError, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not the configuration of a run ({str(error).splitlines()[0]})") from error


def compose(config_folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of these overrides, without a command line. Raises ConfigError."""
    try:
        with hydra.initialize_config_dir(str(config_folder), version_base="1.3"):
            composed = hydra.compose("config", list(overrides))
    except HYDRA_ERRORS as error:
        raise ConfigError(explain(error, overrides)) from error
    try:
        return to_config(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, overrides)) from error


def overrides_of(config: Config, config_folder: Path) -> list[str]:
    """Overrides that compose to this configuration again: set, head, recipe and seed, then each setting that differs
    from what these bring. What the trained net does not depend on is left out."""
    stated = [f"{group}={getattr(config, group).name}" for group in ("data", "head", "recipe")]
    stated = [each for each in stated if (config_folder / f"{each.replace('=', '/')}.yaml").exists()]
    stated.append(f"seed={config.seed}")
    brought = _settings(compose(config_folder, stated))
    for name, value in _settings(config).items():
        if value != brought[name]:
            grammar = re.sub(r'"(\w+)": ', r"\1: ", json.dumps(value))  # JSON is Hydra's, but for quotes around keys
            stated.append(f"{name}={grammar}")
    return stated


def _settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in asdict(config).items():
        settings |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    for name in ("resume", "trainer.progress_bar", "data.root"):
        del settings[name]
    return settings


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values that the overrides give in Hydra's sweep syntax: `seed=0,1` or `seed=range(5)`.
    Raises ConfigError."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HYDRA_ERRORS as error:
        raise ConfigError(explain(error, overrides)) from error
    axes = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in parsed
    ]
    return [list(point) for point in itertools.product(*axes)]
