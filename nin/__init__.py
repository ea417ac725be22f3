"""Network in Network (Lin, Chen, Yan, 2013) in PyTorch.

    net = nin.load("cifar10-gap")     a published net; nin.available() lists their names
    net = nin.NIN(head="gap")         the authors' CIFAR-10 net, untrained

`import nin` needs torch alone. Sets of images are in `nin.data`, training in `nin.task` and `nin.run`.
"""

from typing import Any

from nin.cost import multiply_accumulates
from nin.errors import NINError
from nin.model import FC, GAP, GMP, NIN, DepthPool, MLPConv
from nin.plan import HEADS, PLANS, Block, Plan

__all__ = ["FC", "GAP", "GMP", "HEADS", "NIN", "PLANS", "Block", "DepthPool", "MLPConv", "NINError", "Plan"]
__all__ += ["available", "load", "multiply_accumulates"]


def __getattr__(name: str) -> Any:
    if name in ("available", "load"):  # on first use: they need more than torch
        from nin import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module nin has no attribute {name}")
