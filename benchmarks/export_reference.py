"""Copies what is small of a preset's finished runs to reports/reference/, where measured results are committed.

    python benchmarks/export_reference.py                          # runs/ -> reports/reference/digits/
    python benchmarks/export_reference.py --preset cifar10-short

Numbers, parameters and provenance are copied into one archive a method; per-example records are not, nor weights (but see WEIGHTS). Runs with changed
hyper-parameters are left out unless a study that comes with robustlib asks for them, and so are stale ones unless --stale is given. A run
that was exported before stays until it is made again. Afterwards:

    python benchmarks/readme_figure.py && python benchmarks/readme_tables.py
"""

import argparse
import io
import json
import shlex
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from side_by_side import markdown

from robustlib.audit.audit import protocol_badge
from robustlib.errors import InputError
from robustlib.evaluation import leaderboard
from robustlib.methods import load_preset
from robustlib.runs import Run, find_runs, read_bytes, write_atomic
from robustlib.workbook.claims import Finding, variant_of
from robustlib.workbook.experiments import Study, claim_findings, claim_studies, read_study, study_names, variant_name
from robustlib.workbook.tables import ATTACKS, attack_name, claims, objections, percent, verdict_label

FILES = (
    *("params.json", "audit.json", "status.json", "provenance.json", "results.json", "representation.json"),
    *("metrics.jsonl", "distances.json", "unseen.json", "randomness.json"),
)
BESIDE = {  # preset: what must be read beside its table
    "cifar10-small": """Trainings on attacks take 50 gradient steps an image, N-FGSM's 30. These rows say how short trainings of a small network end, not what a method reaches:
TRADES does not lead PGD-AT as it does when trained out, and a trial at half the peak rate left it behind. AFD has the peak rate of its code, but on one cycle (38 % of the
published rate, summed over epochs), and an attack of half of the published steps, each as long as there. Trials on fewer images say that the rate is too low (the preset
has their numbers): its distance from PGD-AT is not to be believed before its row is made anew at a higher one. Steps of 4/255 in PGD-AT's attack bring nothing that a seed
could tell. Rates of other methods are not tried yet.

""",
    "cifar10-short": """Published for a ResNet-18 at Linf 8/255, clean / AutoAttack, mean of 3 seeds (FastAT benchmark, `fzjcdt/FastAT_Benchmark`): PGD-AT, 100 epochs
of one cycle, label smoothing 0.4: 85.35 % / 44.33 %; PGD-AT with averaged weights (0.9995): 82.36 % / 50.49 %; N-FGSM: 78.59 % / 47.77 %.

""",
}
WEIGHTS = (
    "cifar10-small",
)  # presets of which the first run of each reported method keeps its weights: an hour's work, a few MB
RUN_ONLY = ["stale", "title", "dataset"]  # columns that are the same for all, or true only today


def export(
    runs: Path, preset: str, out: Path, stale: bool = False, changed: bool = False, method: str | None = None
) -> pd.DataFrame:
    """Copies the runs of `preset` below `out`, writes leaderboard.csv and README.md there, and returns the leaderboard.

    Stale runs, and runs with changed hyper-parameters that no study asks for, are exported only if asked for. Where a `method` is given,
    no other one's runs are taken from `runs`.

    Raises:
        InputError: there is no finished, evaluated run to export.
    """
    variants = {variant for study in preset_studies(preset) for variant, _ in wanted(study)}
    # A run that is made again replaces its older self; those that are nowhere else stay.
    known = [*find_runs(out.parent, preset=preset), *find_runs(runs, preset=preset, method=method)]
    found = {run.path.parts[-2:]: run for run in known}
    chosen = [found[place] for place in sorted(found) if found[place].results()]
    chosen = [run for run in chosen if changed or not run.changed or variant_of(run) in variants]
    chosen = [run for run in chosen if stale or not run.stale]
    if not chosen:
        raise InputError(
            f"{runs} has no finished run of preset {preset!r} to export: make some with "
            f"`robustlib run --preset {preset}`, or add --stale if their numbers may be those of other versions."
        )
    copies = _archive(chosen, out)
    board = leaderboard(copies).sort_values(["method", "arch", "changed", "seed"], ignore_index=True)
    board["path"] = [Path(path).relative_to(out).as_posix() for path in board["path"]]
    board["warnings"] = board["warnings"].map("; ".join)
    write_atomic(out / "leaderboard.csv", board.drop(columns=RUN_ONLY).to_csv(index=False, lineterminator="\n"))
    judged = [(study, claim_findings(study, copies)) for study in claim_studies(preset)]
    if judged:
        every = [finding for _, findings in judged for finding in findings]
        write_atomic(out / "claims.csv", _differences(every).to_csv(index=False, lineterminator="\n"))
    write_atomic(out / "README.md", describe(copies, board, preset, judged))
    return board


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes the files of a method's runs, by `<run>/<file>`, as one archive; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    write_atomic(path, buffer.getvalue())


def _archive(runs: Sequence[Run], out: Path) -> list[Run]:
    """Writes one archive a method below `out`; the runs as they stand there."""
    whole = [run.path for run in _with_weights(runs)]
    archives: dict[str, dict[str, bytes]] = {}
    for run in runs:
        names = (*FILES, *(["model.safetensors"] if run.path in whole else []))
        files = archives.setdefault(run.path.parent.name, {})
        files |= {f"{run.path.name}/{name}": data for name in names if (data := _content(run, name)) is not None}
    for old in out.glob("*.zip"):
        old.unlink()
    (out / "claims.csv").unlink(missing_ok=True)
    for method, files in archives.items():
        write_archive(out / f"{method}.zip", files)
    return [Run(out / run.path.parent.name / run.path.name) for run in runs]


def _content(run: Run, name: str) -> bytes | None:
    """A file of a run; in that of its audit, how far the paper's protocol overstates by today's name of that protocol."""
    data = read_bytes(run.path / name)
    audit = json.loads(data) if data and name == "audit.json" else {}
    if "protocol" not in audit.get("badges", {}):
        return data
    audit["badges"]["protocol"] = protocol_badge(run.params(), run.results())
    return (json.dumps(audit, indent=2) + "\n").encode()


def _with_weights(runs: Sequence[Run]) -> list[Run]:
    """The first run of each method that its preset reports, where the preset is one of WEIGHTS."""
    first: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: int(run.params()["seed"])):
        preset, method = run.params()["preset"], run.params()["method"]
        reported = preset in WEIGHTS and method in load_preset(preset)["report"] and not run.changed
        if reported and read_bytes(run.path / "model.safetensors"):
            first.setdefault(method, run)
    return list(first.values())


def _differences(findings: Sequence[Finding]) -> pd.DataFrame:
    """What each verdict rests on: the paired difference of each seed."""
    rows = []
    for found in findings:
        facts = {
            name: getattr(found.claim, name) for name in ("name", "measure", "variant", "than", "direction", "relative")
        }
        facts["than"] = facts["than"] or "zero"
        rows += [{**facts, "seed": seed, "difference": gap} for seed, gap in found.evidence.differences.items()]
    return pd.DataFrame(
        rows, columns=["name", "measure", "variant", "than", "direction", "relative", "seed", "difference"]
    )


def describe(
    copies: Sequence[Run],
    board: pd.DataFrame,
    preset: str,
    judged: Sequence[tuple[Study, Sequence[Finding]]] = (),
) -> str:
    """The README.md of the exported runs: command, machine, numbers, verdicts on claims, protocols."""
    first, facts = copies[0].results(), [run.provenance() for run in copies]
    packages = "; ".join(_distinct(", ".join(f"{k} {v}" for k, v in fact["packages"].items()) for fact in facts))
    machines = "; ".join(_distinct(f"{fact['device_name']}, {fact['threads']} CPU thread(s) a run" for fact in facts))
    return f"""# Reference results: {load_preset(preset)["title"]}

Made by these commands; do not edit by hand.

```
{_commands(copies, preset)}
python benchmarks/export_reference.py --preset {preset}
```

- Machine: {machines}
- Software: {packages}; robustlib at {", ".join(_distinct(fact["git"] for fact in facts))}
- Evaluated on {first["n"]} images of the {first["split"]} split, {first["threat"]}, verdicts in float32, attack seed {first["seed"]}

Weights of the epoch with the best validation accuracy (robust where the training is adversarial), with 95 % Wilson intervals:

{markdown(_rows(board))}
{BESIDE.get(preset, "")}What the audits say against these numbers (*headline*: of the worst case; *protocol*: of the attack of the method's paper):

{objections(board)}

{_unseen(copies)}{_claims(judged)}These attacks hit the runs:

{markdown(_protocols(copies))}
{_looks(copies)}`<method>.zip` holds the runs of a method; `robustlib list --runs reports/reference` lists them, and Python reads them like any others
(`robustlib.runs.find_runs("reports/reference")`). Each run has `params.json`, `provenance.json` (with the command that repeats the training), `metrics.jsonl` (an epoch a
line), `results.json` (all accuracies of the best and of the last epoch, AutoAttack step by step, robustness curves),
`audit.json` (each check with its value and threshold), `representation.json` (measures of the feature space) and, where they were
measured, `distances.json` (adversarial distances, image by image), `unseen.json` (accuracy under unseen attacks) and
`randomness.json` (of randomised models: draws counted apart, and fixed). {_weights(copies)}
"""


def _protocols(copies: Sequence[Run]) -> list[dict[str, object]]:
    """Each attack with its protocol, a row for each of several, and the methods whose runs met it."""
    met: dict[str, dict[str, list[str]]] = {}
    methods = [run.params()["method"] for run in copies]
    for run, method in zip(copies, methods, strict=True):
        for row in run.results()["rows"]:
            if "@" not in row["attack"]:  # of a model with surrogates
                met.setdefault(row["attack"], {}).setdefault(row["protocol"], []).append(method)
    return [
        {"attack": attack_name(attack), "protocol": f"`{protocol}`", "runs": _of_all(who, methods)}
        for attack, protocols in met.items()
        for protocol, who in protocols.items()
    ]


def _of_all(chosen: Sequence[str], methods: Sequence[str]) -> str:
    """Which of all runs, each told by its method, these are: "all", "trades", "trades (2 of 3)"."""
    some, every = Counter(chosen), Counter(methods)
    named = [name if k == every[name] else f"{name} ({k} of {every[name]})" for name, k in sorted(some.items())]
    return "all" if some == every else ", ".join(named)


def _weights(copies: Sequence[Run]) -> str:
    """Which weights are kept, and how the others are made again."""
    kept = [run.params()["title"] for run in _with_weights(copies)]
    rest = "weights are not committed: the command in provenance.json makes them again"
    return (
        f"`model.safetensors` is kept of the first run of {', '.join(kept)}; other {rest}."
        if kept
        else rest.capitalize() + "."
    )


def preset_studies(preset: str) -> list[Study]:
    """The studies of a preset that come with robustlib."""
    return [study for study in map(read_study, study_names()) if study.preset == preset]


def wanted(study: Study) -> set[tuple[str, int]]:
    """The variants and seeds that a study asks for."""
    return {(variant_name(variant, study.preset), seed) for variant in study.variants for seed in study.seeds}


def _commands(copies: Sequence[Run], preset: str) -> str:
    """What makes these runs: the studies that are complete, and `robustlib run` for what none of them asks for."""
    made = {(variant_of(run), run.params()["seed"]): run for run in copies}
    lines, rest = [], set(made)
    for study in preset_studies(preset):
        asked = wanted(study)
        if asked <= set(made) and {made[key].results()["n"] for key in asked} == {study.examples}:
            lines.append(f"robustlib study {study.name}")
            rest -= asked
    trained = {key: made[key].params().get("precision") for key in rest}
    for variant, precision in dict.fromkeys((variant, trained[variant, seed]) for variant, seed in sorted(rest)):
        seeds = sorted(seed for name, seed in rest if name == variant and trained[name, seed] == precision)
        facts = made[variant, seeds[0]]
        options = [f"--set {shlex.quote(f'{name}={value}')}" for name, value in facts.changes().items()]
        usual = load_preset(preset).get("precision", "auto")
        options += [f"--precision {precision}"] if usual not in ("auto", precision) else []
        n = facts.results()["n"]
        options += [f"--examples {n}"] if n != load_preset(preset)["test_examples"] else []
        call = ["robustlib run", facts.params()["method"], f"--preset {preset}", f"--seeds {','.join(map(str, seeds))}"]
        lines.append(" ".join([*call, *options]))
    return "\n".join(lines)


def _unseen(copies: Sequence[Run]) -> str:
    """What withstands attacks that no training has seen, a row for each run that was measured."""
    rows, strengths = [], dict[str, None]()
    for run in copies:
        for kept in run.read("unseen.json").values():
            who = {"method": run.params()["method"], "changed": run.changed or "–", "seed": run.params()["seed"]}
            cells = {
                attack_name(name): percent(found["accuracy"], found["low"], found["high"])
                for name, found in kept["accuracies"].items()
            }
            rows.append({**who, **cells, "images": kept["n"]})
            strengths[
                f"L2 perturbations of {kept['strengths']['l2']:g}, flows of {kept['strengths']['flow']:g} pixels"
            ] = None
    if not rows:
        return ""
    said = f"Against attacks that no training has seen ({' and '.join(strengths)}; `robustlib evaluate RUN --unseen`"
    return f"{said}), beside the known worst case on the same images:\n\n{markdown(rows)}\n"


def _looks(copies: Sequence[Run]) -> str:
    """Under which attack and on how many images the feature spaces were measured."""
    looks = [look for run in copies for look in run.read("representation.json").values()]
    told = _distinct(f"`{look['attack']}` on {look['n']} images, seed {look['seed']}" for look in looks)
    return f"Feature spaces were measured under {' and '.join(told)}.\n\n" if told else ""


def _claims(judged: Sequence[tuple[Study, Sequence[Finding]]]) -> str:
    """What the runs say of the claims of their studies."""
    parts = [_claims_of(study, findings) for study, findings in judged]
    return "".join(["## Claims\n", *parts, "## Protocols\n\n"]) if parts else ""


def _claims_of(study: Study, findings: Sequence[Finding]) -> str:
    measured = [finding for finding in findings if finding.evidence.differences]
    rows = claims(measured).to_dict("records")
    rest = [finding.claim.name for finding in findings if finding not in measured]
    lacking = f"Not measured yet, for want of runs: {', '.join(rest)}.\n" if rest else ""
    return f"""
What these runs say of the claims in `{study.name}`, which asks for {len(study.seeds)} seeds: paired differences on the same images, 95 % t intervals,
Holm's correction over all claims of the study ([each seed's difference](claims.csv)).

{markdown([{str(name): cell for name, cell in row.items()} for row in rows]) if rows else ""}
{lacking}"""


def _rows(board: pd.DataFrame) -> list[dict[str, object]]:
    """The table of all runs, as text."""
    rows = []
    for row in board.to_dict("records"):
        cells = {
            label: percent(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))
            for name, label in ATTACKS.items()
            if name in board and board[name].notna().any()
        }
        cells |= {kind: verdict_label(row[f"{kind}_badge"]) for kind in ("headline", "protocol")}
        last = {
            "worst of FGSM, PGD-20, CW-50, last epoch": percent(row["last_worst"]),
            "epochs": f"{row['epochs']:.0f}",
            "minutes": f"{row['minutes']:.1f}",
        }
        who = {"method": f"[{row['method']}]({row['path'].partition('/')[0]}.zip)", "changed": row["changed"] or "–"}
        who |= {"arch": row["arch"], "seed": row["seed"]}
        rows.append({**who, **cells, **last, "warnings": row["warnings"]})
    return rows


def _distinct(texts: object) -> list[str]:
    return list(dict.fromkeys(texts))  # type: ignore[call-overload]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--out", type=Path, help="default: reports/reference/<preset>")
    parser.add_argument("--stale", action="store_true", help="export runs whose numbers are of other versions, too")
    options = parser.parse_args()
    out = options.out or Path("reports/reference") / options.preset
    try:
        board = export(options.runs, options.preset, out, options.stale)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"{len(board)} runs exported to {out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
