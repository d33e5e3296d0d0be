"""What a training needs to resume as if nothing had happened, in one atomic file."""

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.errors import InputError
from robustlib.runs import Run, write_atomic

NO_SCORE = (-1.0, -1.0)  # below that of any epoch that is validated


@dataclass
class State:
    """The position of a training: everything that does not follow from its parameters and seed."""

    stage: int = 0
    epoch: int = 0  # epochs of this stage that are done
    begun: bool = False  # whether the stage's `begin` has run
    seconds: float = 0.0  # spent so far, over all sessions
    threads: int = 1
    score: tuple[float, float] = NO_SCORE  # of the best epoch of this stage
    best_robust: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    rows: list[dict[str, Any]] = field(default_factory=list)  # the metrics so far


def save(
    run: Run,
    state: State,
    modules: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    updates: int,
) -> None:
    """Writes checkpoint.pt, then metrics.jsonl: the next epoch of a resumed training repairs a crash between the two."""
    content = {
        "state": {**vars(state), "rows": json.dumps(state.rows)},
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
        "updates": updates,  # of the averaged weights
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(run.path / "checkpoint.pt", buffer.getbuffer())
    write_metrics(run, state.rows)


def write_metrics(run: Run, rows: list[dict[str, Any]]) -> None:
    """All rows as JSON lines."""
    write_atomic(run.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def load(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint, None if there is none; never executes code from the file."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # load_state_dict moves what must move
        return {**content, "state": State(**{**content["state"], "rows": json.loads(content["state"]["rows"])})}
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is no checkpoint of robustlib, or a truncated one ({reason}): delete it, or use --rerun to start anew."
        ) from error
