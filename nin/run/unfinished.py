"""The net of a run that has not finished, as it was after its last whole epoch."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nin import fold as folding
from nin import pretrained
from nin.backbones import Backbone
from nin.checks import one_line
from nin.config import Config, from_settings
from nin.errors import CheckpointError, SettingError
from nin.model import NIN
from nin.pretrained import Pretrained
from nin.run import folder as folders
from nin.run import record as records
from nin.run.build import build_data, build_net
from nin.run.checkpoint import AtomicCheckpointIO

OF_THE_NET = "net."  # how the names of its weights begin in a checkpoint


def load(checkpoint: str, *, fold: bool = False, **places: Any) -> Pretrained:
    """As `nin.load`; of an unfinished run it returns the net after the last whole epoch, and prints which that is.

    The run's set is read again: the classes and the preprocessing are known from it.

    Args:
        checkpoint: a run's folder, a weights file or a published name.
        fold: as for `nin.load`.
        places: root, download, urls, memory or workers of the run's set, as in `nin.data.Images`, where it is read
            again; None keeps the run's.

    Raises:
        CheckpointError: as `nin.load` raises it, or the run's checkpoint is damaged.
        DataError: the run's set is missing or damaged.
    """
    folder = Path(checkpoint)
    if checkpoint in pretrained.available() or not is_unfinished(folder):
        return pretrained.load(checkpoint, fold=fold)
    try:
        trained, epoch = _load(folder, places)
    except (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError) as error:
        if isinstance(error, SettingError):
            raise
        reason = one_line(str(error).splitlines()[0]) if str(error) else type(error).__name__
        sentence = f"checkpoint={one_line(checkpoint)}: {folders.CHECKPOINT} is damaged or of another run ({reason})"
        raise CheckpointError(sentence) from error
    whole = trained.facts["settings"]["trainer"]["max_epochs"]
    print(f"{checkpoint} has not finished: this is its net after epoch {epoch} of {whole}", flush=True)
    if fold:
        trained.net = folding.fold(trained.net)
    return trained


def is_unfinished(folder: Path) -> bool:
    """Whether a run's folder has a checkpoint of a whole epoch, but no weights yet."""
    try:
        needed = (folders.CHECKPOINT, records.FILE)
        return all((folder / name).is_file() for name in needed) and not (folder / folders.WEIGHTS).exists()
    except (OSError, ValueError):  # the name is too long or contains a zero byte
        return False


def _load(folder: Path, places: dict[str, Any]) -> tuple[Pretrained, int]:
    """The net and the number of whole epochs. Raises various exceptions, which `load` catches."""
    record = records.read(folder)
    config = from_settings(record.settings)
    found = AtomicCheckpointIO().load_checkpoint(folder / folders.CHECKPOINT)
    given = {name: value for name, value in places.items() if value is not None}
    config = replace(config, data=replace(config.data, **given))
    data = build_data(config)
    start = pretrained.load(config.checkpoint) if config.checkpoint else None
    if start:
        if record.start and record.start.sha256 not in (None, start.sha256):
            raise ValueError(f"it started from other weights than {one_line(config.checkpoint)} has now")
        data.preprocess = start.preprocess
    data.prepare_data()
    data.setup()
    net = build_net(config, classes=len(data.set.classes), channels=data.set.train_images.shape[1])
    if start:  # frozen features are not in the checkpoint
        pretrained.copy_weights(start, net, data.set.classes)
    _part_of(net, config, found["state_dict"]).load_state_dict(_weights(found["state_dict"]))
    net = net.to(memory_format=torch.channels_last)
    trained = Pretrained(net, data.preprocess, data.set.classes, record.to_dict())
    return trained, found["epoch"] + 1


def _part_of(net: NIN | Backbone, config: Config, state: dict[str, Any]) -> nn.Module:
    """The part of the net that a checkpoint holds: a frozen backbone's features are left out of it."""
    has_features = any(name.startswith(f"{OF_THE_NET}features.") for name in state)
    return net.above_features() if isinstance(net, Backbone) and config.freeze and not has_features else net


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The net's weights of a checkpoint of the task."""
    return {name.removeprefix(OF_THE_NET): value for name, value in state.items() if name.startswith(OF_THE_NET)}
