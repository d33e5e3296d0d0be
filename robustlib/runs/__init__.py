"""The run directory: files that are old or new, never half, and what they say of a training."""

from robustlib.runs.files import (
    digest,
    load_weights,
    merge_json,
    read_bytes,
    read_json,
    save_weights,
    write_archive,
    write_atomic,
    write_json,
)
from robustlib.runs.provenance import NUMERICS, attack_names, outdated, versions
from robustlib.runs.run import Run, changes_text, find_runs, measured, parameter_hash, trained_with, transfer_sources
