"""With which versions numbers were made: what makes numbers has a version, and whatever was made with another one is stale."""

from collections.abc import Iterable, Mapping
from typing import Any

# What makes numbers -> its version. tests/test_numerics.py makes a tiny fixed run of each and compares it with stored numbers: where
# they move, the version must too, and whatever was made with another one is stale.
AT_ONE = {
    "methods": "standard pgd_at mart fgsm_rs n_fgsm vaft afkd arrest afd ancra supcon simclr rocl acl claf awp rep_spectral"
    " ll_spectral cross_lipschitz simclr_spectral transfer l2_sp bss",
    "attacks": "pgd apgd fab square autoattack tangent stadv ascent",
    "measures": "evaluation distances randomness representation",
}
#: Versions of whatever makes numbers, by kind and name; one moves when the numbers of a tiny fixed run do.
NUMERICS: dict[str, int] = {f"{kind}/{name}": 1 for kind, names in AT_ONE.items() for name in names.split()} | {
    "methods/trades": 2,  # x forwarded again, for BatchNorm
    "methods/atop": 2,  # weights in units of an L1 on [-1, 1]
    "methods/aff": 2,  # fine-tuning as a last stage: as TRADES
    "methods/barlow_spectral": 2,  # its loss is not divided by the batch
    "measures/audit": 2,  # Square on the deployed model alone
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
        names |= {f"attacks/{type(attack).__name__.lower()}"} | attack_names(parts.values())
    return names


def outdated(made: Mapping[str, Any]) -> list[str]:
    """Which of the versions that numbers were made with are others today, in words."""
    changed = [name for name in sorted(made) if NUMERICS.get(name) != made[name]]
    return [f"{name} {made[name]} (now {NUMERICS.get(name, 'gone')})" for name in changed]
