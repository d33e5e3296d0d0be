"""The audit of a finished, evaluated run: checks 1 to 13 on its weights, 14 and 15 on its papers, and two badges."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from robustlib.audit.check import VERDICTS, Check, Part, Verdict, judge, missing
from robustlib.audit.checks import EXAMPLES, STOCHASTIC_EXAMPLES, audit
from robustlib.data import Dataset
from robustlib.errors import InputError
from robustlib.evaluation.budgets import budget_of
from robustlib.runs import Run, transfer_sources, versions, write_json
from robustlib.tables import ATTACKS
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

OVERSTATES, MISLEADS = 3.0, 12.0  # points by which a paper's protocol may exceed the minimum: amber above, red above
OUTSIDE = 2.0  # points
SOURCES = ("standard", "pgd_at")  # methods whose adversarial examples are tried on others
FACTS = ("n", "seed", "numerics", "threat", "checkpoint", "split")  # of results.json, by which an audit knows it again

# (data set, architecture, method) -> {attack: (least, most) % published for the full protocol, eps 8/255, best checkpoint}:
# Rice et al. 2020, Pang et al. 2021 and their reproductions.
PUBLISHED: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {
    ("cifar10", "resnet18", "pgd_at"): {"clean": (81, 84), "pgd20": (51, 53.5), "autoattack": (47, 49)},
    ("cifar10", "resnet18", "trades"): {"clean": (80, 83), "pgd20": (51, 54), "autoattack": (48, 49.5)},
}


def audit_run(
    run: Run,
    dataset: Dataset,
    *,
    n: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The audit of a run's best weights and of its evaluation, stored in the run; a stored one that still fits is returned.

    Finished standard and PGD-AT runs of the same data set beside it serve as sources of transferred examples.

    Args:
        run: finished and evaluated.
        dataset: whose test images are attacked.
        n: how many of them; None = as many as were evaluated, at most 256. Of a stochastic model no more than its budget has
            for curves.
        device: "cpu", "cuda" or "auto".
        seed: of every random start.
        progress: called with the name of each piece of work before it starts.

    Returns:
        The content of audit.json: numerics, n, seed, threat, seconds, results (facts of the evaluation that was judged), transfer
        (the other runs used), checks (the fields of each `Check`), badges: {"headline": {"verdict", "text"}, "protocol":
        {"verdict", "text", "overstates" (points)}}.

    Raises:
        InputError: the run is not finished or not evaluated, or of another data set.
    """
    results, params = run.results(), run.params()
    if not results:
        raise InputError(f"{run.path} has no evaluation to audit: call `robustlib evaluate {run.path}` first.")
    run.model().check_data(dataset)
    run = Run(run.path.resolve())
    beside = transfer_sources(run, SOURCES)
    threat = Threat(**params["threat"])
    most = _most(run.model().stochastic, params.get("preset"), n, results["n"])
    asked: dict[str, Any] = {"numerics": versions("measures/audit"), "n": most, "seed": seed, "threat": str(threat)}
    asked |= {
        "results": {name: results.get(name) for name in FACTS},
        "transfer": [other.place for other in beside.values()],
    }
    stored = run.audit()
    if stored and all(stored.get(k) == v for k, v in asked.items()):
        return stored
    started, others = time.perf_counter(), {name: other.model() for name, other in beside.items()}
    model = run.model().to(resolve_device(device))
    settings: Any = {"n": most, "seed": seed, "progress": progress}
    checks = audit(model, dataset.test, threat, transfer=others, records=run.records(), **settings)
    checks += [check_published(params, results), check_selection(run, results)]
    found: dict[str, Any] = {
        **asked,
        "seconds": time.perf_counter() - started,
        "checks": [asdict(check) for check in checks],
    }
    found["badges"] = {"headline": headline(checks), "protocol": protocol(params["method"], results)}
    write_json(run.path / "audit.json", found)
    return found


def _most(stochastic: bool, preset: str | None, n: int | None, evaluated: int) -> int:
    """How many images an audit has."""
    asked = n or min(EXAMPLES, evaluated)
    return min(asked, STOCHASTIC_EXAMPLES, budget_of(preset).curve) if stochastic else asked


def check_published(params: Mapping[str, Any], results: Mapping[str, Any]) -> Check:
    """14: where architecture, data and budget are those of published results, so is the outcome."""
    name = "published results"
    windows = PUBLISHED.get((params["dataset"], params["arch"], params["method"]), {})
    if not windows or params.get("preset") != "cifar10-paper" or params.get("changed"):
        return missing(14, name, "No published result has this architecture, data set, budget and hyper-parameters.")
    parts = []
    for row in results["rows"]:
        if row["attack"] in windows:
            least, most = windows[row["attack"]]
            off = max(least - 100 * row["high"], 100 * row["low"] - most)  # of the interval's nearer end
            said = f"{row['attack']} {100 * row['accuracy']:.1f} % where {least:g} to {most:g} % were published"
            parts.append(Part(off, OUTSIDE, off > OUTSIDE, said, "", "find out why before reporting", "amber"))
    return judge(14, name, parts) if parts else missing(14, name, "The evaluation has none of the published attacks.")


def check_selection(run: Run, results: Mapping[str, Any]) -> Check:
    """15: the epoch was chosen on validation images, or is the last, and best and last are both reported on others."""
    problems = []
    if results.get("split") != "test":
        problems.append(f"the numbers are of the {results.get('split')} images")
    if not results.get("last", {}).get("rows"):
        problems.append("the last epoch is not reported")
    if "robust_val" not in run.metrics():
        problems.append("no validation accuracy was recorded by which the epoch could have been chosen")
    fine = "No test image had a part in choosing the epoch; best and last are both reported on test images"
    said = "Not a clean choice" if problems else fine
    part = Part(len(problems), 0, bool(problems), said, "", "; ".join(problems), unit="count")
    return judge(15, "selection", [part])


def headline(checks: Sequence[Check]) -> dict[str, Any]:
    """The badge of the per-example minimum over all attacks: its gravest check."""
    verdict: Verdict = max((check.verdict for check in checks), key=VERDICTS.index, default="n/a")
    speaking = [check for check in checks if check.verdict == verdict]
    if verdict in ("amber", "red"):
        return {
            "verdict": verdict,
            "text": " ".join(f"{check.number}. {check.name}: {check.meaning}" for check in speaking),
        }
    unsure = " and ".join(str(check.number) for check in speaking if check.doubtful)
    doubt = f"; of check {unsure} the images are too few to tell" if unsure else ""
    return {"verdict": verdict, "text": f"{len(speaking)} checks found no sign of a weak attack{doubt}."}


def protocol(method: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """The badge of the attack by which the method's paper reports: by how much it exceeds the minimum over all attacks."""
    from robustlib.methods import METHODS

    name = METHODS[method].protocol if method in METHODS else "autoattack"
    rows = {row["attack"]: row["accuracy"] for row in results["rows"]}
    if name not in rows or "worst" not in rows:
        lacks = f"The evaluation has no {ATTACKS.get(name, name)}, the paper's protocol."
        text = lacks if name else "The paper reports no accuracy under attack that could overstate."
        return {"verdict": "n/a", "text": text, "overstates": None}
    excess = 100 * (rows[name] - rows["worst"])
    verdict = "red" if excess > MISLEADS else "amber" if excess > OVERSTATES else "pass"
    said = f"The paper's protocol ({ATTACKS.get(name, name)}) overstates by {excess:.1f} points"
    text = f"{said}." if verdict != "pass" else f"{said}: no more than {OVERSTATES:g}."
    return {"verdict": verdict, "text": text, "overstates": excess}
