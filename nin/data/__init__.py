"""Image sets in memory, their preprocessing and augmentation, as a LightningDataModule.

Each name is imported when it is first used: the preprocessing needs torch alone, `Images` needs Lightning.
"""

from importlib import import_module
from typing import Any

_HOMES = {"Batches": "module", "ImageSet": "sets", "Images": "module", "Normalise": "preprocess", "SETS": "sets"}
_HOMES |= {"Set": "sets", "Whiten": "preprocess"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"nin.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
