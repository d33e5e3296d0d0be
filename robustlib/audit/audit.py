"""The audit of a model: fifteen questions to a robust accuracy, thirteen of which need nothing but model and images. The audit of an
evaluated run: checks 1 to 13 on its weights, 14 and 15 on what is stored of it, and two badges."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks.base import Precision, frozen_eval
from robustlib.audit.attacks import AuditAttacks, sources_of
from robustlib.audit.checks import CHECKS, OWN, VERDICTS, Check, Part, Verdict, effect, make_check, percent
from robustlib.data import Dataset, Split, check_dataset, check_split
from robustlib.errors import InputError, Whole, typed
from robustlib.evaluation import new_weights, search_precision, stochastic_protocol
from robustlib.evaluation.metrics import withstood
from robustlib.figures.canvas import ATTACKS
from robustlib.methods import METHODS
from robustlib.models.classifier import full_float32
from robustlib.rng import forked
from robustlib.runs import Run, measured, transfer_sources, versions
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

EXAMPLES, STOCHASTIC_EXAMPLES = 256, 128
QUERIES, STOCHASTIC_QUERIES = 1000, 300
DRAWS, EOT = 20, 8  # of a stochastic model: for each score, for each gradient

Tell = Callable[[str], None] | None
CLOSE = 1e-6  # of eps, relative
GAP_AMBER, GAP_RED = 8.0, 12.0  # points
OVERSTATES, MISLEADS = 3.0, 12.0  # points by which a paper's protocol may exceed the minimum: amber above, red above
OUTSIDE = 2.0  # points
SOURCES = ("standard", "pgd_at")  # methods whose adversarial examples are tried on others
# Of results.json, by which an audit knows it again.
FACTS = ("n", "seed", "numerics", "threat", "checkpoint", "split", "files")

# (data set, architecture, method) -> {attack: (least, most) % published for the full protocol, eps 8/255, best checkpoint}:
# Rice et al. 2020, Pang et al. 2021 and their reproductions.
PUBLISHED: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {
    ("cifar10", "resnet18", "pgd_at"): {"clean": (81, 84), "pgd20": (51, 53.5), "autoattack": (47, 49)},
    ("cifar10", "resnet18", "trades"): {"clean": (80, 83), "pgd20": (51, 54), "autoattack": (48, 49.5)},
}


def audit(
    model: nn.Module,
    split: Split,
    threat: Threat,
    *,
    n: int | None = None,
    seed: int = 0,
    queries: int | None = None,
    noise: int = 1000,
    targets: int | None = None,
    readouts: int = 64,
    transfer: Mapping[str, nn.Module] | None = None,
    records: "pd.DataFrame | None" = None,
    precision: Precision = "32-true",
    progress: Tell = None,
) -> list[Check]:
    """Asks whether the robust accuracy of a model on these images can be believed; returns the checks 1 to 13.

    A threshold is broken only where the 95 % bound of the paired effect is beyond it. What `surrogates_of` names is attacked as well:
    the per-example minimum is judged. A stochastic model is judged without the surrogates that it declares (deterministic ones are
    sources of transfer), by its expected accuracy over 20 draws, with the mean gradient of 8 and Square on the mean of 8.

    Args:
        model: x -> logits, on the device where it shall be audited, in the mode in which its numbers were measured.
        split: examples it was not trained on.
        n: how many examples, a stratified choice; None = 256, 128 for stochastic models.
        queries, targets: of Square, and classes aimed at (at most K - 1); None = 1000 and 9, 300 and 3 for stochastic models.
        noise, readouts: random points of the ball tried for each example, and examples in the binarisation test.
        transfer: other models of the same images by name, whose adversarial examples are tried on this one.
        records: of `evaluate`, compared (check 6) and looked through (13); those of other images or eps only make 13 red.
        precision: of searches; verdicts are float32.
        progress: called with the name of each piece of work before it starts.
    """
    if not len(check_split(split)):
        raise InputError("There is no example to audit on: give a split with images.")
    if threat.eps == 0:
        raise InputError("A threat of eps=0 leaves nothing to audit: its robust accuracy is the clean accuracy.")
    stochastic, tell = bool(getattr(model, "stochastic", False)), progress or (lambda what: None)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), split.images.device)
    some = split.sample(n or (STOCHASTIC_EXAMPLES if stochastic else EXAMPLES)).to(device)
    settings = {"queries": queries or (STOCHASTIC_QUERIES if stochastic else QUERIES), "noise": noise, "seed": seed}
    settings |= {"targets": targets or (3 if stochastic else 9), "readouts": readouts}
    settings |= {"draws": DRAWS, "eot": EOT} if stochastic else {"draws": 1, "eot": 1}
    sources = sources_of(model) | {name: other.to(device).eval() for name, other in (transfer or {}).items()}
    records = None if records is None or records.empty else records
    mismatches = [] if records is None else mismatched(records, split, threat)
    training = train_mode_layers(model)
    with forked(device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The model's outputs look like softmax")  # check 5 says so
        torch.manual_seed(typed(seed, Whole, "seed"))
        with frozen_eval(model), full_float32():
            attacks = AuditAttacks(model, some, threat, transfer=sources, precision=precision, **settings)
            checks = []
            for check in CHECKS:
                tell(check.__name__.removeprefix("check_").replace("_", " "))
                checks.append(check(attacks))
            checks.append(check_gap(attacks, None if mismatches else records))
            miscounted = [] if records is None else inconsistent(records)
            checks.append(check_bookkeeping(training, train_mode_layers(model), mismatches + miscounted))
    return sorted(checks, key=lambda check: check.number)


def mismatched(records: pd.DataFrame, split: Split, threat: Threat) -> list[str]:
    """Why these records are not of these images under this threat; nothing else can be read off them then."""
    labels = dict(zip(split.indices.tolist(), split.labels.tolist(), strict=True))
    met = records[["index", "label"]].drop_duplicates()
    other = sum(labels.get(index) != label for index, label in met.itertuples(index=False))
    problems = [f"the records have {other} images that are not among those audited"] if other else []
    radii = set(records["eps"][records["attack"] != "clean"]) - {0.0}  # of an attack without a threat
    other_radii = sorted(eps for eps in radii if abs(eps - threat.eps) > CLOSE * threat.eps)
    return problems + [f"the records are of eps {eps:g} and not {threat.eps:g}" for eps in other_radii[:1]]


def inconsistent(records: pd.DataFrame) -> list[str]:
    """What is wrong with how the records of `evaluate` were counted."""
    attacks, right = records["attack"], records["prediction"] == records["label"]
    met = {frozenset(some) for _, some in records["index"].groupby(attacks)}
    problems = ["the attacks did not meet the same images"] if len(met) > 1 else []
    if records["draw"].max() == 0:  # a stochastic model may be right by luck
        wrong = set(records["index"][(attacks == "clean") & ~right])
        robust = right.groupby([attacks, records["index"]]).min()
        counted = wrong & set(robust[robust].index.get_level_values("index"))
        problems += [f"{len(counted)} wrong clean images count as robust"] if counted else []
    return problems


def _shared(one: "pd.Series[float]", other: "pd.Series[float]") -> Tensor:
    """Both on the images that both have, in the same order: (2, N)."""
    both = pd.concat([one, other], axis=1, join="inner").sort_index()
    return torch.tensor(both.to_numpy(dtype=float).T)


def check_gap(e: AuditAttacks, records: pd.DataFrame | None) -> Check:
    """6: PGD-20 and AutoAttack (its own, or that of all the records) are close, as on healthy models; no view hides from it."""
    pgd, auto = e.accuracy(e.pgd20), e.accuracy(e.apgd, e.square)
    search, whose = f"PGD-20 {OWN}", "APGD and Square"
    if records is not None and not e.stochastic and {"pgd20", "autoattack"} <= set(records["attack"]):
        pgd, auto = _shared(*(withstood(records[records["attack"] == attack]) for attack in ("pgd20", "autoattack")))
        search, whose = "PGD-20", "AutoAttack"
    said, fine = f"{search} leaves {percent(pgd)}, {whose} {percent(auto)}", "nothing is hidden"
    pairs = [(effect(pgd, auto), said, "a gap as healthy models have it", "a PGD number says little here")]
    if e.declared < len(e.views):
        pgd, every = e.accuracy(e.pgd20[: e.declared]), e.accuracy(e.white, e.square)
        said = (
            f"PGD-20 {OWN} leaves {percent(pgd)}, all attacks {percent(every)} when they see head(features(x)) as well"
        )
        bad = "the model's output hides adversarial examples, declare a surrogate and evaluate again"
        pairs.append((effect(pgd, every), said, fine, bad))
    if records is not None:
        mine = pd.Series(e.accuracy(e.white, e.square).tolist(), index=e.index.tolist())
        reported, ours = _shared(withstood(records), mine)
        said = f"The evaluation's attacks leave {percent(reported)} of the {len(ours)} images that both saw, the audit's {percent(ours)}"
        pairs.append((effect(reported, ours), said, fine, "the evaluation missed adversarial examples"))
    parts = []
    for gap, said, fine, bad in pairs:
        parts += [gap.above(GAP_AMBER, said, fine, bad, "amber"), gap.above(GAP_RED, said, fine, bad)]
    return make_check(6, "gap to AutoAttack", *parts)


def train_mode_layers(model: nn.Module) -> list[str]:
    """The names of the BatchNorm and Dropout layers that are in train mode."""
    moving = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return [name or type(m).__name__ for name, m in model.named_modules() if isinstance(m, moving) and m.training]


def check_bookkeeping(before: Sequence[str], during: Sequence[str], unfair: Sequence[str]) -> Check:
    """13: eval mode `before` and `during` the audit, wrong clean images count as wrong, and every attack met the same images, those
    of the split."""
    problems = [f"{len(before)} layer(s) were left in train mode ({before[0]})"] if before else []
    problems += [f"{len(during)} layer(s) stay in train mode after eval() ({during[0]})"] if during else []
    problems += unfair
    fine = "The model is in eval mode, wrong clean images count as wrong, and all attacks met the same images"
    said, count = "The number was not counted fairly" if problems else fine, len(problems)
    return make_check(13, "bookkeeping", Part(count, 0, count > 0, said, "", "; ".join(problems), unit="count"))


# ---- runs


def audit_run(
    run: Run,
    dataset: Dataset,
    *,
    n: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    progress: Tell = None,
) -> dict[str, Any]:
    """The audit of a run's best weights and of its evaluation, stored in the run; a stored one that still fits is returned.

    Finished runs of SOURCES beside it serve as sources of transferred examples. `n` is how many test images; None = as many as were
    evaluated, at most 256. Of a stochastic model no more than its protocol has for curves. `precision` is "auto" for that of the
    evaluation, `progress` as of `audit`.

    Returns:
        The content of audit.json: numerics, n, seed, threat, precision, seconds, results (facts of the evaluation that was judged), transfer
        (by the place of each other run used the digest of its weights), checks (the fields of each `Check`), badges:
        {"headline": {"verdict", "text"}, "protocol": {"verdict", "text", "overstates" (points)}}.
    """
    results, params = run.results(), run.params()
    if not results:
        raise InputError(f"{run.path} has no evaluation to audit: call `robustlib evaluate {run.argument}` first.")
    model = run.model()
    model.check_data(check_dataset(dataset))
    run = Run(run.path.resolve())
    sources, threat = transfer_sources(run, SOURCES), Threat(**params["threat"])
    most = _most(model.stochastic, params.get("preset"), n, results["n"])

    def measure() -> dict[str, Any]:
        started, others = time.perf_counter(), {name: source.model() for name, source in sources.items()}
        settings: dict[str, Any] = {
            "n": most,
            "seed": seed,
            "precision": facts["precision"],
            "transfer": others,
            "progress": progress,
        }
        checks = audit(model.to(resolve_device(device)), dataset.test, threat, records=run.records(), **settings)
        checks += [check_published(run, results), check_selection(run, results)]
        badges = {"headline": headline_badge(checks), "protocol": protocol_badge(params, results)}
        found = {"transfer": new_weights(sources, {}), "seconds": time.perf_counter() - started}
        return {**found, "checks": [asdict(check) for check in checks], "badges": badges}

    facts: dict[str, Any] = {"numerics": versions("measures/audit"), "n": most, "seed": seed, "threat": str(threat)}
    facts |= {
        "precision": search_precision(run, precision),
        "results": {name: results[name] for name in FACTS if name in results},
    }
    facts |= {"transfer": new} if (new := new_weights(sources, run.read("audit.json"))) else {}
    return measured(run, "audit.json", facts, measure)


def audit_has_new_sources(run: Run) -> bool:
    """Whether an audited run would now meet adversarial examples of other weights than it did: of more, fitter or retrained runs."""
    stored = run.audit()
    return bool(stored and new_weights(transfer_sources(run, SOURCES), stored))


def _most(stochastic: bool, preset: str | None, n: int | None, evaluated: int) -> int:
    asked = n or min(EXAMPLES, evaluated)
    return min(asked, STOCHASTIC_EXAMPLES, stochastic_protocol(preset).curve) if stochastic else asked


def check_published(run: Run, results: Mapping[str, Any]) -> Check:
    """14: where architecture, data and protocol are those of published results, so is the outcome."""
    params, parts = run.params(), []
    comparable = params.get("preset") == "cifar10-paper" and not run.changed
    windows = PUBLISHED.get((params["dataset"], params["arch"], params["method"]), {}) if comparable else {}
    for row in results["rows"]:
        if row["attack"] in windows:
            least, most = windows[row["attack"]]
            off = max(least - 100 * row["high"], 100 * row["low"] - most)  # of the interval's nearer end
            said = f"{row['attack']} {100 * row['accuracy']:.1f} % where {least:g} to {most:g} % were published"
            parts.append(Part(off, OUTSIDE, off > OUTSIDE, said, "", "find out why before reporting", "amber"))
    none = "No published result has this architecture, data set, budget and hyper-parameters."
    why = "The evaluation has none of the published attacks." if windows else none
    return make_check(14, "published results", *parts, otherwise=why)


def check_selection(run: Run, results: Mapping[str, Any]) -> Check:
    """15: the epoch was chosen on validation images, or is the last, and best and last are both reported on others."""
    if run.external:
        return make_check(
            15, "selection", otherwise="It was trained elsewhere: nothing here says how its weights were chosen."
        )
    unrecorded = "no validation accuracy was recorded by which the epoch could have been chosen"
    problems = [] if results.get("split") == "test" else [f"the numbers are of the {results.get('split')} images"]
    problems += [] if results.get("last", {}).get("rows") else ["the last epoch is not reported"]
    problems += [] if "robust_val" in run.metrics() else [unrecorded]
    fine = "No test image had a part in choosing the epoch; best and last are both reported on test images"
    said, count = "Not a clean choice" if problems else fine, len(problems)
    return make_check(15, "selection", Part(count, 0, count > 0, said, "", "; ".join(problems), unit="count"))


def headline_badge(checks: Sequence[Check]) -> dict[str, Any]:
    """The badge of the per-example minimum over all attacks: its gravest check."""
    verdict: Verdict = max((check.verdict for check in checks), key=VERDICTS.index, default="n/a")
    speaking = [check for check in checks if check.verdict == verdict]
    unsure = " and ".join(str(check.number) for check in speaking if check.doubtful)
    doubt = f"; of check {unsure} the images are too few to tell" if unsure else ""
    text = f"{len(speaking)} checks found no sign of a weak attack{doubt}."
    if verdict in ("amber", "red"):
        text = " ".join(f"{check.number}. {check.name}: {check.meaning}" for check in speaking)
    return {"verdict": verdict, "text": text}


def protocol_badge(params: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """The badge of the attack by which the method's paper reports: by how much it exceeds the minimum over all attacks.

    `params` of the run name the method; those of a user's method also the attack, as its class may not be at hand.
    """
    known = METHODS.get(params["method"])
    name = known.protocol if known else params.get("protocol", "autoattack")
    rows = {row["attack"]: row["accuracy"] for row in results["rows"]}
    attack, elsewhere = ATTACKS.get(name, name), "external" in params  # which has no paper that we know of
    if name not in rows or "worst" not in rows:
        lacks = f"The evaluation has no {attack}" + ("." if elsewhere else ", the paper's protocol.")
        text = lacks if name else "The paper reports no accuracy under attack that could overstate."
        return {"verdict": "n/a", "text": text, "overstates": None}
    excess = 100 * (rows[name] - rows["worst"])
    verdict = "red" if excess > MISLEADS else "amber" if excess > OVERSTATES else "pass"
    protocol = f"{attack} alone" if elsewhere else f"The paper's protocol ({attack})"
    said = f"{protocol} overstates by {excess:.1f} points"
    text = f"{said}." if verdict != "pass" else f"{said}: no more than {OVERSTATES:g}."
    return {"verdict": verdict, "text": text, "overstates": excess}
