"""Measurements of a run, each kept in a JSON file of its directory with the facts that decide its numbers."""

from collections.abc import Callable, Mapping
from typing import Any

from robustlib.runs.files import merge_json, read_json, write_json
from robustlib.runs.run import Run


def measured(
    run: Run, name: str, facts: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]], *, key: str = ""
) -> dict[str, Any]:
    """What `name` in the run's directory holds if it has the same facts; else `measure()` is called and written with them.

    Args:
        facts: what decides the numbers: protocol, seed, images, weights, versions; as JSON gives them back (lists, no tuples).
        measure: called where nothing with these facts is stored.
        key: of this measurement in a file that holds several, the last one at the end; "" for a file that holds one.
    """
    file = run.path / name
    known: dict[str, Any] = read_json(file).get(key, {}) if key else read_json(file)
    if known and all(known.get(fact) == value for fact, value in facts.items()):
        return known
    found = {**facts, **measure()}
    if key:
        merge_json(file, key, found)
    else:
        write_json(file, found)
    return found
