"""The state of an evaluation on disk: what it evaluates, and every batch that is finished.

A killed process leaves whole files only (`write_atomic`), and each file says by its name where it belongs, so whatever is
there can be used and whatever is not is done again.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks import Attack
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.runs import attack_names, digest, read_json, versions, write_atomic, write_json

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the repr of what is no dataclass; another one in each process
ORDER = "order of attacks"


@dataclass(frozen=True)
class State:
    """Finished batches below `path`; without a path it remembers nothing."""

    path: Path | None
    draws: int = 1  # rows of one example in a batch

    @classmethod
    def open(cls, path: Path | str, facts: Mapping[str, Any]) -> "State":
        """The state in `path`, begun now if there is none; an error if it belongs to another evaluation."""
        path, asked = Path(path), json.loads(json.dumps(facts, default=str))
        stored = read_json(path / "protocol.json")
        if not stored:
            for orphan in path.glob("part-*.parquet"):  # nobody knows what they are of
                orphan.unlink()
            write_json(path / "protocol.json", asked)
        elif different := _difference(stored, asked):
            raise InputError(
                f"The evaluation state in {path} was begun with another {different}: "
                "delete that directory, or give another one as `state`."
            )
        return cls(path, asked["draws"])

    def load(self, step: int) -> list[pd.DataFrame]:
        """The finished batches of a step, in order."""
        frames: list[pd.DataFrame] = []
        done = 0
        while self.path is not None and (file := self._part(step, done)).exists():
            try:
                frames.append(pd.read_parquet(file))
            except (OSError, ValueError) as error:
                raise InputError(f"{file} is damaged ({error}): delete {self.path} and evaluate again.") from error
            done += len(frames[-1]) // self.draws
        return frames

    def save(self, step: int, done: int, frame: pd.DataFrame) -> None:
        """Stores the batch of a step that follows its first `done` examples."""
        if self.path is not None:
            buffer = io.BytesIO()
            frame.to_parquet(buffer, index=False)
            write_atomic(self._part(step, done), buffer.getvalue())

    @property
    def limit(self) -> int | None:
        """The largest batch that fits into memory, as far as that is known."""
        return None if self.path is None else read_json(self.path / "memory.json").get("limit")

    def shrink(self, limit: int) -> None:
        """Remembers how many examples fit into memory."""
        if self.path is not None:
            write_json(self.path / "memory.json", {"limit": limit})

    def _part(self, step: int, done: int) -> Path:
        assert self.path is not None
        return self.path / f"part-{step:03d}-{done:08d}.parquet"


def state_key(asked: Mapping[str, Any], device: torch.device) -> str:
    """Eight characters for what is asked and where, so that an interrupted evaluation only meets its own state."""
    return digest(json.dumps([asked, device.type, torch.__version__], sort_keys=True), length=8)


def fingerprint(
    model: nn.Module,
    others: Mapping[str, nn.Module],
    split: Split,
    attacks: Mapping[str, Attack],
    adaptive: Mapping[str, Attack],
    **settings: Any,
) -> dict[str, Any]:
    """Everything that decides the records of `evaluate`: two evaluations with equal fingerprints may share a state.

    `others` are the model's surrogates and sources.
    """
    suites = {"attack": attacks, "adaptive attack": adaptive}
    return {
        "model": model_digest(model),
        **{f"surrogate {name}": f"{model_digest(other)} {attack_hints(other)}" for name, other in others.items()},
        "split": _tensor_digest(split.images, split.labels, split.indices),
        **{f"{kind} {n}": ADDRESS.sub("", repr(a)) for kind, suite in suites.items() for n, a in suite.items()},
        ORDER: [list(suite) for suite in suites.values()],
        **settings,
        "numerics": versions("measures/evaluation", *attack_names([*attacks.values(), *adaptive.values()])),
        "device": split.labels.device.type,
        "torch": torch.__version__,
    }


def model_digest(model: nn.Module) -> str:
    """Sixteen characters for a model's class, weights, buffers and plain settings such as a temperature."""
    weights = model.state_dict()
    settings = [
        ADDRESS.sub("", f"{name}.{key}={value!r}")
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key != "training" and (value is None or isinstance(value, (bool, int, float, str, tuple)))
    ]
    words = f"{type(model).__qualname__} {ADDRESS.sub('', str(model))} {sorted(weights)} {settings}"
    unsaved = (buffer for name, buffer in model.named_buffers() if name not in weights)
    return _tensor_digest(*(weights[name] for name in sorted(weights)), *unsaved, words=words)


def attack_hints(view: nn.Module) -> str:
    """How a view asks to be attacked."""
    return f"{getattr(view, 'target', None)} {getattr(view, 'objective', None)}"


def _tensor_digest(*tensors: Tensor, words: str = "") -> str:
    parts: list[str | bytes] = [words]
    for tensor in tensors:
        parts.append(f"{tensor.dtype}{tuple(tensor.shape)}")
        parts.append(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest(*parts)


def _difference(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first fact that differs, with both values; "" if none does. What follows from the attacks comes last: their order, versions."""
    for name in sorted({**asked, **stored}, key=lambda name: name in (ORDER, "numerics")):  # a stable sort
        if stored.get(name) != asked.get(name):
            return f"{name} ({stored.get(name, 'none')} there, {asked.get(name, 'none')} now)"
    return ""
