"""What the notebooks of all methods show, one call a section: data of a finished run in, tables, figures and sentences displayed.

Attacks, features and maps that a run has stored are taken from there, and what is computed here is stored for other pages.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from robustlib import figures
from robustlib.audit import audit_run
from robustlib.data import Dataset
from robustlib.evaluation import aggregate, evaluate_run, leaderboard
from robustlib.losses import mart_loss, trades_loss
from robustlib.methods import Method, load_preset
from robustlib.representation import (
    EXAMPLES,
    alignment,
    embed_runs,
    exclusion,
    gap_table,
    layers,
    measure_runs,
    probe_attack,
    run_features,
)
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.workbook import experiments, tables
from robustlib.workbook.claims import Finding

# Where a method keeps its loss: the first of these that it has; of some, a function of its own.
LOSSES: dict[str, Callable[..., Any]] = {"trades": trades_loss, "mart": mart_loss}
LOSS_NAMES = ("loss", "losses", "compare", "_contrast", "contrast", "purifier_steps", "penalty", "stages")
RIVALS = ("standard", "pgd_at", "trades")  # whose curves stand beside a run's
RADII = (0.25, 0.5, 1.0, 1.5, 2.0)  # of the threat's eps; those of compare.ipynb
GAPS = ("relative_l2", "cosine", "linf")
Stored = dict[str, Any]


def show_method(recipe: Method, dataset: Dataset, test_examples: int = 0) -> None:
    """What is trained on what: the hyper-parameters that differ from the paper's; folded, the others and the source of the loss."""
    splits = tables.splits(dataset, test_examples)  # refuses a number that is none
    passes = f"Attack passes for each image: {recipe.attack_passes:,}." if recipe.attack_passes else ""
    say(f"{recipe.about} {passes}")
    every = tables.hyperparameters(recipe)
    differ = every["value"] != every["paper"]
    tables.show(every[differ])
    tables.show(every[~differ].drop(columns="paper"), folded=f"{sum(~differ)} hyper-parameters as in the paper")
    show_source(loss_of(recipe))
    tables.show(splits)


def loss_of(recipe: Method) -> Callable[..., Any]:
    """The function of a method that computes its loss."""
    return LOSSES.get(recipe.name) or next(getattr(type(recipe), name) for name in LOSS_NAMES if hasattr(recipe, name))


def show_source(function: Callable[..., Any]) -> None:
    """The source of a function, folded; nothing where Python cannot find it."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    with suppress(OSError, TypeError):
        text = inspect.cleandoc("\n" + inspect.getsource(function))
        name = f"{function.__module__}.{function.__qualname__}"
        tables.fold(f"Source of the loss: {name}", highlight(text, PythonLexer(), HtmlFormatter()), text)


def show_training(run: Run) -> None:
    """Loss and accuracies over the epochs, and what the training warned of."""
    metrics = run.metrics()
    figures.show(figures.training_curves(metrics))
    say(tables.warnings(metrics))


def judge(
    run: Run, dataset: Dataset, test_examples: int = 0, device: str = "auto", devices: int = 1
) -> tuple[Stored, Stored]:
    """The standard evaluation and the audit of a run, on so many test images (0: the usual numbers); stored ones are returned."""
    count = test_examples or load_preset(run.params()["preset"])["test_examples"]
    results = evaluate_run(run, dataset, n=count or None, device=device, devices=devices)
    return results, audit_run(run, dataset, n=test_examples or None, device=device)


def show_result(run: Run, audited: Stored, protocol: str = "autoattack", about: str = "") -> None:
    """The result on one screen: accuracies, what became of the claims `about` the method, badges, the robustness curve.

    A report's page begins with it. `protocol` is the attack of the method's paper, `about` as of `claims_about`.
    """
    results, params = run.results(), run.params()
    rows = {row["attack"]: row for row in results["rows"]}
    whose = "" if run.external else ", its paper's attack"
    names = {"clean": "Clean images", protocol: f"{tables.attack_name(protocol)}{whose}"}
    shown = {name: label for name, label in names.items() if name in rows} | {"worst": "Worst of all attacks"}
    tables.show_cards({label: rows[name] for name, label in shown.items()}, results["n"])
    findings = claims_about(about or params["method"], *_findings(params.get("preset", ""), run.path.parents[2]))
    say(verdict(findings, params["title"]))
    tables.show_badges(audited, run.path)
    if curve := results["curve"]:
        radius = params["threat"]["eps"]
        figures.show(figures.robustness_curves({params["title"]: pd.DataFrame(curve)}, "eps", threat_eps=radius))


def show_attacks(run: Run, audited: Stored, protocol: str = "autoattack") -> None:
    """Accuracy under each attack, on each view of the model, after each step of AutoAttack, and each check of the audit."""
    results = run.results()
    tables.show(tables.accuracies(results))
    tables.show_adaptive(results, protocol)
    figures.show(figures.accuracy_bars(results["rows"]))
    if len(results["cascade"]) > 1:
        figures.show(figures.cascade(results["cascade"]))
        tables.show(tables.autoattack_steps(results["cascade"]), folded="AutoAttack, step by step")
    tables.show(tables.checks(audited))


def show_curves(run: Run, runs: Path | str) -> None:
    """Accuracy over the radius beside finished runs of RIVALS in `runs`, where there are any, and over the steps of the attack."""
    beside = experiments.comparable_runs(run, experiments.same_setting(run, runs, RIVALS))
    curves = {title: pd.DataFrame(one.results().get("curve", ())) for title, one in beside.items()}
    known = {title: curve for title, curve in curves.items() if len(curve)}
    if len(known) > 1:
        figures.show(figures.robustness_curves(known, "eps", threat_eps=run.params()["threat"]["eps"]))
    if steps := run.results().get("steps_curve"):
        figures.show(figures.robustness_curves({run.params()["title"]: pd.DataFrame(steps)}, "steps"))


def show_gaps(run: Run, dataset: Dataset, family: Mapping[str, Sequence[pd.DataFrame]] | None = None) -> None:
    """How far PGD-20 moves the features: through the layers, over the radius and, where a training watched it, over its epochs.

    `family` are the metrics of runs to stand beside it over the epochs, see `robustlib.workbook.experiments.metrics_of`.
    """
    look = _look(run)
    depth = gap_table([run], dataset, look, layers=layers(run.model()), n=EXAMPLES)
    figures.show(figures.feature_gap_curves(depth, x="layer"))
    radii = [share * look.threat.eps for share in RADII]
    figures.show(figures.feature_gap_curves(gap_table([run], dataset, look, eps=radii, n=EXAMPLES), x="eps"))
    watched = family or experiments.metrics_of([run])
    known = [name.split("/") for name in map(str, run.metrics()) if name.endswith("/relative_l2")]
    for _, layer, _ in known:
        columns = [f"probe/{layer}/{measure}" for measure in GAPS]
        having = {title: frames for title, frames in watched.items() if columns[0] in frames[0]}
        figures.show(figures.probe_curves(having, columns))


def show_alignment(run: Run, dataset: Dataset) -> None:
    """Alignment and exclusion in numbers, and how far attacked images lie from their own image, their class and the others."""
    look = _look(run)
    tables.show(tables.geometry(measure_runs([run], dataset, look, n=EXAMPLES)))
    clean, adversarial = run_features(run, dataset, look, n=EXAMPLES)
    (layer,) = clean.layers
    before, after = clean[layer], adversarial[layer]
    apart = exclusion(after, clean.labels, before)
    pairs = {"own clean image": alignment(before, after).sqrt(), "nearest of own class": apart.nearest - apart.margin}
    pairs["nearest of another class"] = apart.nearest
    figures.show(figures.pair_distances({run.params()["title"]: pairs}))


def show_map(run: Run, dataset: Dataset) -> None:
    """Clean and attacked features on one map: UMAP, fitted on both together, and PCA, each with its trustworthiness."""
    (made,) = embed_runs([run], dataset, _look(run), n=EXAMPLES)
    linear = f"trustworthiness {made.pca_trustworthiness:.2f}, {made.explained:.0%} of the variance"
    maps, notes = {"UMAP": made.points, "PCA": made.pca}, {"UMAP": made.trust, "PCA": linear}
    sides = {name: (points[0], points[1]) for name, points in maps.items()}
    labels = dataset.test.sample(EXAMPLES).labels
    figures.show(figures.umap_atlas(sides, labels, dataset.class_names, notes=notes, note=made.made))


def show_examples(run: Run, dataset: Dataset) -> None:
    """Which classes the attack turns into which, and images before and after it."""
    clean, adversarial = run_features(run, dataset, _look(run), n=EXAMPLES)
    assert clean.images is not None
    assert adversarial.images is not None
    answers = (clean.predictions, adversarial.predictions)
    figures.show(figures.confusion_flow(*answers, dataset.class_names))
    images = (clean.images / 255, adversarial.images / 255)
    figures.show(figures.example_strips(*images, clean.labels, answers, dataset.class_names))


def show_study(name: str, runs: Path | str, dataset: str, passes: bool = False) -> None:
    """What a study's runs say, means over seeds: those in `runs` on this data set, then the committed ones; with their attack passes."""
    for root, data, said in ((runs, dataset, ""), (experiments.REFERENCE, "", "Committed reference results: ")):
        study = experiments.study_runs(name, root, data)
        say(f"{said}{study.summary}")
        board = leaderboard(study.runs)
        if len(board):
            means = aggregate(board)
            tables.show(tables.over_seeds(experiments.with_passes(means, study.runs) if passes else means, board))


def show_claims(preset: str, about: str, runs: Path | str) -> None:
    """The claims `about` a method, and what the runs in `runs` and the committed ones say of them."""
    found, told = _findings(preset, runs)
    own, reference = claims_about(about, found), claims_about(about, told)
    tables.show(tables.claims(own, reference)) if own else say("No claims are written down for this preset.")


def claims_about(about: str, *findings: Sequence[Finding]) -> list[Finding]:
    """Of each claim the first finding that is complete, else the first: of claims whose name begins with `about`, or that compare that method."""
    chosen: dict[str, Finding] = {}
    for finding in (one for found in findings for one in found):
        claim, known = finding.claim, chosen.get(finding.claim.name)
        if claim.name.startswith(about) or about in [variant.split()[0] for variant in claim.variants]:
            better = known is None or (finding.evidence.complete and not known.evidence.complete)
            chosen[claim.name] = finding if better else chosen[claim.name]
    return list(chosen.values())


def verdict(findings: Sequence[Finding], title: str) -> str:
    """What became of published claims, in a sentence; "" without any."""
    if not (decided := [one for one in findings if one.evidence.complete]):
        return ""
    counts, seeds = Counter(one.verdict for one in decided), {len(one.evidence.differences) for one in decided}
    parts = [
        f"{counts[word]} {'is' if counts[word] == 1 else 'are'} {word}"
        for word in ("supported", "not supported", "undecided")
    ]
    some = f"{len(decided)} published claim{'s' * (len(decided) > 1)} that involve{'s' * (len(decided) == 1)} {title}"
    return f"**Against the papers.** Of {some}, tested over {max(seeds)} seeds, {', '.join(parts[:2])} and {parts[2]}."


def show_provenance(run: Run) -> None:
    """Where the numbers come from."""
    tables.show(tables.provenance(run.provenance(), run.path))


def say(markdown: str) -> None:
    """Displays a sentence, or nothing."""
    from IPython.display import Markdown, display

    if markdown.strip():
        display(Markdown(markdown))


def _look(run: Run) -> Any:
    return probe_attack(Threat(**run.params()["threat"]))


def _findings(preset: str, runs: Path | str) -> tuple[Sequence[Finding], Sequence[Finding]]:
    """What the runs in `runs`, and the committed ones, say of the claims of a preset's study."""
    root = Path(runs).resolve()
    return _own(preset, root, tuple(file.stat().st_mtime_ns for file in sorted(root.glob("*/*/*/*.json")))), _told(
        preset
    )


@lru_cache(maxsize=1)
def _own(preset: str, root: Path, _: tuple[int, ...]) -> Sequence[Finding]:
    study = experiments.preset_study(preset)
    return experiments.claim_findings(study, experiments.compare_runs(root, preset).every) if study else ()


@lru_cache
def _told(preset: str) -> Sequence[Finding]:
    """Of the committed results, which take seconds to read and do not change."""
    study = experiments.preset_study(preset)
    return experiments.reference_findings(study) if study else ()
