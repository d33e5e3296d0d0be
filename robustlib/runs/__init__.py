"""The run directory: files that are old or new, never half, and what they say of a training."""

from robustlib.runs.files import digest, load_weights, read_bytes, read_json, save_weights, write_atomic, write_json
from robustlib.runs.find import find_runs, transfer_sources
from robustlib.runs.known import recall
from robustlib.runs.numerics import NUMERICS, attack_names, outdated, versions
from robustlib.runs.run import Run, changes_text, holds, measured, trained_with
from robustlib.runs.user_code import NOTEBOOK, UserCode, source_text
