"""What a net costs, layer by layer, and what its head costs: fully connected and pooled side by side.

Nets are built and run on torch's meta device, which has shapes and no memory: a head of four gigabytes costs nothing to
look at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nin.backbones import Backbone
from nin.bounds import one_of, sides
from nin.heads import GAP, GMP
from nin.model import LARGEST, NIN
from nin.pretrained import Pretrained, build_net

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Layer:
    """One layer's cost for one image. `formula` spells out the parameters."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_accumulates: int
    formula: str

    @property
    def parameter_mb(self) -> float:
        """Memory of the parameters in MB of 2²⁰ bytes, float32."""
        return self.parameters * BYTES / 2**20

    @property
    def output_mb(self) -> float:
        """Memory of the output in MB of 2²⁰ bytes, float32."""
        return math.prod(self.output) * BYTES / 2**20


COUNTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, GAP, GMP)


def layers(build: Callable[[], nn.Module], *image_shape: int) -> list[Layer]:
    """The layers of the net that `build` makes, in the order in which an image (C, H, W) passes them. Layers that cost
    nothing and keep the shape are left out."""
    with torch.device("meta"):
        net = build().eval()
        images = torch.empty(1, *image_shape)
    found: list[Layer] = []

    def look(name: str) -> Callable:
        def hook(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            found.append(_layer(name, layer, tuple(output.shape[1:])))

        return hook

    for name, module in net.named_modules():
        if isinstance(module, COUNTED):
            module.register_forward_hook(look(name))
    with torch.no_grad():
        net(images)
    return found


def _layer(name: str, layer: nn.Module, output: tuple[int, ...]) -> Layer:
    parameters = sum(p.numel() for p in layer.parameters())
    macs, formula = 0, ""
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        channels = layer.in_channels // layer.groups
        macs = math.prod(output) * channels * height * width
        formula = f"{height}·{width}·{channels}·{layer.out_channels}" + f" + {layer.out_channels}" * bool(
            layer.bias is not None
        )
    elif isinstance(layer, nn.Linear):
        macs = layer.in_features * layer.out_features
        formula = f"{layer.in_features}·{layer.out_features}" + f" + {layer.out_features}" * bool(
            layer.bias is not None
        )
    elif isinstance(layer, nn.BatchNorm2d):
        formula = f"2·{layer.num_features}"
    return Layer(name, type(layer).__name__, output, parameters, macs, formula)


class VGGRegressor(nn.Module):
    """The network of the article that replaces its fully connected layers by pooling: 2×384×160 in, 1×200×95 out.

    Eight 3×3 convolutions with five 2×2 max poolings make 512 maps of 12×5; then two linear layers of 19,000 outputs
    ("fc"), or global average pooling and one ("gap"); the result, seen as an image of 200×95, passes three more
    convolutions. The article's own totals are 954,714,609 and 19,743,609 parameters, 702,209 more than the rows that it
    prints, which are these, sum to.
    """

    def __init__(self, head: str) -> None:
        one_of(("fc", "gap"), head=head)
        super().__init__()
        features: list[nn.Module] = []
        channels = 2
        for width, pooled in (
            *((64, True), (128, True), (256, False), (256, True)),
            *((512, False), (512, True), (512, False), (512, True)),
        ):
            features += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] + [nn.MaxPool2d(2)] * pooled
            channels = width
        self.features = nn.Sequential(*features, nn.Dropout())
        if head == "fc":
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(512 * 12 * 5, 19_000), nn.Linear(19_000, 19_000))
        else:
            self.head = nn.Sequential(GAP(), nn.Linear(512, 19_000))
        self.refine = nn.Sequential(*(nn.Conv2d(c, 64, 3, padding=1) for c in (1, 64, 64)))

    def forward(self, images: Tensor) -> Tensor:
        return self.refine(self.head(self.features(images)).unflatten(1, (1, 200, 95)))


def _torchvision(name: str, head: str) -> nn.Module:
    """A torchvision net with its own fully connected layers, or with a 1×1 convolution to 1,000 class maps and GAP."""
    from torchvision import models

    one_of(("fc", "gap"), head=head)
    net = models.get_model(name)
    if head == "gap":
        channels = [m for m in net.features if isinstance(m, nn.Conv2d)][-1].out_channels
        net.classifier = nn.Sequential(  # torchvision's forward flattens the maps of `avgpool` before it
            nn.Unflatten(1, (channels, *net.avgpool.output_size)), nn.Conv2d(channels, 1000, 1), GAP()
        )
        net.avgpool = nn.Identity()
    return net


# name: (how to build it with a head, the shape of an image)
NETS: dict[str, tuple[Callable[[str], nn.Module], tuple[int, int, int]]] = {
    "cifar10": (lambda head: NIN(head=head), (3, 32, 32)),
    "imagenet": (lambda head: NIN("imagenet", 1000, head, image_size=224), (3, 224, 224)),
    "vgg_regressor": (VGGRegressor, (2, 384, 160)),
    "alexnet": (lambda head: _torchvision("alexnet", head), (3, 224, 224)),
    "vgg19": (lambda head: _torchvision("vgg19", head), (3, 224, 224)),
    "inception_v3": (
        lambda head: Backbone("inception_v3", 1000, head, image_size=299, weights="none"),
        (3, 299, 299),
    ),
}


def of_checkpoint(trained: Pretrained) -> tuple[Callable[[str], nn.Module], tuple[int, int, int]]:
    """How to build a trained net with a head, and the shape of an image: a line of `NETS`."""
    arguments = trained.net.arguments
    shape = (arguments.get("in_channels", 3), *sides(LARGEST, image_size=arguments["image_size"]))
    return lambda head: build_net({**arguments, "head": head}), shape


def beside(head: str) -> tuple[str, ...]:
    """The heads to compare where there is this one: fully connected, average pooling, and itself if it is another; the
    article's with the article's."""
    kind = "_article" if head.endswith("_article") else ""
    return tuple(dict.fromkeys((f"fc{kind}", f"gap{kind}", head)))


def compare(
    name: str,
    build: Callable[[str], nn.Module],
    shape: tuple[int, int, int],
    heads: Sequence[str] = ("fc", "gap"),
) -> str:
    """The layers of a net, those before the head once, then the heads', and sums.

    Args:
        name: for the first line.
        build: makes the net with a head.
        shape: (C, H, W) of an image.
        heads: a fully connected one, one that pools, and others.
    """
    costs = {head: layers(lambda head=head: build(head), *shape) for head in heads}
    shared = 0
    while shared < min(map(len, costs.values())) and len({found[shared] for found in costs.values()}) == 1:
        shared += 1
    before = costs[heads[0]][:shared]
    lines = [f"{name}, one image of {'×'.join(map(str, shape))}", "", _header(), *map(_line, before)]
    for head, found in costs.items():
        lines += [f"-- head {head}", *map(_line, found[shared:])]
    lines.append("")
    for head, found in costs.items():
        parameters = sum(layer.parameters for layer in found)
        macs = sum(layer.multiply_accumulates for layer in found)
        size = f"{parameters:>15,} parameters {parameters * BYTES / 2**20:>9,.2f} MB"
        lines.append(f"with {head:<{max(map(len, heads)) + 1}}{size} {macs:>18,} multiply-accumulates")
    ratio = sum(layer.parameters for layer in costs[heads[0]]) / sum(layer.parameters for layer in costs[heads[1]])
    lines += ["", f"{heads[0]} has {ratio:.2f} times the parameters of {heads[1]}"]
    return "\n".join([*lines, "multiply-accumulates = the product in the formula × the places of the output"])


def _header() -> str:
    return f"{'layer':<24}{'output':>14}{'parameters':>14}{'MB':>9}{'multiply-acc.':>16}{'output MB':>11}  parameters ="


def _line(layer: Layer) -> str:
    shape = "×".join(map(str, layer.output))
    name = layer.name if layer.parameters else f"{layer.name} ({layer.kind})"
    return (
        f"{name:<24}{shape:>14}{layer.parameters:>14,}{layer.parameter_mb:>9,.2f}{layer.multiply_accumulates:>16,}"
        f"{layer.output_mb:>11,.2f}  {layer.formula}"
    ).rstrip()
