"""Networks from elsewhere by name: from torchvision's or timm's registry, a user's file or a module, with weights from a file."""

import importlib
import inspect
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustlib.errors import InputError, check_path, explained, shown, typed
from robustlib.models.classifier import ImageSpec, logits_of
from robustlib.models.external import External, answering, find_logits, last_linear, unwrap
from robustlib.runs.user_code import UserCode

REGISTRIES = ("torchvision", "timm")  # which build what they know by name and execute nothing else
UNSAFE = ("pretrained", "weights", "checkpoint")  # how arguments of theirs begin that read files or the network
PROBE = 2  # images that a network is tried on


def factory_of(spec: str) -> tuple[dict[str, str], str]:
    """The facts {place, name, digest} of a factory as a user names it, "torchvision:resnet18" or "my_models.py:build", and its file's text."""
    place, _, name = typed(spec, str, "model").partition(":")
    if place in REGISTRIES and name:
        return {"place": place, "name": name, "digest": ""}, ""
    code = UserCode.named(spec)
    return code.facts(), code.text


def build(factory: Mapping[str, Any], arguments: Mapping[str, Any], classes: int, text: str = "") -> nn.Module:
    """The network of a factory, freshly initialised; raises InputError where it cannot be built."""
    spec = f"{factory['place']}:{factory['name']}"
    if factory["place"] in REGISTRIES:
        return _registered(factory["place"], factory["name"], {"num_classes": classes, **arguments})
    made = UserCode.kept(factory, text).load()
    if isinstance(made, nn.Module):
        if arguments:
            raise InputError(f"{spec} is a module already, which takes no arguments: leave --model-args out.")
        return made
    if not callable(made):
        raise InputError(f"{spec} is {shown(made)}: name a module, or a function or class that makes one.")
    try:
        inspect.signature(made).bind(**arguments)
    except TypeError as error:
        said = f"{spec} cannot be called with {shown(dict(arguments))} ({error})"
        raise InputError(f"""{said}: give what it needs as JSON, e.g. --model-args '{{"depth": 28}}'.""") from error
    except ValueError:  # some builtin, whose signature nobody knows
        pass
    with explained(Exception, lambda error: f"{spec} fails ({type(error).__name__}: {error}): correct it."):
        net = made(**arguments)
    if not isinstance(net, nn.Module):
        raise InputError(f"{spec} makes {shown(net)}: let it return a torch.nn.Module.")
    return net


def _registered(library: str, name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network from the registry of torchvision or timm, without weights."""
    if unsafe := sorted(name for name in arguments if name.startswith(UNSAFE)):
        raise InputError(f"{library} takes {unsafe[0]!r} from files or the network: give --weights instead.")
    install = f"{library} is not installed: pip install {library}."
    with explained(ImportError, lambda _: install):
        module = importlib.import_module("torchvision.models" if library == "torchvision" else "timm")
    if name not in (known := module.list_models()):
        near = [k for k in known if name.lower().replace("-", "_") in k][:3]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"{library} knows no model {shown(name)}.{hint} It lists {len(known)} names.")
    said = f"{library}:{name} cannot be built with {shown(arguments)}"
    with explained(Exception, lambda error: f"{said} ({type(error).__name__}: {error}): correct --model-args."):
        if library == "timm":
            return module.create_model(name, pretrained=False, **arguments)
        usual = (
            {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        )  # else they warn that this takes long
        return module.get_model(name, weights=None, **usual, **arguments)


def read_checkpoint(path: Path | str) -> Any:
    """What a file of weights holds: safetensors, or a torch file read without executing anything in it."""
    file = Path(check_path(path)).expanduser()
    if not file.is_file():
        raise InputError(f"There is no file {file}: give the weights that --weights names.")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        with explained(Exception, lambda error: f"{file} is no readable safetensors file ({error}): restore it."):
            return load_file(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if not _pickled(file, error):
            remedy = "give what torch.save or safetensors wrote"
            raise InputError(f"{file} is no file of weights, or is damaged: {remedy}.") from error
        remedy = "where you trust it, convert it once: whole = torch.load(path, weights_only=False), then "
        remedy += "torch.save(whole.state_dict(), 'weights.pt'), or of a dict its entry with the weights"
        raise InputError(f"{file} holds a pickled object, not tensors alone: {remedy}.") from error


def _pickled(file: Path, error: Exception) -> bool:
    """Whether torch.save wrote a file, as an archive or in its older format, that could not be read for an object in it."""
    if not isinstance(error, pickle.UnpicklingError):  # which truncated and altered files hardly raise
        return False
    older = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
    with file.open("rb") as stream:
        return zipfile.is_zipfile(file) or stream.read(len(older)) == older


def adapt(
    net: nn.Module,
    images: torch.Tensor,
    spec: ImageSpec,
    *,
    output: str = "",
    layer: str = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    stochastic: bool | None = None,
) -> tuple[External, list[str]]:
    """The network as a classifier, tried on `images` float32 (B, C, H, W) in [0, 1], and a sentence on everything that was done to it.

    Raises InputError for a network that does not take these images or does not tell the data set's classes apart.
    """
    net, said = unwrap(net)
    random = bool(getattr(net, "stochastic", False)) if stochastic is None else stochastic
    model = External(net, spec, output=output, layer=layer, mean=mean, std=std, stochastic=random)
    few, classes = images[:PROBE].to(next((t.device for t in net.parameters()), images.device)), spec.num_classes
    normal = model.normalise(few.clone()) if model.normalised else few.clone()
    try:
        with torch.no_grad():
            answer = net(normal)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        shape = " x ".join(map(str, few.shape[1:]))
        remedy = "give images of the size it was made for (--size), or the --model-args for these"
        raise InputError(f"The network cannot take images of {shape} ({reason}): {remedy}.") from error
    if not output and (found := find_logits(answer, len(few), classes)):
        model.output = found
        said.append(f"Its logits are taken from {found!r} of its answer, {type(answer).__name__}.")
    with torch.no_grad():
        given = logits_of(model, few).shape[1]
    if given != classes:
        remedy = "give the data set it was trained on, or --model-args with its number of classes"
        raise InputError(f"The network tells {given} classes apart, the data set has {classes}: {remedy}.")
    model.last_linear, model.answering = last_linear(net, model, few), answering(net, model, few)
    if layer and layer not in (names := [name for name, _ in net.named_modules() if name]):
        raise InputError(f"The network has no module {layer!r}. It has {', '.join(names)}.")
    if not (layer or model.last_linear):
        said.append("No linear layer was seen at work, so its logits stand for its features: name one by --layer.")
    return model.eval(), said
