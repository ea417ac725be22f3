"""A net for inference: batch normalisation folded into the convolutions before it, and on a CPU ReLU computed by them.

The same function in fewer operations and fewer passes over memory.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from nin.backbones import Backbone
from nin.model import NIN, MLPConv


class ConvReLU(nn.Conv2d):
    """A convolution and the ReLU after it, which a CPU computes in one pass: by oneDNN's operator, which torch's
    compiler uses too. It has no gradient and no other precision, and other devices, torch.export and torch.jit.trace do
    not know it: they get the two layers."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or is_recorded or not HAS_FUSED
        if not plain and input.is_cpu and input.dtype == torch.float32:
            windows = (self.padding, self.stride, self.dilation, self.groups)
            return torch.ops.mkldnn._convolution_pointwise(input, weight, bias, *windows, "relu", [], "")
        return F.relu(super()._conv_forward(input, weight, bias), inplace=True)


HAS_FUSED = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


@torch.no_grad()
def fold(net: NIN | Backbone) -> NIN | Backbone:
    """A copy of the net in eval mode without batch norm: each is folded into the weights of its convolution. The
    convolutions of a `NIN` compute their ReLU, too.

    It computes the same logits within rounding. A folded `NIN` is a net of norm="none" and says so in its arguments, so
    it can be saved and loaded; its logits differ from the original's by about 1e-6 of their size. A folded `Backbone`
    keeps its arguments, which no longer describe it. A backbone without batch norm is only copied.
    """
    if isinstance(net, Backbone):
        return _fold_backbone(net)
    with torch.device("meta"):
        folded = NIN(**{**net.arguments, "norm": "none"})
        for block in folded.blocks:
            if isinstance(block, MLPConv):
                _join_relus(block)
    norms = tuple(name for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm2d))
    weights = {name: value.clone() for name, value in net.state_dict().items() if not name.startswith(norms)}
    for name in norms:
        convolution = name.replace(".norm", ".conv")
        layer, norm = net.get_submodule(convolution), net.get_submodule(name)
        moments = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *moments)
        weights |= {f"{convolution}.weight": weight.detach(), f"{convolution}.bias": bias.detach()}
    folded.load_state_dict(weights, assign=True)
    return folded.eval().requires_grad_(False)


def _join_relus(block: MLPConv) -> None:
    for name, layer in [*block.named_children()]:
        relu = name.replace("conv", "relu")
        if isinstance(layer, nn.Conv2d) and hasattr(block, relu):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
            setattr(block, name, ConvReLU(*sizes))
            setattr(block, relu, nn.Identity())


def _fold_backbone(net: Backbone) -> Backbone:
    from torch.fx.experimental.optimization import fuse

    folded = copy.deepcopy(net).eval().requires_grad_(False)
    folded.features = fuse(folded.features.eval(), inplace=True, no_trace=True)
    return folded
