"""Network in Network (Lin, Chen, Yan, 2013) in PyTorch.

    net = nin.load("cifar10-gap")     a published net; nin.available() lists their names
    net = nin.NIN(head="gap")         the authors' CIFAR-10 net, untrained

Sets of images are in `nin.data`, training in `nin.task` and `nin.run`. A name is imported on its first use, so that
`import nin` costs nothing and a net needs no more than torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nin.cost import multiply_accumulates
    from nin.errors import NINError
    from nin.layers import DepthPool
    from nin.model import FC, GAP, GMP, NIN, MLPConv
    from nin.plan import BLOCKS, HEADS, Block, Plan
    from nin.pretrained import available, load

_HOMES = {
    **dict.fromkeys(("FC", "GAP", "GMP", "NIN", "MLPConv"), "nin.model"),
    **dict.fromkeys(("BLOCKS", "HEADS", "Block", "Plan"), "nin.plan"),
    **dict.fromkeys(("available", "load"), "nin.pretrained"),
    "DepthPool": "nin.layers",
    "NINError": "nin.errors",
    "multiply_accumulates": "nin.cost",
}
__all__ = ["BLOCKS", "FC", "GAP", "GMP", "HEADS", "NIN", "Block", "DepthPool", "MLPConv", "NINError", "Plan"]
__all__ += ["available", "load", "multiply_accumulates"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module nin has no attribute {name}")


def _version() -> str:
    """The installed version; in a checkout that is only on PYTHONPATH, that of its pyproject.toml."""
    from importlib import metadata

    try:
        return metadata.version("network-in-network")
    except metadata.PackageNotFoundError:
        import tomllib
        from pathlib import Path

        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        return project["version"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
