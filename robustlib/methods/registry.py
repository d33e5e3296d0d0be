"""Which methods there are."""

from robustlib.methods.ancra import ANCRA
from robustlib.methods.base import Method
from robustlib.methods.pgd_at import PGDAT
from robustlib.methods.standard import Standard
from robustlib.methods.trades import TRADES

METHODS: dict[str, type[Method]] = {method.name: method for method in (Standard, PGDAT, TRADES, ANCRA)}
