"""The run directory: files that are old or new, never half, and what they say of a training."""

from robustlib.runs.files import digest, load_weights, read_bytes, read_json, save_weights, write_atomic, write_json
from robustlib.runs.run import (
    NUMERICS,
    Run,
    attack_names,
    changes_text,
    find_runs,
    measured,
    outdated,
    trained_with,
    transfer_sources,
    versions,
)
from robustlib.runs.user_code import UserCode
