"""Network in Network (Lin, Chen, Yan, 2013, https://arxiv.org/abs/1312.4400): mlpconv and global average pooling.

images (N, 3, 32, 32) ─► mlpconv blocks ─► class maps (N, K, 8, 8) ─► head ─► logits (N, K)"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

from torch import Tensor, nn

from nin.errors import SettingError
from nin.layers import LocalBlock, LocalResponseNorm
from nin.plan import HEADS, ONE_SIZE, Block, Plan, checked_fc, checked_mlpconv


class MLPConv(nn.Sequential):
    """A k×k convolution and two 1×1 convolutions: at each position a small network, not a linear filter (section 3.1).

    (N, in_channels, H, W) ─► (N, widths[-1], H', W'). Arguments as in `Block` and `NIN`; raises SettingError."""

    def __init__(
        self,
        in_channels: int,
        widths: int | Sequence[int],
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        norm: str = "none",
        last_relu: bool = True,
    ) -> None:
        block = checked_mlpconv(in_channels, Block(widths, kernel_size, stride, padding), norm, last_relu)
        super().__init__()
        for n, (before, width) in enumerate(pairwise((in_channels, *block.widths)), 1):
            window = (kernel_size, stride, block.effective_padding) if n == 1 else (1, 1, 0)
            bare = n == len(block.widths) and not last_relu  # scores: neither normalised nor cut at 0
            normed = norm == "batch" and not bare
            self.add_module(f"conv{n}", nn.Conv2d(before, width, *window, bias=not normed))
            if normed:
                self.add_module(f"norm{n}", nn.BatchNorm2d(width))  # has the bias
            if not bare:
                self.add_module(f"relu{n}", nn.ReLU(inplace=True))


class GAP(nn.Module):
    """Global average pooling: the mean of a class's map is its score (section 3.2). (N, K, h, w) ─► (N, K)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))


class GMP(nn.Module):
    """Global max pooling: the largest value of a class's map is its score. (N, K, h, w) ─► (N, K)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.amax(dim=(2, 3))


class FC(nn.Module):
    """What pooling replaces (Table 5): a linear layer on M flattened maps of one size. (N, M, h, w) ─► (N, K).

    `dropout` is the probability for each of its M·h·w inputs. Raises SettingError, also for maps of another size."""

    def __init__(self, num_maps: int, num_classes: int, map_size: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        height, width = self.map_size = checked_fc(num_maps, num_classes, map_size, dropout)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = nn.Linear(num_maps * height * width, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        if maps.shape[2:] != self.map_size:
            raise SettingError("map_size", tuple(maps.shape[2:]), f"expected {self.map_size}; {ONE_SIZE}")
        return self.linear(self.dropout(maps.flatten(1)))


def build_head(name: str, num_maps: int, num_classes: int, map_size: Sequence[int]) -> nn.Module:
    """The head of a name in `nin.plan.HEADS` that reads class maps: M = `num_maps` maps of `map_size`."""
    head = HEADS[name]
    if head.layer == "linear":
        return FC(num_maps, num_classes, map_size, head.dropout)
    return GAP() if head.layer == "average" else GMP()


POOLINGS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class NIN(nn.Module):
    """The net: mlpconv blocks with 3×3 stride-2 pooling between them, then a head. Default: the authors' CIFAR-10 net.

    Args:
        blocks: a list of `Block`, or a name of `nin.plan.BLOCKS`: the authors' nets.
        num_classes, head: K, and one of "gap", "gmp" (which accept any image size), "fc", "fc_dropout".
        in_channels, image_size: of an image; height and width in pixels, or one number for both. FC heads depend on it.
        last_pool: "max" or "average", the pooling before the last block: the authors' two releases differ in it.
        dropout: probability of dropout after each block with `dropout=True`.
        norm: "none", the paper's, or "batch": normalisation between each convolution and its ReLU.
        last_relu: whether the class maps pass a ReLU, as the authors' do. A net whose maps are all 0 cannot learn.
        init: "gaussian", the authors' N(0, 0.05) for every weight, or "kaiming" (He et al., 2015). Biases start at 0.

    Raises SettingError as `nin.plan.Plan` does."""

    def __init__(
        self,
        blocks: str | Sequence[Block] = Plan.blocks,
        num_classes: int = Plan.num_classes,
        head: str = Plan.head,
        *,
        in_channels: int = Plan.in_channels,
        image_size: int | Sequence[int] = Plan.image_size,
        last_pool: str = Plan.last_pool,
        dropout: float = Plan.dropout,
        norm: str = Plan.norm,
        last_relu: bool = Plan.last_relu,
        init: str = Plan.init,
    ) -> None:
        super().__init__()
        plan = Plan(blocks, num_classes, head, in_channels, image_size, last_pool, dropout, norm, last_relu, init)
        self.plan, self.arguments = plan, asdict(plan)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.blocks = nn.Sequential()
        channels, last = in_channels, len(plan.blocks)
        for number, (block, pool) in enumerate(zip(plan.blocks, plan.pools, strict=True), 1):
            widths, side, relu = plan.widths(number), block.kernel_size, last_relu or number < last
            if local_size := plan.local_size(number):
                layers: nn.Module = LocalBlock(channels, widths, side, local_size, last_relu=relu)
            else:
                layers = MLPConv(
                    channels, widths, side, stride=block.stride, padding=block.padding, norm=norm, last_relu=relu
                )
            self.blocks.add_module(f"block{number}", layers)
            if pool:  # ceil mode without padding, as in both of the authors' releases: 32 → 16 → 8
                self.blocks.add_module(f"pool{number}", POOLINGS[pool](3, stride=2, ceil_mode=True))
            if block.lrn:  # Hinton et al.'s α = 0.001; torch divides its own by the 9 channels
                self.blocks.add_module(f"lrn{number}", LocalResponseNorm(9, alpha=0.009, k=1))
            if block.dropout:
                self.blocks.add_module(f"drop{number}", nn.Dropout(dropout))
            channels = widths[-1]
        self.head = build_head(head, channels, num_classes, plan.map_size)
        self._init_weights()

    def _init_weights(self) -> None:
        # no weights on torch's meta device: an initial value there would import torch's compiler
        layers = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear) and not m.weight.is_meta]
        for layer, std in zip(layers, self.plan.stds, strict=False):  # a head that pools has no weights
            if self.plan.init == "kaiming":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward_maps(self, images: Tensor) -> Tensor:
        """Class maps (N, K, h, w) of images (N, in_channels, H, W), both floating point; 32×32 gives 8×8."""
        return self.blocks(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K), before the softmax, of images (N, in_channels, H, W)."""
        return self.head(self.forward_maps(images))
