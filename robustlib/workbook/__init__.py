"""The shell around the package: notebooks in batches, studies and claims, reports, the explorer, the command line."""

import sys

# Whoever imports nbformat (papermill, nbconvert, Ray) imports jsonschema, which would compile a grammar of web addresses if it
# found it: seconds in each process, for what no notebook holds.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
