"""What a notebook is asked for: parameters, none of them unknown, and the method that they choose."""

import ast
from collections.abc import Iterable
from typing import Any

from robustlib.errors import InputError, unknown
from robustlib.methods import Method, make_method, parse_overrides
from robustlib.methods.preset import parse_value

INJECTED = "# Parameters\n"  # how papermill begins the cell that it injects


def choose_method(method: str, preset: str, overrides: list[str], **common: Any) -> Method:
    """The method that a notebook's parameters ask for; of the `common` ones, those that are None stay as the preset has them.

    Raises InputError for a parameter that the notebook does not have (see `check_parameters`), before anything is computed.
    """
    check_parameters()
    values = parse_overrides(overrides)
    for name, value in common.items():
        if value is not None and name in values:
            raise InputError(f"{name!r} is set as a parameter and in overrides: set it once.")
        if value is not None:
            values[name] = parse_value(value) if isinstance(value, str) else value
    return make_method(method, preset=preset, **values)


def check_parameters() -> None:
    """Raises InputError for a parameter that papermill gave this notebook and that it does not have.

    Papermill alone prints a line about it, and the notebook computes for minutes or hours with its defaults. Outside of a notebook
    there is nothing to check.
    """
    from IPython import get_ipython

    history = getattr(get_ipython(), "history_manager", None)
    check_cells(history.input_hist_raw if history else ())


def check_cells(sources: Iterable[str]) -> None:
    """The same for the cells that ran so far: injected ones give values to names that a cell of annotated literals declared before them."""
    known: list[str] = []
    for source in sources:
        try:
            nodes = ast.parse(source).body
        except SyntaxError:  # a magic
            continue
        declared = [
            node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ]
        if nodes and len(declared) == len(nodes):
            known = declared
        elif known and source.startswith(INJECTED):
            targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
            for name in (target.id for target in targets if isinstance(target, ast.Name)):
                if name not in known:
                    more = " Other hyper-parameters are given as -y 'overrides: [\"name=value\"]'."
                    said = unknown("parameter of this notebook", name, known)
                    raise InputError(f"{said}{more if 'overrides' in known else ''}")
