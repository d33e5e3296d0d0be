"""Versions of numbers: a run is stale when what made its numbers gives others today, and not when a file moved or a comment changed."""

from collections.abc import Iterable, Mapping
from typing import Any

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


def moved(made: Mapping[str, Any]) -> list[str]:
    """Of names with the versions that numbers were made with, those that have another one today, in words."""
    return [
        f"{name} {made[name]} (now {NUMERICS.get(name, 'gone')})"
        for name in sorted(made)
        if NUMERICS.get(name) != made[name]
    ]
