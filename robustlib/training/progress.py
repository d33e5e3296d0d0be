"""What a training says while it runs: one line an epoch, the same on a terminal, in a notebook and in a log."""

from collections.abc import Mapping, Sequence
from typing import Any

ACCURACIES = {"clean_val": "clean", "robust_val": "PGD-10"}  # absent where a model does not predict yet


def epoch_line(name: str, rows: Sequence[Mapping[str, Any]], total: int) -> str:
    """ "trades · small_cnn · seed 0 · epoch 3/30 · loss 0.52 · clean 97.1 % · PGD-10 60.2 % · 0:41 left"."""
    row = rows[-1]
    times = [r["seconds"] for r in rows if r["epoch"]][-5:]
    left = sum(times) / max(len(times), 1) * (total - row["epoch_total"])
    losses = [f"{k.replace('/', ' ')} {v:.3f}" for k, v in row.items() if k.split("/")[-1] == "loss"]
    parts = [
        name,
        f"epoch {row['epoch_total']}/{total}",
        *losses,
        *(f"{said} {row[key] * 100:.1f} %" for key, said in ACCURACIES.items() if key in row),
        *([f"{clock(left)} left"] if times and row["epoch_total"] < total else []),
        *([] if row["epoch_total"] < total else [f"done in {clock(sum(r['seconds'] for r in rows))}"]),
    ]
    return " · ".join(parts) + "".join(f"\n  warning: {text}" for text in row["warnings"])


def clock(seconds: float) -> str:
    """0:41, 12:05 or 3:12:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
