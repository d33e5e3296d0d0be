"""One notebook to execute: its parameters, its status, and the process that executes it.

Papermill's metadata call cells "completed" after a dead kernel, a timeout or Ctrl-C. So a task keeps its own `<output>.status.json`:
the worker (`python -m robustlib.workbook.task`) writes how it ended, and `engines` what a worker cannot know (killed, out of time).
"""

import asyncio
import json
import os
import platform
import re
import select
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from robustlib.errors import InputError, check_known, check_path, explained, typed
from robustlib.runs import Run, digest, read_json, write_json
from robustlib.runs.lock import held, take

Status = dict[str, Any]
START_TIMEOUT = 300  # seconds; a dozen kernels that import torch at once exceed papermill's 60
INTERRUPTED: Status = {"state": "interrupted", "reason": "Interrupted; the same call resumes from the last epoch."}
CANCELLED: Status = {**INTERRUPTED, "reason": "Cancelled; the same call resumes from the last epoch."}
LOST: Status = {**INTERRUPTED, "reason": "Its process ended without a word; the same call resumes from the last epoch."}
UNDER_WAY = ("queued", "running")  # states of tasks that have not ended
LAST = 20.0  # seconds after which a worker that lost its caller kills a kernel that does not listen
NAG = 3.0  # seconds after which a kernel that ignored an interrupt gets another
NONE = " or None"
KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": int | float, "str": str, "list": list, "dict": dict}


@dataclass(frozen=True)
class Task:
    """A notebook, the parameters it is executed with, and the executed copy to write (".ipynb")."""

    notebook: Path
    parameters: dict[str, Any]
    output: Path
    about: dict[str, Any] = field(default_factory=dict, compare=False)  # for who reads its status: name, run, epochs

    @property
    def status_path(self) -> Path:
        """Where the status is kept: next to the output, ".status.json"."""
        return self.output.with_suffix(".status.json")

    def status(self) -> Status:
        """The last recorded status, "interrupted" in place of "running" if no process is at it; {} before the first.

        state ("queued", "running", "done", "failed", "killed", "timeout" or "interrupted"), reason (a sentence when it did not end
        well), exception (its name, if a cell raised), notebook, parameters, about, source (digest of the notebook), output (digest of
        the executed copy, once done), started (UTC), seconds, host and pid (of who queued or executes it), worker and kernel (pids).
        """
        status = read_json(self.status_path)
        return status | LOST if status.get("state") == "running" and held(self.lock_path) is False else status

    def record(self, **fields: object) -> Status:
        """Adds `fields` to the status file and returns the whole."""
        status = read_json(self.status_path) | fields
        write_json(self.status_path, status)
        return status

    def enqueue(self, **fields: object) -> None:
        """Starts the status anew as "queued", with `fields` besides."""
        status: Status = {"state": "queued", "reason": "", "notebook": str(self.notebook)}
        status |= {"parameters": self.parameters, "about": self.about, "host": platform.node(), "pid": os.getpid()}
        write_json(self.status_path, {**status, "source": _digest(self.notebook), **fields})

    @property
    def lock_path(self) -> Path:
        """A file beside the output whose lock whoever executes the task holds: the status and the output are theirs."""
        return self.output.with_name(f".{self.output.stem}.lock")

    def hold(self, patience: float = 0.0) -> IO[Any] | None:
        """The lock's file, held until it is closed; None where another process holds it, and goes on doing so for `patience` seconds."""
        with explained(OSError, lambda e: f"Cannot write {self.output} ({e.strerror}): choose a writable directory."):
            self.output.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.lock_path, "a")  # noqa: SIM115  (it is the lock)
            if take(file, patience):
                return file
        file.close()
        return None

    def settle(self, end: Status, patience: float = 0.0) -> None:
        """Records `end` of a task that was under way and is not any more; not of one that another process executes."""
        if lock := self.hold(patience):
            with lock:
                if read_json(self.status_path).get("state") in UNDER_WAY:
                    self.record(**end)

    def resumed(self) -> "Task":
        """The same for another attempt: where the first one had begun to train anew (`rerun`), this one goes on."""
        run, began = read_json(Path(self.about.get("run", "")) / "status.json"), self.status().get("started")
        begun = run and began and run.get("started", 0) >= datetime.fromisoformat(began).timestamp()
        return replace(self, parameters=self.parameters | {"rerun": False}) if begun else self

    @property
    def cancel_path(self) -> Path:
        """A file beside the output: where it is, whoever executes the task, or is about to, stops it and removes the file."""
        return self.output.with_name(f".{self.output.stem}.cancel")

    @property
    def current(self) -> bool:
        """Whether its output is that of the notebook as it is now, whole, and ended well; with which parameters, `status` says."""
        status = self.status()
        recorded = tuple(status.get(name) for name in ("state", "source", "output"))
        return recorded == ("done", _digest(self.notebook), _digest(self.output))


@dataclass(frozen=True)
class Training:
    """One training: its run directory, the notebook that does it, its name and its number of epochs."""

    run: Run
    task: Task
    name: str
    epochs: int


def _digest(file: Path) -> str:
    return digest(file.read_bytes()) if file.is_file() else ""


def check(task: Task) -> Task:
    """The task with its parameters as plain JSON values, of the types that the notebook asks for; nothing is executed."""
    if task.output.suffix != ".ipynb":
        raise InputError(f"The executed notebook {task.output} should end in .ipynb: rename the output.")
    check_path(task.output)
    known = inspect(task.notebook)
    parameters = {}
    for name, value in task.parameters.items():
        check_known(f"parameter of {task.notebook.name}", name, known)
        kind = KINDS.get(known[name].removesuffix(NONE).split("[")[0], object)
        kind = kind | None if known[name].endswith(NONE) else kind
        parameters[name] = typed(_plain(name, value), kind, f"Parameter {name!r}")
    return replace(task, parameters=parameters)


def inspect(notebook: Path) -> dict[str, str]:
    """The parameters of a notebook and their annotated types ("None" where there is none; "int or None" where that is the default)."""
    if not os.path.isfile(notebook):
        raise InputError(f"There is no notebook {notebook}: give the path of an .ipynb file.")
    with explained(ImportError, lambda _: "Executing notebooks needs papermill: pip install 'robustlib[workbook]'."):
        import nbformat
        import papermill
    with explained(Exception, lambda error: f"{notebook} is not a readable notebook ({error}): restore it from git."):
        nbformat.read(notebook, as_version=4)  # papermill alone would warn and go on
        parameters = papermill.inspect_notebook(_literal(notebook))
    return {
        name: entry["inferred_type_name"] + NONE * (entry["default"] == "None") for name, entry in parameters.items()
    }


def _literal(path: Path) -> str:
    """A path as papermill takes it, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _plain(name: str, value: Any) -> Any:
    """A value as JSON knows it; papermill writes anything else as text: np.int64(3) as "3", a tuple as "(1, 2)"."""
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if type(value) is int:
        return typed(value, int, f"Parameter {name!r}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(name, item) for key, item in value.items()}
    remedy = "give numbers, texts, true or false, or lists and dictionaries of those"
    raise InputError(f"Parameter {name!r} holds a {type(value).__name__}, which a notebook cannot receive: {remedy}.")


def _kernel_manager(task: Task, folder: str) -> Any:
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        """A kernel on sockets in the file system (ports are a race between kernels), which passes interrupts on."""

        interrupted = False

        def __init__(self, **options: Any) -> None:
            super().__init__(transport="ipc", connection_file=os.path.join(folder, "kernel.json"), **options)

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            await super().start_kernel(**options)
            task.record(kernel=self.pid)
            for number in (signal.SIGINT, signal.SIGTERM):  # nbclient's handlers make an interrupt look like a death
                asyncio.get_running_loop().add_signal_handler(number, self.interrupt)

        @property
        def pid(self) -> int | None:
            return getattr(self.provisioner, "pid", None)

        def interrupt(self) -> None:
            Manager.interrupted = True
            if self.pid:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGINT)
                asyncio.get_running_loop().call_later(NAG, self.interrupt)

    return Manager


def _attempt(task: Task) -> Status | None:
    """Executes the notebook once and says how it ended; None if its kernel did not start."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    place, ended = tempfile.gettempdir(), None
    with tempfile.TemporaryDirectory(prefix="robustlib-", dir=place if len(place) < 60 else "/tmp") as folder:
        manager = _kernel_manager(task, folder)  # in a short path: that of a socket has at most 107 bytes
        try:
            files, silent = map(_literal, (task.notebook, task.output)), {"log_output": False, "progress_bar": False}
            kernel = {"kernel_manager_class": manager, "start_timeout": START_TIMEOUT}
            made = papermill.execute_notebook(*files, task.parameters, **kernel, **silent)
            if any(out.output_type == "error" for cell in made.cells for out in cell.get("outputs", [])):
                return _failed("SystemExit", f"It ended itself{_last_cell(task.output)}: take sys.exit out of it.")
            return {"state": "done", "reason": "", "output": _digest(task.output)}
        except papermill.PapermillExecutionError as error:
            if not manager.interrupted or error.ename != "KeyboardInterrupt":
                magic = error.ename == "CellExecutionError"  # one that failed raises nothing
                return _failed(*(_last_words(task.output) if magic else (error.ename, error.evalue)))
        except DeadKernelError:
            hint = "often the system's answer to a process that needs more memory than there is"
            ended = {"state": "killed", "reason": f"The kernel died{_last_cell(task.output)}, {hint}."}
        except RuntimeError as error:  # the kernel died or stayed silent before its first cell
            task.record(reason=f"The kernel did not start: {error}.")
    return INTERRUPTED if manager.interrupted else ended


def _failed(exception: str, words: object) -> Status:
    return {"state": "failed", "exception": exception, "reason": f"{exception}: {words}".removesuffix(": ")}


def _last_words(output: Path) -> tuple[str, str]:
    """The name and the text of an exception that a magic printed instead of raising it."""
    cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
    failed = [cell for cell in cells if cell["metadata"].get("papermill", {}).get("exception")]
    said = "".join("".join(out.get("text", "")) for cell in failed for out in cell["outputs"]).strip()
    name, _, words = re.sub(r"\x1b\[[0-9;]*m", "", said).rpartition("\n")[2].partition(": ")
    return name or "CellExecutionError", words


def _last_cell(output: Path) -> str:
    """Where an executed notebook stopped: " in cell 3 of 4"."""
    with suppress(OSError, ValueError, KeyError):
        cells = json.loads(output.read_text())["cells"]
        started = [n for n, c in enumerate(cells, 1) if c["metadata"].get("papermill", {}).get("start_time")]
        return f" in cell {started[-1]} of {len(cells)}" if started else ""
    return ""


def signal_group(group: int | None, number: int) -> None:
    """Sends a signal to a process group, if it is there."""
    if group:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


def _guard(task: Task) -> None:
    """Leaves a process behind that ends this one with its caller, and records what neither can where both are killed, as Ray does."""
    ours, pipe = os.getpid(), os.pipe()
    if os.fork():
        os.close(pipe[0])
        return  # the other end is closed when this process ends, however it does
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(pipe[0], 3)
    os.closerange(4, 1024)  # the lock too: it is not ours
    os.read(0, 1)  # nobody writes to our stdin: it ends when the process that started us is gone
    if not (gone := select.select([3], [], [], 0)[0]):
        os.kill(ours, signal.SIGINT)
        gone = select.select([3], [], [], LAST)[0]
    status = read_json(task.status_path)
    if not gone:
        signal_group(ours, signal.SIGKILL)
    if status.get("worker") == ours and (not gone or status.get("state") == "running"):
        signal_group(status.get("kernel"), signal.SIGKILL)  # Jupyter gives kernels a group of their own
    if (status.get("worker"), status.get("state")) == (ours, "running"):
        task.settle(INTERRUPTED, 2.0)
    os._exit(0)


def main(spec: str) -> None:
    """The worker: executes the task in `spec` (JSON: notebook, parameters, output) and records how it ended."""
    notebook, parameters, output = json.loads(spec)
    task = Task(Path(notebook), parameters, Path(output))
    numbers = signal.SIGINT, signal.SIGTERM
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, numbers
    )  # Ray blocks them and shells ignore them, and kernels inherit it
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    _guard(task)
    try:
        task.record(worker=os.getpid())
        outcome = _attempt(task) or _attempt(task) or {"state": "killed"}  # a kernel may fail to start once
    except KeyboardInterrupt:
        outcome = {"state": "interrupted", "reason": "Interrupted before its first cell."}
    except Exception as error:  # such as a full disk while the notebook is saved
        outcome = _failed(type(error).__name__, error)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing may come between the outcome and its record
    task.record(**outcome)


if __name__ == "__main__":
    main(sys.argv[1])
