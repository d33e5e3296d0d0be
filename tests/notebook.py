"""A notebook's cells executed in the process of the tests: no kernel that imports, loads and compiles everything anew."""

import io
from contextlib import redirect_stdout
from typing import Any

import nbformat
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from robustlib.workbook.task import Task, check


def perform(task: Task) -> None:
    """What `robustlib.workbook.engines.execute` leaves at `task.output`; a shell of its own, but the modules of the tests."""
    task = check(task)
    book = parameterize_notebook(load_notebook_node(str(task.notebook)), task.parameters)
    config = Config(HistoryManager={"enabled": False}, InteractiveShell={"warn_venv": False})
    shell = InteractiveShell.instance(config=config)
    try:
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs = _outputs(shell, cell.source)
    finally:
        shell.restore_sys_module_state()
        InteractiveShell.clear_instance()
    nbformat.write(book, task.output)


def _outputs(shell: InteractiveShell, source: str) -> list[nbformat.NotebookNode]:
    """What a cell prints and shows, and its last value."""
    shown: list[dict[str, Any]] = []
    shell.display_pub = CapturingDisplayPublisher(outputs=shown)
    shell.display_trap.hook = CapturingDisplayHook(shell, shown)
    with redirect_stdout(io.StringIO()) as printed:
        result = shell.run_cell(source)
    result.raise_error()
    new = nbformat.v4.new_output
    stream = [new("stream", text=printed.getvalue())] if printed.getvalue() else []
    return [*stream, *(new("display_data", one["data"], metadata=one["metadata"] or {}) for one in shown)]
