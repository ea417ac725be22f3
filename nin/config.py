"""The settings: name, type, default, bounds and one sentence each.

A setting's default stands here alone: constructors, conf/ and help read it. Creating a `Config` checks nothing and
builds nothing; `check` does the first, `nin.run.build` the second.
"""

from __future__ import annotations

import os
import re
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from functools import cache, partial
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from nin.checks import (
    boolean,
    fraction,
    integer,
    is_integer,
    is_number,
    is_sha256,
    non_negative,
    one_of,
    positive,
    share,
)
from nin.errors import SettingError

NORMS = ("none", "batch")
INITS = ("gaussian", "kaiming")
POOLS = ("max", "average")
PREPROCESSINGS = ("normalise", "whiten", "imagenet")
PAD_MODES = ("zero", "reflect")
OPTIMISERS = ("sgd", "muon", "adamw", "rmsprop")
NO_FILES = ("imagenet", "none")  # values of model.weights that are not a file
SCHEDULES = ("step", "linear", "cosine")


def setting(default: Any, says: str, check: Callable[..., None] | None = None, choices: Sequence[str] = ()) -> Any:
    """A dataclass field whose metadata holds its sentence `says`, its `check` and, where it has them, its `choices`."""
    check = partial(one_of, choices) if choices else check
    about = {"says": says, "check": check, "choices": tuple(choices)}
    if isinstance(default, tuple):
        return field(default_factory=lambda: list(default), metadata=about)
    return field(default=default, metadata=about)


def _shares(**settings: Any) -> None:
    for name, value in settings.items():
        if not isinstance(value, list | tuple) or not all(is_number(s) and 0 < s < 1 for s in value):
            raise SettingError(name, value, "expected a list of numbers between 0 and 1, shares of the run's length")


def _addresses(**settings: Any) -> None:
    for name, value in settings.items():
        if value is not None and not all(isinstance(url, str) for url in value):
            raise SettingError(name, value, "expected a list of addresses, or null")


def _name(**settings: Any) -> None:
    for name, value in settings.items():
        if not value or not value.isprintable() or "/" in value or len(value) > 80:
            raise SettingError(name, value, "expected a name of at most 80 letters, in one line and without /")


def _path(**settings: Any) -> None:
    for name, value in settings.items():
        if value is not None and (not isinstance(value, str) or not value or "\0" in value):
            raise SettingError(name, value, "expected a path, or null")


def _limit(**settings: Any) -> None:
    for name, value in settings.items():
        count, part = is_integer(value) and 1 <= value <= 10**9, isinstance(value, float) and 0 < value <= 1
        if value is not None and not count and not part:
            raise SettingError(
                name, value, "expected a number of batches from 1, or a share of them up to 1.0, or null"
            )


def _sha256(**settings: Any) -> None:
    for name, value in settings.items():
        if value is not None and not is_sha256(value):
            raise SettingError(name, value, "expected 64 hexadecimal digits, or null")


def _or_null(check: Callable[..., None]) -> Callable[..., None]:
    """The check that also lets null pass."""

    def checked(**settings: Any) -> None:
        check(**{name: value for name, value in settings.items() if value is not None})

    return checked


@dataclass
class ModelConfig:
    """The net without its head."""

    blocks: Any = setting("cifar10", "the name of one of the authors' nets, or a list of blocks")
    last_pool: str = setting(
        "max", "pooling before the last block; the authors' two releases differ in it", choices=POOLS
    )
    dropout: float = setting(0.5, "probability of dropout, after blocks 1 and 2 in the paper", fraction)
    norm: str = setting("none", "normalisation between each convolution and its ReLU", choices=NORMS)
    last_relu: bool = setting(True, "whether the class maps pass a ReLU, as the authors' do", boolean)
    init: str = setting("gaussian", "initial weights: N(0, 0.05), the authors', or He et al. 2015", choices=INITS)
    backbone: str | None = setting(None, "a net of torchvision in place of NIN; the settings above then have no effect")
    weights: str = setting("imagenet", "a backbone's weights: imagenet downloads them; a file; or none")
    weights_sha256: str | None = setting(
        None, "sha256 of the file in model.weights, which identifies the run; null: computed", _sha256
    )

    def check_together(self) -> None:
        if self.weights_sha256 and (self.backbone is None or self.weights in NO_FILES):
            reason = "requires model.backbone and a file in model.weights"
            raise SettingError("weights_sha256", self.weights_sha256, reason)


@dataclass
class HeadConfig:
    """What turns class maps into scores."""

    name: str = setting("gap", "the head; those that end in _article belong to a backbone")


@dataclass
class DataConfig:
    """The images."""

    name: str = setting("cifar10", "the set of images")
    root: str | None = setting(
        None, "folder of the set, or of one's own pictures; null: the environment variable NIN_DATA, else data", _path
    )
    sha256: str | None = setting(
        None, "sha256 of a folder's pictures, which identifies the run; null: computed", _sha256
    )
    memory: float | None = setting(
        None,
        "most GB for a folder's images, above which they are streamed; null: half of the memory",
        _or_null(positive),
    )
    workers: int | None = setting(
        None,
        "processes that decode a folder's pictures for each training process; null: its share of the cores, at most 8",
        _or_null(partial(integer, 0, 256)),
    )
    size: int = setting(32, "pixels a side, where the set has photographs", partial(integer, 8, 1024))
    download: bool = setting(True, "whether to download what is missing", boolean)
    urls: list[str] | None = setting(
        None, "addresses of the set's archive, tried in turn; null: the set's own", _addresses
    )
    val: int = setting(0, "images held out for tuning, from the end of the training set", partial(integer, 0, 10**9))
    share: float = setting(1.0, "share of each class's training images to train on", share)
    batch_size: int = setting(128, "images per batch, of all processes together", partial(integer, 1, 10**9))
    preprocessing: str = setting(
        "normalise",
        "normalise each channel, whiten (the authors' GCN + ZCA), or ImageNet's means",
        choices=PREPROCESSINGS,
    )
    pad: int = setting(4, "pixels of padding before the random crop; 0 for no crop", partial(integer, 0, 31))
    pad_mode: str = setting("zero", "content of the padding", choices=PAD_MODES)
    flip: bool = setting(True, "whether to mirror at random, where the set allows it", boolean)
    cutout: int = setting(
        0, "pixels a side of a square that is blanked at random; 0 for none", partial(integer, 0, 1023)
    )


@dataclass
class RecipeConfig:
    """How a net is trained. These defaults are the authors' settings; conf/config.yaml chooses recipe=modern."""

    name: str = setting("unnamed", "name of the recipe, for the record", _name)
    optimiser: str = setting("sgd", "the optimiser", choices=OPTIMISERS)
    lr: float = setting(0.1, "learning rate of the weights; with muon the size of a step", positive)
    bias_lr: float = setting(2.0, "rate of biases and normalisation, as a multiple of lr", non_negative)
    last_lr: float = setting(0.1, "rate of the last layer's weights, as a multiple of lr", non_negative)
    last_bias_lr: float = setting(0.2, "rate of the last layer's bias, as a multiple of lr", non_negative)
    momentum: float = setting(0.9, "momentum of the optimiser; adamw: the first beta", fraction)
    nesterov: bool = setting(False, "whether the momentum of SGD is Nesterov's", boolean)
    weight_decay: float = setting(1e-4, "decay of the weights; biases and normalisation have none", non_negative)
    schedule: str = setting(
        "step", "step divides the rate by 10 at each of drops; the others end at 0", choices=SCHEDULES
    )
    drops: list[float] = setting((200 / 260, 230 / 260), "shares of the run's length at which step divides", _shares)
    warmup: float = setting(0.0, "epochs in which the rate rises to lr, at most half of the run", non_negative)
    label_smoothing: float = setting(0.0, "share of the target that is spread over all classes", fraction)
    ema: float = setting(
        0.0, "decay per step of a moving average of the weights, which is evaluated and saved; 0 for none", fraction
    )

    def check_together(self) -> None:
        if self.nesterov and not self.momentum:
            raise SettingError("nesterov", self.nesterov, f"requires a momentum above 0, got momentum={self.momentum}")


@dataclass
class TrainerConfig:
    """Lightning's Trainer."""

    max_epochs: int = setting(1, "length of the run; every recipe sets it", partial(integer, 1, 10**6))
    accumulate_grad_batches: int = setting(1, "batches whose gradients make one step", partial(integer, 1, 10**6))
    gradient_clip_val: float | None = setting(
        None, "largest norm of a step's gradient; null: no limit", _or_null(positive)
    )
    accelerator: str = setting(
        "auto", "auto takes CUDA, then Apple's MPS, then the CPU", choices=("auto", "cpu", "gpu", "cuda", "mps")
    )
    devices: int = setting(1, "processes a machine, each on its own GPU or all on the CPU", partial(integer, 1, 4096))
    num_nodes: int = setting(1, "machines; srun or torchrun starts the processes of several", partial(integer, 1, 4096))
    strategy: str = setting("auto", "auto takes ddp for more than one device", choices=("auto", "ddp"))
    precision: str = setting(
        "auto",
        "auto takes bf16-mixed where the hardware computes in it, else 16-mixed on CUDA, else 32-true",
        choices=("auto", "32-true", "bf16-mixed", "16-mixed"),
    )
    compile: bool | None = setting(
        None, "whether to capture the training step in a CUDA graph; null: where that is possible", _or_null(boolean)
    )
    deterministic: bool = setting(
        False, "whether an NVIDIA GPU repeats results bit for bit, more slowly; a CPU always does", boolean
    )
    sync_batchnorm: bool = setting(
        True, "whether batch norm takes its moments over all GPUs' images, for two exchanges a layer and step", boolean
    )
    limit_train_batches: int | float | None = setting(None, "batches of a training epoch, or a share of them", _limit)
    limit_test_batches: int | float | None = setting(None, "batches of an evaluation, or a share of them", _limit)
    progress_bar: bool = setting(True, "whether to show progress bars", boolean)

    @property
    def processes(self) -> int:
        """Processes on all machines together."""
        return self.devices * self.num_nodes


@dataclass
class LoggerConfig:
    """Where metrics go besides the run's metrics.csv."""

    name: str = setting("csv", "csv alone, or another one as well", choices=("csv", "tensorboard", "wandb"))
    project: str = setting("network-in-network", "name of the project at Weights & Biases")


@dataclass
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = setting(0, "seed of weights, order, augmentation and dropout", partial(integer, 0, 2**32 - 1))
    eval_curve: bool = setting(False, "whether to record the test error after each epoch, for curves alone", boolean)
    resume: str | None = setting(None, "auto resumes the run in hydra.run.dir")
    checkpoint: str | None = setting(None, "name, run or weights file of the net to start from, or to evaluate", _path)
    freeze: bool = setting(
        False, "whether to freeze the layers loaded from the checkpoint or the backbone's weights", boolean
    )

    def check_together(self) -> None:
        if self.resume not in (None, "auto"):
            raise SettingError("resume", self.resume, "must be auto, which resumes the run in hydra.run.dir, or null")
        if self.freeze and not self.checkpoint and (self.model.backbone is None or self.model.weights == "none"):
            reason = "requires checkpoint=, or a backbone with weights: it freezes the layers loaded from it"
            raise SettingError("freeze", True, reason)
        if self.data.batch_size % self.trainer.processes:
            trainer = self.trainer
            several = f" · trainer.num_nodes={trainer.num_nodes}" if trainer.num_nodes > 1 else ""
            reason = f"is not divisible by trainer.devices={trainer.devices}{several}"
            raise SettingError("data.batch_size", self.data.batch_size, reason)


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields by name; Python compiles them anew at each call of its own function."""
    return get_type_hints(kind)


def check(settings: Any) -> None:
    """Checks one of the objects above: each value by itself, then what they mean together.

    Raises:
        SettingError: naming the first setting that is not allowed, its value and the choices.
    """
    hints = hints_of(type(settings))  # type: ignore[arg-type]  # mypy takes the class for an instance
    for each in fields(settings):
        value = getattr(settings, each.name)
        if is_dataclass(value):
            try:
                check(value)
            except SettingError as error:
                raise error.under(each.name) from None
        elif not _fits(value, hints[each.name]):
            raise SettingError(each.name, value, f"expected {type_in_words(hints[each.name])}")
        elif each.metadata["check"]:
            each.metadata["check"](**{each.name: value})
    if hasattr(settings, "check_together"):
        settings.check_together()


def quoted(text: object) -> str:
    """A text as a command line's override has it, in quotes: Hydra reads it back whatever it contains."""
    escaped = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", str(text))  # else an interpolation
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), escaped) + "'"


def pasted(name: str, value: object, in_quotes: bool = True) -> str:
    """NAME=VALUE as it can be pasted into a shell, whatever the value contains: in quotes where Hydra or the shell
    needs them, and without a line break.

    Args:
        name: the setting's.
        value: a path, or another text.
        in_quotes: whether Hydra reads it, which needs quotes of its own.
    """
    text = str(value)
    is_plain = re.fullmatch(r"[A-Za-z/][\w./-]*", text, re.ASCII)
    if not is_plain or text.lower() in ("null", "true", "false", "nan", "inf"):
        text = quoted(text) if in_quotes else text
    whole = f"{name}={text}"
    if whole.isprintable():
        return shlex.quote(whole)
    escaped = {"\\": "\\\\", "'": "\\'"}
    letters = (escaped.get(each) or (each if each.isprintable() else _in_octal(each)) for each in whole)
    return f"$'{''.join(letters)}'"


def _in_octal(letter: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(letter))


# as plain values ------------------------------------------------------------------------------------------------------

# a run's result does not depend on them
OF_NO_CONSEQUENCE: tuple[str, ...] = ("data.root", "data.download", "data.urls", "data.memory", "data.workers")
OF_NO_CONSEQUENCE += ("trainer.progress_bar", "logger.name", "logger.project", "resume")


def settings_of(config: Config) -> dict[str, Any]:
    """All settings as a nested dictionary of plain values, as config.yaml has them."""
    return asdict(config)


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """A nested dictionary of settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def consequential(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, by dotted name, that a run's result depends on. A file of weights
    counts by its sha256, not its path, so `model.weights` is the file's name."""
    known = {name: value for name, value in flat(settings).items() if name not in OF_NO_CONSEQUENCE}
    if known.get("model.weights_sha256"):
        known["model.weights"] = os.path.basename(known["model.weights"])
    return known


def set_of(facts: Mapping[str, Any]) -> str | None:
    """The set that a net was trained on, from its record or card: the name, and of one's own pictures their sha256;
    None if the facts do not say."""
    own = ((facts.get("settings") or {}).get("data") or {}).get("sha256")
    return f"{facts['data']} {own}" if own else facts.get("data")


def from_settings(settings: Any) -> Config:
    """The configuration of a nested dictionary, such as a run's config.yaml. Settings that are missing, because they
    were added later, get their defaults, which reproduce the behaviour from before.

    Raises:
        SettingError: an unknown name, or a value of another type. Bounds are left to `check`.
    """
    return _built(Config, settings, "")


def check_types(settings: dict[str, Any]) -> None:
    """Raises SettingError where a setting of a flat dictionary has a value of another type. Names that are unknown here
    are left alone."""
    types = flat_types()
    for name, value in settings.items():
        if name in types and not _fits(_number(value, types[name]), types[name]):
            raise SettingError(name, value, f"expected {type_in_words(types[name])}")


@cache
def flat_types() -> dict[str, Any]:
    """The type of each setting by dotted name."""
    types: dict[str, Any] = {}
    for name, kind in hints_of(Config).items():
        if not is_dataclass(kind):
            types[name] = kind
            continue
        for key, each in hints_of(kind).items():  # type: ignore[arg-type]  # mypy takes the class for an instance
            types[f"{name}.{key}"] = each
    return types


def to_yaml(config: Config) -> str:
    """The configuration as YAML, in the order of the fields."""
    return yaml.safe_dump(settings_of(config), sort_keys=False, allow_unicode=True)


def _built(kind: type, settings: Any, prefix: str) -> Any:
    if not isinstance(settings, dict):
        raise SettingError(prefix.rstrip(".") or "settings", settings, "expected a mapping of names to values")
    known, hints = {each.name: each for each in fields(kind)}, hints_of(kind)
    for name in settings:
        if name not in known:
            raise SettingError(f"{prefix}{name}", settings[name], f"unknown; must be one of {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if is_dataclass(hints[name]):
            values[name] = _built(hints[name], value, f"{prefix}{name}.")
            continue
        value = _number(value, hints[name])
        if not _fits(value, hints[name]):
            raise SettingError(f"{prefix}{name}", value, f"expected {type_in_words(hints[name])}")
        values[name] = value
    return kind(**values)


def _number(value: Any, hint: Any) -> Any:
    """YAML reads 1e-4 as text and 2 as an integer; where a float is due, they become one."""
    try:
        return float(value) if hint is float and isinstance(value, int | str) and not isinstance(value, bool) else value
    except (ValueError, OverflowError):
        return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field."""
    return _fitting(hint)(value)


@cache
def _fitting(hint: Any) -> Callable[[Any], bool]:
    """The test whether a value has the type of a field, made once: a study checks a hundred thousand values."""
    if hint is Any:
        return lambda value: True
    if get_origin(hint) in (Union, types.UnionType):
        options = [_fitting(option) for option in get_args(hint)]
        return lambda value: any(fits(value) for fits in options)
    if get_origin(hint) is list:
        fits_inside = _fitting(get_args(hint)[0])
        return lambda value: isinstance(value, list | tuple) and all(map(fits_inside, value))
    if hint is float:
        return is_number
    return is_integer if hint is int else lambda value: isinstance(value, hint)


def type_in_words(hint: Any) -> str:
    """A type of the schema for people: "a number or null"."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_in_words(option) for option in get_args(hint)))
    if get_origin(hint) is list:
        return f"a list of {type_in_words(get_args(hint)[0]).split(' ', 1)[1]}s"
    if hint is Any:
        return "a name or a list"
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
    return words[hint]


def field_named(name: str) -> Field | None:
    """The field of a setting by its dotted name, None where there is none."""
    kind: Any = Config
    found: Field | None = None
    for part in name.split("."):
        known = {each.name: each for each in fields(kind)} if is_dataclass(kind) else {}
        if part not in known:
            return None
        found, kind = known[part], hints_of(kind)[part]
    return found
