"""A run's folder: what is left behind for people and for programs.

config.yaml          the whole configuration
metrics.csv          loss, error and learning rate after each epoch
last.ckpt            Lightning's checkpoint of the last epoch
model.safetensors    the trained net, for `nin.pretrained.load`
curves.png           loss and error over the epochs
summary.json         the run in figures
.lock                who trains in it, while it does
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from nin.config import Config, ConfigError, consequential, resolved
from nin.recovery import RunError, replace


def look_at_folder(config: Config, folder: Path) -> dict[str, Any] | None:
    """The summary where `folder` holds the finished run of this configuration and it may be resumed, else None.

    Raises:
        ConfigError: it holds a run, and resume is not asked for or the configuration is another.
    """
    if not any((folder / name).exists() for name in ("config.yaml", "last.ckpt")):
        return None
    if config.resume is None:
        raise ConfigError(
            f"hydra.run.dir={folder}: the folder holds a run already; take another folder, or resume=auto to go on"
        )
    here = yaml.safe_load(resolved(config))
    try:
        there = yaml.safe_load((folder / "config.yaml").read_text())
        for name, default in yaml.safe_load(resolved(Config())).items():  # settings that have come since
            there[name] = {**default, **there[name]} if isinstance(default, dict) else there.get(name, default)
        summary = json.loads((folder / "summary.json").read_text())
        there, here = consequential(there), consequential(here)
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        if (folder / "last.ckpt").exists():
            raise RunError(f"{folder} holds a checkpoint, and its config.yaml or summary.json is damaged") from error
        return None  # it ended before its first epoch did
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            raise ConfigError(
                f"resume={config.resume}: {folder} holds a run of another configuration: {name} is {there.get(name)} "
                f"there and {here.get(name)} here"
            )
    if "test_error" not in summary or not (folder / "model.safetensors").exists():
        return None
    print(f"{folder} holds this run, finished")
    return summary


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of `folder`, which is made where it is not there, until the end of this one, however it
    ends: the lock is the operating system's.

    Raises:
        RunError: another process trains in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise RunError(f"hydra.run.dir={folder}: process {lock.read()} is training there") from error
        except OSError:  # a file system without locks
            pass
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def held(folder: Path) -> bool:
    """Whether another process trains in `folder`, as far as the operating system knows."""
    if not (folder / ".lock").exists():
        return False
    with suppress(FileNotFoundError), open(folder / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json."""
    replace(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def for_people(summary: dict[str, Any], folder: Path) -> str:
    """The summary in a few lines."""
    s = summary
    held_out = f"\n  held-out error {s['val_error']:6.2f} %" if "val_error" in s else ""
    return f"""
{s["head"]} on {s["data"]}, recipe {s["recipe"]}, seed {s["seed"]}: {s["parameters"]:,} parameters
{s["epochs"]} epochs in {in_words(s["seconds"])}, {s["images_per_second"]:.0f} images/s, {s["precision"]}, {s["device"]}

  training error {s["train_error"]:6.2f} %{held_out}
  test error     {s["test_error"]:6.2f} %

in {folder}: curves.png, model.safetensors, summary.json, metrics.csv
the same error again: python scripts/evaluate.py checkpoint={folder}"""


def plot_curves(metrics: Path, file: Path) -> None:
    """Draws the rows of metrics.csv: loss on the left, error in % on the right, over the epochs."""
    with open(metrics, newline="") as opened:
        rows = list(csv.DictReader(opened))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, quantity, label in zip(axes, ("loss", "error"), ("loss", "error (%)"), strict=True):
        for stage, name in (("train", "training, augmented"), ("val", "held out"), ("test_curve", "test")):
            points = [(int(r["epoch"]) + 1, float(r[key])) for r in rows if r.get(key := f"{stage}/{quantity}")]
            if points:
                axis.plot(*zip(*points, strict=True), marker=".", label=name)
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(file, dpi=150)


def in_words(seconds: float) -> str:
    """4000 ─► "67 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
