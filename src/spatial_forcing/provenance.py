"""Provenance of results: command, commit, versions, hardware."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spatial_forcing.errors import DISTRIBUTION

PACKAGES = (
    DISTRIBUTION,
    "torch",
    "lerobot",
    "metaworld",
    "mujoco",
    "hf-libero",
    "robosuite",
    "gymnasium",
    "transformers",
    "numpy",
    "safetensors",
)


def made_with(command: str | None = None) -> dict[str, Any]:
    """Provenance record for a file of results: command (the running one if None), commit, versions, hardware.

    Call it before a long run: the source tree may change under it.
    """
    return {
        "command": command_line() if command is None else command,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide results; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of this source tree, with ``+changes`` if it was edited; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and accelerator of this machine."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(machine_memory() / 2**30, 1),
        "gpu": gpu,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def machine_memory() -> int:
    """Bytes of memory of this machine; 0 where the system does not say."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def command_line() -> str:
    """The command that is running, as one would type it."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
