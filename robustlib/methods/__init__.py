"""The methods by name. Adding one = one file here + one entry in METHODS + one section in each preset.

One that is not part of this package is named as `file.py:Class`, or by the name that an installed package gives it.
"""

from typing import Any

from robustlib.data.plugins import load_registered, registered
from robustlib.errors import InputError, shown, unknown
from robustlib.methods.afd import AFD, AFKD, ARREST, VAFT
from robustlib.methods.ancra import ANCRA
from robustlib.methods.atop import AToP
from robustlib.methods.base import AdversarialMethod, Method
from robustlib.methods.baselines import FGSMRS, MART, NFGSM, PGDAT, TRADES, Standard
from robustlib.methods.claf import CLAF
from robustlib.methods.contrastive import ACL, Contrastive, RoCL, SimCLR, SupCon
from robustlib.methods.preset import load_preset, parse_overrides, preset_dataset, preset_names
from robustlib.methods.rep_spectral import BarlowSpectral, CrossLipschitz, LLSpectral, RepSpectral, SimCLRSpectral
from robustlib.methods.transfer import BSS, L2SP, Transfer
from robustlib.runs import UserCode

#: The methods that come with robustlib: baselines first, each family after its rivals.
ALL: tuple[type[Method], ...] = (
    *(Standard, PGDAT, TRADES, MART, FGSMRS, NFGSM, VAFT, AFKD, ARREST, AFD, ANCRA, AToP),
    *(SupCon, SimCLR, RoCL, ACL, CLAF),
    *(RepSpectral, LLSpectral, CrossLipschitz, BarlowSpectral, SimCLRSpectral, Transfer, L2SP, BSS),
)
#: The same by name.
METHODS: dict[str, type[Method]] = {method.name: method for method in ALL}
#: Entry points of installed packages: the name of a method, and its class.
PLUGINS = "robustlib.methods"


def make_method(name: str, /, preset: str | None = None, **overrides: Any) -> Method:
    """The method with a preset's hyper-parameters (None: the paper's own), overridden and validated.

    A preset's are its `common` values, those of the method's section, and those that the section has for the architecture.
    A user's class, whose name is `file.py:Class` or `package.module:Class`, has no section; to name it is to trust it.
    """
    return method_class(name).from_preset(preset, **overrides)


def method_class(name: str) -> type[Method]:
    """The class that a name stands for: of METHODS, of an installed package, or of a user's file or module.

    The names in runs and pages are no code: ask METHODS for those, which executes nothing.
    """
    if isinstance(name, str) and (":" in name or name.endswith(".py")):
        return _method(UserCode.named(name).load(), name)
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    if not isinstance(name, str) or name not in registered(PLUGINS):
        raise unknown("method", name, [*METHODS, *registered(PLUGINS)])
    kind = _method(load_registered(PLUGINS, name, type), name)
    if kind.name != name:
        raise InputError(f"The installed method {name!r} calls itself {shown(kind.name)}: give both the same name.")
    return kind


def _method(kind: Any, spec: str) -> type[Method]:
    if not isinstance(kind, type) or not issubclass(kind, Method):
        raise InputError(f"{spec} is {shown(kind)}: give a class derived from robustlib.methods.Method.")
    return kind
