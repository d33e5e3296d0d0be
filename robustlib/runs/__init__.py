"""The run directory: files that are old or new, never half, and what they say of a training."""

from robustlib.runs.files import digest, load_weights, read_bytes, read_json, save_weights, write_atomic, write_json
from robustlib.runs.numerics import NUMERICS, attack_names, outdated, versions
from robustlib.runs.run import Run, changes_text, find_runs, measured, trained_with, transfer_sources
from robustlib.runs.user_code import NOTEBOOK, UserCode, installed, load_installed, source_text
