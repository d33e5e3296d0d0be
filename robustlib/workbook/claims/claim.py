"""What a claim is, and how it is read from data."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from robustlib.errors import InputError, check_choices, unknown
from robustlib.runs import Run, changes_text

Key = tuple[str, int]  # a variant and a seed
POINT, SHARE = 0.01, 0.05  # smallest effects of interest: 1 point of accuracy, 5 % of a distance
SIGNED = ("growth/", "metrics/", "overfitting/", "overstated/", "unseen/price")  # may be compared with zero


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A paper says that `variant` has a higher (or lower) `measure` than `than`; both are trained with the same seeds.

    Without `than` the measure of the one variant is compared with zero: "the gap grows".
    """

    name: str  # short; unique within its study
    text: str  # the claim in a sentence
    source: str  # the paper that makes it, and where
    measure: str  # what is compared; see robustlib/workbook/claims/measures.py
    variant: str  # a method with its changes from the preset, as `variant_of` writes them: "trades", "trades beta=1.0"
    than: str = ""  # the variant it is compared with; "": zero
    direction: Literal["higher", "lower"] = "higher"
    relative: bool = False  # differences as shares of `than`'s value, as distances need: their scale is arbitrary
    smallest: float | None = None  # smallest effect of interest; None: 0.01 (1 point), relative 0.05 (5 %)

    def __post_init__(self) -> None:
        check_choices(self, direction=("higher", "lower"))
        if self.variant == self.than:
            raise InputError(f"Claim {self.name!r} compares {self.variant!r} with itself: give two different variants.")
        if not self.than and (self.relative or not self.measure.startswith(SIGNED)):
            what = "differences as shares" if self.relative else f"{self.measure!r}, which is never below zero,"
            raise InputError(
                f"Claim {self.name!r} compares {what} with zero: give the variant to compare with as `than`."
            )
        if not self.interest > 0:
            raise InputError(f"Claim {self.name!r}: smallest={self.smallest!r}: give an effect above 0, e.g. 0.01.")

    @property
    def variants(self) -> tuple[str, ...]:
        """Whose runs decide it: `variant` and, if there is one, `than`."""
        return (self.variant, self.than) if self.than else (self.variant,)

    @property
    def interest(self) -> float:
        """The smallest effect of interest, above 0: a fraction of the images, or a share of a distance."""
        return (SHARE if self.unit == "%" else POINT) if self.smallest is None else self.smallest

    @property
    def sign(self) -> int:
        """1 where the claim says higher, -1 where it says lower."""
        return 1 if self.direction == "higher" else -1

    @property
    def unit(self) -> str:
        """What a hundredth of an effect is called: "points", or "%" if relative or a growth."""
        return "%" if self.relative or self.measure.startswith("growth/") else "points"


def read_claims(rows: object, place: str) -> list[Claim]:
    """Claims from a list of mappings with the fields of `Claim`, as the YAML file `place` gives them."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"{place}: write claims as a list of mappings with {', '.join(_required())}.")
    claims = [_claim(row, place) for row in rows]
    names = [claim.name for claim in claims]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{place} has two claims called {name!r}: give each a name of its own.")
    return claims


def _required() -> list[str]:
    return [field.name for field in fields(Claim) if field.type is str and field.default is MISSING]


def _claim(row: Mapping[str, Any], place: str) -> Claim:
    row = {"variant" if key == "arm" else key: value for key, value in row.items()}  # its name in version 0.1
    known = [field.name for field in fields(Claim)]
    for key in row:
        if key not in known:
            raise unknown(f"field of a claim in {place}", key, known)
    kinds: dict[str, Any] = {**dict.fromkeys([*_required(), "than"], str), "relative": bool, "smallest": (int, float)}
    for key, kind in kinds.items():
        if key not in row and key in _required():
            raise InputError(f"{place}: the claim {row.get('name', row)!r} has no {key!r}: add it.")
        if key in row and (not isinstance(row[key], kind) or (key == "smallest" and isinstance(row[key], bool))):
            raise InputError(f"{place}: {key}={row[key]!r} of the claim {row.get('name')!r} is of the wrong kind.")
    return Claim(**row)


def variant_of(run: Run) -> str:
    """The variant of a method that a run is: the method and what was changed from its preset, "trades beta=1.0"."""
    return f"{run.params().get('method', '?')} {changes_text(run.changes())}".strip()


def by_variant(runs: Iterable[Run]) -> dict[Key, Run]:
    """The first run of each variant and seed."""
    first: dict[Key, Run] = {}
    for run in runs:
        first.setdefault((variant_of(run), run.params().get("seed", -1)), run)
    return first
