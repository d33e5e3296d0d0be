"""What a training says while it runs: a table that grows in a notebook, a line an epoch elsewhere."""

import sys
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from robustlib.figures.canvas import clock

ACCURACIES = {"clean_val": "clean", "robust_val": "PGD-10"}  # absent where nothing was validated
ROWS = 60  # of the table; of longer trainings it shows every second, third, … epoch, and the last

Row = Mapping[str, Any]


class Progress:
    """Shows the rows of metrics.jsonl of one training, which runs for `total` epochs."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self._shown: Any = None  # IPython's handle of the table

    def show(self, rows: Sequence[Row]) -> None:
        """Tells of the last row: prints a line, in a notebook renews the table."""
        ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        if not hasattr(ipython, "kernel"):
            print(epoch_line(self.name, rows, self.total), flush=True)
            return
        from IPython.display import display

        page = {
            "text/html": epoch_table(self.name, rows, self.total),
            "text/plain": epoch_line(self.name, rows, self.total),
        }
        if self._shown is None:
            self._shown = display(page, raw=True, display_id=True)
        else:
            self._shown.update(page, raw=True)


def epoch_line(name: str, rows: Sequence[Row], total: int) -> str:
    """ "trades · small_cnn · seed 0 · epoch 3/30 · loss 0.52 · clean 97.1 % · PGD-10 60.2 % · 0:41 left", and the row's warnings."""
    row, seconds = rows[-1], [r["seconds"] for r in rows if r["epoch"]]
    parts = [name, f"epoch {row['epoch_total']}/{total}"]
    parts += [f"{key.replace('/', ' ')} {row[key]:.3f}" for key in _losses([row])]
    parts += [f"{title} {row[key] * 100:.1f} %" for key, title in ACCURACIES.items() if key in row]
    if row["epoch_total"] >= total:
        parts.append(f"done in {clock(sum(r['seconds'] for r in rows))}")
    elif seconds:
        recent = seconds[-5:]
        parts.append(f"{clock(sum(recent) / len(recent) * (total - row['epoch_total']))} left")
    return " · ".join(parts) + "".join(f"\n  warning: {text}" for text in row["warnings"])


def epoch_table(name: str, rows: Sequence[Row], total: int) -> str:
    """The epochs as a table of HTML, and all warnings; open while it grows, folded when the training is done."""
    line, epochs = epoch_line(name, rows, total).partition("\n")[0], [row for row in rows if row["epoch"]]
    stages = len({row["stage"] for row in rows}) > 1
    losses = _losses(epochs)
    heads = ["epoch", *["stage"] * stages, *(key.replace("/", " ") for key in losses), *ACCURACIES.values(), "time"]
    body = ""
    step = max(1, -(-len(epochs) // ROWS))
    for row in epochs[(len(epochs) - 1) % step :: step]:
        cells = [str(row["epoch_total"]), *[row["stage"]] * stages]
        cells += [f"{row[key]:.3f}" if key in row else "" for key in losses]
        cells += [f"{100 * row[key]:.1f} %" if key in row else "" for key in ACCURACIES]
        body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in (*cells, clock(row["seconds"]))) + "</tr>\n"
    head = "".join(f"<th>{escape(title)}</th>" for title in heads)
    warned = [f"epoch {row['epoch_total']}: {text}" for row in rows for text in row["warnings"]]
    notes = "".join(f"<p>⚠ {escape(text)}</p>\n" for text in warned)
    opened = " open" if rows[-1]["epoch_total"] < total else ""
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n" if epochs else ""
    return f'<details class="code"{opened}><summary>{escape(line)}</summary>\n{table}{notes}</details>'


def _losses(rows: Sequence[Row]) -> list[str]:
    """The columns that are losses, e.g. "loss" and "head/loss"."""
    return list(dict.fromkeys(key for row in rows for key in row if key.split("/")[-1] == "loss"))
