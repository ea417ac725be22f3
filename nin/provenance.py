"""What a result can depend on besides its configuration: machine, memory, versions and commit."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch
import torchvision

RESULTS = ("csv", "md", "png")  # endings of files that are made of runs


def device_name(device: torch.device) -> str:
    """The device as people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{device.type}: {name}, {torch.get_num_threads()} threads"


def peak_memory_gb() -> float:
    """The most memory that this process has held, in GB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent process held when it started this one
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(kilobytes) / 1e6, 2)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(held / (1e9 if sys.platform == "darwin" else 1e6), 2)


def memory_gb() -> float:
    """The memory that this machine has, in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def versions() -> dict[str, str]:
    """Of what a result can depend on."""
    modules = {module.__name__: str(module.__version__) for module in (torch, torchvision, L)}
    return {"python": platform.python_version(), **modules}


def commit() -> str:
    """The project's commit, with "+changes" where files differ from it that a result can depend on: all but those that
    hold results, and new ones outside nin, conf and scripts. NIN_COMMIT where there is no git."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return os.environ.get("NIN_COMMIT", "unknown")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!*.{s}" for s in RESULTS))
        changed += git("status", "--porcelain", "--untracked-files=all", "--", "nin", "conf", "scripts")
        return git("rev-parse", "HEAD") + "+changes" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
