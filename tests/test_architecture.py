"""The package keeps its shape: layers, cheap imports, small functions, documented names, nothing of one machine."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from robustlib.runs.files import read_archive
from tests import ROOT

PACKAGE = ROOT / "robustlib"
FILES = sorted(PACKAGE.rglob("*.py"))

# The allowed arrows: a package imports those of earlier lines only, never one of its own line or of a later one.
LAYERS = (
    ("errors",),
    ("threat",),
    ("rng",),
    ("data", "models", "losses", "figures"),
    ("attacks", "runs"),
    ("training",),
    ("evaluation", "representation"),
    ("methods",),
    ("audit",),
    ("workbook",),
)
# The same inside the workbook, where each part stands on its own line.
WORKBOOK = (
    "tables",
    "claims",
    "task",
    "engines",
    "report",
    "experiments",
    "parameters",
    "sections",
    "explorer",
    "console",
    "options",
    "on_runs",
    "on_batches",
    "cli",
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
LAYER |= {f"workbook.{name}": len(LAYERS) + place for place, name in enumerate(WORKBOOK)}
HEAVY = "torchvision sklearn scipy lightning_fabric matplotlib papermill nbconvert nbformat ray umap"
BELOW = "data evaluation figures losses methods models representation runs threat training workbook.claims"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES}


@cache  # and not at the top: each process of a run collects these tests, one runs them
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports(module: str) -> Iterator[tuple[str, int]]:
    """(imported module of robustlib, line) of each import, wherever it stands in the file."""
    for node in ast.walk(tree(MODULES[module])):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively: write the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from ((name, node.lineno) for name in names if name.startswith("robustlib."))


def part_of(module: str) -> str:
    """robustlib.attacks.pgd -> attacks; robustlib.workbook.report.page -> workbook.report."""
    _, package, *rest = module.split(".")
    return f"workbook.{rest[0]}" if package == "workbook" and rest else package


@cache
def arrows() -> list[tuple[str, str, str]]:
    """(importing module, imported one, place)."""
    return [(m, t, f"{MODULES[m].relative_to(ROOT)}:{n}") for m in MODULES if m != "robustlib" for t, n in imports(m)]


def test_arrows_point_downwards():
    crossing = [(part_of(a), part_of(b), place) for a, b, place in arrows() if part_of(a) != part_of(b)]
    wrong = [f"{place}: {a} imports {b}" for a, b, place in crossing if LAYER[a] <= LAYER[b]]
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for a, b, _ in arrows():
        graph[a].add(b)
    TopologicalSorter(graph).prepare()  # raises CycleError, with the modules of the circle


def test_files_say_what_is_in_them_are_small_and_in_few_folders():
    assert len({file.relative_to(PACKAGE).parts[0] for file in FILES}) <= 16
    assert not [file for file in FILES if re.search("utils?|helpers?|misc", file.stem)]
    sizes = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert not {file: lines for file, lines in sizes.items() if lines > 400}


def test_imports_cost_what_is_needed_and_nothing_else():
    below = ", ".join(f"robustlib.{name}" for name in BELOW.split())
    code = f"import sys, robustlib.attacks\nprint(*{{*{HEAVY.split()}, 'pandas', 'pyarrow'}} & {{*sys.modules}})\n"
    code += f"import {below}\nprint(*{{*{HEAVY.split()}}} & {{*sys.modules}})"  # pandas takes pyarrow
    watcher = "import sys, robustlib.workbook.task\nprint(*{'torch'} & {*sys.modules})"  # of a notebook, a process each
    teller = "import sys, robustlib.workbook.on_batches, robustlib.workbook.console\nprint(*{'torch'} & {*sys.modules})"
    for program in (code, watcher, teller):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.split() == []
    import nbformat  # noqa: F401

    assert sys.modules.get("rfc3987_syntax") is None, "jsonschema compiles a grammar for seconds, in each process"


def test_functions_are_small():
    sizes = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {place: lines for place, lines in sizes.items() if lines > 60}
    assert statistics.median(sizes.values()) <= 10


@cache
def classes() -> dict[str, ast.ClassDef]:
    """The package's, by name."""
    return {node.name: node for file in FILES for node in tree(file).body if isinstance(node, ast.ClassDef)}


def inherited(kind: ast.ClassDef) -> set[str]:
    """Documented methods of a class's bases in the package: an override need not say again what they say."""
    bases = [classes()[b.id] for b in kind.bases if isinstance(b, ast.Name) and b.id in classes()]
    own = {n.name for base in bases for n in base.body if isinstance(n, Definition) and ast.get_docstring(n)}
    return own.union(*map(inherited, bases))


def public(file: Path) -> Iterator[Definition]:
    """Public functions and classes of a module, and the public methods that its public classes introduce."""
    for node in tree(file).body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = (n for n in node.body if isinstance(n, Definition) and not n.name.startswith("_"))
                yield from (n for n in methods if n.name not in inherited(node))


def test_public_names_have_docstrings():
    wanted = [
        (file, node) for file in FILES for node in public(file) if ast.unparse(node.body[0]) != "..."
    ]  # protocols'
    bare = [f"{file.relative_to(ROOT)}:{n.lineno} {n.name}" for file, n in wanted if not ast.get_docstring(n)]
    bare += [str(file.relative_to(ROOT)) for file in FILES if not ast.get_docstring(tree(file))]
    assert not bare, "\n".join(bare)


# Put together from pieces, since this file is searched as well.
HOSTS = [".".join(parts) for parts in (("py" + "pi", "org"), ("python" + "hosted", "org"), ("ana" + "conda", "org"))]
MACHINE = re.compile(r"(?<![\w.:/~$}>*-])/(?:home|root|work|Users|tmp|mnt|opt|srv)/\w")


def test_nothing_of_one_machine_is_committed():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]  # what is not added yet counts too
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout, so nobody knows which files are committed")
    found = []
    for file in map(ROOT.joinpath, names):
        if file.suffix in (".png", ".parquet") or not file.is_file():
            continue
        parts = read_archive(file).items() if file.suffix == ".zip" else [("", file.read_bytes())]
        for name, data in parts:
            for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
                if MACHINE.search(line) or any(host in line for host in HOSTS):
                    found.append(f"{file.relative_to(ROOT)} {name}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)
