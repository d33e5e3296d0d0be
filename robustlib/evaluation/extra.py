"""Attacks from elsewhere as further rows of an evaluation: of other libraries, of installed packages, or of a user's own code."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustlib.attacks import ForeignAttack, foreign_attack
from robustlib.errors import InputError, shown
from robustlib.figures.canvas import ATTACKS
from robustlib.runs import UserCode
from robustlib.threat import Threat


def extra_attacks(specs: Sequence[str], threat: Threat) -> dict[str, ForeignAttack]:
    """By name, such as "torchattacks PGD", the attacks that specs such as "torchattacks:PGD(steps=20)" ask for within a threat.

    Of "my_attacks.py:Mine(steps=3)" and "package.module:Mine" the code is executed: whoever names it trusts it. An attack that is asked
    for twice counts once, another one of the same name gets a number. Raises InputError as `foreign_attack` does.
    """
    if isinstance(specs, str):
        raise InputError(f"{shown(specs)} is one text: give a list of attacks, such as [{specs!r}].")
    attacks: dict[str, ForeignAttack] = {}
    for spec in specs:
        attack = foreign_attack(spec, threat, _load)
        if repr(attack) not in map(repr, attacks.values()):
            attacks[_free(attack.asked.label, {*ATTACKS, *attacks})] = attack
    return attacks


def added(attacks: Iterable[ForeignAttack], there: Mapping[str, str]) -> dict[str, ForeignAttack]:
    """By name those that are to stand beside rows that are there (name -> protocol); in the place of one that differs in its code alone."""
    named: dict[str, ForeignAttack] = {}
    for attack in attacks:
        same = [name for name, protocol in there.items() if protocol.startswith(f"{attack.words}, ")]
        named[same[0] if same else _free(attack.asked.label, {*ATTACKS, *there, *named})] = attack
    return named


def _free(label: str, taken: set[str]) -> str:
    names = (label, *(f"{label} ({k})" for k in range(2, len(taken) + 2)))
    return next(name for name in names if name not in taken)


def _load(spec: str) -> tuple[Any, str]:
    """A user's object, and the digest of the code that it is from."""
    code = UserCode.named(spec)
    return code.load(), f"code {code.facts()['digest']}"
