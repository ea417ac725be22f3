"""Nets of torchvision under the heads of this project: what pooling does for a net that was trained elsewhere.

A 1×1 convolution makes K class maps of the backbone's features, then one of `nin.heads` follows. With GAP that is
pooling the features and a linear layer, in another order: a mean and a matrix can be exchanged.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import create_feature_extractor

from nin.bounds import one_of, shown, sides, whole
from nin.heads import FC, GAP, GMP, HEADS, build_head
from nin.model import LARGEST, WIDEST

BACKBONES = {"vgg19": "features", "inception_v3": "Mixed_7c"}  # the layer whose output are the feature maps
# Inception's ImageNet weights were trained on images scaled to −1 … 1; with this it takes ImageNet's mean and spread
OPTIONS = {"inception_v3": {"transform_input": True}}
SMALLEST = {"vgg19": 32, "inception_v3": 75}  # pixels of a side from which there is a feature map
ARTICLE_HEADS = ("fc_article", "gap_article", "gmp_article")


class WeightsError(RuntimeError):
    """ImageNet weights that cannot be had; the message says what to do."""


class Backbone(nn.Module):
    """A net of torchvision up to its last feature maps, then a head: (N, 3, H, W) ─► logits (N, K).

    Args:
        backbone: "vgg19" or "inception_v3".
        num_classes: K.
        head: one of `nin.heads.HEADS`, on K class maps that a 1×1 convolution makes of the features; or, as in the
            article "can pooling replace FC?", on the features themselves: "fc_article" (flattened, Linear to 512,
            ReLU, Linear to K), "gap_article" and "gmp_article" (pooled over space, Linear to K).
        image_size: height and width of the images in pixels, or one number for both. Only FC heads depend on it.
        weights: "imagenet", torchvision's own, downloaded if need be; a file of them; or "none".

    Raises:
        ValueError: a value outside the choices, or images too small for the backbone.
        WeightsError: weights that cannot be downloaded or read.
    """

    def __init__(
        self,
        backbone: str = "vgg19",
        num_classes: int = 1000,
        head: str = "gap",
        *,
        image_size: int | Sequence[int] = 224,
        weights: str = "imagenet",
    ) -> None:
        one_of(BACKBONES, backbone=backbone)
        one_of((*HEADS, *ARTICLE_HEADS), head=head)
        whole(1, WIDEST, num_classes=num_classes)
        height, width = sides(LARGEST, image_size=image_size)
        if min(height, width) < SMALLEST[backbone]:
            raise ValueError(f"image_size={image_size}: {backbone} takes from {SMALLEST[backbone]} pixels a side")
        super().__init__()
        self.num_classes = num_classes
        self.arguments = {  # plain values from which the same net is built again, stored beside its weights
            "backbone": backbone,
            "num_classes": num_classes,
            "head": head,
            "image_size": image_size,
        }
        on_meta = torch.get_default_device().type == "meta"
        # Inception's and VGG's own initial values take half a minute to draw; torch's defaults where they are replaced
        options = OPTIONS.get(backbone, {})
        source = get_model(backbone, weights=None, init_weights=weights == "none" and not on_meta, **options)
        if weights != "none" and not on_meta:
            _load_imagenet(source, backbone, weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NOTE: The nodes obtained by tracing")  # Inception's auxiliary classifier
            self.features = create_feature_extractor(source, {BACKBONES[backbone]: "maps"})
        with torch.no_grad():
            shape = self.features.eval()(torch.zeros(1, 3, height, width, device=next(source.parameters()).device))
        self.train()
        channels, *map_size = shape["maps"].shape[1:]
        if head in ARTICLE_HEADS:
            self.classes = nn.Identity()
            self.head = _article_head(head, channels, num_classes, map_size)
        else:
            self.classes = nn.Conv2d(channels, num_classes, 1)
            self.head = build_head(head, num_maps=num_classes, num_classes=num_classes, map_size=map_size)

    def forward_maps(self, images: Tensor) -> Tensor:
        """What the head reads: class maps (N, K, h, w), or feature maps (N, C, h, w) under the article's heads."""
        return self.classes(self.features(images)["maps"])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.head(self.forward_maps(images))


def _article_head(name: str, channels: int, num_classes: int, map_size: Sequence[int]) -> nn.Module:
    if name == "fc_article":
        return nn.Sequential(FC(channels, 512, map_size), nn.ReLU(), nn.Linear(512, num_classes))
    return nn.Sequential(GAP() if name == "gap_article" else GMP(), nn.Linear(channels, num_classes))


def _load_imagenet(net: nn.Module, backbone: str, weights: str) -> None:
    """torchvision's weights of the whole net, from its address or from a file."""
    try:
        if weights == "imagenet":
            published = get_model_weights(backbone).DEFAULT
            state = published.get_state_dict(progress=True, check_hash=True, weights_only=True)
        elif Path(weights).suffix == ".safetensors":
            state = load_file(weights)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        net.load_state_dict(state)
    except (
        *(OSError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, EOFError),
        *(pickle.UnpicklingError, SafetensorError),
    ) as error:
        reason = shown(str(error) or type(error).__name__)
        raise WeightsError(
            f"model.weights={weights}: the ImageNet weights of {backbone} cannot be had "
            f"({reason}); give a file of torchvision's weights, or model.weights=none"
        ) from error
