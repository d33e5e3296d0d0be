"""What a run answers to the same images while an attack grows: computed once, then only looked up.

The panels beside the map, as HTML and SVG in the colours of the page around them: light or dark, at any width.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustlib.attacks import APGD, FGSM, Attack
from robustlib.data import Dataset
from robustlib.errors import InputError, unknown
from robustlib.evaluation import accuracy
from robustlib.evaluation.protocols import EOT
from robustlib.representation import at_eps, feature_gap, layers, probe_attack, run_features
from robustlib.representation.features import Features
from robustlib.representation.measures import unit
from robustlib.representation.probes import check_neighbours
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.workbook.tables import percent

if TYPE_CHECKING:
    import pandas as pd


MULTIPLES = tuple(k / 4 for k in range(9))  # of the eps of the run's threat model: from nothing to twice as much

Report = Callable[[int, int, float], object]  # radii done, radii in all, the next radius


def explorer_attacks(threat: Threat, stochastic: bool = False) -> dict[str, Attack]:
    """The attacks to choose from, by what people call them; PGD-20 is `probe_attack`."""
    eot = EOT if stochastic else 1
    return {
        "FGSM": FGSM(threat, eot=eot),
        "PGD-20": replace(probe_attack(threat), eot=eot),
        "APGD-CE": APGD(threat, steps=50, eot=eot),
    }


@dataclass(frozen=True, eq=False)
class Grid:
    """The same N images at T growing radii, and what one model makes of them.

    Args:
        run: whose model it is.
        attack: a name of `explorer_attacks`.
        eps: radius of the run's threat model, one of `radii`.
        radii: eps of each step, rising from 0.
        steps: one `Features` a radius, with images and every layer; the first is clean.
    """

    run: Run
    attack: str
    eps: float
    radii: tuple[float, ...]
    steps: tuple[Features, ...]

    @property
    def clean(self) -> Features:
        """The images before the attack."""
        return self.steps[0]

    def curve(self, keep: Tensor) -> "pd.DataFrame":
        """Accuracy of the images in `keep`, bool (N,), at each radius: eps, n, correct, accuracy, low, high (95 % Wilson).

        Each radius is attacked by itself, so this is no worst case, and may rise where the attack is too weak.
        """
        import pandas as pd

        rows = []
        for eps, step in zip(self.radii, self.steps, strict=True):
            right = int((step.correct & keep).sum())
            rows.append({"eps": eps, **accuracy(right, int(keep.sum()))})
        return pd.DataFrame(rows)

    def fooled(self, step: int) -> Tensor:
        """Which images are right before the attack and wrong at this step, bool (N,)."""
        return self.clean.correct & ~self.steps[step].correct

    def probabilities(self, image: int, step: int) -> Tensor:
        """softmax of one image's logits, (K,)."""
        return self.steps[step]["logits"][image].softmax(0)

    def neighbours(self, layer: str, image: int, step: int, k: int) -> Tensor:
        """Positions of the k clean images nearest to one image at this step, by cosine, int64 (k,); never itself.

        Raises:
            InputError: fewer other images than neighbours.
        """
        check_neighbours(len(self.clean) - 1, k)
        likeness = unit(self.clean[layer]) @ unit(self.steps[step][layer][image : image + 1])[0]
        likeness[image] = -torch.inf
        return likeness.topk(k).indices

    def gap(self, layer: str, image: int, step: int) -> float:
        """How far one image's features moved from its clean ones, relative to their length (`feature_gap`)."""
        here = slice(image, image + 1)
        return float(feature_gap(self.clean[layer][here], self.steps[step][layer][here]))

    def tables(self, layer: str) -> tuple[Tensor, ...]:
        """The features of a layer at each step, T of (N, D)."""
        return tuple(step[layer] for step in self.steps)


def make_grid(
    run: Run, dataset: Dataset, attack: str, *, n: int = 200, seed: int = 0, report: Report | None = None
) -> Grid:
    """The grid of a finished run under an attack, around the eps of its threat model: found beside the run, or made and kept.

    Args:
        run, dataset, n, seed: see `run_features`.
        attack: a name of `explorer_attacks`.
        report: called before each radius.

    Raises:
        InputError: as `run_features`, an unknown attack, and a run that was deleted meanwhile.
    """
    if not run.finished:
        raise InputError(f"There is no finished run in {run.path} any more: choose another one, or train it again.")
    model, threat = run.model(), Threat(**run.params()["threat"])
    known = explorer_attacks(threat, model.stochastic)
    if attack not in known:
        raise unknown("attack of the explorer", attack, known)
    radii = tuple(dict.fromkeys(threat.scaled(multiple).eps for multiple in MULTIPLES))
    steps: list[Features] = []
    for place, eps in enumerate(radii[1:]):
        if report is not None:
            report(place, len(radii) - 1, eps)
        pair = run_features(run, dataset, at_eps(known[attack], eps), layers=layers(model), n=n, seed=seed)
        steps = [*(steps or pair[:1]), pair[1]]
    return Grid(run, attack, threat.eps, radii, tuple(steps))


STYLE = Path(__file__).with_name("style.css")
MAGNIFY = 10.0  # of the perturbation, less where that would leave the grey scale
BARS = 10  # classes whose probabilities are shown
WIDE, HIGH = 460, 200  # of the curve, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 18, 36  # its margins


def sheet() -> str:
    """The style sheet of all panels."""
    return f"<style>{STYLE.read_text()}</style>"


def heading(title: str, body: str) -> str:
    """A panel."""
    return f"<h3>{escape(title)}</h3>{body}"


def png(image: Tensor) -> str:
    """An image uint8 (C, H, W), C 1 or 3, as the address of a PNG."""
    from PIL import Image

    stream = io.BytesIO()
    array = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _figure(image: Tensor, alt: str, caption: str, kind: str = "") -> str:
    return f'<figure class="{kind}"><img src="{png(image)}" alt="{escape(alt)}"><figcaption>{caption}</figcaption></figure>'


def _answer(prediction: int, label: int, names: Sequence[str], sure: float) -> str:
    """A sign and a class, so that colour is never all there is."""
    right = prediction == label
    sign, kind = ("✓", "rl-right") if right else ("✕", "rl-wrong")
    return f'<b class="{kind}">{sign} {escape(names[prediction])}</b> <small>{100 * sure:.0f} %</small>'


def pictures(grid: Grid, image: int, step: int, names: Sequence[str]) -> str:
    """The clean image, what the attack added, and the adversarial image, each with the model's answer."""
    clean, now, label = grid.clean, grid.steps[step], int(grid.clean.labels[image])
    assert clean.images is not None
    assert now.images is not None
    before, after = clean.images[image], now.images[image]
    change = (after.int() - before.int()).float() / 255
    most = float(change.abs().max())
    factor = round(min(MAGNIFY, 0.5 / most), 1) if most else MAGNIFY
    noise = ((0.5 + factor * change) * 255).round().clamp(0, 255).to(torch.uint8)
    answers = [
        _answer(int(at.predictions[image]), label, names, float(grid.probabilities(image, k).max()))
        for k, at in ((0, clean), (step, now))
    ]
    eps, name = f"{grid.radii[step]:.3g}", names[label]
    shown = (
        _figure(before, f"clean image of class {name}", f"clean<br>{answers[0]}")
        + _figure(
            noise,
            f"perturbation, magnified {factor:.3g} times",
            f"perturbation × {factor:.3g}<br><small>at most {most:.3g}</small>",
        )
        + _figure(after, f"adversarial image at eps {eps}", f"{escape(grid.attack)}, eps {eps}<br>{answers[1]}")
    )
    first = next((r for r, at in zip(grid.radii, grid.steps, strict=True) if not at.correct[image]), None)
    told = (
        "It withstands every radius shown here."
        if first is None
        else f"The smallest radius here that fools it: <b>{first:.3g}</b>."
    )
    if first == 0:
        told = "The model errs on it without any attack."
    return heading(f"Image {image}: class {name}", f'<div class="rl-three">{shown}</div><p>{told}</p>')


def probabilities(grid: Grid, image: int, step: int, names: Sequence[str]) -> str:
    """A table of the probabilities of the likeliest classes, clean and adversarial, with a bar for each."""
    both = torch.stack([grid.probabilities(image, k) for k in (0, step)])
    label = int(grid.clean.labels[image])
    chosen = both.amax(0).argsort(descending=True, stable=True)[:BARS].sort().values.tolist()
    rows = []
    for k in chosen:
        cells = "".join(_bar(float(side[k]), kind) for side, kind in zip(both, ("clean", "adversarial"), strict=True))
        name = f"<b>{escape(names[k])} ✓</b>" if k == label else escape(names[k])
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    head = '<tr><th scope="col"></th><th scope="col"><i class="rl-clean"></i> clean</th><th scope="col"><i class="rl-adversarial"></i> adversarial</th></tr>'
    return heading(
        "Probabilities", f'<table class="rl-bars"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _bar(value: float, kind: str) -> str:
    return f'<td><span class="rl-bar"><i class="rl-{kind}" style="width:{100 * value:.1f}%"></i></span><small>{100 * value:.0f} %</small></td>'


def neighbours(grid: Grid, layer: str, image: int, step: int, names: Sequence[str], k: int) -> str:
    """The clean images nearest to the adversarial one, and of how many another class than its own."""
    y = grid.clean.labels
    assert grid.clean.images is not None
    near = grid.neighbours(layer, image, step, k)
    others = [int((y[grid.neighbours(layer, image, at, k)] != y[image]).sum()) for at in (0, step)]
    drawn = []
    for place in near.tolist():
        foreign = bool(y[place] != y[image])
        name, kind = names[int(y[place])], "rl-foreign" if foreign else ""
        sign = f'<b class="{"rl-wrong" if foreign else "rl-right"}">{"✕" if foreign else "✓"} {escape(name)}</b>'
        drawn.append(_figure(grid.clean.images[place], f"clean image {place} of class {name}", sign, kind))
    told = (
        f"By cosine in <code>{escape(layer)}</code>: <b>{others[1]} of {k}</b> are of another class than {escape(names[int(y[image])])}; before the attack "
        f"{others[0]}. Its features moved by <b>{100 * grid.gap(layer, image, step):.0f} %</b> of their length."
    )
    title = "Nearest clean images to the adversarial one"
    return heading(title, f'<div class="rl-near">{"".join(drawn)}</div><p>{told}</p>')


def curve(grid: Grid, keep: Tensor, step: int, of: str) -> str:
    """Accuracy of the images in `keep`, bool (N,), over eps with its 95 % band; `of` says which these are, such as " of class 3"."""
    table, eps = grid.curve(keep), grid.radii[step]
    here, n = table.iloc[step], int(keep.sum())
    told = f"At eps {eps:.3g}: <b>{percent(here.accuracy, here.low, here.high)}</b>, 95 % interval."
    if not here.correct:
        told = (
            f"<b>None of the {n} images{escape(of)} survives</b> {escape(grid.attack)} at eps {eps:.3g}: take a smaller eps to "
            "see survivors."
        )
    title = f"Accuracy of {n} images{of} under {grid.attack} alone"
    drawn = _curve(table, step, grid.eps, title)
    return heading(title, f"{drawn}<p>{told} One attack alone: an upper bound of robust accuracy.</p>")


def _curve(table: "pd.DataFrame", step: int, threat_eps: float, title: str) -> str:
    most = float(table["eps"].max())
    across = lambda eps: LEFT + (WIDE - LEFT - RIGHT) * eps / most  # noqa: E731
    up = lambda share: TOP + (HIGH - TOP - BOTTOM) * (1 - share)  # noqa: E731
    path = lambda name, rows: " ".join(f"{across(r.eps):.1f},{up(getattr(r, name)):.1f}" for r in rows)  # noqa: E731
    rows = list(table.itertuples())
    here = rows[step]
    lines = [f'<line class="rl-grid" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{up(v)}" y2="{up(v)}"/>' for v in (0, 0.5, 1)]
    lines += [f'<text x="{LEFT - 6}" y="{up(v) + 4}" text-anchor="end">{v:.0%}</text>' for v in (0, 0.5, 1)]
    lines += [
        f'<text x="{across(r.eps):.1f}" y="{HIGH - 20}" text-anchor="middle">{r.eps:.2g}</text>' for r in rows[::2]
    ]
    lines.append(f'<text x="{(WIDE + LEFT) / 2}" y="{HIGH - 4}" text-anchor="middle">eps</text>')
    lines.append(
        _upright(across(threat_eps), "rl-threat")
        + f'<text x="{across(threat_eps) + 4:.1f}" y="{TOP - 4}">threat model</text>'
    )
    lines.append(f'<polygon class="rl-band" points="{path("low", rows)} {path("high", rows[::-1])}"/>')
    lines.append(f'<polyline class="rl-line" points="{path("accuracy", rows)}"/>')
    lines += [f'<circle class="rl-dot" cx="{across(r.eps):.1f}" cy="{up(r.accuracy):.1f}" r="2.6"/>' for r in rows]
    lines.append(_upright(across(here.eps), "rl-here"))
    lines.append(f'<circle class="rl-now" cx="{across(here.eps):.1f}" cy="{up(here.accuracy):.1f}" r="6"/>')
    alt = f"{title}: " + ", ".join(f"{r.accuracy:.0%} at {r.eps:.3g}" for r in rows)
    return f'<svg class="rl-curve" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(alt)}">{"".join(lines)}</svg>'


def _upright(x: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HIGH - BOTTOM}"/>'
