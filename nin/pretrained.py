"""Trained nets as files: weights as safetensors, with everything in the header that is needed to use them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nin.data.preprocess import Normalise, Whiten
from nin.model import NIN, Block


class CheckpointError(RuntimeError):
    """A checkpoint that is not there, not readable or not what it says; the message says which."""


class Pretrained(nn.Module):
    """A trained net with its preprocessing and the names of its classes, in eval mode.

    Takes images as people have them, and scales them as the net was trained: uint8 (N, 3, H, W) in 0…255, or one PIL
    image, or a list of PIL images of equal size. Gives logits (N, K).

    Attributes:
        net: the `nin.NIN`.
        preprocess: `nin.data.Normalise` or `nin.data.Whiten`.
        classes: the K names.
        facts: whatever was saved beside the weights: recipe, seed, epochs, test error.
    """

    def __init__(self, net: NIN, preprocess: Normalise | Whiten, classes: Sequence[str], facts: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.preprocess = preprocess
        self.classes = tuple(classes)
        self.facts = facts
        self.eval()

    def forward(self, images: Tensor | Image | Sequence[Image]) -> Tensor:
        return self.net(self._prepare(images))

    def forward_maps(self, images: Tensor | Image | Sequence[Image]) -> Tensor:
        """Class maps (N, K, h, w) of the images."""
        return self.net.forward_maps(self._prepare(images))

    def _prepare(self, images: Tensor | Image | Sequence[Image]) -> Tensor:
        if not isinstance(images, Tensor):
            pictures = [images] if isinstance(images, Image) else images
            pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        elif images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"images of {images.dtype} and shape {tuple(images.shape)}: give uint8 pixels in 0…255, (N, 3, H, W); "
                "they are scaled here"
            )
        device = next(self.net.parameters()).device
        return self.preprocess(images.to(device)).contiguous(memory_format=torch.channels_last)


def save(file: str | Path, trained: Pretrained) -> None:
    """Writes one .safetensors file from which `load` makes the same net again."""
    preprocess = {"name": type(trained.preprocess).__name__.lower()}
    if isinstance(trained.preprocess, Whiten):
        preprocess["shape"] = list(trained.preprocess.shape)
    header = {
        "net": trained.net.arguments,
        "preprocess": preprocess,
        "classes": list(trained.classes),
        "facts": trained.facts,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
    save_file(tensors, str(file), metadata={"nin": json.dumps(header)})


def find(checkpoint: str | Path) -> Path:
    """The weights file that `checkpoint` names: a .safetensors file, or the folder of a run, which holds one.

    Raises:
        CheckpointError: there is none, or a folder with several.
    """
    path = Path(checkpoint)
    if not path.exists():
        raise CheckpointError(f"checkpoint={checkpoint}: there is no such file or folder")
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(f"checkpoint={checkpoint}: the folder holds {len(found)} .safetensors files, not one")
    return found[0]


def load(checkpoint: str | Path) -> Pretrained:
    """The trained net of a run's folder or of a weights file, on the CPU, in eval mode. Nothing is unpickled.

    Raises:
        CheckpointError: it is not there, not a safetensors file of this project, or its weights and its description
            disagree.
    """
    file = find(checkpoint)
    try:
        with safe_open(str(file), framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get("nin", "null"))
        tensors = load_file(file)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"checkpoint={checkpoint}: {file.name} is not a safetensors file ({error})") from error
    if header is None:
        raise CheckpointError(f"checkpoint={checkpoint}: {file.name} has no description of a net in its header")
    try:
        arguments = dict(header["net"], blocks=[Block(**block) for block in header["net"]["blocks"]])
        with torch.device("meta"):
            net = NIN(**arguments)
        if header["preprocess"]["name"] == "whiten":
            preprocess = Whiten(tensors["preprocess.mean"], tensors["preprocess.matrix"], header["preprocess"]["shape"])
        else:
            preprocess = Normalise(tensors["preprocess.mean"], tensors["preprocess.std"])
        trained = Pretrained(net, preprocess, header["classes"], dict(header["facts"]))
        trained.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"checkpoint={checkpoint}: {file.name} does not describe its weights ({reason})"
        ) from error
    return trained


def copy_weights(trained: Pretrained, net: NIN) -> None:
    """Gives `net` the weights of `trained`.

    Raises:
        CheckpointError: the nets differ in their layers.
    """
    theirs, ours = ({name: t.shape for name, t in n.state_dict().items()} for n in (trained.net, net))
    differ = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differ:
        raise CheckpointError(
            f"the checkpoint's net is another one than these settings make ({len(differ)} of {len(theirs)} tensors "
            f"differ, {differ[0]} is the first); take the model and head settings that it was trained with"
        )
    net.load_state_dict(trained.net.state_dict())
