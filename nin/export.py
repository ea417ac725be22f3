"""A trained net in one ONNX file, for programs without PyTorch: pixels in, logits and class maps out.

The file holds what `nin.load` returns: preprocessing and net, and as metadata the names of the classes and the card.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nin.checks import sides
from nin.errors import CheckpointError, UsageError
from nin.model import FC, GAP
from nin.plan import LARGEST
from nin.predict import has_class_maps
from nin.pretrained import Pretrained

if TYPE_CHECKING:
    import onnx

BATCHES = (1, 3, 16)  # of the comparison with PyTorch
TOLERANCE = 1e-3  # of logits and maps, as a share of their largest value: rounding in fp32 is some 1e-6
REQUIRED = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUTS = "pixels", ("logits", "maps")


@dataclass(frozen=True)
class Comparison:
    """How far the file's answers are from PyTorch's, on random pixels.

    Attributes:
        images: how many.
        height, width: of them, in pixels.
        logits, maps: the largest difference, and the largest value, of each.
    """

    images: int
    height: int
    width: int
    logits: tuple[float, float]
    maps: tuple[float, float]

    @property
    def agrees(self) -> bool:
        """Whether the differences are those of rounding."""
        return all(difference <= TOLERANCE * max(1.0, largest) for difference, largest in (self.logits, self.maps))


class Whole(nn.Module):
    """Preprocessing, net and class maps as one module: (N, C, H, W) uint8 ─► logits (N, K) and maps (N, K, h, w).

    The maps are those of `nin.predict.class_maps`. Under a head that has no map per class they are class activation
    maps, written out here because an exported graph has no gradients."""

    def __init__(self, trained: Pretrained) -> None:
        super().__init__()
        self.preprocess, self.net = trained.preprocess, trained.net
        self.own_maps = has_class_maps(trained)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.net.forward_maps(self.preprocess(pixels))
        return self.net.head(maps), maps if self.own_maps else activation_maps(self.net.head, maps)


def activation_maps(head: Any, maps: Tensor) -> Tensor:
    """What each position of maps (N, M, h, w) adds to each score of a head with linear layers: (N, K, h, w)."""
    if isinstance(head, FC):
        weight = head.linear.weight.view(-1, *maps.shape[1:])
        return torch.einsum("nmhw,kmhw->nkhw", maps, weight)
    first, last = head[0], head[-1]
    if isinstance(first, FC):  # two linear layers: the second one sees the units whose ReLU is open
        is_open = (first(maps) > 0).to(maps.dtype)  # (N, units)
        weight = first.linear.weight.view(-1, *maps.shape[1:])
        return torch.einsum("nmhw,umhw,nu,ku->nkhw", maps, weight, is_open, last.weight)
    if isinstance(first, GAP):
        share = torch.full_like(maps, 1.0) / (maps.shape[2] * maps.shape[3])
    else:
        largest = (maps == maps.amax(dim=(2, 3), keepdim=True)).to(maps.dtype)
        share = largest / largest.sum(dim=(2, 3), keepdim=True)
    return torch.einsum("nmhw,km->nkhw", maps * share, last.weight)


def check_installed() -> None:
    """Raises UsageError where the packages of the extra [onnx] are missing."""
    if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
        raise UsageError(f"nin export requires {', '.join(missing)}: pip install 'network-in-network[onnx]'")


def to_onnx(trained: Pretrained) -> bytes:
    """The bytes of the ONNX file of a net: any number of images, and of any size where the net accepts it.

    Its input is `pixels`, (N, C, H, W) uint8 in 0…255, its outputs are `logits` (N, K) and `maps` (N, K, h, w). Its
    metadata are texts: `classes`, a JSON list; `card`, the facts as JSON; `head`, `preprocessing`, `image_size` and
    `sha256`.

    Raises:
        UsageError: the extra [onnx] is not installed.
    """
    check_installed()
    import onnx

    free = {0: torch.export.Dim("batch")}
    if trained.accepts_any_size:
        free |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    height, width = _size(trained)
    pixels = torch.zeros(2, trained.channels, height, width, dtype=torch.uint8)
    with _quiet(), torch.no_grad():
        exported = torch.export.export(Whole(trained), (pixels,), dynamic_shapes=(free,))
        program = torch.onnx.export(exported, dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS))
    proto = program.model_proto
    _name_sizes(proto)
    _forget_sources(proto)
    onnx.helper.set_model_props(proto, _facts(trained))
    return proto.SerializeToString()


def compare(content: bytes, trained: Pretrained) -> Iterator[Comparison]:
    """Runs the file with onnxruntime beside PyTorch: three batch sizes, and two image sizes where the net has them.

    Raises:
        CheckpointError: the answers differ by more than rounding.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    whole, draws = Whole(trained), torch.Generator().manual_seed(0)
    height, width = _size(trained)
    others = [(height + height // 4, width + width // 2)] if trained.accepts_any_size else []
    for size in [(height, width), *others]:
        for images in BATCHES:
            pixels = torch.randint(0, 256, (images, trained.channels, *size), generator=draws, dtype=torch.uint8)
            with torch.no_grad():
                expected = whole(pixels)
            found = session.run(list(OUTPUTS), {INPUT: pixels.numpy()})
            pairs = [(torch.from_numpy(there), here) for there, here in zip(found, expected, strict=True)]
            differences = [((there - here).abs().max().item(), here.abs().max().item()) for there, here in pairs]
            compared = Comparison(images, *size, *differences)
            if not compared.agrees:
                raise CheckpointError(f"the ONNX file does not answer as the net does: {compared}")
            yield compared


def _size(trained: Pretrained) -> tuple[int, int]:
    return sides(LARGEST, image_size=trained.net.arguments["image_size"])


def _facts(trained: Pretrained) -> dict[str, str]:
    """The metadata of the file; where the images were on the machine that trained it is left out."""
    facts = json.loads(json.dumps(trained.facts))
    data = (facts.get("settings") or {}).get("data")
    if isinstance(data, dict) and "root" in data:
        data["root"] = None
    return {
        "classes": json.dumps(trained.classes, ensure_ascii=False),
        "card": json.dumps(facts, ensure_ascii=False),
        "head": trained.net.arguments["head"],
        "preprocessing": trained.preprocess.name,
        "image_size": json.dumps(_size(trained)),
        "sha256": trained.sha256 or "",
    }


def _name_sizes(proto: onnx.ModelProto) -> None:
    """Names the free sizes batch, height and width; torch numbers them, as s81."""
    (pixels,) = proto.graph.input
    dims = pixels.type.tensor_type.shape.dim
    names = {dims[place].dim_param: name for place, name in ((0, "batch"), (2, "height"), (3, "width"))}
    names.pop("", None)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)


def _forget_sources(proto: onnx.ModelProto) -> None:
    """Removes the exporter's notes, which name files of this machine."""
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]
    for part in (*proto.graph.initializer, *proto.functions, proto.graph):
        del part.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the exporter prints and logs about itself."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels: dict[str, Any] = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
