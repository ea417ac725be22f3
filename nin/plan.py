"""Blocks, nets and heads as plain, checked values, which a configuration, a card and a constructor share. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from nin.checks import boolean, fraction, integer, one_of, positive, sides
from nin.config import INITS, NORMS, POOLS, HeadConfig, ModelConfig
from nin.errors import SettingError

WIDEST = 65_536  # channels or classes: twenty times the widest net; more is a typing error
LARGEST = 10_000  # pixels of a side, a window, a stride or a padding
DEEPEST = 1_000  # blocks
STD = 0.05  # standard deviation of the authors' initial weights, if a block sets no other
LARGEST_MAP = 100_000  # side of a map that a fully connected head reads
ONE_SIZE = "a fully connected head accepts the image size that it was trained with; resize, or take a head that pools"


@dataclass(frozen=True)
class Head:
    """A head: it turns maps into scores.

    Attributes:
        layer: "average" and "max" pool each map, "linear" is a fully connected layer on all of them.
        dropout: probability of dropout before a linear layer.
        of_features: whether it reads a backbone's features rather than class maps.
        says: one sentence about it.
    """

    layer: str
    dropout: float = 0.0
    of_features: bool = False
    says: str = ""

    @property
    def pools(self) -> bool:
        """Whether it pools each map, so that it accepts maps of any size."""
        return self.layer != "linear"


# In the order of tables; the first three are the paper's Table 5. The last three are those of the article "can pooling
# replace FC?" (https://www.cnblogs.com/hutao722/p/10008581.html), on a backbone's features.
HEADS = {
    "gap": Head("average", says="global average pooling: the mean of a class's map is its score"),
    "fc_dropout": Head("linear", 0.5, says="dropout 0.5, then a linear layer on the flattened maps"),
    "fc": Head("linear", says="a linear layer on the flattened maps"),
    "gmp": Head("max", says="global max pooling: the largest value of a class's map is its score"),
    "gap_article": Head("average", of_features=True, says="the mean of each feature map, then a linear layer"),
    "fc_article": Head("linear", of_features=True, says="the flattened features, Linear to 512, ReLU, Linear"),
    "gmp_article": Head("max", of_features=True, says="the maximum of each feature map, then a linear layer"),
}
CLASS_MAP_HEADS = tuple(name for name, head in HEADS.items() if not head.of_features)


@dataclass(frozen=True)
class Block:
    """One mlpconv block of a net, and what follows it.

    Attributes:
        widths: output channels of its three convolutions, or one number for all three. [width] alone leaves out the
            1×1 convolutions. None as the last one stands for the number of classes.
        kernel_size: side of the first convolution's window in pixels.
        stride: of the first convolution.
        padding: zeros around the first convolution's input, less than kernel_size: farther out its window sees zeros
            alone. None is kernel_size // 2, which keeps the size under an odd kernel_size and stride 1.
        dropout: whether the net's dropout follows this block and its pooling.
        pool: "max" or "average", after the block. By default max, and the net's last_pool before the last block.
            The last block has none.
        lrn: whether local response normalisation follows the pooling.
        local: whether its only convolution is locally connected: no position shares weights with another. Under a head
            that pools, such a last block has one map per class.
        std: standard deviations of the three convolutions' initial weights under init=gaussian, or one number for all.

    Raises:
        SettingError: a value that no convolution accepts.
    """

    widths: int | Sequence[int | None]
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    dropout: bool = False
    std: float | Sequence[float] = STD
    pool: str | None = None
    lrn: bool = False
    local: bool = False

    def __post_init__(self) -> None:
        widths = self.widths if isinstance(self.widths, list | tuple) else (self.widths,) * 3
        if len(widths) not in (1, 3):
            raise SettingError("widths", self.widths, "expected three widths, one number for all three, or [one]")
        for width in widths[:-1] if widths[-1] is None else widths:
            integer(1, WIDEST, widths=width)
        integer(1, LARGEST, kernel_size=self.kernel_size, stride=self.stride)
        integer(0, self.kernel_size - 1, padding=0 if self.padding is None else self.padding)
        boolean(dropout=self.dropout, lrn=self.lrn, local=self.local)
        if self.pool is not None:
            one_of(POOLS, pool=self.pool)
        alone = len(widths) == 1 and self.stride == 1 and self.padding is None and self.kernel_size % 2
        if self.local and not alone:
            raise SettingError("local", True, "requires one width, an odd kernel_size, stride=1 and padding=null")
        stds = self.std if isinstance(self.std, list | tuple) else (self.std,) * len(widths)
        if len(stds) != len(widths):
            raise SettingError("std", self.std, f"expected one number, or one for each of {len(widths)} convolutions")
        for std in stds:
            positive(std=std)
        object.__setattr__(self, "widths", tuple(widths))
        object.__setattr__(self, "std", tuple(stds))

    @property
    def effective_padding(self) -> int:
        """The padding of the first convolution in pixels: kernel_size // 2 where `padding` is None."""
        return self.kernel_size // 2 if self.padding is None else self.padding

    def map_centres(self, places: Sequence[float]) -> list[float]:
        """Where its maps' positions are along a side, if those of its input are at `places`."""
        number = (len(places) + 2 * self.effective_padding - self.kernel_size) // self.stride + 1
        first = (self.kernel_size - 1) / 2 - self.effective_padding  # the middle of the first window
        return [_between(places, first + self.stride * position) for position in range(number)]


def checked_mlpconv(in_channels: int, block: Block, norm: str, last_relu: bool) -> Block:
    """Returns `block` after checking that these arguments make an mlpconv. Raises SettingError."""
    integer(1, WIDEST, in_channels=in_channels, widths=block.widths[-1])
    one_of(NORMS, norm=norm)
    boolean(last_relu=last_relu)
    return block


def checked_fc(num_maps: int, num_classes: int, map_size: Sequence[int], dropout: float) -> tuple[int, int]:
    """Height and width of a map, after checking the arguments of a fully connected head. Raises SettingError."""
    integer(1, WIDEST, num_maps=num_maps, num_classes=num_classes)
    fraction(dropout=dropout)
    return sides(LARGEST_MAP, map_size=map_size)


def checked_local(in_channels: int, out_channels: int, kernel_size: int, size: Sequence[int]) -> tuple[int, int]:
    """Height and width of the maps, after checking the arguments of a locally connected layer. Raises SettingError."""
    integer(1, WIDEST, in_channels=in_channels, out_channels=out_channels)
    integer(1, LARGEST, kernel_size=kernel_size)
    if not kernel_size % 2:
        raise SettingError("kernel_size", kernel_size, "expected an odd number")
    return sides(LARGEST_MAP, size=size)


def checked_pool(kind: str) -> str:
    """Returns `kind` after checking that it is a pooling. Raises SettingError."""
    one_of(POOLS, kind=kind)
    return kind


BLOCKS = {
    # The authors' CIFAR-10 net: 966,986 parameters, 222,486,528 multiply-accumulates for a 32×32 image.
    "cifar10": (
        Block((192, 160, 96), kernel_size=5, dropout=True),  # 32×32, then pooled to 16×16
        Block((192, 192, 192), kernel_size=5, dropout=True),  # 16×16, then pooled to 8×8
        Block((192, 192, None), kernel_size=3),  # 8×8, one map per class
    ),
    # The authors' CIFAR-100 net: 984,356 parameters with 100 classes. Their initial weights differ in the first block.
    "cifar100": (
        Block((192, 160, 96), kernel_size=5, dropout=True, std=(0.001, 0.01, 0.01)),
        Block((192, 192, 192), kernel_size=5, dropout=True),
        Block((192, 192, None), kernel_size=3),
    ),
    # The authors' SVHN net: 1,986,026 parameters.
    "svhn": (
        Block((128, 96, 64), kernel_size=5, dropout=True),
        Block((320, 256, 128), kernel_size=5, dropout=True),
        Block((384, 256, None), kernel_size=5),
    ),
    # The authors' MNIST net: 349,674 parameters, for grey images of 28×28.
    "mnist": (
        Block((96, 64, 48), kernel_size=5, dropout=True),  # 28×28, then pooled to 14×14
        Block((128, 96, 48), kernel_size=5, dropout=True),  # 14×14, then pooled to 7×7
        Block((128, 96, None), kernel_size=5),  # 7×7, one map per class
    ),
    # The paper's conventional CNN (Table 5), after Hinton et al. 2012 (arXiv 1207.0580): no 1×1 convolution, and a
    # locally connected layer before the head. 360,074 parameters with a fully connected head, 302,112 under GAP.
    "cnn": (
        Block((64,), kernel_size=5, pool="max", lrn=True),  # 32×32, then pooled to 16×16
        Block((64,), kernel_size=5, pool="average", lrn=True),  # 16×16, then pooled to 8×8
        Block((64,), kernel_size=5, pool="average"),  # 8×8, then pooled to 4×4
        Block((16,), kernel_size=3, local=True),  # 4×4; one map per class under a head that pools
    ),
    # The authors' ImageNet net: 7,595,176 parameters with 1,000 classes, for images of 224×224.
    "imagenet": (
        Block(96, kernel_size=11, stride=4, padding=0),  # 54×54, then 27×27
        Block(256, kernel_size=5),  # 27×27, then 13×13
        Block(384, kernel_size=3, dropout=True),  # 13×13, then 6×6
        Block((1024, 1024, None), kernel_size=3),  # 6×6, one map per class
    ),
}


@dataclass(frozen=True)
class Plan:
    """A whole net as plain values, checked. `dataclasses.asdict` of it stands beside the net's weights.

    Attributes:
        blocks: blocks, mappings with a block's fields, or a name of `BLOCKS`; kept as a tuple of blocks.
        num_classes: K.
        head: a name of `HEADS`.
        in_channels: channels of an image.
        image_size: height and width of an image in pixels, or one number for both.
        last_pool, dropout, norm, last_relu, init: as in `nin.config.ModelConfig`.

    Raises:
        SettingError: a value that is not allowed, blocks that leave nothing of an image, or a head that cannot read
            the class maps.
    """

    blocks: Any = ModelConfig.blocks
    num_classes: int = 10
    head: str = HeadConfig.name
    in_channels: int = 3
    image_size: int | Sequence[int] = 32
    last_pool: str = ModelConfig.last_pool
    dropout: float = ModelConfig.dropout
    norm: str = ModelConfig.norm
    last_relu: bool = ModelConfig.last_relu
    init: str = ModelConfig.init

    def __post_init__(self) -> None:
        if isinstance(self.head, str) and self.head in HEADS and self.head not in CLASS_MAP_HEADS:
            reason = f"reads a backbone's features; choose model=squeezenet1_1, or one of {', '.join(CLASS_MAP_HEADS)}"
            raise SettingError("head", self.head, reason)
        one_of(CLASS_MAP_HEADS, head=self.head)
        one_of(POOLS, last_pool=self.last_pool)
        one_of(NORMS, norm=self.norm)
        one_of(INITS, init=self.init)
        fraction(dropout=self.dropout)
        boolean(last_relu=self.last_relu)
        integer(1, WIDEST, num_classes=self.num_classes, in_channels=self.in_channels)
        sides(LARGEST, image_size=self.image_size)
        object.__setattr__(self, "blocks", read_blocks(self.blocks))
        maps = self.widths(len(self.blocks))[-1]
        if HEADS[self.head].pools and maps != self.num_classes:
            reason = (
                f"requires one map per class, got {maps} maps for {self.num_classes} classes; end the last block with"
            )
            raise SettingError("head", self.head, f"{reason} {self.num_classes} channels, or choose head=fc")
        _ = self.map_size  # raises where the blocks leave nothing of an image

    def widths(self, number: int) -> tuple[int, ...]:
        """Output channels of the convolutions of a block by its number, from 1. A last block that is locally connected
        has one map per class under a head that pools."""
        block = self.blocks[number - 1]
        if block.local and number == len(self.blocks) and HEADS[self.head].pools:
            return (self.num_classes,)
        return tuple(self.num_classes if width is None else width for width in block.widths)

    @property
    def accepts_any_size(self) -> bool:
        """Whether the net accepts images of other sizes: no layer has weights for each position."""
        return HEADS[self.head].pools and not any(block.local for block in self.blocks)

    def map_centres(self, side: int) -> list[float]:
        """Where the class maps' positions are along a side of an image, in pixels from 0: the middle of what their
        windows read. Pooling without padding moves them: the authors' net has 3, 7, 11, … 27, 29.75 at 32 pixels."""
        places = [float(pixel) for pixel in range(side)]
        for number, block in enumerate(self.blocks, 1):
            places = block.map_centres(places)
            if number < len(self.blocks):  # windows of 3 with stride 2; the last one may be cut
                starts = range(0, max(len(places) - 1, 1), 2)
                places = [sum(window) / len(window) for window in (places[start : start + 3] for start in starts)]
        return places

    @property
    def stds(self) -> list[float]:
        """The standard deviation of each layer's initial weights under init=gaussian, the head's last."""
        return [std for block in self.blocks for std in block.std] + [STD]

    @property
    def pools(self) -> list[str | None]:
        """The pooling after each block; None after the last."""
        before_last = len(self.blocks) - 1
        kinds = [self.last_pool if number == before_last else "max" for number in range(1, before_last + 1)]
        return [block.pool or kind for block, kind in zip(self.blocks, kinds, strict=False)] + [None]

    def local_size(self, number: int) -> tuple[int, int] | None:
        """Height and width of the maps of a locally connected block by its number, from 1; None for any other block."""
        return self._sizes()[number - 1] if self.blocks[number - 1].local else None

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the class maps. Raises SettingError where a block leaves nothing of the image."""
        return self._sizes()[-1]

    def _sizes(self) -> list[tuple[int, int]]:
        """Height and width of each block's maps, before they are pooled."""
        sizes, size = [], sides(LARGEST, image_size=self.image_size)
        for number, block in enumerate(self.blocks, 1):
            size = tuple((side + 2 * block.effective_padding - block.kernel_size) // block.stride + 1 for side in size)
            sizes.append(size)
            if number < len(self.blocks):  # 3×3 pooling with stride 2 in ceil mode
                size = tuple(math.ceil((side - 3) / 2) + 1 for side in size)
            if min(size) < 1:
                reason = f"too small for block {number} with kernel_size={block.kernel_size}"
                reason += f", stride={block.stride}, padding={block.effective_padding}"
                raise SettingError("image_size", self.image_size, reason)
        return sizes


def _between(places: Sequence[float], position: float) -> float:
    """The place at a position of a list, on a straight line between its neighbours, and beyond the ends."""
    if len(places) == 1:
        return places[0] + position
    low = min(max(math.floor(position), 0), len(places) - 2)
    return places[low] + (position - low) * (places[low + 1] - places[low])


def read_blocks(blocks: Any) -> tuple[Block, ...]:
    """The blocks of a name of `BLOCKS`, or of a list of blocks or of mappings with a block's fields.

    Raises:
        SettingError: anything else.
    """
    if isinstance(blocks, str) and blocks in BLOCKS:
        return BLOCKS[blocks]
    if not isinstance(blocks, list | tuple):
        raise SettingError("blocks", blocks, f"must be one of {', '.join(BLOCKS)}, or a list of blocks")
    if not 0 < len(blocks) <= DEEPEST:
        raise SettingError("blocks", blocks, f"expected 1 to {DEEPEST} blocks, got {len(blocks)}")
    return tuple(_read_block(blocks, number, block) for number, block in enumerate(blocks, 1))


def _read_block(blocks: Any, number: int, block: Any) -> Block:
    if isinstance(block, Block):
        return block
    names = [each.name for each in fields(Block)]
    if not isinstance(block, dict) or "widths" not in block or not set(block) <= set(names):
        reason = f"block {number} must be a mapping with widths and, where they differ, {', '.join(names[1:])}"
        raise SettingError("blocks", blocks, reason)
    try:
        return Block(**block)
    except SettingError as error:
        raise SettingError("blocks", blocks, f"block {number} has {error}") from error
