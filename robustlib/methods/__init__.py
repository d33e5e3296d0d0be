"""The methods by name. Adding one = one file here + one entry in METHODS + one section in each preset."""

from robustlib.methods.acl import ACL
from robustlib.methods.adversarial import AdversarialMethod
from robustlib.methods.afd import AFD
from robustlib.methods.ancra import ANCRA
from robustlib.methods.atop import AToP
from robustlib.methods.base import Method
from robustlib.methods.claf import CLAF
from robustlib.methods.contrastive import Contrastive
from robustlib.methods.fast import FGSMRS, NFGSM
from robustlib.methods.mart import MART
from robustlib.methods.pgd_at import PGDAT
from robustlib.methods.presets import load_preset, make_method, parse_overrides, preset_dataset, preset_names
from robustlib.methods.registry import METHODS
from robustlib.methods.rocl import RoCL
from robustlib.methods.simclr import SimCLR
from robustlib.methods.standard import Standard
from robustlib.methods.supcon import SupCon
from robustlib.methods.trades import TRADES

__all__ = [
    "ACL",
    "AFD",
    "ANCRA",
    "CLAF",
    "FGSMRS",
    "MART",
    "METHODS",
    "NFGSM",
    "PGDAT",
    "TRADES",
    "AToP",
    "AdversarialMethod",
    "Contrastive",
    "Method",
    "RoCL",
    "SimCLR",
    "Standard",
    "SupCon",
    "load_preset",
    "make_method",
    "parse_overrides",
    "preset_dataset",
    "preset_names",
]
