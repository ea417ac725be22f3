"""Network in Network (Lin, Chen, Yan, 2013) in PyTorch. `import nin` needs torch alone; data and training are in
`nin.data` and `nin.task`."""

from nin.heads import FC, GAP, GMP, HEADS
from nin.model import BLOCKS, NIN, Block, MLPConv, multiply_accumulates

__all__ = ["BLOCKS", "FC", "GAP", "GMP", "HEADS", "NIN", "Block", "MLPConv", "multiply_accumulates"]
