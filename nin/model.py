"""Network in Network (Lin, Chen, Yan, 2013, https://arxiv.org/abs/1312.4400): mlpconv blocks and the net made of them.

An image goes through a list of mlpconv blocks with a pooling between each two of them. The last block makes as many
maps as there are classes; a head (`nin.heads`) turns these class maps into one score a class:

    images (N, 3, 32, 32) ─► blocks ─► class maps (N, K, 8, 8) ─► head ─► logits (N, K)
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from nin.bounds import one_of, share, shown, sides, truth, whole
from nin.heads import HEADS, build_head

NORMS = ("none", "batch")
INITS = ("gaussian", "kaiming")
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
WIDEST = 65_536  # channels or classes: at twenty times the widest net, a number above it is a slip
LARGEST = 10_000  # pixels: of a side of an image, a window, a stride or a padding
DEEPEST = 1_000  # blocks


class MLPConv(nn.Sequential):
    """A k×k convolution and two 1×1 convolutions, each followed by its nonlinearity (paper, section 3.1).

    The 1×1 convolutions apply one small multilayer perceptron to the channels at every position: what a convolution
    does with a linear filter, mlpconv does with a function that can bend.

        (N, in_channels, H, W) ─► (N, widths[-1], H', W'), H' = (H + 2 padding − kernel_size) // stride + 1

    Args:
        in_channels: channels of the input.
        widths: output channels of the three convolutions, or one number where all three are equal. [width] alone
            leaves the 1×1 convolutions away: a plain convolution, to compare with.
        kernel_size: k, side of the first convolution's window in pixels.
        stride: of the first convolution.
        padding: zeros around the input of the first convolution; by default k // 2, which keeps the size.
        norm: "none" (the paper's) or "batch": batch normalisation between each convolution and its nonlinearity.
        last_relu: whether the last 1×1 convolution has a nonlinearity too. Without one it has no normalisation
            either: its output are scores.

    Raises:
        ValueError: another number of widths, or a value outside its bounds.
    """

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
        plan = Block(widths, kernel_size, stride, padding)
        widths = plan.widths
        whole(1, WIDEST, in_channels=in_channels, widths=widths[-1])
        one_of(NORMS, norm=norm)
        truth(last_relu=last_relu)
        padding = kernel_size // 2 if padding is None else padding
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for n, (before, width) in enumerate(zip((in_channels, *widths), widths, strict=False), 1):
            spatial = (kernel_size, stride, padding) if n == 1 else (1, 1, 0)
            scores = n == len(widths) and not last_relu
            normed = norm == "batch" and not scores
            layers[f"conv{n}"] = nn.Conv2d(before, width, *spatial, bias=not normed)  # the norm brings a bias
            if normed:
                layers[f"norm{n}"] = nn.BatchNorm2d(width)
            if not scores:
                layers[f"relu{n}"] = nn.ReLU(inplace=True)
        super().__init__(layers)


@dataclass(frozen=True)
class Block:
    """One line of a net's plan: an mlpconv block and what follows it.

    Attributes:
        widths: as in `MLPConv`. None as the last one stands for the number of classes.
        kernel_size: side of the first convolution's window in pixels.
        stride: of the first convolution.
        padding: of the first convolution; None keeps the size (kernel_size // 2).
        dropout: whether the net's dropout comes after this block (and after its pooling).

    Raises:
        ValueError: a value that no convolution can have.
    """

    widths: int | Sequence[int | None]
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    dropout: bool = False

    def __post_init__(self) -> None:
        widths = self.widths if isinstance(self.widths, Sequence) else (self.widths,) * 3
        if len(widths) not in (1, 3):
            raise ValueError(f"widths={shown(self.widths)}: a block takes three widths, one number for all, or [one]")
        object.__setattr__(self, "widths", tuple(widths))
        for width in widths[:-1] if widths[-1] is None else widths:
            whole(1, WIDEST, widths=width)
        whole(1, LARGEST, kernel_size=self.kernel_size, stride=self.stride)
        whole(0, LARGEST, padding=0 if self.padding is None else self.padding)
        truth(dropout=self.dropout)


# The authors' CIFAR-10 net: 966,986 parameters, 222,486,528 multiply-accumulates for a 32×32 image.
CIFAR10 = (
    Block((192, 160, 96), kernel_size=5, dropout=True),  # 32×32, then pooled to 16×16
    Block((192, 192, 192), kernel_size=5, dropout=True),  # 16×16, then pooled to 8×8
    Block((192, 192, None), kernel_size=3),  # 8×8, one map a class
)

# The authors' ImageNet net: 7,595,176 parameters with 1,000 classes; for images of 224×224.
IMAGENET = (
    Block(96, kernel_size=11, stride=4, padding=0),  # 54×54, then 27×27
    Block(256, kernel_size=5),  # 27×27, then 13×13
    Block(384, kernel_size=3, dropout=True),  # 13×13, then 6×6
    Block((1024, 1024, None), kernel_size=3),  # 6×6, one map a class
)

BLOCKS = {"cifar10": CIFAR10, "imagenet": IMAGENET}


class NIN(nn.Module):
    """Network in Network: mlpconv blocks with 3×3 stride-2 pooling between them, then a head.

    The defaults are the authors' CIFAR-10 net. Any image size will do that the blocks leave something of and that the
    head allows: `gap` and `gmp` take all of them, `fc` and `fc_dropout` the one that they were built for.

    Args:
        blocks: the plan, a list of `Block`, or the name of one of the authors' nets: "cifar10", "imagenet".
        num_classes: K, number of classes.
        head: "gap", "gmp", "fc" or "fc_dropout"; see `nin.heads`.
        in_channels: channels of an image.
        image_size: height and width of the images in pixels, or one number for both. Only FC heads depend on it.
        last_pool: "max" or "average", the pooling before the last block: max in the authors' first release
            (cuda-convnet), average in their Caffe release. The poolings before it are max in both.
        dropout: probability that an activation after a block with `dropout=True` is dropped.
        norm: "none" as in the paper, or "batch".
        last_relu: whether the class maps pass a ReLU, as the authors' do. A net with all its maps at zero learns
            nothing more; most re-implementations leave this ReLU out.
        init: "gaussian", N(0, 0.05) on every layer as the authors' files for CIFAR-10 have it, or "kaiming" (He et
            al., 2015). Biases start at 0.

    Raises:
        ValueError: a value outside these choices, a plan that leaves nothing of an image, or a head that cannot read
            the class maps; the message names the value and the choices.
    """

    def __init__(
        self,
        blocks: str | Sequence[Block] = "cifar10",
        num_classes: int = 10,
        head: str = "gap",
        *,
        in_channels: int = 3,
        image_size: int | Sequence[int] = 32,
        last_pool: str = "max",
        dropout: float = 0.5,
        norm: str = "none",
        last_relu: bool = True,
        init: str = "gaussian",
    ) -> None:
        one_of(HEADS, head=head)
        one_of(POOLS, last_pool=last_pool)
        one_of(NORMS, norm=norm)
        one_of(INITS, init=init)
        share(dropout=dropout)
        truth(last_relu=last_relu)
        whole(1, WIDEST, num_classes=num_classes, in_channels=in_channels)
        if isinstance(blocks, str) and blocks in BLOCKS:
            blocks = BLOCKS[blocks]
        if not isinstance(blocks, list | tuple) or not all(isinstance(block, Block) for block in blocks):
            raise ValueError(f"blocks={shown(blocks)}: choose one of {', '.join(BLOCKS)}, or give a list of blocks")
        if not 0 < len(blocks) <= DEEPEST:
            raise ValueError(f"blocks={shown(blocks)}: {len(blocks)} of them, where a net has from 1 to {DEEPEST}")
        size = sides(LARGEST, image_size=image_size)
        super().__init__()
        self.num_classes = num_classes
        self.arguments = {  # plain values from which the same net is built again, stored beside its weights
            "blocks": [asdict(block) for block in blocks],
            "num_classes": num_classes,
            "head": head,
            "in_channels": in_channels,
            "image_size": image_size,
            "last_pool": last_pool,
            "dropout": dropout,
            "norm": norm,
            "last_relu": last_relu,
            "init": init,
        }

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for number, block in enumerate(blocks, 1):
            widths = [num_classes if w is None else w for w in block.widths]
            padding = block.kernel_size // 2 if block.padding is None else block.padding
            layers[f"block{number}"] = MLPConv(
                channels,
                widths,
                block.kernel_size,
                stride=block.stride,
                padding=padding,
                norm=norm,
                last_relu=last_relu or number < len(blocks),
            )
            channels = widths[-1]
            size = tuple((s + 2 * padding - block.kernel_size) // block.stride + 1 for s in size)
            if number < len(blocks):
                # ceil mode and no padding, as in both of the authors' releases: 32 → 16 → 8
                pool = POOLS[last_pool if number == len(blocks) - 1 else "max"]
                layers[f"pool{number}"] = pool(3, stride=2, ceil_mode=True)
                size = tuple(math.ceil((s - 3) / 2) + 1 for s in size)
            if block.dropout:
                layers[f"drop{number}"] = nn.Dropout(dropout)
            if min(size) < 1:
                raise ValueError(
                    f"blocks: block {number} leaves nothing of images of image_size={image_size}, with "
                    f"kernel_size={block.kernel_size}, stride={block.stride}, padding={padding}"
                )
        self.blocks = nn.Sequential(layers)
        self.head = build_head(head, num_maps=channels, num_classes=num_classes, map_size=size)

        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if init == "gaussian":
                    nn.init.normal_(module.weight, std=0.05)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_maps(self, images: Tensor) -> Tensor:
        """Class maps (N, K, h, w) of images (N, in_channels, H, W), both floating point; 32×32 gives 8×8."""
        return self.blocks(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, in_channels, H, W): before the softmax, which the loss holds."""
        return self.head(self.forward_maps(images))
