"""Layers for comparison with the paper's own, which are in `nin.model`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nin.errors import SettingError
from nin.plan import checked_local, checked_pool

LOCAL = "a locally connected layer accepts only the image size that it was trained with; resize"


class LocallyConnected(nn.Conv2d):
    """A convolution that shares no weights: each position has filters and biases of its own.

    It is the last hidden layer of the paper's conventional CNN (Table 5, after Hinton et al., 2012, arXiv 1207.0580).
    `unfold` cuts the windows out; a grouped 1×1 convolution with one group per position multiplies them. Being an
    nn.Conv2d, it is counted, initialised and optimised as any convolution.

    Args:
        in_channels, out_channels: of the maps.
        kernel_size: side of the window in pixels; odd.
        size: height and width of the maps, which stay as they are.

    Raises:
        SettingError: a value that is not allowed; in `forward`, maps of another size.

    Shape:
        (N, in_channels, H, W) ─► (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, size: Sequence[int]) -> None:
        height, width = checked_local(in_channels, out_channels, kernel_size, size)
        places = height * width
        super().__init__(in_channels * kernel_size**2 * places, out_channels * places, 1, groups=places)
        self.size, self.window = (height, width), kernel_size

    def forward(self, maps: Tensor) -> Tensor:
        if maps.shape[2:] != self.size:
            raise SettingError("map_size", tuple(maps.shape[2:]), f"expected {self.size}; {LOCAL}")
        windows = F.unfold(maps, self.window, padding=self.window // 2)  # (N, in_channels·k·k, H·W)
        columns = windows.transpose(1, 2).reshape(maps.shape[0], -1, 1, 1)  # (N, H·W·in_channels·k·k, 1, 1)
        outputs = super().forward(columns).view(maps.shape[0], windows.shape[2], -1)  # (N, H·W, out_channels)
        return outputs.transpose(1, 2).unflatten(2, self.size)


class LocalBlock(nn.Sequential):
    """A locally connected layer and its ReLU, in the place of an mlpconv: the last block of `model=cnn`.

    Args:
        in_channels, kernel_size, size: as for `LocallyConnected`.
        widths: its output channels, one number in a tuple.
        last_relu: whether the ReLU follows.

    Shape:
        (N, in_channels, H, W) ─► (N, widths[0], H, W)
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], kernel_size: int, size: Sequence[int], *, last_relu: bool
    ) -> None:
        super().__init__()
        self.add_module("conv1", LocallyConnected(in_channels, widths[0], kernel_size, size))
        if last_relu:
            self.add_module("relu1", nn.ReLU(inplace=True))


class LocalResponseNorm(nn.LocalResponseNorm):
    """Divides each map by a power of the sum of squares over the maps beside it: nn.LocalResponseNorm as a 1×1
    convolution with a banded matrix. torch's own averages in three dimensions: a third of a CPU's step.

    Shape:
        (N, C, H, W) ─► (N, C, H, W)
    """

    def forward(self, maps: Tensor) -> Tensor:
        channels, before, after = maps.shape[1], self.size // 2, (self.size - 1) // 2
        kind = "cpu" if maps.is_meta else maps.device.type  # autocast refuses torch's meta device
        with torch.autocast(kind, enabled=False):  # squares and their sums need more digits than bf16 has
            wide = maps if maps.dtype == torch.float64 else maps.float()
            band = wide.new_full((channels, channels), self.alpha / self.size).triu(-before).tril(after)
            sums = F.conv2d(wide.square(), band[:, :, None, None], wide.new_full((channels,), self.k))
            return (wide * sums.pow(-self.beta)).to(maps.dtype)


class DepthPool(nn.Module):
    """Pools over channels, not positions; for comparison, no net here has it. (N, C, h, w) ─► (N, 1, h, w)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = checked_pool(kind)

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(1, keepdim=True) if self.kind == "average" else maps.amax(1, keepdim=True)
