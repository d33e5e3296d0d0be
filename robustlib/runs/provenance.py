"""Where a number comes from: versions, packages, machine and the command that makes it again.

A run is stale when what made its numbers gives others today, and not when a file moved or a comment changed.
"""

import importlib.metadata
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

# What makes numbers -> its version. tests/test_numerics.py makes a tiny fixed run of each and compares it with stored numbers: where
# they move, the version must too, and whatever was made with another one is stale.
NUMERICS: dict[str, int] = {
    **dict.fromkeys(("methods/standard", "methods/pgd_at", "methods/mart", "methods/fgsm_rs", "methods/n_fgsm"), 1),
    "methods/trades": 2,  # x forwarded again, for BatchNorm
    **dict.fromkeys(("methods/vaft", "methods/afkd", "methods/arrest", "methods/afd", "methods/ancra"), 1),
    "methods/atop": 2,  # weights in units of an L1 on [-1, 1]
    **dict.fromkeys(("methods/supcon", "methods/simclr", "methods/rocl", "methods/acl", "methods/claf"), 1),
    "methods/aff": 2,  # fine-tuning as a last stage: as TRADES
    "methods/awp": 1,
    **dict.fromkeys(("methods/rep_spectral", "methods/ll_spectral", "methods/cross_lipschitz"), 1),
    "methods/barlow_spectral": 2,  # its loss is not divided by the batch
    **dict.fromkeys(("methods/simclr_spectral", "methods/transfer", "methods/l2_sp", "methods/bss"), 1),
    **dict.fromkeys(("attacks/pgd", "attacks/apgd", "attacks/fab", "attacks/square", "attacks/autoattack"), 1),
    **dict.fromkeys(("attacks/tangent", "attacks/stadv", "attacks/ascent"), 1),
    **dict.fromkeys(("measures/evaluation", "measures/audit", "measures/distances", "measures/randomness"), 1),
    "measures/representation": 1,
    "measures/embedding": 2,  # neighbours by the angle at the origin
}


def versions(*names: str) -> dict[str, int]:
    """Today's version of each name that has one; what is not of this package has none."""
    return {name: NUMERICS[name] for name in sorted(names) if name in NUMERICS}


def attack_names(attacks: Iterable[object]) -> set[str]:
    """The names of attacks and of what they are made of, such as AutoAttack's parts."""
    names = set()
    for attack in attacks:
        parts = attack.components(10) if hasattr(attack, "components") else {}
        names |= {f"attacks/{type(one).__name__.lower()}" for one in (attack, *parts.values())}
    return names


def outdated(made: Mapping[str, Any]) -> list[str]:
    """Which of the versions that numbers were made with are others today, in words."""
    return [
        f"{name} {made[name]} (now {NUMERICS.get(name, 'gone')})"
        for name in sorted(made)
        if NUMERICS.get(name) != made[name]
    ]


PACKAGES = ("robustlib", "torch", "torchvision", "lightning-fabric", "numpy", "scikit-learn")


def provenance(device: torch.device, threads: int, command: str, numerics: Mapping[str, int]) -> dict[str, Any]:
    """The facts of a run that starts now; wall time and memory are added at its end."""
    return {
        "command": command,
        "numerics": dict(numerics),
        "git": _git(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": threads,
    }


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held: of the GPU if it trains on one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git() -> str:
    """The commit of the checkout and whether it was changed; "" outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
