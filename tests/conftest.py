import os
import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side (pytest -n): a core each; set before torch reads it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from builders import ROOT

for name in [name for name in os.environ if name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") or name.startswith("SLURM_")]:
    del os.environ[name]  # of a job that runs the tests; the runs that they start are none of its processes


with suppress(ValueError):  # not the main thread
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background ignores it, and so would its runs


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    return min(4, os.cpu_count() or 1)  # a test takes up to 3 GB


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "slow" not in item.keywords)  # the longest first, so that no core waits at the end
    no_gpu = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture
def tried(request):
    """Counts the bad inputs of a test that makes them in a loop: `tried(input)`. Their number is that of its mark
    `tries`, which README.md's table states."""
    inputs = []
    yield inputs.append
    if request.node.stash.get(PASSED, False):
        assert len(inputs) == request.node.get_closest_marker("tries").args[0]


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


@pytest.fixture
def cifar10_root() -> str:
    root = os.environ.get("NIN_DATA", str(ROOT / "data"))
    if not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip(f"CIFAR-10 is not in {root}; set NIN_DATA")
    return root


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """Runs one of scripts/ in this process and in tmp_path; returns its exit code, output and errors."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return call
