"""The run directory: files that are old or new, never half, and what they say of a training."""

from robustlib.runs.files import load_weights, merge_json, read_json, save_weights, write_atomic, write_json
from robustlib.runs.run import Run, code_digest, find_runs, parameter_hash, transfer_sources

__all__ = [
    "Run",
    "code_digest",
    "find_runs",
    "load_weights",
    "merge_json",
    "parameter_hash",
    "read_json",
    "save_weights",
    "transfer_sources",
    "write_atomic",
    "write_json",
]
