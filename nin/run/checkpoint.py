"""A run's checkpoint, last.ckpt: written whole, read once, and compared with the checksums that it holds.

Lightning makes its parts. Besides them it holds the sha256 of each, so that a part that was changed is known by name
before anything is restored.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from nin import files
from nin.run.watch import DeadNetWatch

CHECKSUMS = "sha256"  # the part with the checksums of the others


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a whole checkpoint or leaves the one before, after a kill and on a full disk. Lightning's own writes to
    the system's folder of temporary files and copies from there, without waiting for the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.checked: dict[str, dict[str, Any]] = {}  # checkpoints by path, that were read to be checked

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        checksums = {part: checksum(value) for part, value in checkpoint.items()}
        buffer = io.BytesIO()
        torch.save({**checkpoint, CHECKSUMS: checksums}, buffer)
        files.write(path, buffer.getvalue())

    def check(self, path: Path) -> dict[str, Any]:
        """A checkpoint's parts, read and compared with their checksums; `load_checkpoint` returns the same ones.

        Raises:
            ValueError: a part is not what was saved, or the file is not a checkpoint.
            OSError, RuntimeError, EOFError, pickle.UnpicklingError: the file cannot be read, or is damaged.
        """
        found = _read(path)
        self.checked[str(path)] = found
        return found

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """A checkpoint's plain values, on the CPU; nothing else is ever unpickled. Raises as `check` does."""
        return self.checked.pop(str(path), None) or _read(Path(path))


def _read(path: Path) -> dict[str, Any]:
    found = torch.load(io.BytesIO(files.read(path)), map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise ValueError(f"expected the parts of a checkpoint, got {type(found).__name__}")
    if CHECKSUMS in found:  # checkpoints from before have none
        checksums = found[CHECKSUMS]
        if not isinstance(checksums, dict):
            raise ValueError(f"{CHECKSUMS}: expected the checksums of the other parts")
        for part in dict.fromkeys([*checksums, *found]):
            if part != CHECKSUMS and (part not in found or checksum(found[part]) != checksums.get(part)):
                raise ValueError(f"{part} is not what was saved")
    return _with_the_watch(found)


def checksum(value: Any) -> str:
    """The sha256 of a value: of tensors, plain containers and scalars, whatever objects they share."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(flat.view(torch.uint8).numpy() if len(flat) else b"")
    elif isinstance(value, dict):
        digest.update(f"dict {len(value)} ".encode())
        for name, each in value.items():
            _feed(digest, name)
            _feed(digest, each)
    elif isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__} {len(value)} ".encode())
        for each in value:
            _feed(digest, each)
    else:
        text = repr(value)
        digest.update(f"{type(value).__name__} {len(text)} {text} ".encode())


def _with_the_watch(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint from before `DeadNetWatch`, when the task held what it remembers, in today's form."""
    state = checkpoint.get("state_dict")
    if isinstance(state, dict) and {"recent_losses", "first_spread"} <= set(state):
        remembered = {"losses": state.pop("recent_losses"), "first_spread": float(state.pop("first_spread"))}
        checkpoint["callbacks"] = {**checkpoint["callbacks"], DeadNetWatch.__qualname__: remembered}
    return checkpoint
