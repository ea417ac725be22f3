"""The facts of a run: one typed record.

A run's summary.json, the header of its weights file, the card of a published net and the row of a study are all made of
it. This module imports neither torch nor Lightning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from nin import checks, config, files
from nin.errors import RunError, SettingError

FORMAT = 2  # 1 had no `format`, and neither settings, status nor the checksums
FILE = "summary.json"
ADDED_LATER = {"logger", "eval_curve", "resume", "checkpoint", "freeze"}  # settings that format 1 may lack
STATUSES = ("running", "finished", "dead")


@dataclass(frozen=True)
class Start:
    """The net that a run started from.

    Attributes:
        name: as it was given to `checkpoint=`: a published name, a folder or a file.
        sha256: of its weights file; None where the record is of format 1, which did not keep it.
        head: the name of its head; None as above.
        data: the set that it was trained on, as by `nin.config.set_of`; None where the record is older.
    """

    name: str
    sha256: str | None = None
    head: str | None = None
    data: str | None = None


@dataclass(frozen=True)
class Record:
    """The facts of a run. A fact that is unknown, or not measured yet, is None.

    Attributes:
        status: "running" until the run ends, then "finished" or "dead" (the net died).
        settings: all settings, as nested plain values (`nin.config.settings_of`).
        start: the net that the run started from.
        parameters: number of parameters of the net.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        device: processor or GPU, with the number of threads or processes.
        versions: of Python and the libraries that results depend on.
        commit: 40 hex digits, or "unknown".
        clean: whether the files were those of the commit.
        test_error, train_error, val_error: in %, in eval mode, on unaugmented images, after the last epoch.
        top5_error: % of test images whose class is not among the five best answers; None for few classes.
        seconds: of training.
        images_per_second: of training, without the evaluations after an epoch.
        peak_memory_gb: the most memory that the process held.
        device_memory_gb: the most memory of the GPU that the run's tensors held.
        test_images: number of test images of which `test_error` is the error.
        chance_error: error in % of a net that always answers the most frequent class of these images.
        class_errors: of a folder of pictures, by class: number of test `images`, and their `error` in %.
        weights_sha256: of model.safetensors.
    """

    status: str
    settings: dict[str, Any]
    start: Start | None
    parameters: int
    precision: str
    device: str
    versions: dict[str, str]
    commit: str
    clean: bool
    test_error: float | None = None
    train_error: float | None = None
    val_error: float | None = None
    top5_error: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_gb: float | None = None
    device_memory_gb: float | None = None
    test_images: int | None = None
    chance_error: float | None = None
    class_errors: dict[str, dict[str, float]] | None = None
    weights_sha256: str | None = None

    @property
    def data(self) -> str:
        """The name of the set."""
        return self.settings["data"]["name"]

    @property
    def head(self) -> str:
        """The name of the head."""
        return self.settings["head"]["name"]

    @property
    def recipe(self) -> str:
        """The name of the recipe."""
        return self.settings["recipe"]["name"]

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @property
    def epochs(self) -> int:
        """Length of the run."""
        return self.settings["trainer"]["max_epochs"]

    @property
    def title(self) -> str:
        """The run in words: "gap on digits, recipe modern, seed 0"."""
        return f"{self.head} on {self.data}, recipe {self.recipe}, seed {self.seed}"

    @property
    def held_out(self) -> int:
        """Number of training images that were held out."""
        return self.settings["data"]["val"]

    @property
    def frozen(self) -> bool:
        """Whether the layers that came with `start` were not trained."""
        return self.settings["freeze"]

    @property
    def at_chance(self) -> bool:
        """Whether the test error is above chance minus three standard errors of the binomial. False where that is below
        0, since no error could be lower."""
        if None in (self.test_error, self.test_images, self.chance_error):
            return False
        chance = self.chance_error / 100
        better = 100 * (chance - 3 * math.sqrt(chance * (1 - chance) / self.test_images))
        return 0 < better <= self.test_error

    def to_dict(self) -> dict[str, Any]:
        """The record as a flat JSON object, with the facts that people look for first repeated from the settings."""
        facts = asdict(self)
        first = {name: getattr(self, name) for name in ("data", "head", "recipe", "seed", "epochs", "frozen")}
        known = {name: value for name, value in facts.items() if name in _ALWAYS or value is not None}
        return {"format": FORMAT, "status": self.status, **first, **known}

    @classmethod
    def from_dict(cls, facts: Any, where: str | Path, settings: Mapping[str, Any] | None = None) -> Record:
        """The record of a JSON object that `to_dict` made; other entries of it are ignored.

        Args:
            facts: the object.
            where: its file, for the message.
            settings: of a run whose object is of format 1, which does not hold them.

        Raises:
            RunError: a fact that is missing, or of another type.
        """
        if not isinstance(facts, dict):
            raise RunError(f"{where}: expected a JSON object with the facts of a run, got {type(facts).__name__}")
        version = facts.get("format", 1)
        if version is True or version not in (1, FORMAT):
            reason = f"expected at most {FORMAT}; update this project" if checks.is_integer(version) else "expected 2"
            raise RunError(f"{where}: format={checks.one_line(version)}: {reason}")
        if version == 1:
            facts = _from_format_1(facts, settings)
        values = {f.name: facts.get(f.name) for f in fields(cls)}
        for name, (is_right, expected) in _TYPES.items():
            if not (is_right(values[name]) or (values[name] is None and name not in _ALWAYS)):
                raise RunError(f"{where}: {name}={checks.one_line(values[name])}: expected {expected}")
        values["start"] = _start(facts.get("start"), where)
        try:
            values["settings"] = config.settings_of(config.from_settings(values["settings"]))
        except SettingError as error:
            raise RunError(f"{where}: settings: {error}") from error
        return cls(**values)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_error(value: Any) -> bool:
    return checks.is_number(value) and 0 <= value <= 100


def _is_amount(value: Any) -> bool:
    return checks.is_number(value) and value >= 0


def _are_class_errors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, dict) and _is_count(each.get("images")) and _is_error(each.get("error"))
        for each in value.values()
    )


def _is_count(value: Any) -> bool:
    return checks.is_integer(value) and value >= 0


# of each fact a check, and the end of "expected …"
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "status": (lambda value: isinstance(value, str) and value in STATUSES, f"one of {', '.join(STATUSES)}"),
    "settings": (lambda value: isinstance(value, dict), "the settings, an object"),
    "parameters": (_is_count, "a number of parameters"),
    "precision": (_is_name, "a name"),
    "device": (_is_name, "a name"),
    "versions": (
        lambda value: isinstance(value, dict) and all(isinstance(each, str) for each in value.values()),
        "an object with names of versions",
    ),
    "commit": (_is_name, "a name"),
    "clean": (lambda value: isinstance(value, bool), "true or false"),
    **dict.fromkeys(
        ("test_error", "train_error", "val_error", "top5_error", "chance_error"), (_is_error, "a number from 0 to 100")
    ),
    **dict.fromkeys(
        ("seconds", "images_per_second", "peak_memory_gb", "device_memory_gb"), (_is_amount, "a number of at least 0")
    ),
    "test_images": (_is_count, "a number of images"),
    "class_errors": (_are_class_errors, "an object with images and error of each class"),
    "weights_sha256": (checks.is_sha256, "64 hexadecimal digits"),
}
# facts that the file always has, "start" as null if need be; the others are left out while they are None
_ALWAYS = ("status", "settings", "start", "parameters", "precision", "device", "versions", "commit", "clean")


def _start(found: Any, where: str | Path) -> Start | None:
    if found is None:
        return None
    values = {f.name: found.get(f.name) for f in fields(Start)} if isinstance(found, dict) else {}
    known = [value for name, value in values.items() if name != "name" and value is not None]
    if not _is_name(values.get("name")) or not all(isinstance(value, str) for value in known):
        raise RunError(f"{where}: start={checks.one_line(found)}: expected an object with name, sha256 and head")
    return Start(**values)


def _from_format_1(facts: dict[str, Any], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The facts of a summary.json of format 1 in today's form."""
    commit = facts.get("commit", "unknown")
    started_from = facts.get("started_from")
    own = {"commit": commit, "clean": False}
    if isinstance(commit, str):
        own = {"commit": commit.removesuffix("+changes"), "clean": commit != "unknown" and "+" not in commit}
    return {
        **facts,
        **own,
        "status": "running" if facts.get("test_error") is None else "finished",
        "settings": settings,
        "start": None if started_from is None else {"name": started_from},
    }


def read(folder: Path) -> Record | None:
    """The record of the run in `folder`; None if there is none.

    Raises:
        RunError: it cannot be read or is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        facts = json.loads(files.read(file))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file} is damaged or cannot be read ({checks.one_line(error)})") from error
    old = isinstance(facts, dict) and "format" not in facts
    return Record.from_dict(facts, file, _settings_beside(file) if old else None)


def _settings_beside(file: Path) -> dict[str, Any]:
    """The settings in config.yaml beside a summary of format 1."""
    there = file.with_name("config.yaml")
    try:
        settings = yaml.load(files.read(there), files.WithoutAliases)
        required = {each.name for each in fields(config.Config)} - ADDED_LATER
        missing = sorted(required - set(settings if isinstance(settings, dict) else ()))
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"{there} is damaged or cannot be read ({checks.one_line(error)})") from error
    return settings


def write(folder: Path, record: Record) -> None:
    """Writes summary.json. Raises RunError where it cannot be written."""
    files.write(folder / FILE, json.dumps(record.to_dict(), indent=2) + "\n")
