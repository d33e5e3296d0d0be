"""The damage of benchmarks/hostile.py: files of a run that are cut, altered or another run's, before all that reads runs."""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st

from robustlib.attacks import FGSM
from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.evaluation import evaluate, incomplete, leaderboard
from robustlib.methods import make_method
from robustlib.runs import Run, find_runs, write_json
from robustlib.training import fit
from robustlib.training.loop import load_checkpoint
from robustlib.workbook import console, experiments, tables
from robustlib.workbook.report import write_index


class Damage(NamedTuple):
    """What is done to a file: "cut" at a share of its length, a "bit" flipped there, "other": another run's, "text": this instead, or
    "leaf": one value of its JSON replaced."""

    file: str
    how: str
    where: float
    text: str


REFERENCE = Path(__file__).parent.parent / "reports" / "reference"
STORED = ("results.json", "audit.json", "representation.json", "distances.json", "unseen.json", "randomness.json")
# No byte of these may change unseen.
DIGESTED = ("metrics.jsonl", "model.safetensors", "last.safetensors", "records.parquet")
CLAIMED = replace(experiments.read_study("digits-claims"), seeds=[0, 1])
TEXTS = ("", "[]", "{}", "null", "0", '"x"', "{", "[{}]", '{"state": 1}', "\x00\xff", "1" * 5000, "[" * 100_000, "NaN")
VALUES = ("null", "[]", "{}", "-1", "1.5", "true", '"x"', "1e999", "NaN", "[[]]", '{"a": 1}', '"../../x"', '"<b>"')


def damage(folder: Path) -> tuple[st.SearchStrategy[Damage], Callable[[Damage], None]]:
    """Two finished runs with every file that a run can have; one file of one of them is damaged."""
    runs = [made_run(folder / "whole", seed) for seed in (0, 1)]
    places = [run.path.relative_to(folder / "whole") for run in runs]
    names = sorted(file.name for file in runs[0].path.iterdir() if not file.name.startswith("."))
    hows = st.sampled_from(("cut", "bit", "other", "text", "leaf", "leaf", "leaf"))
    where = st.floats(0, 1, exclude_max=True)
    cases = st.builds(Damage, st.sampled_from(names), hows, where, st.sampled_from((*TEXTS, *VALUES)))
    root = folder / "tried"
    shutil.copytree(folder / "whole", root)

    def survive(case: Damage) -> None:
        file = root / places[0] / case.file
        try:
            inflict(case, file, folder / "whole" / places[1] / case.file)
            read_all(root, places[0])
            if case.how == "other" or case.file in DIGESTED:
                altered = file.read_bytes() != (folder / "whole" / places[0] / case.file).read_bytes()
                assert not altered or is_refused(Run(root / places[0]), case.file), "it is believed"
        finally:
            shutil.copy2(folder / "whole" / places[0] / case.file, file)
            os.utime(file, ns=(now := time.time_ns(), now))  # what is remembered of it goes by its time

    return cases, survive


def inflict(case: Damage, file: Path, other: Path) -> None:
    """Damages one file."""
    data = file.read_bytes()
    place = int(case.where * len(data))
    if case.how == "cut":
        data = data[:place]
    elif case.how == "bit":
        data = data[:place] + bytes([data[place] ^ 1 << int(case.where * 4096) % 8]) + data[place + 1 :]
    elif case.how == "other":
        data = other.read_bytes()
    elif case.how == "text" or file.suffix not in (".json", ".jsonl"):
        data = case.text.encode(errors="surrogateescape")
    else:
        lines = data.splitlines() if file.suffix == ".jsonl" else [data]
        at = int(case.where * len(lines))
        content = json.loads(lines[at])
        leaves = list(places_in(content))
        *way, key = leaves[int(case.where * 1e6) % len(leaves)]
        part = content
        for step in way:
            part = part[step]
        with suppress(ValueError, RecursionError):
            part[key] = json.loads(case.text)
        lines[at] = json.dumps(content).encode()
        data = b"\n".join(lines)
    file.unlink()
    file.write_bytes(data)


def is_refused(run: Run, name: str) -> bool:
    """Whether a file of a run is an InputError to its reader."""
    readers = {"params.json": run.params, "metrics.jsonl": run.metrics, "records.parquet": run.records}
    readers |= {"model.safetensors": run.model, "last.safetensors": partial(run.model, "last")}
    readers["checkpoint.pt"] = partial(load_checkpoint, run.path / name, run.place)
    try:
        readers.get(name, partial(run.read, name))()
    except InputError:
        return True
    return False


def places_in(content: Any, way: tuple[Any, ...] = ()) -> Any:
    """The way to each value in JSON, itself or within others; of long lists only to the first ones."""
    keys = content if isinstance(content, dict) else range(min(len(content), 3)) if isinstance(content, list) else ()
    for key in keys:
        yield (*way, key)
        yield from places_in(content[key], (*way, key))


def read_all(root: Path, place: Path) -> None:
    """All that reads runs. The damaged one may raise an InputError; what reads all of them, as lists and the index do, may not."""
    try:
        served = serve(root, Run(root / place))
    except InputError as error:
        raise AssertionError("a damaged run stops the others") from error
    assert any(run.path != root / place for run in served), "the other run is not served"
    run = Run(root / place)
    stored = [partial(run.read, name) for name in ("representation.json", "unseen.json", "randomness.json")]
    stored += [run.params, run.status, run.provenance, run.metrics, run.records, run.distances, run.changes]
    stored += [lambda: run.stale, run.model, partial(run.model, "last")]
    stored += [partial(load_checkpoint, run.path / "checkpoint.pt", run.place)]
    stored += [lambda: tables.provenance(run.provenance()), lambda: tables.checks(run.audit())]
    stored += [lambda: (found := run.results()) and list(console.evaluation_tables(run, found, None))]
    for reader in stored:
        with suppress(InputError):
            reader()


def serve(root: Path, run: Run) -> list[Run]:
    """The runs that are shown, by what lists, compares and judges all of them; the numbers of others are not asked for again."""
    sound, every = find_runs(root), find_runs(root, finished=False)
    tables.inventory(every)
    experiments.compare_runs(root, "digits")
    board, lacking = leaderboard(run for run in sound if run.results()), incomplete(every)
    if run in sound:
        experiments.claim_findings(CLAIMED, sound)
        write_index(root.parent / "index", board, {}, incomplete=lacking)
    return sound


def made_run(root: Path, seed: int) -> Run:
    """A small trained run with its own records and the numbers of committed runs: of a randomised one, with all that is measured on those."""
    data = load_dataset("digits")
    method = make_method("standard", "digits", arch="mlp_8", epochs=1, train_examples=64)
    run = fit(method, data, root=root, device="cpu", seed=seed, threads=1, progress=False)
    records = evaluate(run.model(), data.test.sample(4), {"fgsm": FGSM(data.threat)})
    run.write_frame("records.parquet", records.assign(checkpoint="best"))
    numbers: dict[str, dict[str, Any]] = {}
    for donor in (*find_runs(REFERENCE, method="rep_spectral"), *find_runs(REFERENCE, method="atop")):
        numbers |= {name: content for name in STORED if (content := donor.read(name))}
    numbers["results.json"]["files"] = run.digests("model.safetensors", "last.safetensors", "records.parquet")
    for name, content in numbers.items():
        several = name in ("representation.json", "distances.json", "unseen.json")
        entries = {key: {"run": run.place, **entry} for key, entry in content.items()} if several else content
        write_json(run.path / name, entries if several else {"run": run.place, **entries})
    return run
