"""What a run's weights meet, and how each number is explained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustlib.attacks import Attack
from robustlib.evaluation.budgets import Budget
from robustlib.evaluation.numbers import summarise
from robustlib.evaluation.suites import PUBLISHED, adaptive_attacks, randomised_views, standard_attacks
from robustlib.evaluation.views import components, is_search
from robustlib.models import Classifier
from robustlib.runs import Run
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd

TWINS = ("pgd_at", "trades")  # methods whose adversarial examples are tried on models with surrogates
TRANSFER = "transfer from "  # begins the surrogate's name of what was found on them


@dataclass(frozen=True)
class Suite:
    """The arguments of an `evaluate`.

    Args:
        model: what is attacked.
        attacks: on the model itself.
        adaptive: on its surrogates.
        twins: finished runs by method, of those in TWINS that are tried.
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
        budget: Budget = PUBLISHED,
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
        said, missing = "per-example worst case over the attacks above", set(TWINS) - set(self.twins)
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
