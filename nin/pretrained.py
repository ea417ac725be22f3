"""Trained nets as files: the nets of runs, and the published nets, which have names.

Weights are safetensors, and the header of a file holds everything that is needed to use them. Nothing is unpickled.
A published net is a weights file whose name contains the first 8 digits of its sha256, and a card, NAME.json. The card
states the whole sha256 and the facts: the run, its error, and the net's logits for two fixed images. Nets that were
trained on whitened images share one file with the whitening.
"""

from __future__ import annotations

import json
import os
import re
import struct
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from nin import caffe, files
from nin import fold as folding
from nin.backbones import BACKBONES, Backbone
from nin.checks import counted, integer, is_integer, is_number, is_sha256, memory_gb, one_line, one_of, sides, times
from nin.config import check_types, flat, pasted
from nin.cost import inference_cost
from nin.data.preprocess import PREPROCESSINGS, Normalise, Whiten, symmetric
from nin.errors import CheckpointError, SettingError
from nin.model import NIN
from nin.pictures import resize, to_tensor, upright
from nin.plan import HEADS, LARGEST

if TYPE_CHECKING:
    from nin.data.sets import ImageSet

CHECKPOINTS = files.shipped("checkpoints")
PUBLISHED_FILE = re.compile(r"(.+)-([0-9a-f]{8})\.safetensors")  # a name and the beginning of the sha256
MAX_FILE_BYTES = 4 * 2**30  # of a weights file, which is read whole
WHITENED_NET = "cifar10-gap-paper"  # a published net with the authors' preprocessing
MAX_OPERATIONS = 1e12  # multiply-accumulates for one image, half a minute on a CPU core; VGG19 has 2e10
# facts of a card that pages and commands print: a check, and the end of "expected …"
FACTS = {
    **dict.fromkeys(
        ("data", "head", "recipe"), (lambda value: isinstance(value, str) and value.isprintable(), "a name")
    ),
    **dict.fromkeys(("epochs", "parameters", "bytes"), (lambda value: is_integer(value) and value >= 0, "a number")),
    "test_error": (lambda value: is_number(value) and 0 <= value <= 100, "a number from 0 to 100"),
}


def _is_start(value: Any) -> bool:
    """Whether it is the net that a run started from: its name, and the sha256 and head as far as they are known."""
    types = {"name": str, "sha256": str | None, "head": str | None, "data": str | None}
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in types.items())


def _are_settings(value: Any) -> bool:
    """Whether they are nested settings. Raises SettingError for one of another type."""
    check_types(flat(value) if isinstance(value, dict) else {})
    return isinstance(value, dict)


# facts that claims read, where they are there
MORE_FACTS = {
    "seed": (lambda value: is_integer(value) and value >= 0, "a number"),
    **dict.fromkeys(("commit", "precision"), FACTS["data"]),
    "started_from": (lambda value: isinstance(value, str), "a name"),
    "frozen": (lambda value: isinstance(value, bool), "true or false"),
    "start": (_is_start, "an object with name, sha256 and head"),
    "settings": (_are_settings, "an object"),
}
UNFINISHED = (files.TEMPORARY, "part.")  # beginnings of the names of half-written files; "part." in older runs
TRIANGLE = "preprocess.triangle"  # name of the upper triangle of a shared whitening's matrix
NOT_FINITE = "the net's scores are NaN or infinite: its weights are damaged, or it has never learned"
# arguments that may differ between a checkpoint and the net that starts from it
MAY_DIFFER = ("num_classes", "head", "image_size", "dropout", "init")


class Pretrained(nn.Module):
    """A trained net with its preprocessing and the names of its classes, in eval mode.

    Returns logits (N, K) of

    - one PIL image or a list of them, of any size. Each is turned upright, put on white where it is transparent, and
      its middle is resized to the size that the net was trained at;
    - uint8 pixels in 0…255, (N, C, H, W), at the size that they have.

    Attributes:
        net: the `nin.NIN` or `nin.backbones.Backbone`.
        preprocess: `nin.data.Normalise` or `nin.data.Whiten`.
        classes: the K names, each in one line that a terminal can show.
        facts: a published net's card, else the record of the run that trained the net.
        sha256: of the weights file that it was loaded from, else None.
    """

    def __init__(
        self,
        net: NIN | Backbone,
        preprocess: Normalise | Whiten,
        classes: Sequence[str],
        facts: Mapping[str, Any],
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.preprocess = preprocess
        self.classes = tuple(map(one_line, classes))
        self.facts = dict(facts)
        self.sha256 = sha256
        self.eval()

    @property
    def channels(self) -> int:
        """Channels of its images: 1 or 3."""
        return self.net.in_channels

    def forward(self, images: Tensor | Image | Sequence[Image]) -> Tensor:
        """Logits (N, K). Raises SettingError for anything but pictures or uint8 pixels."""
        return self.net(self._prepare(images))

    def forward_maps(self, images: Tensor | Image | Sequence[Image]) -> Tensor:
        """Class maps (N, K, h, w): the input of the head."""
        return self.net.forward_maps(self._prepare(images))

    @property
    def accepts_any_size(self) -> bool:
        """Whether the net accepts images of other sizes than it was trained at."""
        net = self.net
        accepts = net.plan.accepts_any_size if isinstance(net, NIN) else HEADS[net.arguments["head"]].pools
        return accepts and not isinstance(self.preprocess, Whiten)

    def reset_head(self, classes: Sequence[str], head: str | None = None) -> list[str]:
        """Replaces the layers that depend on the classes; the other layers keep their weights.

        No card describes the net then: `facts` is empty and `sha256` None.

        Args:
            classes: names of the new classes.
            head: a name of `nin.HEADS`, by default the one that the net has.

        Returns:
            The names of the weights of `net` that start anew; the others may be frozen.

        Raises:
            SettingError: blocks of a fixed number of maps do not fit these classes.
        """
        arguments = {**self.net.arguments, "num_classes": len(classes), "head": head or self.net.arguments["head"]}
        kept = next(self.net.parameters())
        net = NIN(**arguments) if isinstance(self.net, NIN) else Backbone(**arguments, weights="none")
        new = copy_weights(self, net, classes)
        self.net = net.to(kept.device, memory_format=torch.channels_last).train(self.net.training)
        self.classes, self.facts, self.sha256 = tuple(map(one_line, classes)), {}, None
        return new

    def _prepare(self, images: Tensor | Image | Sequence[Image]) -> Tensor:
        pictures = [images] if isinstance(images, Image) else images
        if isinstance(pictures, list | tuple) and pictures and all(isinstance(each, Image) for each in pictures):
            images = torch.stack([self._pixels(each) for each in pictures])
        if not _is_pixels(images, self.channels):
            got = f"{images.dtype} {_form(images)}" if isinstance(images, Tensor) else type(images).__name__
            raise SettingError(
                "images", got, f"expected uint8 pixels in 0…255, (N, {self.channels}, H, W), or one or more PIL images"
            )
        _check_size(self.net, *images.shape[2:])
        weight = next(self.net.parameters())
        inputs = self.preprocess(images.to(weight.device)).to(weight.dtype)  # half() nets take half-precision inputs
        return inputs.contiguous(memory_format=torch.channels_last)

    def _pixels(self, picture: Image) -> Tensor:
        """The pixels of a picture at the size of the training. Raises SettingError where it cannot be decoded."""
        try:
            return to_tensor(resize(upright(picture), self.net.arguments["image_size"]), self.channels)
        except Exception as error:  # a decoder raises anything
            reason = f"cannot be read ({one_line(error) or type(error).__name__})"
            raise SettingError("images", f"a picture of {times(picture.size)} pixels", reason) from error


def _is_pixels(images: Any, channels: int) -> bool:
    """Whether these are uint8 pixels (N, C, H, W) in the memory of a device."""
    if not isinstance(images, Tensor) or images.is_nested or images.layout != torch.strided or images.is_meta:
        return False
    return images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == channels


def _form(images: Tensor) -> str:
    """The form of a tensor in words: its shape, and what is unusual about it."""
    if images.is_nested:
        return "nested"
    unusual = "without values, " if images.is_meta else "sparse, " if images.layout != torch.strided else ""
    return f"{unusual}{tuple(images.shape)}"


def _check_size(net: nn.Module, height: int, width: int) -> None:
    """Raises SettingError for images of which the blocks leave nothing."""
    size = (min(height, LARGEST), min(width, LARGEST))
    try:
        if isinstance(net, NIN):
            replace(net.plan, image_size=size)
        elif isinstance(net, Backbone):
            integer(BACKBONES[net.arguments["backbone"]].smallest, LARGEST, pixels=min(size))
    except SettingError as error:
        raise SettingError("images", f"{height}×{width} pixels", error.reason) from None


# saving ---------------------------------------------------------------------------------------------------------------


def save(file: str | Path, trained: Pretrained, whitening: Path | None = None) -> str:
    """Writes one .safetensors file, from which `load` makes the same net again; returns its sha256.

    Args:
        file: the file to write.
        trained: the net.
        whitening: a file in the same folder that contains the whitening, which is then left out of `file`.

    Raises:
        RunError: it cannot be written, on a full disk for example; an older file stays as it was.
    """
    content = serialise(trained, whitening)
    files.write(file, content)
    return files.sha256(content)


def serialise(trained: Pretrained, whitening: Path | None = None) -> bytes:
    """The bytes of a weights file; arguments as for `save`."""
    preprocess: dict[str, Any] = {"name": trained.preprocess.name}
    if isinstance(trained.preprocess, Whiten):
        preprocess["shape"] = list(trained.preprocess.shape)
    tensors = {name: _in_file(tensor) for name, tensor in trained.state_dict().items()}
    if whitening:
        preprocess |= {"file": whitening.name, "sha256": files.sha256(files.read(whitening))}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("preprocess.")}
    header = {
        "net": trained.net.arguments,
        "preprocess": preprocess,
        "classes": list(trained.classes),
        "facts": trained.facts,
    }
    return safetensors.torch.save(tensors, {"nin": json.dumps(header)})


def _in_file(tensor: Tensor) -> Tensor:
    """A tensor as a weights file has it: in fp32, whatever the net computes in."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.float() if tensor.is_floating_point() else tensor


# loading --------------------------------------------------------------------------------------------------------------


def load(checkpoint: str | Path, *, fold: bool = False) -> Pretrained:
    """A trained net with its preprocessing and class names, on the CPU, in eval mode, channels last in memory.

    Args:
        checkpoint: a published name (see `available`), the folder of a run, a weights file, or the authors' own
            `cifar10_nin.caffemodel`.
        fold: whether to fold batch norm into the convolutions (see `nin.fold`), which makes inference faster. The
            logits differ by less than 1e-4 from those on the net's card. A folded net is not for further training.

    Raises:
        CheckpointError: it does not exist, is not a safetensors file of this project or not the file that its card
            describes, or its weights do not match its description.
    """
    if not isinstance(checkpoint, str | Path):
        raise CheckpointError(
            f"checkpoint={one_line(checkpoint)}: expected a published name, a run's folder or a weights file, "
            f"got {type(checkpoint).__name__}"
        )
    name = str(checkpoint)
    if name in available():
        if os.path.lexists(name):
            warnings.warn(f"checkpoint={name}: the published net; write ./{name} for what is here", stacklevel=2)
        card = read_card(name)
        trained = _load(CHECKPOINTS / card["file"], name, card["sha256"], card)
    else:
        file = _weights_file(Path(checkpoint), one_line(name))
        published = PUBLISHED_FILE.fullmatch(file.name)
        sha256 = published[2] if published and published[1] in available() else ""
        trained = (_load_caffe if file.suffix == caffe.SUFFIX else _load)(file, one_line(name), sha256)
    if fold:
        trained.net = folding.fold(trained.net)
    return trained.to(memory_format=torch.channels_last)


def _weights_file(path: Path, checkpoint: str) -> Path:
    """`path` itself if it is a file; the weights file in it if it is a run's folder. Raises CheckpointError."""
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # the name is too long or contains a zero byte
        exists = is_folder = False
    if not exists:
        raise CheckpointError(
            f"checkpoint={checkpoint}: does not exist; the published names are {', '.join(available()) or 'none yet'}"
        )
    if not is_folder:
        return path
    weights = sorted(file for file in path.glob("*.safetensors") if not file.name.startswith(UNFINISHED))
    if not weights and (path / "config.yaml").exists():
        raise CheckpointError(
            f"checkpoint={checkpoint}: the run in this folder has not finished; resume it with its own command and "
            f"resume=auto {pasted('hydra.run.dir', path)}"
        )
    if len(weights) != 1:
        raise CheckpointError(
            f"checkpoint={checkpoint}: expected one .safetensors file in this folder, got {len(weights)}"
        )
    return weights[0]


def _load(file: Path, checkpoint: str, sha256: str = "", card: dict[str, Any] | None = None) -> Pretrained:
    content, actual = _read(file, checkpoint, sha256)
    header, tensors = _parse(content, file, checkpoint)
    if header is None:
        raise CheckpointError(f"checkpoint={checkpoint}: {file.name} has no description of a net in its header")
    try:
        if "file" in header["preprocess"]:
            tensors |= _shared_whitening(file.parent, header["preprocess"], checkpoint)
        trained = _build(header, tensors)
        _check_facts(header["facts"], required=False)
        trained.facts = card or dict(header["facts"])
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        reason = one_line(" ".join(str(error).splitlines()[:2]))
        raise CheckpointError(
            f"checkpoint={checkpoint}: the description in {file.name} does not match its weights ({reason})"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"checkpoint={checkpoint}: {file.name} is too large for this machine: {error}") from error
    trained.sha256 = actual
    return trained


def _load_caffe(file: Path, checkpoint: str, sha256: str = "") -> Pretrained:
    """The authors' own net, with the whitening and the class names of a published net."""
    content, actual = _read(file, checkpoint, sha256)
    published = load(WHITENED_NET)
    try:
        net = build_net(caffe.NET)
        net.load_state_dict(caffe.read(content), assign=True)
        if not all(tensor.isfinite().all() for tensor in net.state_dict().values()):
            raise ValueError("it contains NaN or infinity")
    except (ValueError, RuntimeError) as error:
        reason = one_line(" ".join(str(error).splitlines()[:2]))
        raise CheckpointError(
            f"checkpoint={checkpoint}: {file.name} is not the CIFAR-10 net of Caffe's model zoo ({reason})"
        ) from error
    return Pretrained(net, published.preprocess, published.classes, caffe.FACTS, actual)


def _build(header: dict[str, Any], tensors: dict[str, Tensor]) -> Pretrained:
    """The net of a header with these weights. Raises various exceptions, which `_load` catches, if they disagree."""
    net = build_net(header["net"]).eval()
    size = _check_affordable(net)
    preprocess = _preprocessing(header["preprocess"], tensors)
    names = header["classes"]
    if len(names) != net.num_classes or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected the names of {net.num_classes} classes, got {len(names)}")
    trained = Pretrained(net, preprocess, names, {})
    if repeated := [name for name, count in Counter(trained.classes).items() if count > 1]:
        raise ValueError(f"several classes have the name {repeated[0]}")
    channels = preprocess.shape[0] if isinstance(preprocess, Whiten) else preprocess.mean.numel()
    if channels != trained.channels:
        raise ValueError(f"the net takes {trained.channels} channels, its preprocessing {channels}")
    if isinstance(preprocess, Whiten) and preprocess.shape[1:] != size:
        raise ValueError(f"the net takes images of {times(size)} pixels, its whitening {times(preprocess.shape[1:])}")
    for name, tensor in trained.state_dict().items():
        if name in tensors and tensors[name].dtype != tensor.dtype:
            raise ValueError(f"{name} is {tensors[name].dtype}, expected {tensor.dtype}")
    trained.load_state_dict(tensors, assign=True)
    for name, tensor in trained.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} contains NaN or infinity")
    return trained


def _check_affordable(net: NIN | Backbone) -> tuple[int, int]:
    """Height and width of the net's images, where this machine can compute one. Raises MemoryError."""
    size = sides(LARGEST, image_size=net.arguments["image_size"])
    (needed, operations), there = inference_cost(net, 1, net.in_channels, *size), memory_gb()
    if needed > there:
        raise MemoryError(f"an image needs at least {needed:,.1f} GB of memory, it has {there:,.1f} GB")
    if operations > MAX_OPERATIONS:
        raise MemoryError(
            f"an image needs {operations:.1e} multiply-accumulates, expected at most {MAX_OPERATIONS:.0e}"
        )
    return size


def _preprocessing(described: dict[str, Any], tensors: dict[str, Tensor]) -> Normalise | Whiten:
    one_of(PREPROCESSINGS, preprocess=described["name"])
    kind = PREPROCESSINGS[described["name"]]
    if kind is Whiten:
        return Whiten(tensors["preprocess.mean"], tensors["preprocess.matrix"], described["shape"])
    return kind(tensors["preprocess.mean"], tensors["preprocess.std"])


def _shared_whitening(folder: Path, described: dict[str, Any], checkpoint: str) -> dict[str, Tensor]:
    """The tensors of the whitening's own file, in fp32."""
    if not is_sha256(described["sha256"]):
        raise SettingError("sha256", described["sha256"], "expected 64 hexadecimal digits")
    file = folder / Path(described["file"]).name
    content, _ = _read(file, checkpoint, described["sha256"])
    return read_whitening(_parse(content, file, checkpoint)[1])


def read_whitening(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean and matrix in fp32, of the tensors of a shared whitening: the matrix is symmetric, and half of it is stored.

    Older files store the whole matrix. Raises LookupError or SettingError if the tensors are not a whitening's."""
    read = {name: tensor.float() for name, tensor in tensors.items()}
    if TRIANGLE in read:
        read["preprocess.matrix"] = symmetric(read.pop(TRIANGLE), read["preprocess.mean"].numel())
    return read


def _read(file: Path, checkpoint: str, sha256: str = "") -> tuple[bytes, str]:
    """The bytes of a file whose sha256 begins with `sha256`, and the whole sha256."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise OSError(f"it is larger than {MAX_FILE_BYTES:,} bytes")
        content = files.read(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint={checkpoint}: its file {file.name} is not in {file.parent}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"checkpoint={checkpoint}: {one_line(file)} cannot be read ({reason})") from error
    actual = files.sha256(content)
    if not actual.startswith(sha256):
        expected = (
            f"expected {sha256}, which the net's file or card states"
            if len(sha256) == len(actual)
            else f"its name says {sha256}…"
        )
        raise CheckpointError(f"checkpoint={checkpoint}: {file.name} has sha256 {actual}, {expected}")
    return content, actual


def _parse(content: bytes, file: Path, checkpoint: str) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Our description in a safetensors file's header, None where it has none, and the tensors."""
    try:
        tensors = safetensors.torch.load(content)
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
        return json.loads(metadata.get("nin", "null")), tensors
    except (SafetensorError, ValueError, RecursionError, KeyError) as error:
        reason = one_line(error)
        raise CheckpointError(f"checkpoint={checkpoint}: {file.name} is not a safetensors file ({reason})") from error


def build_net(arguments: Mapping[str, Any]) -> NIN | Backbone:
    """The net of the arguments that stand beside its weights, on torch's meta device: without memory for weights."""
    with torch.device("meta"):
        if "backbone" in arguments:
            return Backbone(**arguments)
        return NIN(**arguments)


def check_fit(trained: Pretrained, images: ImageSet, name: str, *, same_classes: bool = True) -> None:
    """Checks that a net fits a set: channels, image size, whitening and classes.

    Args:
        trained: the net.
        images: the set, at the size that it is used at.
        name: of the set, for people.
        same_classes: whether the net answers with the classes of the set; a net that starts a training need not.

    Raises:
        CheckpointError: the set's images have other channels or another size than the net's, or other classes.
    """
    channels, *size = images.test_images.shape[1:]
    expected = sides(LARGEST, image_size=trained.net.arguments["image_size"])
    whitened = trained.preprocess.shape if isinstance(trained.preprocess, Whiten) else (channels, *size)
    wrong = ""
    if channels != trained.channels:
        wrong = f"its images have {counted(channels, 'channel')}, the net's {trained.channels}"
    elif (same_classes and tuple(size) != expected) or tuple(whitened) != (channels, *size):
        wrong = f"its images have {times(size)} pixels, the net's {times(expected)}"
    elif same_classes and len(images.classes) != len(trained.classes):
        here, there = (counted(len(names), "class", "classes") for names in (images.classes, trained.classes))
        wrong = f"it has {here}, the net {there}"
    elif same_classes and images.classes != trained.classes:
        first, of_net = next(pair for pair in zip(images.classes, trained.classes, strict=True) if len(set(pair)) > 1)
        wrong = f"it has the class {one_line(first)} where the net has {of_net}"
    if wrong:
        raise CheckpointError(f"the net does not fit data={one_line(name)}: {wrong}; was it trained on another set?")


def copy_weights(trained: Pretrained, net: NIN | Backbone, classes: Sequence[str] | None = None) -> list[str]:
    """Copies the weights of `trained` to `net`; returns the names of those that were not copied.

    Where the nets differ in their classes or in their head, all weights that do not depend on it are copied.

    Args:
        trained: the net with the weights.
        net: receives them.
        classes: names of the classes of `net`; None: those of `trained`, if it has as many.

    Raises:
        CheckpointError: the nets differ in anything but these, dropout, initial values, and an image size that the
            head accepts.
    """
    theirs, ours = trained.net.arguments, net.arguments
    for name in {**ours, **theirs}:
        if name not in MAY_DIFFER and ours.get(name) != theirs.get(name):
            there, here = (one_line(arguments.get(name, "none")) for arguments in (theirs, ours))
            raise CheckpointError(f"the checkpoint does not match these settings: {name} is {there} there, {here} here")
    before, after = _shapes(trained.net), _shapes(net)
    with_their_classes = _shapes(build_net({**ours, "num_classes": trained.net.num_classes}))
    depends_on_size = with_their_classes != before
    if theirs["head"] == ours["head"] and depends_on_size:
        raise CheckpointError(
            f"the checkpoint's head accepts only image_size={theirs['image_size']}, got image_size="
            f"{ours['image_size']}; set data.size, or choose a head that pools"
        )
    new = {name for name in after if after[name] != before.get(name)}
    if classes is not None and tuple(map(one_line, classes)) != trained.classes:
        new |= _of_classes(net)
    weights = trained.net.state_dict()
    net.load_state_dict({name: weights[name] for name in after if name not in new}, strict=False)
    return [name for name in after if name in new]


def _of_classes(net: NIN | Backbone) -> set[str]:
    """The names of the weights whose shapes depend on the number of classes."""
    arguments = {**net.arguments, "num_classes": net.num_classes - 1 or 2}
    if "blocks" in arguments and HEADS[arguments["head"]].pools:  # the last block has a map per class
        *blocks, last = arguments["blocks"]
        arguments["blocks"] = [*blocks, {**last, "widths": [*last["widths"][:-1], None]}]
    shapes, others = _shapes(net), _shapes(build_net(arguments))
    return {name for name in shapes if shapes[name] != others[name]}


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


# published nets -------------------------------------------------------------------------------------------------------


def available() -> list[str]:
    """The names of the published nets."""
    return sorted(card.stem for card in CHECKPOINTS.glob("*.json") if not card.name.startswith(UNFINISHED))


def read_card(name: str, *, whole: bool = False) -> dict[str, Any]:
    """The card of a published net.

    Args:
        name: the net's.
        whole: whether every fact that a page prints is required.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        card = json.loads(files.read(CHECKPOINTS / f"{name}.json"))
        if Path(card["file"]).name != card["file"]:
            raise SettingError("file", card["file"], "expected the name of a file in the same folder")
        if not is_sha256(card["sha256"]):
            raise SettingError("sha256", card["sha256"], "expected 64 hexadecimal digits")
        _check_facts(card, required=whole)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise CheckpointError(f"checkpoint={name}: its card {name}.json is damaged ({reason})") from error
    return card


def _check_facts(facts: Any, required: bool) -> None:
    """Raises KeyError or SettingError for a fact of a card that is missing, or of another type than pages and commands
    print; those of a weights file may be missing."""
    if not isinstance(facts, dict):
        raise SettingError("facts", facts, "expected an object")
    for name, (is_right, expected) in {**FACTS, **MORE_FACTS}.items():
        if ((required and name in FACTS) or facts.get(name) is not None) and not is_right(facts[name]):
            raise SettingError(name, facts[name], f"expected {expected}")


def golden_images(size: int | Sequence[int] = 32, channels: int = 3) -> Tensor:
    """Two fixed images of stripes, (2, C, H, W) uint8, the same on every machine.

    The numbers are arbitrary, but every card states the logits of these pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    n = torch.arange(2 * channels * height * width).reshape(2, channels, height, width)
    fine = (n * 37) % 251 // 2  # 0…125, another value at each pixel
    coarse = (n // 96) % 128  # 0…127, one value for 96 pixels
    return (fine + coarse).to(torch.uint8)
