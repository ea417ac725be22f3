import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side (pytest -n): a core each; set before torch reads it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
# the three blocks of the paper's net an eighth as wide, for tests of all that does not depend on it
NARROW = (
    "model.blocks=[{widths: [24, 20, 12], kernel_size: 5, dropout: true}, {widths: 24, kernel_size: 5, dropout: true}, "
    "{widths: [24, 24, null], kernel_size: 3}]"
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    return min(4, os.cpu_count() or 1)  # a test takes up to 3 GB


def pytest_collection_modifyitems(items):
    no_gpu = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture
def cifar10_root() -> str:
    root = os.environ.get("NIN_DATA", str(ROOT / "data"))
    if not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip(f"CIFAR-10 is not in {root}; set NIN_DATA")
    return root
