"""The methods by name. Adding one = one file here + one entry in METHODS + one section in each preset."""

from typing import Any

from robustlib.errors import check_known
from robustlib.methods.afd import AFD, AFKD, ARREST, VAFT
from robustlib.methods.ancra import ANCRA
from robustlib.methods.atop import AToP
from robustlib.methods.base import AdversarialMethod, Method
from robustlib.methods.baselines import FGSMRS, MART, NFGSM, PGDAT, TRADES, Standard
from robustlib.methods.claf import CLAF
from robustlib.methods.contrastive import ACL, Contrastive, RoCL, SimCLR, SupCon
from robustlib.methods.preset import load_preset, parse_overrides, preset_dataset, preset_names
from robustlib.methods.rep_spectral import BarlowSpectral, CrossLipschitz, LLSpectral, RepSpectral, SimCLRSpectral
from robustlib.methods.transfer import BSS, L2SP, Transfer

ALL: tuple[type[Method], ...] = (
    *(Standard, PGDAT, TRADES, MART, FGSMRS, NFGSM, VAFT, AFKD, ARREST, AFD, ANCRA, AToP),
    *(SupCon, SimCLR, RoCL, ACL, CLAF),
    *(RepSpectral, LLSpectral, CrossLipschitz, BarlowSpectral, SimCLRSpectral, Transfer, L2SP, BSS),
)
METHODS: dict[str, type[Method]] = {method.name: method for method in ALL}


def make_method(name: str, /, preset: str | None = None, **overrides: Any) -> Method:
    """The method with a preset's hyper-parameters (None: the paper's own), overridden and validated.

    A preset's are its `common` values, those of the method's section, and those that the section has for the architecture.
    """
    return METHODS[check_known("method", name, METHODS)].from_preset(preset, **overrides)
