"""The house keeps its shape: floors, cheap imports, small functions, documented names, nothing of one machine."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "robustlib"
FILES = sorted(PACKAGE.rglob("*.py"))

# Every room and its floor (architecture.md, section 2). A room is a module or a package directly below robustlib/.
FLOORS = {
    0: ("errors", "threat", "data", "models", "attacks", "losses", "runs", "figures", "tables"),
    1: ("training", "evaluation", "representation", "claims"),
    2: ("methods", "audit"),
    3: ("task", "workbook", "report", "batch", "console", "explorer", "cli"),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
EVERYWHERE = ("errors", "threat")  # the vocabulary that neighbours on floor 0 share
WRITERS = ("write_atomic", "write_json", "read_json")  # of runs: how any room writes a file
# (room, room it imports on its own floor) -> why that is right
EXCEPTIONS = {
    ("runs", "models"): "Run.model() builds the network whose weights the run keeps; imported when called",
    ("audit", "methods"): "the attack by which a method's paper reports; imported when called",
    ("evaluation", "training"): "resolve_device: both take the same names of devices",
    ("representation", "training"): "resolve_device, as in evaluation",
}
HEAVY = (
    "torchvision pandas sklearn scipy lightning_fabric matplotlib seaborn papermill nbconvert nbformat pyarrow ray umap"
)
LOWER = (
    "claims",
    "data",
    "evaluation",
    "figures",
    "losses",
    "methods",
    "models",
    "representation",
    "runs",
    "tables",
    "threat",
    "training",
)
LEAN = ["robustlib", "robustlib.attacks", ", ".join(f"robustlib.{room}" for room in LOWER)]

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[str, list[str], int]]:
    """(room, names taken from it, line) of each import of robustlib, wherever it stands in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively: write the full name"
            parts = (node.module or "").split(".")
            if parts[0] == "robustlib" and len(parts) > 1:
                yield parts[1], [alias.name for alias in node.names], node.lineno
            elif parts == ["robustlib"]:
                yield from ((alias.name, [], node.lineno) for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from ((name[1], [], node.lineno) for name in names if name[0] == "robustlib" and len(name) > 1)


def foreign() -> Iterator[tuple[str, str, list[str], str]]:
    """(importing room, imported room, names, place) of every import from another room."""
    for file in FILES:
        mine = room_of(file)
        for theirs, names, line in imports(file):
            if theirs != mine and mine != "__init__":
                yield mine, theirs, names, f"{file.relative_to(ROOT)}:{line}"


def may_import(mine: str, theirs: str, names: list[str]) -> bool:
    if FLOOR[theirs] < FLOOR[mine] or theirs in EVERYWHERE or (mine, theirs) in EXCEPTIONS:
        return True
    if theirs == "runs" and names and set(names) <= set(WRITERS):
        return True
    # The top floor is a stack: each of its rooms may use those that stand before it.
    top = FLOORS[3]
    return mine in top and theirs in top and top.index(theirs) < top.index(mine)


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} - {"__init__"} <= set(FLOOR)


def test_rooms_import_only_lower_floors():
    wrong = [f"{place}: {a} imports {b}" for a, b, names, place in foreign() if not may_import(a, b, names)]
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_needed():
    assert set(EXCEPTIONS) <= {(a, b) for a, b, *_ in foreign()}


def test_no_utils():
    assert not [file for file in FILES if re.search("utils?|helpers?|misc", file.stem)]


@pytest.mark.parametrize("modules", LEAN, ids=["robustlib", "attacks", "lower floors"])
def test_import_costs_torch_at_most(modules):
    code = f"import sys, {modules}; print(*[name for name in {HEAVY.split()!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def functions() -> Iterator[tuple[str, int]]:
    """(place, lines) of every function and method of the package; decorators do not count."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_functions_are_small():
    sizes = dict(functions())
    assert not {place: lines for place, lines in sizes.items() if lines > 60}
    assert statistics.median(sizes.values()) <= 12


def test_files_are_small():
    sizes = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert not {file: lines for file, lines in sizes.items() if lines > 250}


def public(file: Path) -> Iterator[Definition]:
    """Public functions and classes of a module and public methods of its public classes."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (n for n in node.body if isinstance(n, Definition) and not n.name.startswith("_"))


def is_stub(node: Definition) -> bool:
    """`def f(self) -> int: ...`, as protocols have: documented where it is implemented."""
    return len(node.body) == 1 and isinstance(node.body[0], ast.Expr) and getattr(node.body[0].value, "value", 0) is ...


def test_public_names_have_docstrings():
    wanted = [(file, node) for file in FILES for node in public(file) if not is_stub(node)]
    bare = [f"{file.relative_to(ROOT)}:{n.lineno} {n.name}" for file, n in wanted if not ast.get_docstring(n)]
    bare += [
        f"{f.relative_to(ROOT)} has no docstring" for f in FILES if not ast.get_docstring(ast.parse(f.read_text()))
    ]
    assert not bare, "\n".join(bare)


def committed() -> list[Path]:
    """The files of the repository, those that are not added yet included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout, so nobody knows which files are committed")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


# Put together from pieces, since this file is searched as well.
HOSTS = [".".join(parts) for parts in (("py" + "pi", "org"), ("python" + "hosted", "org"), ("ana" + "conda", "org"))]
MACHINE = re.compile(r"(?<![\w.:/~$}>*-])/(?:home|root|work|Users|tmp|mnt|opt|srv)/\w")


def test_nothing_of_one_machine_is_committed():
    found = []
    for file in committed():
        if file.suffix in (".png", ".parquet"):
            continue
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            if any(host in line for host in HOSTS) or MACHINE.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)
