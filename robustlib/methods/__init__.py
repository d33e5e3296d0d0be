"""The methods by name. Adding one = one file here + one entry in METHODS + one section in each preset."""

from robustlib.methods.adversarial import AdversarialMethod
from robustlib.methods.afd import AFD
from robustlib.methods.ancra import ANCRA
from robustlib.methods.base import Method
from robustlib.methods.fast import FGSMRS, NFGSM
from robustlib.methods.mart import MART
from robustlib.methods.pgd_at import PGDAT
from robustlib.methods.presets import load_preset, make_method, parse_overrides, preset_dataset, preset_names
from robustlib.methods.registry import METHODS
from robustlib.methods.standard import Standard
from robustlib.methods.trades import TRADES

__all__ = [
    "AFD",
    "ANCRA",
    "FGSMRS",
    "MART",
    "METHODS",
    "NFGSM",
    "PGDAT",
    "TRADES",
    "AdversarialMethod",
    "Method",
    "Standard",
    "load_preset",
    "make_method",
    "parse_overrides",
    "preset_dataset",
    "preset_names",
]
