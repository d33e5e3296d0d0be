"""Made-up results for the tests of figures and reports: no training needed."""

import base64
from typing import Any

import numpy as np
import pandas as pd

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
    rows = []
    values = {"standard": [0.02, 0.105], "trades": [0.72, 0.095]}
    for method, worsts in values.items():
        for seed, worst in enumerate(worsts):
            row: dict[str, Any] = {"preset": "digits", "dataset": "digits", "method": method, "title": method.upper()}
            row |= {"arch": "small_cnn", "seed": seed}
            row |= {"clean": 0.99 - 0.01 * seed, "clean_low": 0.96, "clean_high": 1.0}
            row |= {"fgsm": worst + 0.05, "pgd20": worst, "pgd50x10": worst, "cw50": float("nan")}
            row |= {"autoattack": worst, "worst": worst}
            row |= {"worst_low": worst - 0.01, "worst_high": worst + 0.03, "minutes": 1.5 + 10 * seed, "epochs": 30}
            row |= {"path": f"runs/digits/{method}/small_cnn-seed{seed}-ab", "stale": method == "trades" and seed == 1}
            row |= {"warnings": ["robust overfitting <b>here</b>"] if seed else [], "checkpoint": "best"}
            row |= BADGES[len(rows)]
            rows.append(row)
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


def notebook(*, failed: bool = False, png: bytes = b"", markdown: str = "", html: str = "") -> Any:
    """An executed notebook with every kind of output."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

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
        new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Training\n\n[paper](https://arxiv.org/abs/1901.08573)\n\n# A second title"),
        new_code_cell("fit(method)", outputs=outputs, execution_count=1),
        new_markdown_cell("## Results"),
        new_code_cell(
            "table", outputs=[new_output("execute_result", data={"text/html": html or table}, execution_count=2)]
        ),
    ]
    if failed:
        trace = ["\x1b[31mValueError\x1b[0m: no <run>"]
        cells.append(
            new_code_cell("boom", outputs=[new_output("error", ename="ValueError", evalue="no <run>", traceback=trace)])
        )
    ran = {"input_path": "notebooks/baselines.ipynb", "parameters": {"seed": 3}, "duration": 61.0}
    metadata = {"papermill": ran, "robustlib": {"Command": "robustlib run trades"}, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)
