"""Attacks: frozen dataclasses whose repr() is their full protocol, called as `attack(model, x, y, generator=g)`."""

from robustlib.attacks.apgd import APGD
from robustlib.attacks.ascent import Ascent
from robustlib.attacks.autoattack import AutoAttack
from robustlib.attacks.draws import Draws
from robustlib.attacks.fab import FAB
from robustlib.attacks.nearest import MinimumNorm, Nearest
from robustlib.attacks.objectives import OBJECTIVES
from robustlib.attacks.pgd import FGSM, PGD, PGDEOT
from robustlib.attacks.search import Attack, View
from robustlib.attacks.square import Square
from robustlib.attacks.stadv import StAdv
from robustlib.attacks.tangent import Tangent
from robustlib.threat import Threat

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "OBJECTIVES",
    "PGD",
    "PGDEOT",
    "Ascent",
    "Attack",
    "AutoAttack",
    "Draws",
    "MinimumNorm",
    "Nearest",
    "Square",
    "StAdv",
    "Tangent",
    "Threat",
    "View",
]
