"""Network in Network (Lin, Chen, Yan, 2013) in PyTorch. `import nin` needs torch alone; data and training are in
`nin.data` and `nin.task`."""

from typing import Any

from nin.cost import multiply_accumulates
from nin.heads import FC, GAP, GMP, HEADS, DepthPool
from nin.model import BLOCKS, NIN, Block, MLPConv

__all__ = ["BLOCKS", "FC", "GAP", "GMP", "HEADS", "NIN", "Block", "DepthPool", "MLPConv"]
__all__ += ["available", "load", "multiply_accumulates"]


def __getattr__(name: str) -> Any:
    if name in ("available", "load"):  # on demand: they need more than torch
        from nin import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module nin has no attribute {name}")
