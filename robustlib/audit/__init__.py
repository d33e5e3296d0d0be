"""Can I believe this number? Checks that a robust accuracy is no artefact of a weak attack, and two badges for a run."""

from robustlib.audit.audit import audit, audit_has_new_sources, audit_run
from robustlib.audit.checks import Check
from robustlib.audit.sanity import Finding, check_model, check_run
