"""Where the numbers of a run come from: packages, processor, device, memory, and the command that makes them again."""

import contextlib
import importlib.metadata
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# /proc/cpuinfo's flags, and what of a processor decides how fast convolutions are; the first that it has is told
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512", "avx2": "AVX2"}


def provenance(device: torch.device, threads: int, command: str, numerics: Mapping[str, int]) -> dict[str, Any]:
    """The facts of a run that starts now; wall time and memory are added at its end. `git` is "" outside a checkout."""
    packages, git = {}, ""
    for name in ("robustlib", "torch", "torchvision", "lightning-fabric", "numpy", "scikit-learn"):
        packages[name] = "not installed"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
        git = done.stdout
    return {
        "command": command,
        "numerics": dict(numerics),
        "git": git.strip(),
        "packages": packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": threads,
    }


def processor() -> str:
    """The name of this machine's processor, and the best of UNITS that it has: several generations go by one name."""
    info = Path("/proc/cpuinfo")
    said = info.read_text() if info.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)", said, re.MULTILINE)
    units = [unit for flag, unit in UNITS.items() if re.search(rf"\b{flag}\b", said)]
    called = name[1].strip() if name else platform.processor() or platform.machine()
    return f"{called} with {units[0]}" if units else called


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held: of the GPU if it trains on one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
