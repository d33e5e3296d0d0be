"""The run directory: files that are old or new, never half, and what they say of a training."""

from robustlib.runs.files import load_weights, merge_json, read_json, save_weights, write_atomic, write_json
from robustlib.runs.numerics import NUMERICS, attack_names, moved, versions
from robustlib.runs.run import Run, find_runs, parameter_hash, trained_with, transfer_sources

__all__ = [
    "NUMERICS",
    "Run",
    "attack_names",
    "find_runs",
    "load_weights",
    "merge_json",
    "moved",
    "parameter_hash",
    "read_json",
    "save_weights",
    "trained_with",
    "transfer_sources",
    "versions",
    "write_atomic",
    "write_json",
]
