"""Entry points of installed packages, by group: found without an import, loaded by name."""

import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from robustlib.errors import InputError, check_known


def registered(group: str) -> Mapping[str, EntryPoint]:
    """The entry points that installed packages register in a group, by name; nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=group)}


def load_registered(group: str, name: str, kind: type) -> Any:
    """What the entry point `name` of a group stands for, an instance of `kind`; raises InputError for a broken one, and for two."""
    entry = registered(group)[check_known(group, name, registered(group))]
    said = f"The entry point {name!r} ({entry.value}) of {entry.dist.name if entry.dist else 'a package'} in {group}"
    remedy = "correct or uninstall that package"
    if len({other.value for other in entry_points(group=group) if other.name == name}) > 1:
        raise InputError(f"{said} is not the only one of that name: uninstall one of the packages.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):  # it names folders
        raise InputError(f"{said} has a name with other characters than a-z, 0-9, '.', '_' and '-': {remedy}.")
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:  # importing it may do anything
        raise InputError(f"{said} cannot be loaded ({type(error).__name__}: {error}): {remedy}.") from error
    if not isinstance(found, kind):
        raise InputError(f"{said} is a {type(found).__name__}, not a {kind.__name__}: {remedy}.")
    return found
