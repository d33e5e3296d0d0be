"""A paper's claims as data, and what finished runs, which are read alone, say of them: supported, not supported, or undecided."""

from robustlib.workbook.claims.claim import Claim, Finding, by_variant, evaluate_claims, gather, read_claims, variant_of
from robustlib.workbook.claims.measures import measure_of
