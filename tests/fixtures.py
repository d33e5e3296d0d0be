"""Made-up results for the tests of figures and reports: no training needed."""

import base64
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from robustlib.attacks import PGD
from robustlib.data import Dataset, Split
from robustlib.threat import Threat
from robustlib.workbook.report import write_atlas

FORMULAS = (
    r"L = CE(f(x),y) + \beta\,\mathrm{KL}(p(x)\,\|\,p(x'))",
    r"\max_{\|\delta\|_\infty \le \varepsilon}",
    r"\tfrac{1}{2}\frac{a}{b} < \hat p \pm \sqrt{n}",
    r"\mathbb{E}_{x\sim D}\sum_{k\ne y} z_k",
    r"\begin{align*} x^{t+1} &= \Pi_B(x^t + \alpha\operatorname{sign}\nabla_x L) \\"
    r" \theta^* &= \mathrm{argmax}_\theta\, p \end{align*}",
)


def leaderboard() -> pd.DataFrame:
    """Two seeds of two methods; the values sort differently as numbers and as text."""
    worsts = {("standard", 0): 0.02, ("standard", 1): 0.105, ("trades", 0): 0.72, ("trades", 1): 0.095}
    rows = []
    for ((method, seed), worst), badges in zip(worsts.items(), BADGES, strict=True):
        row: dict[str, Any] = {"preset": "digits", "dataset": "digits", "method": method, "title": method.upper()}
        row |= {"arch": "small_cnn", "seed": seed, "clean": 0.99 - 0.01 * seed, "clean_low": 0.96, "clean_high": 1.0}
        row |= {"fgsm": worst + 0.05, "cw50": float("nan"), "worst_low": worst - 0.01, "worst_high": worst + 0.03}
        row |= dict.fromkeys(("pgd20", "pgd50x10", "autoattack", "worst"), worst)
        row |= {"minutes": 1.5 + 10 * seed, "epochs": 30, "stale": (method, seed) == ("trades", 1)}
        row |= {"path": f"runs/digits/{method}/small_cnn-seed{seed}-ab", "checkpoint": "best"}
        rows.append(row | {"warnings": ["robust overfitting <b>here</b>"] if seed else []} | badges)
    return pd.DataFrame(rows)


# Of the four runs above: one is not audited, one passed, one has a protocol that overstates, one is not to be believed.
BADGES = (
    {"headline_badge": "", "headline_text": "", "protocol_badge": "", "protocol_text": ""},
    {"headline_badge": "pass", "headline_text": "15 checks", "protocol_badge": "pass", "protocol_text": "agrees"},
    {"headline_badge": "amber", "headline_text": "3. more steps: weak", "protocol_badge": "amber"}
    | {"protocol_text": "The paper's protocol overstates by 4.2 points."},
    {"headline_badge": "red", "headline_text": "7. black-box <i>", "protocol_badge": "red", "protocol_text": "by 14"},
)


def audit() -> dict[str, Any]:
    """What audit.json holds: a check of each verdict, and the badges they make."""
    found = [
        (1, "single step", "pass", 9.4, 0.5, "points", "PGD-20 breaks what FGSM breaks, and more."),
        (3, "more steps", "amber", 4.1, 3.0, "points", "100 steps still find what 50 did not."),
        (7, "black-box", "red", 2.25, 1.0, "points", "Square breaks images that gradients <could> not."),
        (9, "gradients", "pass", 0.78, 0.2, "cosine", "Gradients agree between neighbours."),
        (14, "published window", "n/a", None, None, "points", "No published number fits this architecture."),
    ]
    names = ("number", "name", "verdict", "value", "threshold", "unit", "meaning")
    badges = {
        "headline": {"verdict": "red", "text": "7. black-box: Square breaks images that gradients <could> not."},
        "protocol": {"verdict": "amber", "text": "The paper's protocol overstates by 4.2 points.", "overstates": 4.2},
    }
    return {"n": 128, "seed": 0, "checks": [dict(zip(names, row, strict=True)) for row in found], "badges": badges}


def cascade() -> list[dict[str, Any]]:
    """The rows of an AutoAttack on 500 images, on the model and on a surrogate."""
    steps = [("clean", 500, 10, 0.98), ("apgd-ce", 490, 110, 0.76), ("apgd-t", 380, 30, 0.7), ("fab-t", 350, 0, 0.7)]
    names = ("component", "attacked", "broken", "accuracy")
    rows: list[dict[str, Any]] = [{"attack": "autoattack", "surrogate": s} for s in ("", "denoiser") for _ in steps]
    return [row | dict(zip(names, step, strict=True)) for row, step in zip(rows, steps * 2, strict=True)]


def adaptive() -> dict[str, Any]:
    """The results of a model whose logits hide what its surrogates show."""
    rest = {
        **{"clean": 0.9, "pgd20": 0.82, "cw50": 0.815, "autoattack": 0.81, "pgd20@head 1": 0.6, "pgd20@head 2": 0.58},
        **{"pgd20@transfer from pgd_at": 0.7, "cw50@head 1": 0.55, "cw50@head 2": 0.52, "cw50@gate of each class": 0.5},
        **{"pgd100x5@head 1": 0.47, "pgd100x5@head 2": 0.45, "autoattack@head 1": 0.44, "autoattack@head 2": 0.435},
    }
    rows = [{"attack": name, "accuracy": share} for name, share in [*rest.items(), ("worst", 0.435)]]
    return {"rows": [row | {"low": row["accuracy"] - 0.03, "high": row["accuracy"] + 0.03, "n": 500} for row in rows]}


def metrics(epochs: int = 6) -> pd.DataFrame:
    """A training in two stages that starts with a row for the model before it."""
    e = np.arange(epochs + 1)
    frame = pd.DataFrame({"epoch": e, "epoch_total": e, "loss": 2.0 / (e + 1), "robust_kl": 1.0 / (e + 1)})
    frame["stage"] = np.where(e <= epochs // 2, "burn-in", "finetune")
    frame = frame.assign(clean_val=1 - 0.9 / (e + 1), robust_val=0.7 - 0.6 / (e + 1), robust_loss_val=1.0, seconds=2.0)
    frame.loc[0, ["loss", "robust_kl"]] = np.nan
    frame["warnings"] = [["PGD accuracy fell"] if k == 4 else [] for k in e]
    return frame


def curve(x: str = "eps") -> pd.DataFrame:
    """An accuracy that falls with the strength of the attack."""
    strength = np.array([0.0, 0.1, 0.2, 0.3]) if x == "eps" else np.array([1, 10, 50, 100])
    accuracy = np.array([0.98, 0.9, 0.75, 0.4])
    return pd.DataFrame({x: strength, "accuracy": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.02})


CSV = "method,clean\nTRADES é,0.98\n"


def compared(png: bytes) -> Any:
    """An executed comparison, some of whose cells are tagged for the index: three figures, a table, and nothing at all."""

    def figure(alt: str) -> Any:
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": "<Figure>"}
        return new_output("display_data", data=data, metadata={"image/png": {"alt": alt, "width": 400, "csv": CSV}})

    def shows(*outputs: Any, tags: tuple[str, ...] = ("index",)) -> Any:
        return new_code_cell("figures.show(...)", metadata={"tags": list(tags)}, outputs=list(outputs))

    table = pd.DataFrame({"claim": ["TRADES < PGD"], "effect": ["+2.4"]}).to_html(index=False)
    blank = {"text/markdown": "", "text/plain": "<IPython.core.display.Markdown object>"}
    cells = [
        new_markdown_cell("# Which training holds?\n\nAll runs."),
        shows(new_output("stream", name="stdout", text="loading\n"), tags=()),
        new_markdown_cell("## Accuracy and $\\varepsilon$\n\nUp is *better*.\n\nA second paragraph."),
        shows(figure("A trade-off"), new_output("stream", name="stdout", text="some progress\n")),
        new_markdown_cell("## Curves"),
        shows(figure("Some curves")),
        new_markdown_cell("## Cost\n\nOnly on the page itself."),
        shows(figure("Costs"), tags=()),
        new_markdown_cell("## Nothing yet\n\nIts cell shows nothing."),
        shows(new_output("execute_result", data=blank, execution_count=1)),
        new_markdown_cell("## Maps\n\nOf two methods."),
        new_markdown_cell("Words between, without a heading."),
        shows(figure("A map")),
        new_markdown_cell("## Claims\n\nThree of them."),
        shows(new_output("display_data", data={"text/html": table, "text/plain": "claim"})),
        shows(new_output("execute_result", data={"text/markdown": "Seeds: **8**.", "text/plain": ""})),
    ]
    return new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def incomplete() -> pd.DataFrame:
    """Two runs that lack something, as `robustlib.evaluation.incomplete` lists them."""
    rows = [
        ("trades · seed 8", "runs/a", "not evaluated: robustlib evaluate runs/a"),
        ("trades · <9>", "runs/b", "records of pgd20 are incomplete: robustlib run trades --rerun"),
    ]
    return pd.DataFrame(rows, columns=["run", "path", "missing"]).assign(preset="digits", dataset="digits")


def write_fixture_atlas(
    target: Any, shape: tuple[int, int, int] = (1, 8, 8), n: int = 40, runs: int = 2, title: str = "Standard"
) -> Any:
    """Writes an atlas of `n` made-up images of four classes, each second one turned into the next class; returns images.

    Returns:
        The first image of the first run, clean and adversarial, uint8 `shape` each.
    """
    generator, labels = torch.Generator().manual_seed(0), torch.arange(n) % 4
    clean = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    train, val, test = (Split(clean, labels, torch.arange(n) + first) for first in (n, 2 * n, 0))
    train, val = (replace(split, images=255 - clean) for split in (train, val))  # splits share no images
    names = ("zero", "one", "two", "three")
    zeros = (0.0,) * shape[0]
    dataset = Dataset("made-up", train, val, test, names, zeros, (1.0,) * shape[0], Threat("linf", 0.2))
    grid = torch.stack((torch.arange(n), torch.arange(n)), 1).numpy()
    places = np.concatenate([grid, grid[::-1]], axis=1) * (9999 // (n - 1))
    turned = torch.where(labels % 2 == 1, (labels + 1) % 4, labels)
    half = torch.where(torch.arange(n) % 8 < 4, turned, labels)
    found = {"answers": [labels.numpy(), half.numpy()], "maps": {"UMAP": places, "PCA": places}, "note": "Made up."}
    change = torch.randint(-51, 52, (n, *shape), generator=generator)
    attacked = (clean.int() + change).clamp(0, 255).to(torch.uint8)
    facts = {"method": "standard", "title": title, "arch": "small_cnn", "dataset": "made-up"}
    rest = {"changed": "", "finished": True, "path": "runs/x"}
    made: list[Any] = [SimpleNamespace(params=lambda k=k: facts | {"seed": k}, **rest) for k in range(runs)]
    with patch("robustlib.workbook.report.index._map", lambda *_: (found, attacked.numpy())):
        if target is not None:
            write_atlas(Path(target), made, dataset, PGD(dataset.threat), title="Map", index="index.html")
    return clean[0], attacked[0]


def notebook(*, failed: bool = False, png: bytes = b"", markdown: str = "", html: str = "") -> Any:
    """An executed notebook with every kind of output."""
    prose = "\n\n".join(f"$${f}$$" if "align" not in f else f for f in FORMULAS)
    picture = {"image/png": base64.b64encode(png).decode(), "text/plain": "<Figure>"}
    stderr = "x.py:1: UserWarning: eight <threads>\n"
    outputs = [
        new_output("stream", name="stdout", text="epoch 1/2\n"),
        new_output("stream", name="stdout", text="epoch 2/2\n"),
        new_output("stream", name="stderr", text=stderr),
        new_output("display_data", data=picture, metadata={"image/png": {"alt": 'Loss "falls"', "width": 400}}),
        new_output("display_data", data=picture),
    ]
    table = pd.DataFrame({"attack": ["clean", "PGD"], "accuracy": [0.99, 0.75]}).to_html()
    widget = {"application/javascript": "alert(1)", "application/vnd.jupyter.widget-view+json": {"model_id": "m"}}
    outputs.append(new_output("display_data", data={**widget, "text/plain": "a slider"}))
    cells = [
        new_markdown_cell(f"# Baselines & more\n\nInline $p^*q^*$, code `$not a formula$`.\n\n{prose}\n\n{markdown}"),
        new_code_cell("seed: int = 0  # of weights and data", metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Training\n\n[paper](https://arxiv.org/abs/1901.08573)\n\n# A second title"),
        new_code_cell("fit(method)", outputs=outputs, execution_count=1),
        new_markdown_cell("## Results"),
        new_code_cell("table", outputs=[new_output("execute_result", data={"text/html": html or table})]),
    ]
    if failed:
        error = {"ename": "ValueError", "evalue": "no <run>", "traceback": ["\x1b[31mValueError\x1b[0m: no <run>"]}
        cells.append(new_code_cell("boom", outputs=[new_output("error", **error)]))
    ran = {"input_path": "notebooks/baselines.ipynb", "parameters": {"seed": 3}, "duration": 61.0}
    metadata = {"papermill": ran, "robustlib": {"Command": "robustlib run trades"}, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)
