"""Which runs there are below a directory, and which of them serve another one."""

from collections.abc import Sequence
from pathlib import Path

from robustlib.runs import files
from robustlib.runs.run import Run


def find_runs(
    root: Path | str = "runs",
    *,
    dataset: str | None = None,
    method: str | None = None,
    preset: str | None = None,
    finished: bool = True,
) -> list[Run]:
    """The runs below `root`, in directories or archives, by path; only finished ones unless told otherwise.

    Those with `damage` are among them only where all are asked for, whatever their preset and whether finished or not.
    """
    folder, methods = Path(root), f"{dataset or '*'}/{method or '*'}"
    paths = {file.parent for file in folder.glob(f"{methods}/*/params.json")}
    for archive in folder.glob(f"{methods}.zip"):  # of committed results: <method>.zip holds <run>/params.json
        paths |= {archive.with_suffix("") / name for name in files.archived_runs(archive)}
    if not finished and preset is None:
        return [*map(Run, sorted(paths))]
    briefs = {run: run.brief() for run in map(Run, sorted(paths))}
    whole = [run for run, brief in briefs.items() if not brief["damage"] and preset in (None, brief["preset"])]
    return [run for run in whole if not finished or briefs[run]["state"] == "done"]


def transfer_sources(run: Run, methods: Sequence[str]) -> dict[str, Run]:
    """Another finished run of each method, by method: same root, data set and threat; if possible with the same architecture,
    an unchanged preset, and the same seed."""
    path, params, sources = run.path.resolve(), run.params(), dict[str, Run]()

    def unlike(other: Run) -> tuple[bool, ...]:  # the gravest difference first
        arch, preset, seed = (other.params().get(name) != params.get(name) for name in ("arch", "preset", "seed"))
        return arch, preset, bool(other.changed), seed

    around = find_runs(path.parents[2], dataset=params["dataset"]) if methods and len(path.parents) > 2 else []
    for method in methods:
        others = [r for r in around if r.params()["method"] == method and r.params()["threat"] == params["threat"]]
        others = [r for r in others if r.path.resolve() != path and (r.path / "model.safetensors").exists()]
        if others:
            sources[method] = min(others, key=unlike)
    return sources
