"""What the evaluation of a randomised model may cost: each of its gradients is a mean over draws, and nobody leaves early."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustlib.errors import InputError, check_counts, unknown

PRESETS = Path(__file__).parent.parent / "presets"
PAIRS = ("pgd_eot", "autoattack", "stadv", "full", "bpda")


@dataclass(frozen=True, kw_only=True)
class Budget:
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
                raise InputError(f"Budget {name}={pair!r}: give steps and gradient samples (EOT), each at least 1.")

    def facts(self) -> dict[str, Any]:
        """What results.json keeps of it."""
        return {name: list(value) if name in PAIRS else value for name, value in asdict(self).items()}


@lru_cache
def budget_of(preset: str | None) -> Budget:
    """The budget in a preset's section `randomised`; the published one where there is no such section, or no such preset.

    Raises:
        InputError: the section has a key that no budget knows, or a value out of range.
    """
    section = section_of(preset, "randomised", [field.name for field in fields(Budget)])
    values: dict[str, Any] = {name: tuple(value) if name in PAIRS else value for name, value in section.items()}
    return Budget(**values)


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
