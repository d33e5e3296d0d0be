"""A paper's claims as data, and what finished runs say of them: supported, not supported, or undecided.

Nothing here trains, attacks or writes: runs are read.
"""

from robustlib.claims.claim import Claim, arm_of, read_claims
from robustlib.claims.evidence import Evidence, gather, measure_of
from robustlib.claims.statistics import Interval, holm, minimal_detectable, p_value, paired_interval
from robustlib.claims.verdict import Finding, judge

__all__ = [
    "Claim",
    "Evidence",
    "Finding",
    "Interval",
    "arm_of",
    "gather",
    "holm",
    "judge",
    "measure_of",
    "minimal_detectable",
    "p_value",
    "paired_interval",
    "read_claims",
]
