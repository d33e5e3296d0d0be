"""Which methods there are, by name."""

from typing import Any

from robustlib.errors import unknown
from robustlib.methods.afd import AFD, AFKD, ARREST, VAFT
from robustlib.methods.ancra import ANCRA
from robustlib.methods.atop import AToP
from robustlib.methods.base import Method
from robustlib.methods.baselines import FGSMRS, MART, NFGSM, PGDAT, TRADES, Standard
from robustlib.methods.claf import CLAF
from robustlib.methods.contrastive import ACL, RoCL, SimCLR, SupCon
from robustlib.methods.rep_spectral import CrossLipschitz, LLSpectral, RepSpectral
from robustlib.methods.self_supervised_spectral import BarlowSpectral, SimCLRSpectral
from robustlib.methods.transfer import BSS, L2SP, Transfer

KNOWN: tuple[type[Method], ...] = (
    *(Standard, PGDAT, TRADES, MART, FGSMRS, NFGSM, VAFT, AFKD, ARREST, AFD, ANCRA, AToP),
    *(SupCon, SimCLR, RoCL, ACL, CLAF),
    *(RepSpectral, LLSpectral, CrossLipschitz),
    *(BarlowSpectral, SimCLRSpectral, Transfer, L2SP, BSS),
)
METHODS: dict[str, type[Method]] = {method.name: method for method in KNOWN}


def make_method(name: str, preset: str | None = None, **overrides: Any) -> Method:
    """The method with a preset's hyper-parameters (None: the paper's own), overridden and validated.

    Of a preset these are its `common` values, those of the method's section, and those that the section has for the architecture.

    Raises:
        InputError: unknown method, preset or hyper-parameter (it names the nearest), or a value of the wrong type or range.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name].from_preset(preset, **overrides)
