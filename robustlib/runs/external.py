"""A run of a network that was trained elsewhere: its weights and where they came from, as a directory that everything else takes."""

import copy
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from robustlib.data import check_dataset
from robustlib.data.arrays import slug
from robustlib.errors import InputError, check_path, shown, typed
from robustlib.models.external import External, fit_weights, unwrap
from robustlib.runs.factories import adapt, build, factory_of, read_checkpoint
from robustlib.runs.files import digest, save_weights, write_atomic, write_json
from robustlib.runs.numerics import NUMERICS
from robustlib.runs.provenance import provenance
from robustlib.runs.user_code import UserCode
from robustlib.threat import Threat

if TYPE_CHECKING:
    from robustlib.data import Dataset

_given: dict[str, External] = {}  # networks that came as objects, by the place of their run: only this process has them
EPOCH = re.compile(r"(?:epoch|ep|e)[-_=]?(\d+)|(\d+)(?=\D*$)", re.IGNORECASE)


def epoch_in(weights: Path | str) -> int | None:
    """The epoch that the name of a file of weights says, as in "epoch-012.pt"; None where it has no number."""
    found = EPOCH.search(Path(weights).stem)
    return int(found[1] or found[2]) if found else None


def external_run(
    of: Callable[[Mapping[str, Any], Path | str], Any],
    model: str | nn.Module,
    dataset: "Dataset",
    *,
    name: str = "",
    threat: Threat | None = None,
    root: Path | str = "runs",
    weights: Path | str = "",
    arguments: Mapping[str, Any] | None = None,
    output: str = "",
    layer: str = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    stochastic: bool | None = None,
    rerun: bool = False,
) -> Any:
    """The run of a network that was trained elsewhere, see `Run.from_model`; `of` is `Run.of`."""
    net, factory, text = _network(model, arguments or {}, check_dataset(dataset).num_classes)
    label = fit_weights(unwrap(net)[0], read_checkpoint(weights), weights) if weights else ""
    settings: dict[str, Any] = {"output": output, "layer": layer, "mean": mean, "std": std, "stochastic": stochastic}
    wrapped, said = adapt(net, dataset.test.images[:2].float() / 255, dataset, **settings)
    facts: dict[str, Any] = {"name": factory["name"], "code": factory["digest"], "arguments": dict(arguments or {})}
    facts |= {key: getattr(wrapped, key) for key in ("output", "layer", "last_linear", "stochastic")}
    facts |= {"mean": list(mean), "std": list(std), "weights": _digest(wrapped)}
    about: dict[str, Any] = {"place": factory["place"], "file": str(weights), "epoch": epoch_in(weights)}
    about["layers"] = wrapped.answering
    about["said"] = [f"Its weights are {label!r} of {Path(weights).name}."] * bool(label) + said
    if factory["name"] and not weights:
        about["said"].append("No weights were given: it is as its factory makes it.")
    kind = factory["name"] or type(net).__name__
    title = typed(name, str, "name") or (Path(weights).stem if weights else kind)
    params = {**_names(title, kind), **_setting(dataset, threat or dataset.threat), "external": facts, "about": about}
    run = of(params, check_path(root))
    if not factory["name"]:
        _given[run.place] = wrapped
    if rerun or not run.finished:
        _write(run, params, wrapped, text, _command(params))
    return run


def _network(model: object, arguments: Mapping[str, Any], classes: int) -> tuple[nn.Module, dict[str, str], str]:
    """The network, the facts of its factory and the text that this is in; a copy of what came as an object, which stays as it is."""
    if isinstance(model, str):
        factory, text = factory_of(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # without weights, the same network every time
            return build(factory, arguments, classes, text), factory, text
    if not isinstance(model, nn.Module):
        remedy = "give a torch.nn.Module, or name what builds one, e.g. 'my_models.py:build'"
        raise InputError(f"model={shown(model)} is no model: {remedy}.")
    return _copied(model), {"place": "", "name": "", "digest": ""}, ""


def _copied(model: nn.Module) -> Any:
    with suppress(Exception):  # any object may refuse to be copied
        return copy.deepcopy(model)
    return model


def _names(title: str, kind: str) -> dict[str, Any]:
    """What a run of ours says of its method, of a network called `title` that a `kind` built."""
    method = slug(title) or "model"
    method += "-external" * (f"methods/{method}" in NUMERICS)  # ours have no such names
    none: dict[str, Any] = {"hyperparameters": {}, "model": {}, "preset": "", "changes": {}}
    return {"method": method, "title": title, "arch": slug(kind).replace("-", "_") or "model", "seed": 0, **none}


def _setting(dataset: "Dataset", threat: Threat) -> dict[str, Any]:
    """What it is judged on and against."""
    spec = {key: getattr(dataset, key) for key in ("num_classes", "image_shape", "mean", "std")}
    facts = {"dataset": dataset.name, "spec": spec, "precision": "32-true"}
    facts |= {"images": dict(dataset.origin)} if dataset.origin else {}
    return facts | {"threat": {"norm": threat.norm, "eps": threat.eps}}


def _digest(model: External) -> str:
    from safetensors.torch import save

    return digest(save({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}))


def _write(run: Any, params: Mapping[str, Any], model: External, text: str, command: str) -> None:
    with run.lock():
        run.clear()
        write_json(run.path / "params.json", params)
        if text:
            write_atomic(run.path / "factory.py", text)
        save_weights(model, run.path / "model.safetensors", {"run": run.place})
        run.write("provenance.json", provenance(torch.device("cpu"), torch.get_num_threads(), command, {}))
        run.finish()


def _command(params: Mapping[str, Any]) -> str:
    """The command that benchmarks the same again; "" for a network that came as an object."""
    about, facts, images = params["about"], params["external"], params.get("images")
    if not facts["name"]:
        return ""
    words = ["robustlib", "benchmark", f"{about['place']}:{facts['name']}"]
    options: dict[str, Any] = {"dataset": params["dataset"]}
    if images:  # all of them, or a share that others were trained beside
        path, size = images["path"], images["size"]
        options = (
            {"images": path, "size": size} if images["test"] == 1 else {"dataset": f"{path}@{size}" if size else path}
        )
    options |= {"weights": about["file"], "model-args": json.dumps(facts["arguments"]) if facts["arguments"] else ""}
    options |= {name: ",".join(f"{number:g}" for number in facts[name]) for name in ("mean", "std")}
    options |= {"output": facts["output"], "layer": facts["layer"], "name": params["title"]}
    options["threat"] = f"{params['threat']['norm']}:{params['threat']['eps']:.6g}"
    words += [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
    return shlex.join(words + ["--stochastic"] * facts["stochastic"])


def load_external(run: Any) -> External:
    """The network of such a `Run` without its weights; raises InputError for code that nobody here trusts."""
    params = run.params()
    facts, place, spec = params["external"], params.get("about", {}).get("place", ""), SimpleNamespace(**params["spec"])
    if not facts["name"]:
        if run.place not in _given:
            said = "came as an object in Python, which only that process has"
            raise InputError(
                f"The network of {run.path} {said}: benchmark a factory such as my_models.py:build instead."
            )
        return _copied(_given[run.place])
    factory = {"place": place, "name": facts["name"], "digest": facts["code"]}
    net, _ = unwrap(build(factory, facts["arguments"], spec.num_classes, _text(run)))
    settings = {key: facts[key] for key in ("output", "layer", "mean", "std", "stochastic")}
    model = External(net, spec, **settings)
    model.last_linear, model.answering = facts["last_linear"], params.get("about", {}).get("layers")
    return model


def _text(run: Any) -> str:
    file = run.path / "factory.py"
    return file.read_text("utf-8") if file.exists() else ""


def code_of(run: Any) -> UserCode | None:
    """The code that builds the network of such a `Run`; None for a registry's, and for one that came as an object."""
    params = run.params()
    facts, place = params["external"], params.get("about", {}).get("place", "")
    if not facts["code"]:
        return None
    return UserCode.kept({"place": place, "name": facts["name"], "digest": facts["code"]}, _text(run))
