"""Which methods there are."""

from robustlib.methods.afd import AFD
from robustlib.methods.ancra import ANCRA
from robustlib.methods.base import Method
from robustlib.methods.fast import FGSMRS, NFGSM
from robustlib.methods.mart import MART
from robustlib.methods.pgd_at import PGDAT
from robustlib.methods.standard import Standard
from robustlib.methods.trades import TRADES

KNOWN = (Standard, PGDAT, TRADES, MART, FGSMRS, NFGSM, AFD, ANCRA)
METHODS: dict[str, type[Method]] = {method.name: method for method in KNOWN}
