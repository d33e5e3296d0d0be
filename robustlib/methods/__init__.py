"""The methods by name. Adding one = one file here + one entry in METHODS + one section in each preset."""

from robustlib.methods.afd import AFD
from robustlib.methods.ancra import ANCRA
from robustlib.methods.atop import AToP
from robustlib.methods.base import AdversarialMethod, Method
from robustlib.methods.baselines import FGSMRS, MART, NFGSM, PGDAT, TRADES, Standard
from robustlib.methods.claf import CLAF
from robustlib.methods.contrastive import ACL, Contrastive, RoCL, SimCLR, SupCon
from robustlib.methods.preset import load_preset, parse_overrides, preset_dataset, preset_names
from robustlib.methods.registry import METHODS, make_method
