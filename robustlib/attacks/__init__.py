"""Attacks: frozen dataclasses whose repr() is their full protocol, called as `attack(model, x, y, generator=g)`."""

from robustlib.attacks.draws import Draws
from robustlib.attacks.objectives import OBJECTIVES
from robustlib.attacks.pgd import FGSM, PGD
from robustlib.attacks.search import Attack
from robustlib.threat import Threat

__all__ = ["FGSM", "OBJECTIVES", "PGD", "Attack", "Draws", "Threat"]
