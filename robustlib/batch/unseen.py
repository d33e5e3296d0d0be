"""What the claims of a study need that no page of their arms measures: accuracies under unseen attacks."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from robustlib.batch.plan import Options
from robustlib.claims import arm_of
from robustlib.claims.unseen import of_unseen
from robustlib.errors import InputError
from robustlib.runs import Run

if TYPE_CHECKING:
    from robustlib.claims import Claim


def measure_claimed(claims: "Sequence[Claim]", runs: Iterable[Run], options: Options) -> list[str]:
    """Measures finished, evaluated runs of arms of which a claim names an accuracy under unseen attacks; what is stored is kept.

    Args:
        claims: of a study.
        runs: of its arms, finished or not.
        options: of which `data_root` and `device` are used.

    Returns:
        A sentence for each run that could not be measured.
    """
    arms = {arm for claim in claims if of_unseen(claim.measure) for arm in claim.arms}
    problems = []
    for run in runs:
        if run.finished and run.results() and arm_of(run) in arms:
            try:
                _measure(run, options)
            except InputError as error:
                problems.append(f"{run.name} has not met unseen attacks: {error}")
    return problems


def _measure(run: Run, options: Options) -> None:
    from robustlib.data import load_dataset
    from robustlib.evaluation import measure_unseen

    dataset = load_dataset(run.params()["dataset"], root=options.data_root or None)
    measure_unseen({run.name: run}, dataset, device=options.device)
