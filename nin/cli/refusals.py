"""What to say of a word that is not understood: the setting that was meant, and errors of Hydra's in our form."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

import yaml
from hydra.errors import MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from nin import config, files
from nin.checks import one_line
from nin.cli.conf import default_values, first_line, is_group, names_in
from nin.config import Config
from nin.errors import NINError, SettingError, UsageError

ALIASES = {  # settings under the names that they have elsewhere, as far as these are not similar
    **dict.fromkeys(("device", "backend"), "trainer.accelerator"),
    **dict.fromkeys(("gpus", "num_gpus", "nproc", "world_size"), "trainer.devices"),
    **dict.fromkeys(("amp", "fp16", "bf16", "dtype"), "trainer.precision"),
    **dict.fromkeys(("clip", "grad_clip", "max_norm"), "trainer.gradient_clip_val"),
    **dict.fromkeys(("optimizer", "optim", "opt", "solver"), "recipe.optimiser"),
    **dict.fromkeys(("learning_rate", "base_lr", "eta"), "recipe.lr"),
    **dict.fromkeys(("wd", "decay", "l2"), "recipe.weight_decay"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "recipe.schedule"),
    **dict.fromkeys(("bs", "batch", "train_batch_size"), "data.batch_size"),
    **dict.fromkeys(("data_dir", "data_path", "folder", "path"), "data.root"),
    **dict.fromkeys(("num_workers", "n_workers"), "data.workers"),
    **dict.fromkeys(("out", "output", "output_dir", "save_dir", "log_dir"), "hydra.run.dir"),
    **dict.fromkeys(("ckpt", "pretrained", "pretrained_model", "init_from"), "checkpoint"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("dataset", "set"), "data"),
    **dict.fromkeys(("arch", "net", "network"), "model"),
    **dict.fromkeys(("pool", "pooling", "classifier"), "head"),
}


def explained(error: Exception) -> NINError:
    """An error of Hydra's or OmegaConf's as one of ours, which names the file in conf/ or the setting."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return SettingError(group, name, f"must be one of {', '.join(error.options)}")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        place = f"{error.problem_mark.name}, line {error.problem_mark.line + 1}"
        return UsageError(f"{place}: not YAML ({error.problem})")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    where = re.match(r"In '([^']+)'", str(error))  # for people: Hydra keeps the file's name in its message alone
    file = f"conf/{where[1]}.yaml: " if where else ""
    if cause is None:
        return UsageError(file + first_line(error).partition("': ")[2] if where else first_line(error))
    name = cause.full_key
    if name and not name.startswith("hydra") and config.field_named(name) is None:
        return UsageError(f"{file}{name}: unknown setting; {suggestion(name)}")
    return UsageError(f"{file}{name}{': ' * bool(name)}{first_line(cause)}")


def suggestion(name: str, value: str = "") -> str:
    """What to write in place of a setting that does not exist: the setting that may have been meant, with this value or
    with its choices; else the settings that the group has."""
    if meant := _meant(name):
        field = config.field_named(meant)  # hydra.run.dir has none
        choices = names_in(meant) if is_group(meant) else field.metadata["choices"] if field else ()
        if choices and value not in choices:
            return f"did you mean {meant} ({', '.join(choices)})?"
        return f"did you mean {meant}{f'={one_line(value)}' * bool(value)}?"
    group = name.partition(".")[0]
    if is_group(group) and config.field_named(group) is not None and "." in name:
        known = fields(config.hints_of(Config)[group])
        return f"{group} has {', '.join(each.name for each in known)}"
    return "--help lists all settings"


def named_or_meant(name: str) -> str:
    """The setting or group of this name, else the most similar one, else an empty text."""
    return name if is_group(name) or config.field_named(name) is not None else _meant(name)


def _meant(name: str) -> str:
    """The setting that may have been meant: `lr` is recipe.lr, `device` is trainer.accelerator. Empty if none is
    similar."""
    last = name.rpartition(".")[2]
    if last in ALIASES:
        return ALIASES[last]
    known: dict[str, str] = {}
    for each in default_values():
        known.setdefault(each.rpartition(".")[2], each)
    near = get_close_matches(last, known, n=1, cutoff=0.7)
    return known[near[0]] if near and near[0] != "name" else ""


def similar(name: str, known: Iterable[str]) -> str:
    """The known name that is most similar to this one; empty if none is."""
    return next(iter(get_close_matches(name, known, n=1)), "")


def as_setting(option: str, following: Sequence[str], meant: Callable[[str], str]) -> str:
    """How to write what was given as an option, for people: `--head gap` is "write head=gap".

    Args:
        option: the argument that begins with a dash.
        following: the arguments after it.
        meant: returns the setting that a name means, or "".
    """
    name, equals, value = option.lstrip("-").replace("-", "_").partition("=")
    name = meant(name)
    if not name:
        return "a setting is written NAME=VALUE, --help lists them"
    if equals:
        value = option.partition("=")[2]
    elif following and not following[0].startswith("-") and "=" not in following[0]:
        value = following[0]
    return f"write {name}={one_line(value) or 'VALUE'}"


def looks_like_checkpoint(text: str) -> bool:
    """Whether a text is a published name, a weights file or the folder of a run."""
    if not text or "=" in text:
        return False
    run, published = Path(text), files.shipped("checkpoints") / f"{text}.json"
    places = (published, run / "summary.json", run / "model.safetensors")
    return text.endswith((".safetensors", ".caffemodel")) or any(map(os.path.isfile, places))
