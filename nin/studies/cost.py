"""Cost of a net, layer by layer, and of its head: fully connected and pooled side by side.

Nets are built and run on torch's meta device, which has shapes and no memory: a head of four gigabytes costs nothing.
Costs are counted by formula, not by torch's flop counter (`nin.cost`): the table prints each layer's formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nin.backbones import Backbone
from nin.checks import one_of, sides
from nin.layers import LocallyConnected
from nin.model import GAP, GMP, NIN
from nin.plan import HEADS, LARGEST
from nin.pretrained import Pretrained, build_net

BYTES = 4  # of a float32
RULE = (
    "multiply-accumulates of a convolution or a linear layer = the first product of its formula × the positions of the "
    "output; other layers count none"
)
COUNTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, GAP, GMP)


class CostedNet(NamedTuple):
    """A net whose head can be chosen, and the shape (C, H, W) of its images."""

    build: Callable[[str], nn.Module]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One layer's cost for one image. `formula` spells out the parameters; of a layer that multiplies its first product
    is the multiply-accumulates of one position of the output."""

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


@dataclass(frozen=True)
class Comparison:
    """The layers of one net under several heads: the first is fully connected, the second pools."""

    name: str
    shape: tuple[int, int, int]
    layers: dict[str, list[Layer]]  # by head

    @property
    def shared(self) -> int:
        """The number of first layers that do not depend on the head."""
        several = list(zip(*self.layers.values(), strict=False))
        return next((number for number, same in enumerate(several) if len(set(same)) > 1), len(several))

    def parameters(self, head: str) -> int:
        """All parameters of the net with this head."""
        return sum(layer.parameters for layer in self.layers[head])

    def multiply_accumulates(self, head: str) -> int:
        """Multiply-accumulates of the net with this head, for one image."""
        return sum(layer.multiply_accumulates for layer in self.layers[head])


# measuring ------------------------------------------------------------------------------------------------------------


def compare(name: str, net: CostedNet, heads: Sequence[str]) -> Comparison:
    """The cost of a net under each of these heads. Raises SettingError for a head that the net does not support."""
    return Comparison(name, net.shape, {head: layers(lambda head=head: net.build(head), *net.shape) for head in heads})


def layers(build: Callable[[], nn.Module], *image_shape: int) -> list[Layer]:
    """The layers of the net that `build` makes, in the order in which an image (C, H, W) passes them. Layers that cost
    nothing and keep the shape are left out."""
    with torch.device("meta"):
        net = build().eval()
        images = torch.empty(1, *image_shape)
    passed: list[Layer] = []

    def record_as(name: str) -> Callable:
        def hook(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            passed.append(measure(name, layer, tuple(output.shape[1:])))

        return hook

    for name, module in net.named_modules():
        if isinstance(module, COUNTED):
            module.register_forward_hook(record_as(name))
    with torch.no_grad():
        net(images)
    return passed


def measure(name: str, layer: nn.Module, output: tuple[int, ...]) -> Layer:
    """The cost of one layer whose output for one image has this shape."""
    parameters = sum(p.numel() for p in layer.parameters())
    macs, formula = 0, ""
    if isinstance(layer, LocallyConnected):  # filters of its own for each position: a group of a convolution
        macs = layer.weight.numel()
        filters = layer.out_channels // layer.groups
        channels = layer.in_channels // layer.groups // layer.window**2
        each = f"{layer.window}·{layer.window}·{channels}·{filters}{_bias(layer, filters)}"
        formula = f"({each})·{layer.size[0]}·{layer.size[1]}"
    elif isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        channels = layer.in_channels // layer.groups
        macs = math.prod(output) * channels * height * width
        formula = f"{height}·{width}·{channels}·{layer.out_channels}" + _bias(layer, layer.out_channels)
    elif isinstance(layer, nn.Linear):
        macs = math.prod(output) * layer.in_features
        formula = f"{layer.in_features}·{layer.out_features}" + _bias(layer, layer.out_features)
    elif isinstance(layer, nn.BatchNorm2d):
        formula = f"2·{layer.num_features}"
    return Layer(name, type(layer).__name__, output, parameters, macs, formula)


def _bias(layer: nn.Conv2d | nn.Linear, outputs: int) -> str:
    return "" if layer.bias is None else f" + {outputs}"


def beside(head: str) -> tuple[str, ...]:
    """The heads to compare with this one: the fully connected and the average pooling head of its kind, on class maps
    or on features, and itself. Raises SettingError for an unknown head."""
    one_of(HEADS, head=head)
    alike = {name: each for name, each in HEADS.items() if each.of_features == HEADS[head].of_features}
    linear = next(name for name, each in alike.items() if each.layer == "linear" and not each.dropout)
    average = next(name for name, each in alike.items() if each.layer == "average")
    return tuple(dict.fromkeys((linear, average, head)))


# printing -------------------------------------------------------------------------------------------------------------


def table(comparison: Comparison) -> str:
    """The layers before the head once, then those of each head, and sums."""
    first, second, *_ = comparison.layers
    shared = comparison.shared
    lines = [f"{comparison.name}, one image of {'×'.join(map(str, comparison.shape))}", ""]
    lines.append(
        f"{'layer':<24}{'output':>14}{'parameters':>14}{'MB':>9}{'multiply-acc.':>16}{'output MB':>11}  parameters ="
    )
    lines += map(_line, comparison.layers[first][:shared])
    for head, passed in comparison.layers.items():
        lines += [f"-- head {head}", *map(_line, passed[shared:])]
    ratio = comparison.parameters(first) / comparison.parameters(second)
    lines += ["", *_sums(comparison), "", f"{first} has {ratio:.2f} times the parameters of {second}"]
    return "\n".join([*lines, RULE])


def _sums(comparison: Comparison) -> list[str]:
    widest = max(map(len, comparison.layers)) + 1
    lines = []
    for head in comparison.layers:
        parameters, macs = comparison.parameters(head), comparison.multiply_accumulates(head)
        memory = f"{parameters * BYTES / 2**20:>9,.2f} MB"
        lines.append(f"with {head:<{widest}}{parameters:>15,} parameters {memory} {macs:>18,} multiply-accumulates")
    return lines


def _line(layer: Layer) -> str:
    shape = "×".join(map(str, layer.output))
    name = layer.name if layer.parameters else f"{layer.name} ({layer.kind})"
    return (
        f"{name:<24}{shape:>14}{layer.parameters:>14,}{layer.parameter_mb:>9,.2f}{layer.multiply_accumulates:>16,}"
        f"{layer.output_mb:>11,.2f}  {layer.formula}"
    ).rstrip()


# nets -----------------------------------------------------------------------------------------------------------------


class VGGRegressor(nn.Module):
    """The network of the article that replaces its fully connected layers by pooling.

    (N, 2, 384, 160) ─► (N, 1, 200, 95). Eight 3×3 convolutions with five 2×2 max poolings make 512 maps of 12×5. Two
    linear layers of 19,000 outputs follow ("fc"), or global average pooling and one ("gap"). The result, seen as an
    image of 200×95, passes three more convolutions. The article's totals are 954,714,609 and 19,743,609 parameters:
    702,209 more than the sums of the rows that it prints, which are the layers here.
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
            features += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            if pooled:
                features.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*features, nn.Dropout())
        if head == "fc":
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(512 * 12 * 5, 19_000), nn.Linear(19_000, 19_000))
        else:
            self.head = nn.Sequential(GAP(), nn.Linear(512, 19_000))
        self.refine = nn.Sequential(*(nn.Conv2d(c, 64, 3, padding=1) for c in (1, 64, 64)))

    def forward(self, images: Tensor) -> Tensor:
        return self.refine(self.head(self.features(images)).unflatten(1, (1, 200, 95)))


def of_torchvision(name: str, head: str) -> nn.Module:
    """A net of torchvision: with its linear layers ("fc"), or a 1×1 convolution to 1,000 class maps and GAP ("gap")."""
    from torchvision import models

    one_of(("fc", "gap"), head=head)
    net = models.get_model(name)
    if head == "gap":
        channels = [m for m in net.features if isinstance(m, nn.Conv2d)][-1].out_channels
        net.classifier = nn.Sequential(  # torchvision's forward flattens the maps of `avgpool` first
            nn.Unflatten(1, (channels, *net.avgpool.output_size)), nn.Conv2d(channels, 1000, 1), GAP()
        )
        net.avgpool = nn.Identity()
    return net


def of_checkpoint(trained: Pretrained) -> CostedNet:
    """A trained net, with any head in place of its own."""
    arguments = trained.net.arguments
    shape = (trained.net.in_channels, *sides(LARGEST, image_size=arguments["image_size"]))
    return CostedNet(lambda head: build_net({**arguments, "head": head}), shape)


def _inception(head: str) -> nn.Module:
    return Backbone("inception_v3", 1000, head, image_size=299, weights="none")


NETS = {
    "cifar10": CostedNet(lambda head: NIN(head=head), (3, 32, 32)),
    "imagenet": CostedNet(lambda head: NIN("imagenet", 1000, head, image_size=224), (3, 224, 224)),
    "vgg_regressor": CostedNet(VGGRegressor, (2, 384, 160)),
    "alexnet": CostedNet(lambda head: of_torchvision("alexnet", head), (3, 224, 224)),
    "vgg19": CostedNet(lambda head: of_torchvision("vgg19", head), (3, 224, 224)),
    "inception_v3": CostedNet(_inception, (3, 299, 299)),
}
