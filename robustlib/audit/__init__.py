"""Can I believe this number? Checks that a robust accuracy is no artefact of a weak attack, and two badges for a run."""

from robustlib.audit.check import Check
from robustlib.audit.checks import audit
from robustlib.audit.run import audit_run

__all__ = ["Check", "audit", "audit_run"]
