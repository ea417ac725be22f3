"""Trained nets as files: the ones of runs, and the published ones, which have names.

Weights are safetensors, and the header of a file holds all that is needed to use them: nothing is ever unpickled. A
published net is a weights file whose name carries the beginning of its sha256, and a card, NAME.json, which states the
whole sha256 and the facts: how it was trained, what its error is, and the logits of a fixed input. Nets on whitened
images share one file with the whitening.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from nin.backbones import Backbone
from nin.bounds import one_of, shown, sides
from nin.cost import multiply_accumulates
from nin.data.preprocess import PREPROCESSINGS, Normalise, Whiten
from nin.model import LARGEST, NIN, Block
from nin.pictures import resize, upright

INSTALLED = Path(__file__).parent / "checkpoints"  # in a wheel
CHECKPOINTS = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[1] / "checkpoints"  # in a checkout
PUBLISHED_FILE = re.compile(r"(.+)-([0-9a-f]{8})\.safetensors")  # name and hash


class CheckpointError(RuntimeError):
    """A checkpoint that is not there, not readable or not what it says; the message says which."""


class Pretrained(nn.Module):
    """A trained net with its preprocessing and the names of its classes, in eval mode.

    Takes images as people have them, and scales them as the net was trained. Gives logits (N, K) of

    - one PIL image, or a list of them, of any size: upright, on white where transparent, their middle at the size that
      the net was trained at;
    - uint8 pixels in 0…255, (N, C, H, W), at the size that they have.

    Raises ValueError for anything else.

    Attributes:
        net: the `nin.NIN` or `nin.backbones.Backbone`.
        preprocess: `nin.data.Normalise` or `nin.data.Whiten`.
        classes: the K names.
        facts: whatever was saved beside the weights: recipe, seed, epochs, test error.
    """

    def __init__(
        self, net: NIN | Backbone, preprocess: Normalise | Whiten, classes: Sequence[str], facts: dict[str, Any]
    ) -> None:
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
        pictures = [images] if isinstance(images, Image) else images
        if isinstance(pictures, list | tuple) and pictures and all(isinstance(each, Image) for each in pictures):
            size = self.net.arguments["image_size"]
            images = torch.stack([pil_to_tensor(resize(upright(picture), size)) for picture in pictures])
        channels = self.net.arguments.get("in_channels", 3)
        form = (images.dtype, images.ndim) if isinstance(images, Tensor) else None
        if form != (torch.uint8, 4) or images.shape[1] != channels:
            given = f"{images.dtype} and shape {tuple(images.shape)}" if form else type(images).__name__
            raise ValueError(
                f"images of {given}: give uint8 pixels in 0…255, (N, {channels}, H, W), which are scaled here, or PIL "
                "images, one at least"
            )
        device = next(self.net.parameters()).device
        return self.preprocess(images.to(device)).contiguous(memory_format=torch.channels_last)


# files ----------------------------------------------------------------------------------------------------------------


def save(file: str | Path, trained: Pretrained, whitening: Path | None = None) -> None:
    """Writes one .safetensors file from which `load` makes the same net again.

    Args:
        file: to be written.
        trained: the net.
        whitening: a file beside it that holds the whitening, which is then left out of `file`.

    Raises:
        CheckpointError: it cannot be written, on a full disk say; a file that was there before is as it was.
    """
    preprocess: dict[str, Any] = {"name": type(trained.preprocess).__name__.lower()}
    if isinstance(trained.preprocess, Whiten):
        preprocess["shape"] = list(trained.preprocess.shape)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
    if whitening:
        preprocess |= {"file": whitening.name, "sha256": _sha256(whitening)}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("preprocess.")}
    header = {
        "net": trained.net.arguments,
        "preprocess": preprocess,
        "classes": list(trained.classes),
        "facts": trained.facts,
    }
    content = serialised(tensors, {"nin": json.dumps(header)})  # its own save_file lets nobody else read the file
    _write(Path(file), lambda part: part.write_bytes(content))


def _write(file: Path, content: Callable[[Path], Any]) -> None:
    """Writes a file as a whole or not at all."""
    part = file.with_name(f"part.{file.name}")
    try:
        content(part)
        os.replace(part, file)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise CheckpointError(f"{file} cannot be written ({error}); what was there before is as it was") from error


def load(checkpoint: str | Path) -> Pretrained:
    """A trained net, on the CPU, in eval mode, with its preprocessing and class names.

    Args:
        checkpoint: a published name (see `available`), the folder of a run, or a weights file.

    Raises:
        CheckpointError: it is not there, not a safetensors file of this project, not the file that its card speaks of,
            or its weights and its description disagree.
    """
    if str(checkpoint) in available():
        card = read_card(str(checkpoint))
        return _open(CHECKPOINTS / card["file"], str(checkpoint), card)
    path = Path(checkpoint)
    try:
        there = path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero in it
        there = False
    if not there:
        raise CheckpointError(
            f"checkpoint={shown(checkpoint)}: there is no such file or folder, and the published names are "
            f"{', '.join(available()) or 'none yet'}"
        )
    if path.is_dir():
        found = sorted(file for file in path.glob("*.safetensors") if not file.name.startswith("part."))  # a kill left
        if not found and (path / "config.yaml").exists():
            raise CheckpointError(
                f"checkpoint={checkpoint}: the run in this folder has not ended; its own command goes on with it, with "
                f"resume=auto hydra.run.dir={checkpoint}"
            )
        if len(found) != 1:
            raise CheckpointError(f"checkpoint={checkpoint}: the folder holds {len(found)} .safetensors files, not one")
        path = found[0]
    named = PUBLISHED_FILE.fullmatch(path.name)
    if named and named[1] in available():  # a published file, given by its path
        _verify(path, named[2], str(checkpoint))
    return _open(path, str(checkpoint))


def _open(file: Path, checkpoint: str, card: dict[str, Any] | None = None) -> Pretrained:
    if card:
        _verify(file, card["sha256"], checkpoint)
    header, tensors = _read(file, checkpoint)
    if header is None:
        raise CheckpointError(f"checkpoint={checkpoint}: {file.name} has no description of a net in its header")
    try:
        arguments = dict(header["net"])
        net = build_net(arguments)
        described = header["preprocess"]
        if "file" in described:
            whitening = file.parent / Path(described["file"]).name
            _verify(whitening, described["sha256"], checkpoint)
            found = _read(whitening, checkpoint)[1]
            tensors |= {name: tensor.float() for name, tensor in found.items()}
        one_of(PREPROCESSINGS, preprocess=described["name"])
        if described["name"] == "whiten":
            preprocess = Whiten(tensors["preprocess.mean"], tensors["preprocess.matrix"], described["shape"])
        else:
            preprocess = PREPROCESSINGS[described["name"]](tensors["preprocess.mean"], tensors["preprocess.std"])
        if len(header["classes"]) != net.num_classes or not all(isinstance(name, str) for name in header["classes"]):
            raise ValueError(f"{len(header['classes'])} class names for {net.num_classes} classes")
        channels = preprocess.shape[0] if isinstance(preprocess, Whiten) else preprocess.mean.numel()
        if channels != arguments.get("in_channels", 3):
            raise ValueError("its preprocessing is for other images than its net")
        trained = Pretrained(net, preprocess, header["classes"], card or dict(header["facts"]))
        for part, tensor in trained.state_dict().items():
            if part in tensors and tensors[part].dtype != tensor.dtype:
                raise ValueError(f"{part} is of {tensors[part].dtype}, not {tensor.dtype}")
        trained.load_state_dict(tensors, assign=True)
        for part, tensor in trained.state_dict().items():
            if not tensor.isfinite().all():
                raise ValueError(f"{part} holds values that are no finite numbers")
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = shown(" ".join(str(error).splitlines()[:2]))
        raise CheckpointError(
            f"checkpoint={checkpoint}: {file.name} does not describe its weights ({reason})"
        ) from error
    return trained


def _read(file: Path, checkpoint: str) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    try:
        with safe_open(str(file), framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get("nin", "null"))
        return header, load_file(file)
    except PermissionError as error:
        raise CheckpointError(f"checkpoint={checkpoint}: {file} cannot be read ({error.strerror})") from error
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"checkpoint={checkpoint}: {file.name} is not a safetensors file ({error})") from error


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _verify(file: Path, sha256: str, checkpoint: str) -> None:
    try:
        found = _sha256(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint={checkpoint}: its file {file.name} is not in {file.parent}") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint={checkpoint}: {file} cannot be read ({error.strerror})") from error
    if not found.startswith(sha256):
        said = f"its card says {sha256}" if len(sha256) == len(found) else f"its name says {sha256}…"
        raise CheckpointError(f"checkpoint={checkpoint}: {file.name} has sha256 {found}, {said}")


def copy_weights(trained: Pretrained, net: NIN | Backbone) -> list[str]:
    """Gives `net` the weights of `trained`; where the nets differ in their number of classes or in their head, all that
    does not depend on it. Gives the names of the weights that stay as they were.

    Raises:
        CheckpointError: the nets differ in more, dropout, initial values and a size that the head takes excepted.
    """
    free = ("num_classes", "head", "image_size", "dropout", "init")
    theirs, ours = trained.net.arguments, net.arguments
    differ = [name for name in {**ours, **theirs} if name not in free and ours.get(name) != theirs.get(name)]
    if differ:
        name = differ[0]
        raise CheckpointError(
            "the checkpoint's net is another one than these settings make: its "
            f"{name} is {shown(theirs.get(name, 'none'))}, here it is {shown(ours.get(name, 'none'))}"
        )
    before, after = _shapes(trained.net), _shapes(net)
    fitting = _shapes(build_net({**ours, "num_classes": trained.net.num_classes}))
    if theirs["head"] == ours["head"] and fitting != before:
        raise CheckpointError(
            f"the checkpoint's head is tied to images of image_size={theirs['image_size']}, these are of "
            f"{ours['image_size']}; set data.size, or take a net that pools"
        )
    new = [name for name in after if after[name] != before.get(name)]
    weights = trained.net.state_dict()
    net.load_state_dict({name: weights[name] for name in after if name not in new}, strict=False)
    return new


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def build_net(arguments: dict[str, Any]) -> NIN | Backbone:
    """The net of the arguments that stand beside weights, on torch's meta device: without memory for weights."""
    with torch.device("meta"):
        if "backbone" in arguments:
            return Backbone(**arguments)
        return NIN(**{**arguments, "blocks": [Block(**block) for block in arguments["blocks"]]})


# published nets -------------------------------------------------------------------------------------------------------


def available() -> list[str]:
    """The names of the published nets."""
    return sorted(card.stem for card in CHECKPOINTS.glob("*.json"))


def read_card(name: str) -> dict[str, Any]:
    """The card of a published net. Raises CheckpointError where it is damaged."""
    try:
        card = json.loads((CHECKPOINTS / f"{name}.json").read_text())
        if Path(card["file"]).name != card["file"] or not isinstance(card["sha256"], str):
            raise ValueError("its file or sha256 is none")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint={name}: its card {name}.json is damaged ({error})") from error
    return card


def golden_images(size: Sequence[int] = (32, 32)) -> Tensor:
    """Two fixed images, (2, 3, H, W) uint8: stripes, the same on every machine."""
    n = torch.arange(2 * 3 * size[0] * size[1]).reshape(2, 3, *size)
    return ((n * 37) % 251 // 2 + (n // 96) % 128).to(torch.uint8)


def check_name(name: str, folder: Path | None = None) -> None:
    """Raises CheckpointError where a net cannot be published under `name`."""
    folder = folder or CHECKPOINTS
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise CheckpointError(f"name={name}: small letters, digits and hyphens")
    if (folder / f"{name}.json").exists():
        raise CheckpointError(f"name={name}: {folder} has this name already; remove its card and weights first")


def publish(trained: Pretrained, name: str, folder: Path | None = None, whitening: Path | None = None) -> Path:
    """Writes a net's weights and card into `folder`; gives the card.

    Args:
        trained: the net of a run, with the run's summary as its facts.
        name: the name it gets.
        folder: where it goes, by default among the published nets.
        whitening: the shared file of its whitening, from `publish_whitening`.

    Raises:
        CheckpointError: a name that is taken, or that is none; or the files cannot be written.
    """
    folder = folder or CHECKPOINTS
    check_name(name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = trained.facts
    draft = folder / f"{name}.draft"
    save(draft, Pretrained(trained.net, trained.preprocess, trained.classes, {"data": facts["data"]}), whitening)
    sha256 = _sha256(draft)
    file = draft.rename(folder / f"{name}-{sha256[:8]}.safetensors")
    size = sides(LARGEST, image_size=trained.net.arguments["image_size"])
    logits = _open(file, name)(golden_images(size)).detach()
    card = {
        **facts,
        "file": file.name,
        "sha256": sha256,
        "bytes": file.stat().st_size,
        "net": trained.net.arguments,
        "classes": list(trained.classes),
        "preprocessing": type(trained.preprocess).__name__.lower(),
        "multiply_accumulates": multiply_accumulates(trained.net, 3, *size),
        "golden_logits": [[round(value, 6) for value in row] for row in logits.tolist()],
        "licence": f"weights: Apache-2.0; trained on {facts['data']}, whose images are not part of this",
    }
    try:
        _write(folder / f"{name}.json", lambda part: part.write_text(json.dumps(card, indent=2) + "\n"))
    except CheckpointError:
        file.unlink()  # weights without a card would have no name
        raise
    return folder / f"{name}.json"


def publish_whitening(whiten: Whiten, folder: Path | None = None) -> tuple[Path, Whiten]:
    """Writes a whitening that several nets share, its matrix in fp16; gives the file and the whitening that it holds.
    Where a file holds the same already, but for rounding, that one is given."""
    folder = folder or CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.glob("whitening-*.safetensors")):
        mean, matrix = (_read(file, file.name)[1][f"preprocess.{name}"].float() for name in ("mean", "matrix"))
        pairs = (mean, whiten.mean), (matrix, whiten.matrix)
        if all(here.shape == there.shape and (here - there).abs().max() < 2e-3 for here, there in pairs):
            return file, Whiten(mean, matrix, whiten.shape)
    draft, half = folder / "whitening.draft", whiten.matrix.half()
    content = serialised({"preprocess.mean": whiten.mean, "preprocess.matrix": half})
    _write(draft, lambda part: part.write_bytes(content))
    file = draft.rename(folder / f"whitening-{_sha256(draft)[:8]}.safetensors")
    return file, Whiten(whiten.mean, half.float(), whiten.shape)
