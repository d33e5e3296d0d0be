"""From `evaluate_run` to the model's forward pass under PGD a reader passes few functions."""

import sys
from pathlib import Path

import torch
from torch import nn

import robustlib
from robustlib.attacks import PGD, Threat
from robustlib.evaluation import evaluate_run
from robustlib.runs import Run, write_json
from tests.conftest import Linear

PACKAGE = str(Path(robustlib.__file__).parent)
MOST, OWN = 10, 6  # frames of robustlib's own code, and of those outside the attacks


class Deployed(Linear):
    """Notes the functions between `evaluate_run` and each of its answers under PGD."""

    stochastic, num_classes = False, 10

    def __init__(self) -> None:
        super().__init__(10, (1, 8, 8))
        self.paths: list[list[str]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frame, names = sys._getframe(1), []
        while frame.f_code.co_name != "evaluate_run":
            names += (
                [f"{Path(frame.f_code.co_filename).parent.name}.{frame.f_code.co_name}"]
                if frame.f_code.co_filename.startswith(PACKAGE)
                else []
            )
            frame = frame.f_back
        if x.requires_grad:
            self.paths.append(names[::-1])
        return super().forward(x)

    def check_data(self, _: object) -> None:
        """Anything fits."""

    def surrogates(self) -> dict[str, nn.Module]:
        return {}


def test_the_way_from_evaluate_run_to_a_forward_pass_is_short(digits, tmp_path, monkeypatch):
    model, run = Deployed(), Run(tmp_path / "digits" / "standard" / "linear")
    write_json(run.path / "params.json", {"dataset": "digits", "threat": {"norm": "linf", "eps": 0.1}})
    write_json(run.path / "status.json", {"state": "done"})
    monkeypatch.setattr(Run, "model", lambda self, which="best": model)
    attacks = {"pgd": PGD(Threat("linf", 0.1), steps=1)}
    monkeypatch.setattr("robustlib.evaluation.protocols.standard_attacks", lambda *_: attacks)
    monkeypatch.setattr("robustlib.evaluation.runs.EPS_MULTIPLES", (0,))
    monkeypatch.setattr("robustlib.evaluation.runs.STEPS", (0,))
    monkeypatch.setattr("robustlib.evaluation.runs.LAST", ("pgd",))
    evaluate_run(run, digits, n=20, device="cpu")
    longest = max(model.paths, key=len)
    assert len(longest) <= MOST, " > ".join(longest)
    assert len([name for name in longest if not name.startswith("attacks.")]) <= OWN
