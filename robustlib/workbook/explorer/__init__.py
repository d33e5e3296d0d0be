"""The explorer: one image, one attack, one run or two beside each other, and what the attack does to it in feature space.

`explore` is what notebooks/explore.ipynb calls. What is shown is computed once for a run and an attack (`Grid`), kept beside
the run, and only looked up when a slider moves. Needs a live kernel; a report shows the figures of `robustlib.figures` instead.
"""

from robustlib.workbook.explorer.app import Explorer, explore
from robustlib.workbook.explorer.grid import Grid, explorer_attacks, make_grid
