"""The attacks that every model meets, those that no training here has seen, and how each number is explained."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import pandas as pd

from robustlib.attacks import FGSM, PGD, PGDEOT, Attack, AutoAttack, ForeignAttack, Square, StAdv, in_precision
from robustlib.attacks.base import Precision
from robustlib.errors import Count, Length, Positive, check_fields, unknown
from robustlib.evaluation.metrics import summarise
from robustlib.evaluation.schedule import components, is_search
from robustlib.models import Classifier
from robustlib.runs import Run
from robustlib.threat import Threat

PRESETS = Path(__file__).parent.parent / "methods" / "presets"
Pair = Annotated[tuple[int, int], "[1, 1000000]", "as [steps, gradient samples (EOT)]"]
EOT = 8  # gradient samples of the single attacks against a stochastic model


@dataclass(frozen=True, kw_only=True)
class StochasticProtocol:
    """What attacks on randomised models may cost; pairs are (steps, gradient samples of each).

    The defaults are the published ones: Lee and Kim (2023) for PGD+EOT and the number of images, Croce and Hein (2020) for AutoAttack,
    Nie et al. (2022) for StAdv, Hill et al. (2021) for BPDA+EOT and its vote.
    """

    images: Count = 512  # test images at most
    pgd_eot: Pair = (200, 20)  # from the image itself
    autoattack: Pair = (100, 20)  # its rand version; the steps are those of its standard version as well
    stadv: Pair = (100, 20)  # of the unseen attack
    queries: Count = 5000  # of Square
    votes: Count = 8  # draws whose mean decides a query
    curve: Count = 512  # images of the curves over radii, steps and gradient samples
    full: Pair = (200, 20)  # PGD+EOT of the plateau check
    bpda: Pair = (50, 15)  # BPDA+EOT, for comparison with published numbers only
    defence: Count = 150  # draws whose mean logits answer it

    def __post_init__(self) -> None:
        check_fields(self)

    def facts(self) -> dict[str, Any]:
        """What results.json keeps of it, under "budget"."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class UnseenStrengths:
    """How strong the unseen attacks are. The defaults are those of Nie et al. (2022) on CIFAR-10."""

    l2: Positive = 0.5  # radius, in pixel units of [0, 1]
    flow: Length = 0.8  # bound of StAdv, in pixels

    def __post_init__(self) -> None:
        check_fields(self)


@lru_cache
def stochastic_protocol(preset: str | None) -> StochasticProtocol:
    """What a preset's section `randomised` says; the published protocol where there is no such section, or no such preset."""
    return StochasticProtocol(**_section(preset, "randomised", StochasticProtocol))


@lru_cache
def unseen_strengths(preset: str | None) -> UnseenStrengths:
    """The strengths in a preset's section `unseen`; the published ones where there is none."""
    return UnseenStrengths(**_section(preset, "unseen", UnseenStrengths))


def _section(preset: str | None, name: str, kind: type[StochasticProtocol] | type[UnseenStrengths]) -> dict[str, Any]:
    """A section of a preset's YAML; {} where there is no such section, or no such preset."""
    import yaml

    file, known = PRESETS / f"{preset}.yaml", [field.name for field in fields(kind)]
    content: Mapping[str, Any] = yaml.safe_load(file.read_text()) if file.is_file() else {}
    section: Mapping[str, Any] = content.get(name) or {}
    for key in section:
        if key not in known:
            raise unknown(f"entry of {name} in {file.name}", key, known)
    return dict(section)


PUBLISHED = StochasticProtocol()


def standard_attacks(
    threat: Threat, stochastic: bool = False, protocol: StochasticProtocol = PUBLISHED
) -> dict[str, Attack]:
    """The common protocol, the weakest attack first: gradient attacks with steps of eps / 4, then AutoAttack.

    In PGD an example leaves at its first success, which is never weaker than judging the last iterate. A stochastic model meets
    averaged gradients, PGD+EOT instead of the restarts, Square on the mean of several draws, and both versions of AutoAttack.
    """
    if stochastic:
        pgd, (steps, samples) = PGD(threat, eot=EOT), protocol.autoattack
        standard = AutoAttack(threat, steps=steps, eot=samples, queries=protocol.queries)
        return {
            "fgsm": FGSM(threat, eot=EOT),
            "pgd20": replace(pgd, steps=20),
            "cw50": replace(pgd, steps=50, objective="margin"),
            "pgd_eot": PGDEOT(threat, *protocol.pgd_eot),
            "square": Square(threat, protocol.queries, votes=protocol.votes),
            "aa_standard": standard,
            "autoattack": replace(standard, version="rand"),
        }
    pgd = PGD(threat, early_stop=True)
    return {
        "fgsm": FGSM(threat),
        "pgd20": replace(pgd, steps=20),
        "pgd50x10": replace(pgd, steps=50, restarts=10),
        "cw50": replace(pgd, steps=50, objective="margin"),
        "autoattack": AutoAttack(threat),
    }


def adaptive_attacks(
    threat: Threat, stochastic: bool = False, protocol: StochasticProtocol = PUBLISHED
) -> dict[str, Attack]:
    """What the surrogates of a model meet; `evaluate` says which view meets which.

    Of a deterministic model: the searches of `standard_attacks`, PGD-100 with 5 restarts on the cross-entropy (of a joint loss: on that
    loss itself, as Zhou et al. 2023 attack in training) and on the margin, AutoAttack. Of a stochastic model: random surrogates
    (BPDA, no clipping) meet PGD+EOT, for comparison; deterministic ones (a bare classifier behind a purifier) and finished runs
    of other methods are sources of transfer: PGD-20, and AutoAttack's standard version on the former.
    """
    if stochastic:
        kept = standard_attacks(threat, True, protocol)
        return {"pgd20": PGD(threat, steps=20)} | {name: kept[name] for name in ("pgd_eot", "aa_standard")}
    pgd = PGD(threat, steps=100, restarts=5, early_stop=True)
    return {
        **{name: attack for name, attack in standard_attacks(threat).items() if is_search(attack)},
        "pgd100x5": pgd,
        "cw100x5": replace(pgd, objective="margin"),
        "autoattack": AutoAttack(threat),
    }


TRANSFER_METHODS = ("pgd_at", "trades")  # methods whose adversarial examples are tried on models with surrogates
TRANSFER = "transfer from "  # begins the surrogate's name of what was found on them


class Suite:
    """The standard and the adaptive attacks of an `evaluate`, and the words for each of its numbers."""

    def __init__(
        self,
        model: Classifier,
        threat: Threat,
        protocol: StochasticProtocol,
        sources: Mapping[str, Run],  # finished runs by method, of those in TRANSFER_METHODS that are tried
        precision: Precision = "32-true",  # of the searches
        only: Iterable[str] = (),  # these attacks; () for all
        extra: Mapping[str, ForeignAttack] = MappingProxyType({}),  # attacks from elsewhere, on the model itself
    ) -> None:
        settings = (threat, model.stochastic, protocol)
        suites = (standard_attacks(*settings), adaptive_attacks(*settings))  # on the model itself, on its surrogates
        keep = tuple(only) or tuple({**suites[0], **suites[1]})
        self.attacks, self.adaptive = (
            {name: in_precision(attack, precision) for name, attack in suite.items() if name in keep}
            for suite in suites
        )
        self.attacks |= extra
        self.model, self.sources = model, sources

    def table(self, records: pd.DataFrame) -> list[dict[str, Any]]:
        """The rows of `summarise`, each with its protocol."""
        rows: Any = summarise(records).to_dict("records")
        return [{**row, "protocol": self._protocol(row["attack"])} for row in rows]

    def _protocol(self, name: str) -> str:
        attack, _, surrogate = name.partition("@")
        if attack == "clean":
            return "no attack"
        if surrogate:
            where = self._where(surrogate, self.adaptive[attack])
            return f"{self.adaptive[attack]!r}, searched on {where}, judged by the deployed model"
        if attack != "worst":
            return repr(self.attacks[attack]) + getattr(self.attacks[attack], "remark", "")
        said, missing = "per-example worst case over the attacks above", set(TRANSFER_METHODS) - set(self.sources)
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
            return self.sources[surrogate.removeprefix(TRANSFER)].place
        if surrogate not in views:  # a family
            return f"each of the surrogates {surrogate}, aimed at that class, on images of the others"
        view, said, classes = views[surrogate], f"the surrogate {surrogate}", self.model.num_classes
        met = components(attack, view, classes) if hasattr(attack, "components") else {}
        if met and len(met) < len(attack.components(classes)):  # type: ignore[attr-defined]
            said += f" ({', '.join(met)} only)"
        if (objective := getattr(view, "objective", "")) and getattr(attack, "objective", "ce") == "ce":
            said += f" with objective {objective!r} for 'ce'"
        every = is_search(attack) or self.model.stochastic
        return said if every else f"{said}, on what withstood everything before"


def unseen_attacks(
    strengths: UnseenStrengths, stochastic: bool, protocol: StochasticProtocol
) -> dict[str, dict[str, Attack]]:
    """By kind the attacks of which the per-example minimum counts: "l2" (AutoAttack, and PGD+EOT if `stochastic`) and "stadv". Others
    take from `protocol` the number of Square's queries and of StAdv's steps."""
    threat, (steps, samples) = Threat("l2", strengths.l2), protocol.autoattack
    stadv = StAdv(strengths.flow, protocol.stadv[0], eot=protocol.stadv[1] if stochastic else 1)
    l2: dict[str, Attack] = {"autoattack": AutoAttack(threat, queries=protocol.queries)}
    if stochastic:
        rand = AutoAttack(threat, version="rand", eot=samples, steps=steps)
        l2 = {"pgd_eot": PGDEOT(threat, *protocol.pgd_eot), "autoattack": rand}
    return {"l2": l2, "stadv": {"stadv": stadv}}
