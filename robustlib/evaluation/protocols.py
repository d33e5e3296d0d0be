"""What the evaluation of a randomised model may cost: each of its gradients is a mean over draws, and nobody leaves early.

The attacks that every model meets.

What a run's weights meet, and how each number is explained.

Attacks that no training here has seen: perturbations in another norm, and images whose pixels move.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlib.attacks import FGSM, PGD, PGDEOT, Attack, AutoAttack, Square, StAdv
from robustlib.errors import InputError, check_counts, unknown
from robustlib.evaluation.metrics import summarise
from robustlib.evaluation.schedule import components, is_search
from robustlib.models import Classifier
from robustlib.runs import Run
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd


PRESETS = Path(__file__).parent.parent / "methods" / "presets"
PAIRS = ("pgd_eot", "autoattack", "stadv", "full", "bpda")


@dataclass(frozen=True, kw_only=True)
class StochasticProtocol:
    """The attacks on randomised models; pairs are (steps, gradient samples of each). The defaults are the published ones.

    Lee and Kim (2023) for PGD+EOT and the number of images, Croce and Hein (2020) for AutoAttack, Nie et al. (2022) for StAdv,
    Hill et al. (2021) for BPDA+EOT and the vote that answers it.

    Raises:
        InputError: a number below 1, or something else than pairs of whole numbers.
    """

    images: int = 512  # test images at most
    pgd_eot: tuple[int, int] = (200, 20)  # from the image itself
    autoattack: tuple[int, int] = (100, 20)  # its rand version; the steps are those of its standard version as well
    stadv: tuple[int, int] = (100, 20)  # of the unseen attack
    queries: int = 5000  # of Square
    votes: int = 8  # draws whose mean decides a query
    curve: int = 512  # images of the curves over radii, steps and gradient samples
    full: tuple[int, int] = (200, 20)  # PGD+EOT of the plateau check
    bpda: tuple[int, int] = (50, 15)  # BPDA+EOT, for comparison with published numbers only
    defence: int = 150  # draws whose mean logits answer it

    def __post_init__(self) -> None:
        check_counts(self, "images", "queries", "votes", "curve", "defence")
        for name in PAIRS:
            pair = getattr(self, name)
            if len(pair) != 2 or not all(isinstance(part, int) and part >= 1 for part in pair):
                raise InputError(
                    f"StochasticProtocol {name}={pair!r}: give steps and gradient samples (EOT), each at least 1."
                )

    def facts(self) -> dict[str, Any]:
        """What results.json keeps of it."""
        return {name: list(value) if name in PAIRS else value for name, value in asdict(self).items()}


@lru_cache
def stochastic_protocol(preset: str | None) -> StochasticProtocol:
    """The budget in a preset's section `randomised`; the published one where there is no such section, or no such preset.

    Raises:
        InputError: the section has a key that no budget knows, or a value out of range.
    """
    section = section_of(preset, "randomised", [field.name for field in fields(StochasticProtocol)])
    values: dict[str, Any] = {name: tuple(value) if name in PAIRS else value for name, value in section.items()}
    return StochasticProtocol(**values)


def section_of(preset: str | None, name: str, known: Sequence[str]) -> Mapping[str, Any]:
    """A section of a preset's YAML; {} where there is no such section, or no such preset.

    Raises:
        InputError: it has a key that is not among the known.
    """
    import yaml

    file = PRESETS / f"{preset}.yaml"
    content: Mapping[str, Any] = yaml.safe_load(file.read_text()) if file.is_file() else {}
    section: Mapping[str, Any] = content.get(name) or {}
    for key in section:
        if key not in known:
            raise unknown(f"entry of {name} in {file.name}", key, known)
    return section


EOT = 8  # gradient samples of the single attacks against a stochastic model
PUBLISHED = StochasticProtocol()


def standard_attacks(
    threat: Threat, stochastic: bool = False, budget: StochasticProtocol = PUBLISHED
) -> dict[str, Attack]:
    """The common protocol, the weakest attack first: gradient attacks with steps of eps / 4, then AutoAttack.

    FGSM, PGD-20, PGD-50 with 10 restarts and 50 steps on the C&W margin let an example leave at its first success, which is
    never weaker than judging the last iterate. A stochastic model meets them with averaged gradients, PGD+EOT instead of
    the restarts, Square on the mean of several draws, and AutoAttack in both its versions.

    Args:
        threat: the allowed perturbations.
        stochastic: of the model: whether it answers the same image differently each time.
        budget: of the costly attacks on a stochastic model.
    """
    if stochastic:
        pgd = PGD(threat, eot=EOT)
        return {
            "fgsm": FGSM(threat, eot=EOT),
            "pgd20": replace(pgd, steps=20),
            "cw50": replace(pgd, steps=50, objective="margin"),
            "pgd_eot": PGDEOT(threat, *budget.pgd_eot),
            "square": Square(threat, budget.queries, votes=budget.votes),
            "aa_standard": AutoAttack(threat, **_short(budget)),
            "autoattack": AutoAttack(threat, version="rand", **_short(budget)),
        }
    pgd = PGD(threat, early_stop=True)
    return {
        "fgsm": FGSM(threat),
        "pgd20": replace(pgd, steps=20),
        "pgd50x10": replace(pgd, steps=50, restarts=10),
        "cw50": replace(pgd, steps=50, objective="margin"),
        "autoattack": AutoAttack(threat),
    }


def adaptive_attacks(threat: Threat) -> dict[str, Attack]:
    """What the surrogates of a deterministic model meet: the searches of `standard_attacks`, then what is costly.

    In place of PGD-50 with 10 restarts: PGD-100 with 5, on the cross-entropy (of a joint loss: on that loss itself, as Zhou et
    al. 2023 attack in training) and on the margin. AutoAttack comes last. `evaluate` says which view meets which.
    """
    searches = {name: attack for name, attack in standard_attacks(threat).items() if is_search(attack)}
    pgd = PGD(threat, steps=100, restarts=5, early_stop=True)
    costly: dict[str, Attack] = {
        "pgd100x5": pgd,
        "cw100x5": replace(pgd, objective="margin"),
        "autoattack": AutoAttack(threat),
    }
    return {**searches, **costly}


def randomised_views(threat: Threat, budget: StochasticProtocol = PUBLISHED) -> dict[str, Attack]:
    """What the surrogates of a stochastic model meet; `evaluate` tells from the gradient samples of an attack which.

    Random ones (BPDA, no clipping) meet PGD+EOT: the model's own gradients are exact, and these are for comparison. The
    deterministic ones, a bare classifier behind a purifier, and finished twins are sources of transfer: PGD-20, and AutoAttack's
    standard version on the former.
    """
    return {
        "pgd20": PGD(threat, steps=20),
        "pgd_eot": PGDEOT(threat, *budget.pgd_eot),
        "aa_standard": AutoAttack(threat, **_short(budget)),
    }


def _short(budget: StochasticProtocol) -> dict[str, Any]:
    steps, samples = budget.autoattack
    return {"steps": steps, "eot": samples, "queries": budget.queries}


TRANSFER_METHODS = ("pgd_at", "trades")  # methods whose adversarial examples are tried on models with surrogates
TRANSFER = "transfer from "  # begins the surrogate's name of what was found on them


@dataclass(frozen=True)
class Suite:
    """The arguments of an `evaluate`.

    Args:
        model: what is attacked.
        attacks: on the model itself.
        adaptive: on its surrogates.
        twins: finished runs by method, of those in TRANSFER_METHODS that are tried.
    """

    model: Classifier
    attacks: Mapping[str, Attack]
    adaptive: Mapping[str, Attack]
    twins: Mapping[str, Run]

    @classmethod
    def of(
        cls,
        model: Classifier,
        threat: Threat,
        twins: Mapping[str, Run],
        only: Iterable[str] = (),
        budget: StochasticProtocol = PUBLISHED,
    ) -> "Suite":
        """The standard attacks, and what surrogates meet; `only` these of both, if there are some. The budget is for a
        stochastic model."""
        attacks = standard_attacks(threat, model.stochastic, budget)
        adaptive = randomised_views(threat, budget) if model.stochastic else adaptive_attacks(threat)
        keep = tuple(only) or tuple({**attacks, **adaptive})
        mine, others = ({name: suite[name] for name in suite if name in keep} for suite in (attacks, adaptive))
        return cls(model, mine, others, twins)

    def table(self, records: "pd.DataFrame") -> list[dict[str, Any]]:
        """The rows of `summarise`, each with its protocol."""
        table = summarise(records)
        rows = table.assign(protocol=[self._protocol(str(name)) for name in table["attack"]]).to_dict("records")
        return rows  # type: ignore[return-value]

    def _protocol(self, name: str) -> str:
        attack, _, surrogate = name.partition("@")
        if attack == "clean":
            return "no attack"
        if surrogate:
            where = self._where(surrogate, self.adaptive[attack])
            return f"{self.adaptive[attack]!r}, searched on {where}, judged by the deployed model"
        return self._worst() if attack == "worst" else repr(self.attacks[attack])

    def _worst(self) -> str:
        said, missing = "per-example worst case over the attacks above", set(TRANSFER_METHODS) - set(self.twins)
        if self.model.stochastic:
            said = f"{said}, or the lowest of them where that is lower,"
        if not self.model.surrogates():
            return said
        lacking = f"; nothing was transferred from {' or '.join(sorted(missing))}" if missing else ""
        return f"{said} and those on surrogates{lacking}"

    def _where(self, surrogate: str, attack: Attack) -> str:
        """On what, how, and on which images an attack searched, in words."""
        views = self.model.surrogates()
        if surrogate.startswith(TRANSFER):
            return self.twins[surrogate.removeprefix(TRANSFER)].place
        if surrogate not in views:  # a family
            return f"each of the surrogates {surrogate}, aimed at that class, on images of the others"
        view, parts = views[surrogate], ""
        if hasattr(attack, "components"):
            met = components(attack, view, self.model.num_classes)
            parts = f" ({', '.join(met)} only)" if len(met) < len(attack.components(self.model.num_classes)) else ""
        said, objective = f"the surrogate {surrogate}{parts}", getattr(view, "objective", "")
        if objective and getattr(attack, "objective", "ce") == "ce":
            said += f" with objective {objective!r} for 'ce'"
        every = is_search(attack) or self.model.stochastic
        return said if every else f"{said}, on what withstood everything before"


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """How strong the unseen attacks are. The defaults are those of Nie et al. (2022) on CIFAR-10.

    Raises:
        InputError: a number that is not above 0.
    """

    l2: float = 0.5  # radius, in pixel units of [0, 1]
    flow: float = 0.8  # bound of StAdv, in pixels

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InputError(f"Unseen {field.name}={getattr(self, field.name)!r}: give a number above 0.")


@lru_cache
def unseen_of(preset: str | None) -> Unseen:
    """The strengths in a preset's section `unseen`; the published ones where there is none.

    Raises:
        InputError: the section has another key, or a value out of range.
    """
    return Unseen(**section_of(preset, "unseen", [field.name for field in fields(Unseen)]))


def unseen_attacks(unseen: Unseen, stochastic: bool, budget: StochasticProtocol) -> dict[str, dict[str, Attack]]:
    """By kind the attacks of which the per-example minimum counts: "l2" (AutoAttack, and PGD+EOT if the model is stochastic) and
    "stadv".

    Args:
        unseen: how strong.
        stochastic: of the model: its gradients are averaged, within the budget.
        budget: for stochastic models; of others, the number of Square's queries and StAdv's steps.
    """
    threat, (steps, samples) = Threat("l2", unseen.l2), budget.autoattack
    moved = StAdv(unseen.flow, budget.stadv[0], eot=budget.stadv[1] if stochastic else 1)
    straight: Mapping[str, Attack] = {"autoattack": AutoAttack(threat, queries=budget.queries)}
    if stochastic:
        straight = {
            "pgd_eot": PGDEOT(threat, *budget.pgd_eot),
            "autoattack": AutoAttack(threat, version="rand", eot=samples, steps=steps),
        }
    return {"l2": dict(straight), "stadv": {"stadv": moved}}
