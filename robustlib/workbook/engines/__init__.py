"""Executes notebooks, one or many side by side: on processes of this machine, on Ray or on Slurm."""

from robustlib.workbook.engines.batch import ENGINES, check_limits, device_type, run_all
from robustlib.workbook.engines.process import execute
