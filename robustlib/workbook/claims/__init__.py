"""A paper's claims as data, and what finished runs say of them: supported, not supported, or undecided.

Nothing here trains, attacks or writes: runs are read.
"""

from robustlib.workbook.claims.claim import Claim, Finding, by_variant, evaluate_claims, gather, read_claims, variant_of
from robustlib.workbook.claims.measures import measure_of
