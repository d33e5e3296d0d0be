"""The attacks of benchmarks/hostile.py: odd values in every field of attacks and threats, odd models, images and suites."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import hypothesis.strategies as st
import numpy as np
import torch
from torch import nn

from robustlib.attacks import APGD, FAB, FGSM, PGD, AutoAttack, BatchPGD, Square, StAdv, Tangent, Threat
from robustlib.data import Split
from robustlib.errors import options
from robustlib.evaluation import evaluate, summarise, valid

Trial = Callable[[], object]
LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
SMALL = {"steps": 2, "queries": 3, "probes": 2, "eot": 2, "version": "rand"}
LONG = 1000  # steps or queries that are made, but take too long to be run


def part(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, generator: Any = None, rng: Any = None) -> torch.Tensor:
    """An attack that answers with some of the images."""
    return x[:1]


ODD: tuple[Any, ...] = (
    *(torch.nan, torch.inf, -torch.inf, 0, -1, 1, 2, 0.5, 1e-320, 1e308, 10**400, 10**5000, None, True, 1j, b"1"),
    *("", "5", "ce", "l2", "linf", "8/255", "custom", "x" * 10_000, np.int64(2), np.float32(0.1), np.bool_(True)),
    *(np.str_("ce"), np.array(3), np.array([1.0, 2.0]), torch.tensor(2), torch.tensor(torch.nan), torch.ones(2, 2)),
    *(
        [],
        ((),),
        {},
        object(),
        Threat,
        PGD,
        LINF,
        L2,
        PGD(LINF, 1),
        (("a", PGD(LINF, 1)),),
        (("a", part),),
        [["b", None]],
    ),
    *(
        len,
        part,
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
        nn.Linear,
        {"pgd": PGD(LINF, 1)},
        {"clean": PGD(LINF, 1)},
        {5: part},
        {"a": part},
    ),
)
ANYTHING = (
    st.sampled_from(range(len(ODD))).map(lambda k: ODD[k])
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.lists(st.integers())
)
KINDS: tuple[Any, ...] = (Threat, PGD, FGSM, BatchPGD, APGD, FAB, Square, StAdv, Tangent, AutoAttack)
QUICK: tuple[Any, ...] = (PGD(LINF, 2), APGD(L2, 2), FAB(LINF, 2), Square(LINF, 3), StAdv(0.5, 2), Tangent(L2, 200))
ANSWERS: tuple[Callable[[torch.Tensor], Any], ...] = (
    *(
        lambda z: (z, z),
        lambda z: {"logits": z},
        lambda z: z.squeeze(0),
        lambda z: z.amax(1),
        lambda z: z.mean(0, True),
    ),
    *(
        lambda z: z.argmax(1, True),
        lambda z: z * torch.nan,
        lambda z: z * torch.inf,
        lambda z: z.double(),
        lambda z: None,
    ),
    *(lambda z: z[:, :1], lambda z: z[:, :0], lambda z: z.half(), lambda z: z.repeat(2, 1), lambda z: z.detach()),
    *(lambda z: "logits", lambda z: z.tolist(), lambda z: z.add_(1), lambda z: z[:, :, None], lambda z: z + 0j),
)


class Model(nn.Module):
    """Logits (B, 3) of images (B, 1, 4, 4), changed; it clamps its images in place."""

    def __init__(self, change: Callable[[torch.Tensor], Any] = torch.clone) -> None:
        super().__init__()
        self.map, self.change = nn.Linear(16, 3), change

    def forward(self, x: torch.Tensor) -> Any:
        """What it answers."""
        return self.change(self.map(x.clamp_(0.2, 0.8).flatten(1)))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three images and their labels."""
    return torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])


def try_fields(kind: Any, changes: dict[str, Any]) -> None:
    """An attack or a threat with these fields, whose repr tells all of it, and its images."""
    names, given = names_of(kind), SMALL | {"norm": "linf", "eps": 0.1, "threat": L2 if kind is Tangent else LINF}
    given |= {"queries": 200} if kind is Tangent else {}
    made = kind(**{name: value for name, value in given.items() if name in names} | changes)
    assert made == eval(repr(made)) or "<function" in repr(made), f"{made!r} is another one"
    if kind is not Threat and prod(value for value in vars(made).values() if type(value) is int and value) <= LONG:
        x, y = batch()
        x_adv = made(Model(), x, (lambda model, v: model(v).sum()) if kind is BatchPGD else y)
        assert valid(x_adv, x, getattr(made, "threat", None)).all()


def sound(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a field of that type takes: small ones where they cost time, and the ends of its interval."""
    if len(options(hint)) > 1:
        return st.one_of(*map(sound, options(hint)))
    inner, *said = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if inner in (int, float):
        low, high = (float(end) for end in (said or ["[0, 1]"])[0][1:-1].split(","))
        near = st.sampled_from((low, min(high, max(low, 1.0)), min(high, low + 2)))
        return near.map(int) if inner is int else near | st.floats(low, min(high, low + 2))
    threats = (LINF, L2, Threat("linf", 0), Threat("l2", 3))
    plain = {bool: (True, False), Threat: threats, type(None): (None,)}
    return st.sampled_from(get_args(inner) if get_origin(inner) is Literal else plain.get(inner, ((),)))


@st.composite
def changed(draw: st.DrawFn, kind: Any) -> Trial:
    """One or two fields of a valid attack or threat changed, two times in three to what they take."""
    hints, changes = get_type_hints(PGD if kind is FGSM else kind, include_extras=True), {}
    for name in draw(st.lists(st.sampled_from(names_of(kind)), min_size=1, max_size=2, unique=True)):
        changes[name] = draw(ANYTHING if draw(st.integers(0, 2)) == 2 else sound(hints[name]))
    return partial(try_fields, kind, changes)


def names_of(kind: Any) -> list[str]:
    """The fields of a kind of attack; of FGSM those of PGD."""
    return [field.name for field in fields(PGD if kind is FGSM else kind)]


def try_model(attack: Any, change: Callable[[torch.Tensor], Any], inference: bool) -> None:
    """Any answer of a model; the images stay as they are."""
    x, y = batch()
    kept = x.clone()
    with torch.inference_mode(inference):
        x_adv = attack(Model(change), x, y)
    assert valid(x_adv, x, getattr(attack, "threat", None)).all()
    assert torch.equal(x, kept)


def try_images(attack: Any, x: Any, y: Any) -> None:
    """Anything as images and labels."""
    assert valid(attack(Model(), x, y), x, getattr(attack, "threat", None)).all()


def try_evaluate(settings: dict[str, Any]) -> None:
    """Anything as an argument of `evaluate`."""
    if type(settings.get("draws")) is int and settings["draws"] > LONG:
        return
    split = Split((batch()[0] * 255).to(torch.uint8), batch()[1], torch.arange(3))
    records = evaluate(
        **{"model": Model(), "split": split, "attacks": {"pgd": PGD(LINF, 2)}, "batch_size": 2, **settings}
    )
    assert records.valid.all()
    assert summarise(records).accuracy.between(0, 1).all()


def attacks(folder: Path) -> tuple[st.SearchStrategy[Trial], Callable[[Trial], object]]:
    """Trials, and what runs one."""
    x, y = batch()
    odd_x = (
        x.half(),
        x.bfloat16(),
        x * 255,
        (x * 255).to(torch.uint8),
        x.numpy(),
        x[:0],
        x - 1,
        x * torch.nan,
    )
    odd_y = (y.float(), y.int(), y[:0], y + 9, -y, y[:, None], y.numpy(), y.tolist(), y.bool(), None)
    arguments = st.sampled_from(("model", "attacks", "batch_size", "seed", "draws", "adaptive", "sources"))

    attack, few = st.sampled_from(QUICK), {"max_size": 2}
    images = st.sampled_from((x, *odd_x)) | ANYTHING, st.sampled_from((y, *odd_y)) | ANYTHING
    trials = st.one_of(
        *(changed(kind) for kind in KINDS),
        st.builds(partial, st.just(try_model), attack, st.sampled_from(ANSWERS), st.booleans()),
        st.builds(partial, st.just(try_images), attack, *images),
        st.builds(partial, st.just(try_evaluate), st.dictionaries(arguments, ANYTHING, **few)),
    )
    return trials, lambda trial: trial()
