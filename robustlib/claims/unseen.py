"""Accuracies under unseen attacks as measures of a claim, on the images that `measure_unseen` looked at."""

from typing import Any

from robustlib.errors import InputError, unknown
from robustlib.runs import Run, read_json

KIND = "unseen/"


def of_unseen(measure: str) -> bool:
    """Whether `unseen` knows such a measure."""
    return measure.startswith(KIND)


def last_look(run: Run) -> dict[str, Any]:
    """What `robustlib.evaluation.measure_unseen` stored last of a run: protocol and accuracies; {} before it."""
    looks = list(read_json(run.path / "unseen.json").values())
    return looks[-1] if looks else {}


def unseen(run: Run, name: str) -> float:
    """An accuracy of `last_look`, or a difference of two.

    Args:
        run: measured by `robustlib.evaluation.measure_unseen`.
        name: "clean", "known" (the worst case of the evaluation), "l2" or "stadv", all on the same images; "loss/l2",
            "loss/stadv": known less unseen, below 0 where the unseen attack is the weaker one; "price": what clean accuracy a purifier
            takes from the classifier behind it.

    Raises:
        InputError: a run that is not measured, or an unknown name.
    """
    look = last_look(run)
    if not look:
        raise InputError(
            f"{run.path} has no accuracies under unseen attacks: `robustlib evaluate {run.path} --unseen` measures them."
        )
    shares = {attack: float(row["accuracy"]) for attack, row in look["accuracies"].items()}
    losses = {f"loss/{attack}": shares["known"] - share for attack, share in shares.items()}
    price = {"price": float(look["bare"]["accuracy"]) - shares["clean"]} if look.get("bare") else {}
    found = {**shares, **losses, **price}
    if name not in found:
        raise unknown("accuracy under unseen attacks", name, found)
    return found[name]


def facts_of(run: Run) -> dict[str, Any]:
    """What two looks must share to be compared."""
    look = last_look(run)
    own = {name: look.get(name) for name in ("split", "n", "seed")}
    return own | {"attack": str(look.get("strengths")), "look": look.get("images")}


def attacks_met(run: Run) -> tuple[str, ...]:
    """The unseen attacks of `last_look` as they were run: those on a model that answers at random are others."""
    rows = last_look(run).get("accuracies", {})
    return tuple(row.get("protocol", "") for name, row in rows.items() if name not in ("clean", "known"))
