"""Writes what is generated of the site: the results, speed and method tables, and a page of the API for each package.

    python benchmarks/site_parts.py          # into docs/; `make site` calls it

Tables come from the same committed files as README's (see readme_tables.py), the API from what each package imports in its `__init__`: a
public name without documentation is an error.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import readme_tables
import site_reports
from side_by_side import markdown

from robustlib.methods import METHODS
from robustlib.runs import write_atomic

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/robustlib/robustlib/blob/main/"
PACKAGES = (
    *("data", "models", "losses", "attacks", "training", "methods", "evaluation", "audit", "representation", "figures"),
    *("runs", "workbook.tables", "workbook.claims", "workbook.experiments", "workbook.report", "workbook.explorer"),
    *("threat", "rng", "errors"),
)
SEEN = {  # what to look for on the page of a run
    "compare": "all methods side by side: accuracies, curves, costs, feature spaces, claims",
    "claf": "does the head fall behind, and do features stay where they are?",
    "afd": "the feature gap over the epochs, before and after disentangling",
    "rep_spectral": "how far away adversarial images are, and the geometry of the map",
    "atop": "what the purifier does, and what randomness hides",
    "ancra": "the paper's protocol beside the adaptive minimum",
    "standard": "what happens without a defence",
    "pgd_at": "the bar for all others",
    "trades": "the tutorial's other half",
}
FAMILIES = {  # page of a method: who stands in its tables, and whose claims it shows
    "afd": ("pgd_at", "vaft", "afkd", "arrest", "afd"),
    "ancra": ("trades", "ancra"),
    "atop": ("standard", "pgd_at", "atop"),
    "baselines": ("standard", "pgd_at", "trades", "mart", "fgsm_rs", "n_fgsm"),
    "claf": ("pgd_at", "supcon", "simclr", "rocl", "acl", "claf"),
    "rep_spectral": (
        *("standard", "rep_spectral", "ll_spectral", "cross_lipschitz", "barlow_spectral", "simclr_spectral"),
        *("transfer", "l2_sp", "bss"),
    ),
}


def write(docs: Path = ROOT / "docs") -> None:
    """Writes all of it below `docs`; what would not change stays untouched, so that Sphinx does not read it again."""
    parts = {"_generated/results.md": readme_tables.results(), "_generated/agreement.md": readme_tables.agreement()}
    parts |= {"_generated/features.md": readme_tables.features(readme_tables.REFERENCE, "cifar10-small")}
    parts |= {"_generated/method-names.md": method_names()}
    parts |= {"_generated/pictures.md": readme_tables.pictures(), "_generated/speed.md": readme_tables.speed()}
    parts |= {f"_generated/{name}.md": _measured(name) for name in FAMILIES} | {"_generated/reports.md": reports()}
    up = {"_generated/pictures.md": "../", "_generated/features.md": "../"}
    parts = {name: linked(text, up.get(name, "../../")) for name, text in parts.items()}
    parts |= {f"api/{name}.md": text for name, text in api().items()}
    for name, text in parts.items():
        if not (docs / name).is_file() or (docs / name).read_text() != text:
            write_atomic(docs / name, text)


def _measured(name: str) -> str:
    """The tables of a method's page, below links to the rendered pages of its runs."""
    pages = site_reports.addresses()
    own = [method for method in FAMILIES[name] if name in (method, METHODS[method].notebook) and method in pages]
    links = [f'<a href="../reports/{pages[method]}">{METHODS[method].title}</a>' for method in own]
    shown = f"The page that `make report` wrote of a run: {', '.join(links)}.\n\n" if links else ""
    return shown + readme_tables.family(name, FAMILIES[name])


def reports() -> str:
    """A table of the rendered pages, and what to look for on each."""
    rows = [
        {
            "page": f'<a href="reports/{address}">{"The comparison" if name == "compare" else METHODS[name].title}</a>',
            "what is on it": SEEN[name],
        }
        for name, address in sorted(site_reports.addresses().items(), key=lambda pair: list(SEEN).index(pair[0]))
    ]
    return markdown(rows) if rows else "No reports are kept yet: `python benchmarks/site_reports.py digits` keeps them."


def method_names() -> str:
    """Every method by the name that the command line knows, with its paper and its notebook."""
    rows = [
        {
            "name": f"`{name}`",
            "method": method.title,
            "paper": method.paper,
            "notebook": f"[{method.notebook}](notebooks/{method.notebook}.ipynb)",
        }
        for name, method in METHODS.items()
    ]
    return markdown(rows)


def linked(text: str, up: str) -> str:
    """`text` of the README as the site has it: pictures from `up`, other files from the repository, numbers in one piece."""
    text = re.sub(
        r"(?<=[\d±]) (?=[%±\d(]|points)|(?<=\d) (?=to [+−\d])|(?<= to) (?=[+−\d])|(?<=[%s]) (?=\([+−\d])",
        "\u00a0",
        text,
    )
    text = re.sub(r"(!\[[^\]]*\])\((?!\w+:)", rf"\1({up}", text)
    return re.sub(r"(?<!!)(\[[^\]]*\])\((?![\w.]+:|[#.])", r"\1(repo:", text)


def api() -> dict[str, str]:
    """The pages by name: one for each package, and their index."""
    pages, rows = {}, []
    for package in PACKAGES:
        module = importlib.import_module(f"robustlib.{package}")
        names, page = list(public(module)), package.replace(".", "-")
        summary = inspect.getdoc(module) or ""
        rows.append(
            {
                "package": f"[`robustlib.{package}`]({page}.md)",
                "what it holds": summary.partition("\n\n")[0].replace("\n", " "),
            }
        )
        entries = "\n\n".join(_entry(module, name) for name in names)
        pages[page] = f"# robustlib.{package}\n\n```{{eval-rst}}\n{summary}\n\n{entries}\n```\n"
    toctree = "\n".join(package.replace(".", "-") for package in PACKAGES)
    head = (
        "# API\n\nWhat each package offers, from its docstrings. A package imports only those below its own layer.\n\n"
    )
    pages["index"] = f"{head}{markdown(rows)}\n```{{toctree}}\n:hidden:\n\n{toctree}\n```\n"
    return pages


def public(module: Any) -> Iterator[str]:
    """The names that a package imports from its own modules or defines, in their order; of a module, its functions and classes."""
    for node in ast.parse(inspect.getsource(module)).body:
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and hasattr(module, "__path__"):
            inside = str(node.module).startswith((f"{module.__name__}.", "robustlib.rng", "robustlib.threat"))
            names = [alias.asname or alias.name for alias in node.names] if inside else []
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and hasattr(module, "__path__"):
            names = [
                target.id
                for target in getattr(node, "targets", [getattr(node, "target", None)])
                if isinstance(target, ast.Name)
            ]
        yield from (name for name in names if not name.startswith("_"))


def _entry(module: Any, name: str) -> str:
    """The directive that documents a name; SystemExit where nothing does."""
    thing, where = getattr(module, name), f"{module.__name__}.{name}"
    if inspect.isclass(thing):
        kind, options = "class", "\n   :members:\n   :special-members: __call__"
    elif inspect.isroutine(thing):
        kind, options = "function", ""
    else:
        return f".. py:data:: {where}\n\n   {_constant(module, name)}"
    if not thing.__doc__ or thing.__doc__.startswith(f"{name}("):  # dataclasses invent such a one
        raise SystemExit(f"{where} has no docstring: every public name says what it is.")
    return f".. auto{kind}:: {where}{options}"


def _constant(module: Any, name: str) -> str:
    """What the comment `#:` above a constant says, in the module that defines it."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and any(name in (alias.name, alias.asname) for alias in node.names):
            return _constant(importlib.import_module(str(node.module)), name)
    if found := re.search(rf"((?:^#:.*\n)+)^{name}\b", source, re.MULTILINE):
        return " ".join(line.removeprefix("#:").strip() for line in found[1].splitlines())
    raise SystemExit(f"{module.__name__}.{name} has no comment `#:`: every public name says what it is.")


@cache
def public_names() -> Mapping[type, str]:
    """Where the API documents each public class, so that types in signatures can link to it."""
    modules = [importlib.import_module(f"robustlib.{package}") for package in reversed(PACKAGES)]
    places = [(getattr(module, name), f"{module.__name__}.{name}") for module in modules for name in public(module)]
    return {thing: where for thing, where in places if inspect.isclass(thing)}


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if arguments:
        sys.exit(__doc__)
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
