"""Heads: from class maps (N, K, h, w) to logits (N, K), one score a class.

The paper's claim is that averaging each map (`GAP`) does what a fully connected layer (`FC`) does, without a parameter
and without a fixed image size, and that it overfits less. The heads here can be exchanged for one another on the same
blocks, which is what the paper's Table 5 compares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from nin.bounds import one_of, share, sides, whole


class GAP(nn.Module):
    """Global average pooling (paper, section 3.2): the mean of a class's map is its score.

    No parameters, any map size: (N, K, h, w) ─► (N, K). Needs one map a class.
    """

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))


class GMP(nn.Module):
    """Global max pooling: the largest value in a class's map is its score.

    No parameters, any map size: (N, K, h, w) ─► (N, K). Needs one map a class.
    """

    def forward(self, maps: Tensor) -> Tensor:
        return maps.amax(dim=(2, 3))


class DepthPool(nn.Module):
    """Global depth pooling: the mean or the maximum over the channels at every position, one map of all of them.

    (N, C, h, w) ─► (N, 1, h, w). Where GAP asks how much of a class there is, this asks where there is anything.

    Args:
        kind: "average" or "max".

    Raises:
        ValueError: another kind.
    """

    def __init__(self, kind: str) -> None:
        one_of(("average", "max"), kind=kind)
        super().__init__()
        self.kind = kind

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(1, keepdim=True) if self.kind == "average" else maps.amax(1, keepdim=True)


class FC(nn.Module):
    """The fully connected head of the paper's Table 5: the flattened maps, then one linear layer.

    Any number M of maps, of the one size (h, w) that it was built for: (N, M, h, w) ─► (N, K), M·h·w·K + K parameters.

    Args:
        num_maps: M.
        num_classes: K.
        map_size: (h, w) of a map.
        dropout: probability that one of the M·h·w inputs is dropped; Table 5 has the head with and without.

    Raises:
        ValueError: a value outside its bounds.
    """

    def __init__(self, num_maps: int, num_classes: int, map_size: Sequence[int], dropout: float = 0.0) -> None:
        whole(1, 65_536, num_maps=num_maps, num_classes=num_classes)
        share(dropout=dropout)
        super().__init__()
        self.map_size = sides(100_000, map_size=map_size)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = nn.Linear(num_maps * math.prod(self.map_size), num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Raises ValueError where the maps are not of the size that the layer was built for."""
        if tuple(maps.shape[2:]) != self.map_size:
            built, got = ("×".join(map(str, size)) for size in (self.map_size, maps.shape[2:]))
            raise ValueError(
                f"a fully connected head is tied to one image size: it was built for class maps of {built} and got "
                f"{got}; give images of the size it was trained with, or take a net with head=gap, which takes any"
            )
        return self.linear(self.dropout(maps.flatten(1)))


HEADS = ("gap", "gmp", "fc", "fc_dropout")


def build_head(name: str, *, num_maps: int, num_classes: int, map_size: Sequence[int]) -> nn.Module:
    """The head of this name for `num_maps` maps of `map_size` (h, w).

    Raises:
        ValueError: an unknown name; or a pooling head on another number of maps than there are classes.
    """
    if name in ("gap", "gmp"):
        if num_maps != num_classes:
            raise ValueError(
                f"head={name} scores each class by its own map: {num_maps} maps for {num_classes} classes do not fit; "
                f"end the last block with {num_classes} channels, or choose head=fc"
            )
        return GAP() if name == "gap" else GMP()
    if name in ("fc", "fc_dropout"):
        return FC(num_maps, num_classes, map_size, dropout=0.5 if name == "fc_dropout" else 0.0)
    raise ValueError(f"head={name}: choose one of {', '.join(HEADS)}")
