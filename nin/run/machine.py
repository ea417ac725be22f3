"""What a result depends on besides its settings: machine, memory, versions and commit."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from nin.checks import counted

ROOT = Path(__file__).parents[2]
RESULTS = ("csv", "md", "png")  # endings of files that are made from runs


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{device.type}: {name}, {counted(torch.get_num_threads(), 'thread')}"


def peak_memory_gb() -> float:
    """The most memory that this process has held, in GB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent process held when it started this one
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(kilobytes) * 1024 / 1e9, 2)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(held * (1 if sys.platform == "darwin" else 1024) / 1e9, 2)


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done all that it was given. A GPU's host runs ahead of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def forget_peak_memory(device: torch.device) -> None:
    """Makes `device_memory_gb` begin anew: a process may train several nets."""
    if device.type == "cuda" and torch.cuda.is_initialized():  # an uninitialised one has no peak, and torch raises
        torch.cuda.reset_peak_memory_stats(device)


def device_memory_gb(device: torch.device) -> float | None:
    """The most memory of a GPU that this process's tensors have held since `forget_peak_memory`, in GB; None where
    training is on a CPU or MPS."""
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory. By default it returns the memory of every large tensor to the system, so that each
    training step has the pages of all activations zeroed and mapped anew: a fifth of its time on a CPU."""
    with suppress(OSError, AttributeError):  # another system's library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap does not shrink


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on."""
    others = {name: metadata.version(name) for name in ("torchvision", "lightning")}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **others}


@cache
def commit_at_start() -> tuple[str, bool]:
    """`commit` as it was when it was first asked for: later the files may be others than the code that runs."""
    return commit()


def commit(root: Path = ROOT) -> tuple[str, bool]:
    """The project's commit, and whether the files are the commit's.

    Results (csv, md, png) do not count as changes, nor do new files outside nin, conf and scripts. Without git the
    commit is the environment variable NIN_COMMIT, else "unknown", which is never clean.
    """
    if not (root / ".git").exists():
        given = os.environ.get("NIN_COMMIT", "unknown")
        return given.removesuffix("+changes"), given != "unknown" and not given.endswith("+changes")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!*.{s}" for s in RESULTS))
        changed += git("status", "--porcelain", "--untracked-files=all", "--", "nin", "conf", "scripts")
        return git("rev-parse", "HEAD"), not changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
