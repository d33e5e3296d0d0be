"""Attacks of other libraries, of packages and of users by name, as attacks of this package: in its threat, judged by its rules."""

import ast
import importlib
import os
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from inspect import isabstract, isclass, signature
from math import inf
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Module, Parameter

from robustlib.attacks.base import frozen_eval
from robustlib.attacks.inputs import check_attack, check_inputs, check_labels, images_like, search
from robustlib.attacks.passes import add_passes
from robustlib.errors import InputError, NonNegative, explained, shown, typed, unknown
from robustlib.models.classifier import logits_of
from robustlib.rng import ExampleRNG, derive_seed, forked
from robustlib.threat import Threat

GROUP = "robustlib.attacks"  # of entry points, by which packages offer attacks
ROUNDING = 1e-4  # of the radius: an image that far outside of the ball is projected, one that is further off is no find
LEAST = 1e-6  # the same in pixel units, where the radius is tiny
SPEC = re.compile(r"(?:(?P<place>.+?):)?(?P<name>[\w.-]+)\s*(?P<arguments>\(.*\))?", re.DOTALL)
EXAMPLES = "write one such as torchattacks:PGD(eps=8/255, steps=20), foolbox:LinfDeepFoolAttack() or my_attacks.py:Mine"

Search = Callable[[Module, Tensor, Tensor, ExampleRNG], Any]  # model, x, y, random numbers -> images
Load = Callable[[str], tuple[Any, str]]  # "my_attacks.py:Mine" -> the object, and which version of its code it is


@dataclass(frozen=True)
class AttackSpec:
    """What a user calls an attack: "place:name(argument=value)"."""

    place: str  # a library, a file or a module; "" for an entry point
    name: str
    arguments: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> "AttackSpec":
        """The parts of a spec, whose arguments are literals or fractions by name; raises InputError for any other text."""
        found = SPEC.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise InputError(f"{shown(text)} names no attack: {EXAMPLES}.")
        said = f"{text} has arguments that are no numbers, words or lists by name: write e.g. (eps=8/255, steps=20)."
        with explained(
            (SyntaxError, ValueError, TypeError, ArithmeticError, MemoryError, RecursionError), lambda _: said
        ):
            call: Any = ast.parse(f"f{found['arguments'] or '()'}", mode="eval").body
            arguments = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
            if call.args or not isinstance(call.func, ast.Name) or len(arguments) < len(call.keywords):
                raise ValueError
        return cls(found["place"] or "", found["name"], arguments)

    @property
    def label(self) -> str:
        """A short name for tables, such as "torchattacks PGD" or "my_attacks Mine"."""
        place = os.path.basename(self.place).removesuffix(".py")
        return f"{place} {self.name}".strip().replace("@", "-")  # which has a meaning in names of attacks

    def __str__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in sorted(self.arguments.items()))
        return f"{os.path.basename(self.place)}:{self.name}({words})".removeprefix(":")


def absolute_spec(text: str) -> str:
    """The same spec for a process that works elsewhere: with the absolute path of its file, where it names one."""
    place = AttackSpec.parse(text).place
    return text.strip().replace(place, os.path.abspath(place), 1) if os.path.isfile(place) else text


def _value(node: ast.expr) -> Any:
    """A number, text, truth, None or list that stands in a spec; nothing is evaluated but signs and fractions."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_value(part)
        case ast.BinOp(left=above, op=ast.Div(), right=below):
            return _value(above) / _value(below)
        case ast.Tuple(elts=parts):
            return tuple(map(_value, parts))
        case ast.List(elts=parts):
            return list(map(_value, parts))
    raise ValueError


@dataclass(frozen=True, repr=False)
class ForeignAttack:
    """An attack that was written elsewhere, in the threat of this package.

    What it finds outside of the ball or of [0, 1] by rounding only (1e-4 of the radius) is projected, so that rounding decides nothing.
    What is further off, or not finite, is no find: the image stays clean, which counts as withstood, and `tally` counts it. Such
    libraries draw from global random numbers, which are seeded for each batch and given back as they were: the same call gives
    the same images, another batch size others.
    """

    asked: AttackSpec
    threat: Threat
    origin: str  # which version of whose code
    find: Search = field(compare=False)
    tally: Counter[str] = field(default_factory=Counter, compare=False)  # images "met", and those "outside"

    def __repr__(self) -> str:
        return f"{self.words}, {self.origin}"

    @property
    def words(self) -> str:
        """What is called and within what, whichever code answers."""
        return f"{self.asked} within {self.threat}"

    @property
    def remark(self) -> str:
        """What a reader of its number must know of the calls so far; "" where all images kept to the rules."""
        met, outside = self.tally["met"], self.tally["outside"]
        return (
            f"; {outside} of {met} images came back outside of the ball or of [0, 1] and count as withstood"
            if outside
            else ""
        )

    @search
    def __call__(
        self, model: Module, x: Tensor, y: Tensor, *, generator: Generator | None = None, rng: ExampleRNG | None = None
    ) -> Tensor:
        """x_adv (B, C, H, W) in [0, 1] and in the ball around `x`; see `Attack`. Raises InputError where that code fails."""
        x, y = check_inputs(x, y)
        if not len(x):
            return x.clone()
        rng = rng or ExampleRNG.from_generator(generator, len(x), x.device)
        with frozen_eval(model), torch.autocast(x.device.type, enabled=False), _seeded(rng, x.device):
            check_labels(y, logits_of(model, x[:1]).shape[1])
            try:
                with torch.enable_grad(), _quiet():
                    found = self.find(model, x.clone(), y.clone(), rng)
            except InputError:
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                remedy = "correct its arguments, or leave it out"
                raise InputError(f"{self.asked} fails ({why}; {self.origin}): {remedy}.") from error
        return self._judged(images_like(x, found, f"The answer of {self.asked}"), x)

    def _judged(self, found: Tensor, x: Tensor) -> Tensor:
        near = self.threat.project(found, x)
        ok = self.threat.distance(near, found) <= max(ROUNDING * self.threat.eps, LEAST)  # False for NaN
        self.tally.update(met=len(x), outside=int((~ok).sum()))
        return torch.where(ok.view(-1, *[1] * (x.ndim - 1)), near, x)


def foreign_attack(spec: str, threat: Threat, load: Load | None = None) -> ForeignAttack:
    """The attack that a spec such as "torchattacks:PGD(eps=8/255, steps=20)" or "foolbox:LinfDeepFoolAttack(steps=50)" names.

    Without a place it is an entry point of the group "robustlib.attacks", else code of a user, which `load` executes: an attack, or
    what makes one. A radius that is not given is the threat's, and so are `threat`, `norm`, `constraint` and `distance` where
    they are asked for. Raises InputError for what is not there, for other norms than the threat's and for larger radii.
    """
    asked = AttackSpec.parse(spec)
    if asked.place in LIBRARIES:
        return LIBRARIES[asked.place](asked, threat)
    if not asked.place:
        from robustlib.data.plugins import load_registered, registered

        if asked.name not in (known := registered(GROUP)):
            error = unknown("attack", asked.name, known) if known else f"No package offers an attack {asked.name!r}."
            raise InputError(f"{error} For others {EXAMPLES}.")
        entry = known[asked.name]
        made, origin = (
            load_registered(GROUP, asked.name, object),
            f"{entry.dist.name} {entry.dist.version}" if entry.dist else "",
        )
    elif load is None:
        raise InputError(f"{spec} names code, which is not executed here: name a library, or give what loads it.")
    else:
        made, origin = load(f"{asked.place}:{asked.name}")
    return _given(asked, threat, made, origin)


def _torchattacks(asked: AttackSpec, threat: Threat) -> ForeignAttack:
    library = _library("torchattacks")
    kind = _named(asked, library, lambda v: issubclass(v, library.attack.Attack) and "model" in signature(v).parameters)
    takes = signature(kind).parameters
    if "eps" in takes and "norm" not in takes:  # then its name says which it is
        _check_norm(asked, threat, "l2" if asked.name.endswith("L2") else "linf")
    asked = _filled(asked, takes, threat, norm=threat.norm.capitalize())
    _check_norm(asked, threat, str(asked.arguments.get("norm", threat.norm)).lower())
    _check_arguments(asked, kind, model=None)

    def find(model: Module, x: Tensor, y: Tensor, rng: ExampleRNG) -> Any:
        asks = _Counted(model, x)
        own = {"seed": _seed(rng) % 2**31, "n_classes": logits_of(model, x[:1]).shape[1]}  # else the clock's, and 10
        own = {name: value for name, value in own.items() if name in takes}
        return kind(asks, **{**own, **asked.arguments})(x, y)

    return ForeignAttack(asked, threat, f"torchattacks {version('torchattacks')}", find)


def _foolbox(asked: AttackSpec, threat: Threat) -> ForeignAttack:
    library = _library("foolbox")
    base = library.attacks.base.AttackWithDistance
    kind = _named(asked, library.attacks, lambda v: issubclass(v, base) and not isabstract(v))
    takes = signature(kind).parameters
    asked = _filled(asked, {**takes, "eps": None}, threat, constraint=threat.norm)
    arguments = {name: value for name, value in asked.arguments.items() if name != "eps"}
    distance = {"distance": getattr(library.distances, threat.norm)} if "distance" in takes else {}
    _check_arguments(AttackSpec(asked.place, asked.name, arguments), kind, **distance)
    with explained(Exception, lambda error: f"{asked} cannot be made ({error}): correct its arguments."), _quiet():
        attack = kind(**distance, **arguments)
    _check_norm(asked, threat, {inf: "linf", 2: "l2"}.get(order := attack.distance.p, f"l{order:g}"))

    def find(model: Module, x: Tensor, y: Tensor, rng: ExampleRNG) -> Any:
        asks = library.PyTorchModel(_Counted(model, x).eval(), bounds=(0, 1), device=x.device)
        return attack(asks, x, y, epsilons=asked.arguments["eps"])[1]  # clipped to the ball

    return ForeignAttack(asked, threat, f"foolbox {version('foolbox')}", find)


LIBRARIES = {"torchattacks": _torchattacks, "foolbox": _foolbox}


def _given(asked: AttackSpec, threat: Threat, made: Any, origin: str) -> ForeignAttack:
    """Of an object that is an attack, or a class or function that makes one."""
    attack, ready = made, _is_attack(made)
    if ready and asked.arguments:
        raise InputError(f"{asked} is an attack already, which takes no arguments: leave them out.")
    if not ready and callable(made):
        with explained((TypeError, ValueError), lambda error: f"{asked} cannot be called ({error}): name an attack."):
            takes = signature(made).parameters
        asked = _filled(asked, takes, threat)
        own = {"threat": threat} if "threat" in takes else {}
        _check_arguments(asked, made, **own)
        with explained(Exception, lambda error: f"{asked} fails ({type(error).__name__}: {error}): correct it."):
            attack = made(**{**own, **asked.arguments})
    check_attack(str(asked), attack)
    return ForeignAttack(asked, threat, origin, lambda model, x, y, rng: attack(model, x, y, rng=rng))


def _is_attack(made: object) -> bool:
    try:
        check_attack("attack", made)
    except InputError:
        return False
    return True


def _library(name: str) -> Any:
    said = f"{name} cannot be imported ({{}}): pip install {name}."
    with explained(ImportError, lambda error: said.format(error)), _quiet():
        return importlib.import_module(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of code that is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _named(asked: AttackSpec, module: Any, fits: Callable[[Any], bool]) -> Any:
    """The attack of that name among those of a library's module."""
    known = {name: value for name, value in vars(module).items() if isclass(value) and fits(value)}
    if asked.name not in known:
        raise unknown(f"attack of {asked.place}", asked.name, known)
    return known[asked.name]


def _filled(asked: AttackSpec, takes: Mapping[str, Any], threat: Threat, **usual: Any) -> AttackSpec:
    """The spec with the threat's radius and what else is `usual` where that is taken and not given."""
    usual = {name: value for name, value in {"eps": threat.eps, **usual}.items() if name in takes}
    arguments = {**usual, **asked.arguments}
    if "eps" in takes:
        arguments["eps"] = eps = typed(arguments["eps"], NonNegative, f"{asked} eps")
        if eps > threat.eps * (1 + 1e-6):
            said = f"{asked} searches farther than {threat}, so that nothing it finds would count"
            raise InputError(f"{said}: leave eps out, or give a threat of that radius.")
    return AttackSpec(asked.place, asked.name, arguments)


def _check_norm(asked: AttackSpec, threat: Threat, norm: str) -> None:
    if norm != threat.norm:
        said = f"{asked} searches in balls of {norm}, the threat is {threat}"
        raise InputError(f"{said}: name an attack of that norm, or give another threat.")


def _check_arguments(asked: AttackSpec, kind: Any, **own: Any) -> None:
    """Raises InputError for arguments that what makes an attack does not take; `own` are those that a user does not write."""
    takes = signature(kind)
    names = ", ".join(name for name in takes.parameters if name not in own)
    said = f"{asked} cannot be made ({{}}): it takes {names or 'no arguments'}."
    with explained(TypeError, lambda error: said.format(error)):
        takes.bind(**{**own, **asked.arguments})


def _seed(rng: ExampleRNG) -> int:
    return derive_seed(*rng.seeds.tolist())


@contextmanager
def _seeded(rng: ExampleRNG, device: torch.device) -> Iterator[None]:
    """Within, the global random numbers of torch, NumPy and Python follow from the examples' own; afterwards they are as before."""
    import numpy as np

    seed, kept = _seed(rng), (random.getstate(), np.random.get_state())
    with forked(device):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


class _Counted(Module):
    """A model as libraries call it: its passes are counted, its answers checked, and it has a device even without weights."""

    def __init__(self, model: Module, x: Tensor) -> None:
        super().__init__()
        self.model, self.place = model, Parameter(x.new_zeros(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = logits_of(self.model, x)
        add_passes(len(x), backward=logits.requires_grad)
        return logits
