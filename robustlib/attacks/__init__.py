"""Attacks: frozen dataclasses whose repr() is their full protocol, called as `attack(model, x, y, generator=g)`."""

from robustlib.attacks.active_set import MinimumNorm, MinNormResult
from robustlib.attacks.apgd import APGD
from robustlib.attacks.autoattack import AutoAttack
from robustlib.attacks.base import Attack, SurrogateModel
from robustlib.attacks.fab import FAB
from robustlib.attacks.foreign import ForeignAttack, foreign_attack
from robustlib.attacks.objectives import OBJECTIVES
from robustlib.attacks.passes import count_passes
from robustlib.attacks.pgd import FGSM, PGD, PGDEOT, BatchPGD
from robustlib.attacks.precision import bf16_gain, fastest_precision, in_precision
from robustlib.attacks.square import Square
from robustlib.attacks.stadv import StAdv
from robustlib.attacks.tangent import Tangent
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat
