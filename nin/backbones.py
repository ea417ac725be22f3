"""Nets of torchvision under the heads of this project: what pooling does for a net that was trained elsewhere.

A 1×1 convolution makes K class maps of the backbone's features, then a head follows. With GAP that equals pooling the
features first and a linear layer after: a mean and a matrix commute.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn

from nin import files
from nin.checks import integer, one_line, one_of, sides
from nin.config import HeadConfig, ModelConfig
from nin.download import download
from nin.errors import DataError, RunError, SettingError, WeightsError
from nin.model import FC, GAP, GMP, build_head
from nin.plan import HEADS, LARGEST, WIDEST


@dataclass(frozen=True)
class Spec:
    """A net of torchvision.

    Attributes:
        features: the layer whose outputs are the feature maps.
        smallest: pixels of a side below which no feature map is left.
        slow_init: whether torchvision's constructor has `init_weights`. Drawing them takes half a minute.
        options: further arguments of torchvision's constructor.
    """

    features: str
    smallest: int
    slow_init: bool = False
    options: dict[str, Any] = field(default_factory=dict)


BACKBONES = {
    "vgg19": Spec("features", 32, slow_init=True),
    # its ImageNet weights were trained on images scaled to −1 … 1; with this option it takes ImageNet's normalisation
    "inception_v3": Spec("Mixed_7c", 75, slow_init=True, options={"transform_input": True}),
    "squeezenet1_1": Spec("features", 17),  # NIN's nearest descendant: its own head is a 1×1 convolution, then GAP
}


class Backbone(nn.Module):
    """A net of torchvision up to its last feature maps, then a head: (N, 3, H, W) ─► logits (N, K).

    Args:
        backbone: "vgg19", "inception_v3" or "squeezenet1_1".
        num_classes: K.
        head: a name of `nin.plan.HEADS`: on K class maps that a 1×1 convolution makes of the features, or, for the
            article's heads, on the features themselves.
        image_size: height and width of the images in pixels, or one number for both. Only FC heads depend on it.
        weights: "imagenet", torchvision's own, downloaded if need be; a file of them; or "none".

    Raises:
        SettingError: a value that is not allowed, or images that are too small for the backbone.
        WeightsError: weights that cannot be downloaded or read.
    """

    def __init__(
        self,
        backbone: str = "vgg19",
        num_classes: int = 1000,
        head: str = HeadConfig.name,
        *,
        image_size: int | Sequence[int] = 224,
        weights: str = ModelConfig.weights,
    ) -> None:
        one_of(BACKBONES, backbone=backbone)
        one_of(HEADS, head=head)
        integer(1, WIDEST, num_classes=num_classes)
        size, smallest = sides(LARGEST, image_size=image_size), BACKBONES[backbone].smallest
        if min(size) < smallest:
            raise SettingError("image_size", image_size, f"{backbone} requires at least {smallest} pixels a side")
        super().__init__()
        self.num_classes, self.in_channels = num_classes, 3
        self.arguments: dict[str, Any] = {  # plain values that build the same net again, stored beside its weights
            "backbone": backbone,
            "num_classes": num_classes,
            "head": head,
            "image_size": image_size,
        }
        self.features = _features(backbone, weights)
        with torch.no_grad():
            image = torch.zeros(1, 3, *size, device=next(self.features.parameters()).device)
            channels, *map_size = self.features.eval()(image)["maps"].shape[1:]
        self.train()
        if HEADS[head].of_features:
            self.classes = nn.Identity()
            self.head = _head_of_features(head, channels, num_classes, map_size)
        else:
            self.classes = nn.Conv2d(channels, num_classes, 1)
            self.head = build_head(head, num_classes, num_classes, map_size)

    def forward_features(self, images: Tensor) -> Tensor:
        """The backbone's feature maps (N, C, h, w) of normalised images (N, 3, H, W)."""
        return self.features(images)["maps"]

    def above_features(self) -> nn.Sequential:
        """The layers above the features, with the same weights: from feature maps (N, C, h, w) to logits (N, K)."""
        layers = nn.Sequential(self.classes, self.head)
        layers.num_classes = self.num_classes
        return layers

    def forward_maps(self, images: Tensor) -> Tensor:
        """What the head reads: class maps (N, K, h, w), or feature maps (N, C, h, w) under the article's heads."""
        return self.classes(self.forward_features(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.head(self.forward_maps(images))


def _head_of_features(name: str, channels: int, num_classes: int, map_size: Sequence[int]) -> nn.Module:
    layer = HEADS[name].layer
    if layer == "linear":
        return nn.Sequential(FC(channels, 512, map_size), nn.ReLU(), nn.Linear(512, num_classes))
    return nn.Sequential(GAP() if layer == "average" else GMP(), nn.Linear(channels, num_classes))


def _features(backbone: str, weights: str) -> nn.Module:
    """The net up to its feature maps: (N, 3, H, W) ─► {"maps": (N, C, h, w)}."""
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    source, on_meta = BACKBONES[backbone], torch.get_default_device().type == "meta"
    # where weights are loaded, torch's own initial weights do: they are drawn faster
    drawn = {"init_weights": weights == "none" and not on_meta} if source.slow_init else {}
    net = get_model(backbone, weights=None, **drawn, **source.options)
    if weights != "none" and not on_meta:
        _load_imagenet(net, backbone, weights)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NOTE: The nodes obtained by tracing")  # Inception's auxiliary classifier
        return create_feature_extractor(net, {source.features: "maps"})


def _load_imagenet(net: nn.Module, backbone: str, weights: str) -> None:
    """Loads torchvision's weights of the whole net, from its address or from a file."""
    from torchvision.models import get_model_weights

    try:
        content = _published(get_model_weights(backbone).DEFAULT.url) if weights == "imagenet" else files.read(weights)
        if Path(weights).suffix == ".safetensors":
            state = parse_safetensors(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        net.load_state_dict(state)
    except (
        *(DataError, OSError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, EOFError),
        *(pickle.UnpicklingError, SafetensorError),
    ) as error:
        raise _not_loaded(backbone, weights, error) from error


def weights_sha256(backbone: str, file: str, expected: str | None = None) -> str:
    """The sha256 of a file of weights. Raises WeightsError if it cannot be read, or is not the expected one."""
    try:
        facts = os.stat(file)
        found = _sha256_of(file, facts.st_size, facts.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise _not_loaded(backbone, file, error) from error
    if expected not in (None, found):
        raise WeightsError(f"model.weights_sha256={expected}: {one_line(file)} is another file, with sha256 {found}")
    return found


@cache
def _sha256_of(file: str, size: int, changed: int) -> str:
    return files.sha256(files.read(file))


def _not_loaded(backbone: str, weights: str, error: Exception) -> WeightsError:
    reason = one_line(str(error) or type(error).__name__)
    return WeightsError(
        f"model.weights={one_line(weights)}: the ImageNet weights of {backbone} cannot be loaded ({reason}); give a "
        "file of torchvision's weights, or model.weights=none"
    )


def _published(url: str) -> bytes:
    """The bytes of a file of torchvision, whose name ends in the beginning of their sha256. It is kept where torch.hub
    looks for it, under TORCH_HOME. Raises DataError where it cannot be downloaded."""
    name = PurePosixPath(urlsplit(url).path)
    file, expected = Path(torch.hub.get_dir(), "checkpoints", name.name), name.stem.rpartition("-")[2]
    kept = files.read(file) if file.is_file() else b""
    if files.sha256(kept).startswith(expected):
        return kept
    content = download([url], expected, files.sha256)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(file, content)
    except (OSError, RunError) as error:
        print(f"the weights are not kept for the next time: {one_line(error)}")
    return content
