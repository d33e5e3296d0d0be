"""Notebooks that tests of engines execute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

from robustlib.workbook.task import Task

Notebook = Callable[..., Task]
PARAMETERS = 'word: str = "a"\nseed: int = 0\nrate: float = 0.5\nitems: list = []'
WAIT = "import time, pathlib\npathlib.Path(word).touch()\ntime.sleep(3600)"


def maker(folder: Path) -> Notebook:
    """Makes a task over a notebook with the given code cells after its parameters."""

    def notebook(*cells: str, name: str = "note", **parameters: Any) -> Task:
        first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        nb = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
        nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = folder / f"{name}.ipynb"
        nbformat.write(nb, path)
        return Task(path, parameters, folder / "out" / f"{name}.ipynb")

    return notebook


def outputs(task: Task) -> str:
    """What the cells of the executed copy printed."""
    cells = nbformat.read(task.output, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))
