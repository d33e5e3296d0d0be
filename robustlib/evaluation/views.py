"""Which attack meets which view of a model beside the deployed one: its surrogates, and finished twins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from robustlib.attacks import APGD, Attack

FAMILY = "of each class"  # how the views that are aimed at one class each are called together


@dataclass(frozen=True)
class Door:
    """What records call a surrogate: one view, or a family of views that are aimed at one class each.

    Args:
        name: in the column `surrogate`.
        views: by their name in the column `component`; a single view has "".
    """

    name: str
    views: Mapping[str, nn.Module]

    @property
    def family(self) -> bool:
        """Whether its views are aimed at classes."""
        return "" not in self.views


def doors(surrogates: Mapping[str, nn.Module]) -> list[Door]:
    """The surrogates in their order; those with a `target` that differ by its number only ("gate 0", "gate 1") are a family."""
    found: dict[str, dict[str, nn.Module]] = {}
    for name, view in surrogates.items():
        target = getattr(view, "target", None)
        if target is None:
            found[name] = {"": view}
        else:
            found.setdefault(f"{name.removesuffix(str(target)).strip()} {FAMILY}", {})[name] = view
    return [Door(name, views) for name, views in found.items()]


def is_search(attack: Attack) -> bool:
    """Whether an attack is cheap enough for every view to meet it in full: no cascade and no restarts."""
    return not hasattr(attack, "components") and getattr(attack, "restarts", 1) == 1


def meant_for(attacks: Mapping[str, Attack], view: nn.Module) -> dict[str, Attack]:
    """Those attacks that a view of a stochastic model meets: a random view those that average gradients over draws, a
    deterministic one the others; all, where there are none of that kind."""
    fit = {
        name: attack
        for name, attack in attacks.items()
        if _averages(attack) == bool(getattr(view, "stochastic", False))
    }
    return fit or dict(attacks)


def _averages(attack: Attack) -> bool:
    """Whether a search takes the mean gradient of several draws; AutoAttack does so in its rand version only."""
    return getattr(attack, "version", "rand") == "rand" and getattr(attack, "eot", 1) > 1


def aimed(attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    """The attacks that a family meets: searches on the margin, which reach a class soonest; else all that can be targeted."""
    able = {name: attack for name, attack in attacks.items() if hasattr(attack, "targeted")}
    margin = {n: a for n, a in able.items() if is_search(a) and getattr(a, "objective", "") == "margin"}
    return margin or able


def takers(attack: Attack, doors: Sequence[Door]) -> list[Door]:
    """Which single views a costly attack meets: restarts those with an `objective`, a cascade the others; all, if there are none."""
    single = [door for door in doors if not door.family]
    joint = [door for door in single if getattr(door.views[""], "objective", None)]
    rest = [door for door in single if door not in joint]
    return (rest if hasattr(attack, "components") else joint) or single


def components(attack: Attack, view: nn.Module, classes: int) -> dict[str, Attack]:
    """The parts of a cascade that a view meets: all, or those by APGD if it is `relaxed`, the deployed logits with softer gates."""
    parts: dict[str, Attack] = attack.components(classes)  # type: ignore[attr-defined]
    steep: dict[str, Attack] = {name: part for name, part in parts.items() if isinstance(part, APGD)}
    return steep if steep and getattr(view, "relaxed", False) else parts


def suited(attack: Attack, view: nn.Module) -> Attack:
    """The attack as a view asks for it: targeted where it has a `target`, with its `objective` in place of "ce"."""
    changes: dict[str, Any] = {}
    if getattr(view, "target", None) is not None:
        changes["targeted"] = True
    if (objective := getattr(view, "objective", None)) and getattr(attack, "objective", "") == "ce":
        changes["objective"] = objective
    return replace(attack, **changes) if changes else attack  # type: ignore[type-var]
