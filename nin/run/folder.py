"""A run's folder: its files, its lock, and whether its run is finished.

config.yaml          all settings, for people
metrics.csv          loss, error and learning rate after each epoch
last.ckpt            Lightning's checkpoint of the last whole epoch
model.safetensors    the trained net, for `nin.load`
curves.png           loss and error over the epochs
split.csv            for data=folder: which pictures are trained on, and which are for testing
summary.json         the run's record (`nin.run.record`)
.lock                locked while a process trains here

Neither torch nor Lightning is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError, deserialize

from nin import files
from nin.checks import one_line
from nin.config import Config, consequential, settings_of
from nin.errors import CheckpointError, LockedError, RunError, SettingError
from nin.run import record
from nin.run.record import Record

SETTINGS = "config.yaml"
METRICS = "metrics.csv"
CHECKPOINT = "last.ckpt"
WEIGHTS = "model.safetensors"
CURVES = "curves.png"
SPLIT = "split.csv"
LOCK = ".lock"
WRITTEN = (SETTINGS, METRICS, CHECKPOINT, WEIGHTS, CURVES, SPLIT, record.FILE)
WRITTEN_BY_LIBRARIES = ("hparams.yaml",)  # in place: by Lightning's TensorBoardLogger
PARTIAL_EPOCHS = "hpc_ckpt_*.ckpt"  # Lightning's on SLURM, of the middle of an epoch


@contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in `folder`, which is created if need be, until the end of the block or of
    this process.

    The lock is the operating system's (`nin.files.lock`) and its file stays. A lock file that is deleted at the end
    lets two processes in: one locks the deleted file, another a new one.

    Raises:
        RunError: another process trains there, the folder cannot be created, or it has a folder where a file goes.
    """
    for name in (LOCK, *WRITTEN, *WRITTEN_BY_LIBRARIES):
        if (folder / name).is_dir():  # else it is noticed after the training
            raise RunError(f"{folder / name} is a folder, and a run writes a file there; choose another hydra.run.dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"hydra.run.dir={folder}: cannot be created ({error.strerror or error})") from error
    with ExitStack() as held:
        try:
            held.enter_context(files.lock(folder / LOCK))
        except LockedError as error:
            raise RunError(f"hydra.run.dir={folder}: another process is training there ({error})") from error
        yield


def is_training_in(folder: Path) -> bool:
    """Whether a process trains in `folder`."""
    return files.is_locked(folder / LOCK)


def contains_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`."""
    return any((folder / name).exists() for name in (SETTINGS, record.FILE, CHECKPOINT))


def check_replaces_nothing(folder: Path) -> None:
    """Raises SettingError if a folder without a run contains files that a run would replace."""
    if there := [name for name in WRITTEN if os.path.lexists(folder / name)]:
        reason = f"contains no run, but {', '.join(there)}, which a run would replace; choose another folder"
        raise SettingError("hydra.run.dir", folder, reason)


def finished_run(config: Config, folder: Path) -> Record | None:
    """The record of the finished run of these settings in `folder`; None where there is something to train.

    A run is finished when its record says so, and the weights of the record and the rows of its epochs are there and
    whole.

    Raises:
        SettingError: the folder contains a run, and resume=auto is not set or the settings differ; or it contains no
            run, but a file that a run would replace.
        RunError: the folder contains a checkpoint, but the run's record is damaged.
    """
    if not contains_run(folder):
        check_replaces_nothing(folder)
        return None
    if config.resume is None:
        raise SettingError(
            "hydra.run.dir", folder, "already contains a run; choose another folder, or set resume=auto to resume it"
        )
    try:
        found = record.read(folder)
        if found is None:
            raise RunError(f"{folder / record.FILE} is missing")
    except RunError as error:
        if not (folder / CHECKPOINT).exists():
            return None  # the run ended within its first epoch: nothing to resume, it starts again
        raise RunError(
            f"{folder} contains a checkpoint, but its record is damaged: {error}; choose another folder"
        ) from error
    if differing := _differing(found, config):
        reason = f"{folder} contains a run with other settings: {', '.join(differing)}; choose another folder"
        raise SettingError("resume", config.resume, reason)
    is_whole = _is_whole(folder / WEIGHTS, found.weights_sha256) and _has_metrics(folder, found.epochs)
    return found if found.status == "finished" and is_whole else None


def _differing(found: Record, config: Config) -> list[str]:
    """The settings in which a run that was found differs from these, in words."""
    there, here = consequential(found.settings), consequential(settings_of(config))
    if there["model.weights_sha256"] is None:  # an older run: its file of weights is known by its name alone
        there["model.weights"] = os.path.basename(there["model.weights"])
        there["model.weights_sha256"] = here["model.weights_sha256"]
    differing = [name for name in here if there[name] != here[name]]
    if "checkpoint" in differing and _starts_from(found, config.checkpoint):  # a path as another folder spells it
        differing.remove("checkpoint")
    return [
        "the pictures in data.root are others than those of the training"
        if name == "data.sha256" and None not in (there[name], here[name])
        else f"{name} is {one_line(there[name])} there, {one_line(here[name])} here"
        for name in differing
    ]


def _starts_from(found: Record, checkpoint: str | None) -> bool:
    """Whether a checkpoint has the weights that a run started from."""
    if checkpoint is None or found.start is None or found.start.sha256 is None:
        return False
    from nin import pretrained

    try:
        return pretrained.load(checkpoint).sha256 == found.start.sha256
    except CheckpointError:
        return False


def _has_metrics(folder: Path, epochs: int) -> bool:
    """Whether metrics.csv has a row for each epoch; true without a checkpoint, from which it could be written again."""
    if not (folder / CHECKPOINT).exists():
        return True
    try:
        return files.read(folder / METRICS).count(b"\n") == 1 + epochs
    except OSError:
        return False


def _is_whole(weights: Path, sha256: str | None) -> bool:
    """Whether a weights file is there and complete; records of format 1 have no sha256 of it."""
    try:
        if sha256 is not None:
            return files.sha256(files.read(weights)) == sha256
        deserialize(files.read(weights))
        return True
    except (OSError, SafetensorError):
        return False


def drop_leftovers(folder: Path) -> None:
    """Deletes files that a run must not resume from: half-written ones, symbolic links that a library would write
    through, and the checkpoints that Lightning saves in the middle of an epoch on SLURM. Lightning would prefer one of
    these to last.ckpt, and the resumed run would not be the same bit for bit."""
    for pattern in (PARTIAL_EPOCHS, f"{files.TEMPORARY}*"):
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)
    for name in WRITTEN_BY_LIBRARIES:
        if (folder / name).is_symlink():
            (folder / name).unlink()
