"""Which methods there are."""

from robustlib.methods.acl import ACL
from robustlib.methods.afd import AFD
from robustlib.methods.afkd import AFKD
from robustlib.methods.ancra import ANCRA
from robustlib.methods.arrest import ARREST
from robustlib.methods.atop import AToP
from robustlib.methods.base import Method
from robustlib.methods.bss import BSS
from robustlib.methods.claf import CLAF
from robustlib.methods.cross_lipschitz import CrossLipschitz
from robustlib.methods.fast import FGSMRS, NFGSM
from robustlib.methods.l2_sp import L2SP
from robustlib.methods.mart import MART
from robustlib.methods.pgd_at import PGDAT
from robustlib.methods.rep_spectral import LLSpectral, RepSpectral
from robustlib.methods.rocl import RoCL
from robustlib.methods.self_supervised import BarlowSpectral, SimCLRSpectral
from robustlib.methods.simclr import SimCLR
from robustlib.methods.standard import Standard
from robustlib.methods.supcon import SupCon
from robustlib.methods.trades import TRADES
from robustlib.methods.transfer import Transfer
from robustlib.methods.vaft import VAFT

KNOWN: tuple[type[Method], ...] = (
    *(Standard, PGDAT, TRADES, MART, FGSMRS, NFGSM, VAFT, AFKD, ARREST, AFD, ANCRA, AToP),
    *(SupCon, SimCLR, RoCL, ACL, CLAF),
    *(RepSpectral, LLSpectral, CrossLipschitz),
    *(BarlowSpectral, SimCLRSpectral, Transfer, L2SP, BSS),
)
METHODS: dict[str, type[Method]] = {method.name: method for method in KNOWN}
