"""The standard evaluation of finished runs, stored with them; their leaderboard, and its means over seeds."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch

from robustlib.attacks import PGD, ForeignAttack, in_precision
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation.evaluate import evaluate, robustness_curve
from robustlib.evaluation.extra import added, extra_attacks
from robustlib.evaluation.measurements import OnProgress, images_of, protocol_of, search_precision, state_key, threat_of
from robustlib.evaluation.metrics import by_attack, cascade_steps, summarise
from robustlib.evaluation.protocols import EOT, TRANSFER, TRANSFER_METHODS, Suite
from robustlib.evaluation.schedule import CLEAN
from robustlib.evaluation.stochastic import measure_randomness
from robustlib.figures import canvas
from robustlib.runs import Run, attack_names, holds, measured, recall, transfer_sources, versions
from robustlib.runs.files import NO_WEIGHTS, check_weights, read_bytes
from robustlib.training.fit import resolve_device

EPS_MULTIPLES = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)  # of the threat's eps, for the curve
STEPS = (0, 1, 2, 5, 10, 20, 50)  # of PGD, for the curve
CURVE_EXAMPLES = 500
LAST = ("fgsm", "pgd20", "cw50")  # attacks on the last epoch's weights

# What runs must share for a mean over their seeds to mean something.
KIND = ["dataset", "method", "title", "arch", "changed", "precision", "n"]
ELSEWHERE = ("pgd100x5", "cw100x5", "square", "aa_standard", "known", "l2", "stadv")
# The attacks of the common protocol; what only randomised models, surrogates or a measurement meet is no column.
ATTACKS = tuple(name for name in canvas.ATTACKS if name not in ELSEWHERE)
FACTS = ("preset", "dataset", "method", "title", "arch", "precision", "seed")
COLUMNS = (
    *("preset", "dataset", "method", "title", "arch", "changed", "precision", "seed", "threat", *ATTACKS),
    *("clean_low", "clean_high", "worst_low", "worst_high", "last_worst", "n", "minutes", "epochs", "path", "stale"),
    *("warnings", "checkpoint", "external", "headline_badge", "headline_text", "protocol_badge", "protocol_text"),
)


def evaluate_run(
    run: Run,
    dataset: Dataset,
    *,
    n: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    extra: Sequence[str] = (),
    progress: OnProgress = None,
    devices: int = 1,
) -> dict[str, Any]:
    """The standard evaluation of a finished run, stored in the run; a stored one is returned, an interrupted one resumed.

    The best weights meet all `standard_attacks`, those of the last epoch only LAST: whether the training overfitted is a question of
    PGD against PGD. Surrogates meet the `adaptive_attacks` (see `evaluate`), which are also transferred from finished runs of
    TRANSFER_METHODS beside it. A stochastic model meets what the preset's `StochasticProtocol` allows, and `measure_randomness`
    follows. `n` is a stratified choice of test images, the same for all runs; None or 0 for all. What fewer images show never
    replaces what more have shown. Several `devices` share the batches of attacks. `precision` is that of searches: "32-true", "bf16-mixed", or "auto": as stored, else the faster one.

    The best weights also meet `extra` attacks (see `extra_attacks`), after the others; what they find counts in the worst case. To a
    stored evaluation those that it lacks are added, in the place of the same ones from other code; where it is renewed for another
    reason, only those that are asked for now are left.

    Returns:
        The content of results.json: n, split, checkpoint, threat, seed, precision, numerics, rows (one an attack, see `summarise`, with the
        protocol that made it; the last, "worst", is the headline), cascade (see `cascade_steps`; of the deployed model), last
        (rows of the last epoch), curve (over eps) and steps_curve; with extra attacks also extra (each in full), of a model with
        surrogates transfer (the sources, by place the digest of their weights), of a stochastic one budget. It is evaluated
        again when `has_new_sources`.
    """
    split, model, protocol, threat = images_of(run, dataset, n), run.model(), protocol_of(run), threat_of(run)
    if model.stochastic:
        split = images_of(run, dataset, min(len(split), protocol.images))
    suite, stored, more = Suite(model, threat, protocol, {}), run.results(), extra_attacks(extra, threat)
    names = attack_names([*suite.attacks.values(), *suite.adaptive.values(), PGD(threat)])
    facts: dict[str, Any] = {"n": len(split), "split": "test", "threat": str(threat)}
    facts |= {"checkpoint": "given" if run.external else "best"}
    facts |= {
        "seed": seed,
        "precision": search_precision(run, precision, split, device),
        "numerics": versions("measures/evaluation", *names),
    }
    facts |= {"budget": protocol.facts()} if model.stochastic else {}
    facts |= {"transfer": new_weights(transfer_sources(run, TRANSFER_METHODS), {})} if has_new_sources(run) else {}
    keep = stored.get("n", 0) <= len(split) or stored.get("numerics") != facts["numerics"]
    measure = partial(_evaluate_weights, run, dataset, split, facts, device, progress, keep, more, devices)
    if lacking := {name: attack for name, attack in more.items() if repr(attack) not in stored.get("extra", ())}:
        if holds(stored, facts) and len(run.records()):
            measure = partial(_add_attacks, run, split, facts, device, progress, lacking)
        facts = {**facts, "extra": [*map(repr, more.values())]}
    results = measured(run, "results.json", facts, measure) if keep else {**facts, **measure()}
    if results != stored:
        shutil.rmtree(run.evaluation, ignore_errors=True)
    if model.stochastic:
        measure_randomness(run, dataset, device=device, progress=progress)
    return results


def _evaluate_weights(
    run: Run,
    dataset: Dataset,
    split: Split,
    facts: Mapping[str, Any],
    device: str,
    progress: OnProgress,
    keep: bool,
    extra: Mapping[str, ForeignAttack],
    devices: int,
) -> dict[str, Any]:
    """What results.json holds besides its facts; the records of best and last weights are stored if they shall be kept."""
    best, where, threat, protocol = run.model(), resolve_device(device), threat_of(run), protocol_of(run)
    best.check_data(dataset)
    sources = transfer_sources(run, TRANSFER_METHODS) if best.surrogates() else {}
    asked: dict[str, Any] = {"transfer": new_weights(sources, {})} if best.surrogates() else {}
    asked |= _named(extra)
    key, quick, tables, frames = state_key({**facts, **asked}, where), LAST[:2] if best.stochastic else LAST, {}, {}
    last: Any = () if run.external else (("last", {}, quick, {}),)  # whoever trained a network elsewhere gave one file
    for which, others, only, more in (("best", sources, (), extra), *last):
        model = run.model(which).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        suite = Suite(model, threat, protocol, others, facts["precision"], only, more)
        views = {TRANSFER + method: source.model().to(where) for method, source in others.items()}
        suites: dict[str, Any] = {
            "attacks": suite.attacks,
            "adaptive": suite.adaptive,
            "sources": views,
            "devices": devices,
        }
        state = run.evaluation / f"{which}-{key}"
        frames[which] = evaluate(model, split, **suites, seed=facts["seed"], state=state, progress=progress)
        tables[which] = suite.table(frames[which])
    cascade = cascade_steps(frames["best"][frames["best"]["surrogate"] == ""]).to_dict("records")
    curve: dict[str, Any] = {"seed": facts["seed"]}
    pgd = PGD(threat, steps=20, early_stop=not best.stochastic, eot=EOT if best.stochastic else 1)
    curve["attack"] = in_precision(pgd, facts["precision"])
    model, few = best.to(where), split.sample(protocol.curve if best.stochastic else CURVE_EXAMPLES)
    over_eps = robustness_curve(model, few, eps=sorted({threat.scaled(k).eps for k in EPS_MULTIPLES}), **curve)
    over_steps = robustness_curve(model, few, steps=STEPS, **curve)
    curves = {"curve": over_eps.to_dict("records"), "steps_curve": over_steps.to_dict("records")}
    return {
        **asked,
        "rows": tables["best"],
        "cascade": cascade,
        "last": {"rows": tables["last"]} if last else {},
        **curves,
        **({"files": _keep(run, frames)} if keep else {}),
    }


def _add_attacks(
    run: Run,
    split: Split,
    facts: Mapping[str, Any],
    device: str,
    progress: OnProgress,
    extra: Mapping[str, ForeignAttack],
) -> dict[str, Any]:
    """What results.json holds once the best weights have met `extra` too."""
    stored, where = run.results(), resolve_device(device)
    protocols = {row["attack"]: row["protocol"] for row in stored["rows"]}
    named = added(extra.values(), protocols)
    model = run.model().to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings: dict[str, Any] = {"seed": facts["seed"], "progress": progress, "adaptive": {}}
    settings["state"] = run.evaluation / f"extra-{state_key({**facts, **_named(named)}, where)}"
    found = evaluate(model, split, named, **settings)
    best, last = run.records(), run.records("last")
    best = pd.concat([best[~best.attack.isin([*named])], found[found.attack != CLEAN]], ignore_index=True)
    protocols |= {name: repr(attack) + attack.remark for name, attack in named.items()}
    rows: Any = summarise(best).to_dict("records")
    rows = [{**row, "protocol": protocols[row["attack"]]} for row in rows]
    replaced = tuple(f"{attack.words}, " for attack in named.values())
    others = [text for text in stored.get("extra", ()) if not text.startswith(replaced)]
    every = {"extra": [*others, *map(repr, named.values())], "rows": rows}
    return {**stored, **every, "files": _keep(run, {"best": best, "last": last})}


def _keep(run: Run, frames: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Stores the records of best and last weights before results.json, which would have no proof without; what older ones led to goes."""
    both = [frame.assign(checkpoint=which) for which, frame in frames.items()]
    old = ("audit.json", "randomness.json", "results.json")
    run.write_frame("records.parquet", pd.concat(both, ignore_index=True), old)
    return run.digests("model.safetensors", "last.safetensors", "records.parquet")


def _named(extra: Mapping[str, ForeignAttack]) -> dict[str, list[str]]:
    """What results.json says of attacks from elsewhere; nothing where there are none."""
    return {"extra": [*map(repr, extra.values())]} if extra else {}


def new_weights(sources: Mapping[str, Run], stored: Mapping[str, Any]) -> dict[str, str]:
    """By the place of each source the digest of its weights ("" where it names none); {} where all are in what is stored, of which
    version 0.1 is believed: its `transfer` are places alone, in a list or by method."""
    now = {run.place: run.status().get("files", {}).get("model.safetensors", "") for run in sources.values()}
    known = stored.get("transfer", ())
    places = set(known.values() if isinstance(known, Mapping) else map(str, known))
    return {} if known == now or places == set(now) else now


def has_new_sources(run: Run) -> bool:
    """Whether a model with surrogates would now be attacked by way of other weights than it was: of more, fitter or retrained runs."""
    stored = run.results()
    return "transfer" in stored and bool(new_weights(transfer_sources(run, TRANSFER_METHODS), stored))


def leaderboard(runs: Iterable[Run]) -> pd.DataFrame:
    """One row for each evaluated run, the best worst case first.

    Returns:
        COLUMNS: changed says what differs from the preset (e.g. "beta=3.0"), accuracies are fractions (NaN where not measured),
        last_worst is of the last epoch, and badges are the audit's verdicts on the headline and on the method's own protocol:
        "pass", "amber", "red", "n/a", or "" before an audit; external says that it was trained elsewhere.
    """
    known = [(run, recall(run.path, "row", partial(_row, run))) for run in runs]
    rows = [row | {"path": str(run.path)} for run, row in known if row]
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("worst", ascending=False, ignore_index=True)


def _row(run: Run) -> dict[str, Any]:
    """A row of the `leaderboard` but for its path; {} before an evaluation."""
    if not run.results():
        return {}
    params, results, epochs, audit = run.params(), run.results(), run.metric_rows(), run.audit().get("badges", {})
    rows = {row["attack"]: row for row in results["rows"]}
    last = {row["attack"]: row["accuracy"] for row in results.get("last", {}).get("rows", [])}
    badges = {kind: audit.get(kind, {}) for kind in ("headline", "protocol")}
    return {
        **{name: params.get(name) for name in FACTS},
        "changed": run.changed,
        "threat": results["threat"],
        **{name: rows[name]["accuracy"] if name in rows else float("nan") for name in ATTACKS},
        **{f"{n}_{end}": rows.get(n, {}).get(end, float("nan")) for n in ("clean", "worst") for end in ("low", "high")},
        "last_worst": last.get("worst", float("nan")),
        "n": results["n"],
        "minutes": run.provenance().get("wall_seconds", float("nan")) / 60,
        "epochs": epochs[-1]["epoch_total"] if epochs else float("nan") if run.external else 0,
        "external": run.external,
        "stale": run.stale,
        "warnings": [text for row in (epochs[0], epochs[-1]) for text in row["warnings"]] if epochs else [],
        "checkpoint": results["checkpoint"],
        **{f"{kind}_badge": badge.get("verdict", "") for kind, badge in badges.items()},
        **{f"{kind}_text": badge.get("text", "") for kind, badge in badges.items()},
    }


def aggregate(board: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds for each kind of run in a leaderboard (see KIND); std is NaN for one seed."""
    groups = board.groupby(KIND, sort=False)
    present = [name for name in ATTACKS if name in board]  # leaderboards of version 0.1 have no autoattack
    table = groups[[*present, "minutes"]].agg(["mean", "std"])
    table.columns = table.columns.map("_".join)
    return table.assign(seeds=groups.seed.nunique()).reset_index()


def incomplete(runs: Iterable[Run]) -> pd.DataFrame:
    """The runs that lack something: run, preset, dataset, path and missing (what, and the command that makes it)."""
    rows = []
    for run in runs:
        if missing := _missing(run):
            brief = {"preset": None, "dataset": run.place.split("/")[0], "name": run.place} | run.brief()
            facts = {name: brief[name] for name in ("preset", "dataset")}
            rows.append({"run": brief["name"], **facts, "path": str(run.path), "missing": missing})
    return pd.DataFrame(rows, columns=["run", "preset", "dataset", "path", "missing"])


def _missing(run: Run) -> str:
    """What a run lacks, and the command that makes it; "" if nothing."""
    brief = run.brief()
    if damage := brief["damage"]:
        return f"damaged: {damage}"
    if brief["state"] == "running":  # unless its process is gone
        return _lacking(run)
    return recall(run.path, "missing", partial(_lacking, run))


def _lacking(run: Run) -> str:
    again = "robustlib run --rerun"
    try:
        again = f"{run.provenance().get('command') or 'robustlib run'} --rerun"
        if not run.finished:
            return f"training {run.status()['state']}: {again.removesuffix(' --rerun')}"
        check_weights(run.path / "model.safetensors")
        results, _ = run.results(), run.metrics()
        if not results:
            begun = "evaluation interrupted" if run.evaluation.exists() else "not evaluated"
            return f"{begun}: robustlib evaluate {run.argument}"
        records = run.records()
        kept = {name: part["index"].nunique() for name, part in by_attack(records)} if len(records) else {}
        counted = {row["attack"]: row["n"] for row in results["rows"] if row["attack"] != "worst"}
        if short := [attack for attack, n in counted.items() if kept.get(attack, 0) < n]:
            return f"records of {', '.join(short)} are incomplete: {again}"
        return "" if run.audit() else f"not audited: robustlib audit {run.argument}"
    except InputError as error:  # weights or records
        if read_bytes(run.path / "model.safetensors") is None:  # as in archives, which keep the numbers only
            return f"{NO_WEIGHTS}: {again}"
        return f"a file cannot be read ({' '.join(str(error).split())}): {again}"
