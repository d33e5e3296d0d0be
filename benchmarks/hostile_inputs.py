"""The inputs of benchmarks/hostile.py: odd values wherever a user can give one."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from datetime import date
from functools import partial
from inspect import signature
from io import StringIO
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import torch
import yaml
from typer.main import get_command

from robustlib.data import Dataset, load_dataset
from robustlib.errors import shown
from robustlib.methods import METHODS, AdversarialMethod, make_method, parse_overrides
from robustlib.runs import Run
from robustlib.training import fit
from robustlib.training.fit import run_params
from robustlib.workbook import cli, experiments
from robustlib.workbook.engines import check_limits
from robustlib.workbook.experiments import studies
from robustlib.workbook.task import Task, check, inspect

NAN, HUGE = float("nan"), 10**4000
LAB = ("lab", "explore")  # they become JupyterLab
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, HUGE, -HUGE, NAN, float("inf"), -0.0, 1e-320, 1e308, b"x", 1j, {1}, len, object),
    *(
        "",
        "a",
        "1e400",
        "nan",
        "none",
        "~x",
        "../x",
        "\0",
        "[red]",
        "{seed}",
        "8/255",
        "(" * 300,
        "a" * 300,
        "x" * 5000,
    ),
    *("9" * 5001, "0-1000000000", "digits-0-1000000000", "--", "-1", "é", Path("x"), date(2020, 2, 2)),
    *([], {}, (), [[]], ["a"], [[1]], [(0, 1), (2,)], [NAN], {"a": 1}, {1: 2}, torch.tensor(2), torch.ones(3)),
    *(np.int64(5), np.float32(0.5), np.array([1, 2]), np.bool_(True)),
)
PLAIN = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=20) | st.booleans()
VALUE = st.recursive(
    PLAIN, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=2)
)
WORD = VALUE.map(lambda value: str(value)[:5001]).filter(lambda word: "\0" not in word)
STUDIES = (
    *("a: &a [1]\nb: [*a", "preset: digits\npreset: digits", "methods: &m [*m]", "seeds: 2020-02-30", "[" * 9999),
    *("methods: {trades: {beta: [1, 2]}}\nseeds: 0-5000", "? [a]\n: 1", "\x00", "!!python/object:os.system x"),
    *(
        "!!bool x",
        "- 1\n" * 20_000,
        "parameters: {" + ", ".join(f"{name}: [{'1,' * 10}]" for name in "abcdefghi") + "}",
    ),
    "a: &a [1]\n" + "".join(f"{b}: &{b} [{f'*{a},' * 9}]\n" for a, b in pairwise("abcdefgh")),
)


def inputs(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Odd values for one or two fields of a method, options of a command, keys of a study, or parameters of a function."""
    (place := folder / "a" / "b" / "c").mkdir(parents=True)  # ".." stays inside
    names = {name: [f.name for f in dataclasses.fields(kind) if f.name != "preset"] for name, kind in METHODS.items()}
    fields = st.sampled_from(sorted(names)).flatmap(
        lambda name: st.tuples(
            st.just(name), st.dictionaries(st.sampled_from(names[name]), VALUE, min_size=1, max_size=2)
        )
    )
    commands = {name: command for name, command in get_command(cli.app).commands.items() if name not in LAB}
    options = {
        name: [p.opts[0] for p in command.params if not getattr(p, "is_flag", True)]
        for name, command in commands.items()
    }
    words = st.sampled_from(sorted(options)).flatmap(
        lambda name: st.tuples(
            st.just(name), st.lists(WORD, max_size=2), st.dictionaries(st.sampled_from(options[name]), WORD, max_size=2)
        )
    )
    keys = st.sampled_from((*studies.STUDY, "a", 1, None, date(2020, 2, 2)))
    contents = st.dictionaries(keys, VALUE | st.dictionaries(VALUE.filter(hashable), VALUE, max_size=2), max_size=3)
    texts = st.sampled_from(STUDIES) | st.text(max_size=30) | contents.map(dumped)
    data = load_dataset("digits")
    calls = functions(place, data)
    cases = st.one_of(
        st.builds(lambda case: partial(make, data, *case), fields),
        st.builds(lambda case: partial(command, place, *case), words),
        st.builds(lambda text: partial(read, place, text), texts),
        st.builds(lambda name, value: partial(call, place, calls[name], value), st.sampled_from(sorted(calls)), VALUE),
    )
    return cases, lambda case: case()


def hashable(value: object) -> bool:
    """Whether it can be a key."""
    try:
        return hash(value) is not None
    except TypeError:
        return False


def dumped(content: object) -> str:
    """A study file of that content."""
    try:
        return str(yaml.dump(content))
    except Exception:  # of objects that no YAML holds
        return shown(content)


def make(data: Dataset, name: str, values: dict[str, Any]) -> None:
    """A method with these fields and all that is asked of it before it trains."""
    method = make_method(name, "digits", **values)
    params = run_params(method, data, method.arch, 0, "32-true")
    assert Run.of(json.loads(json.dumps(params)), "").path == Run.of(params, "").path
    assert all(0 <= method.lr_schedule()(epoch) < inf for epoch in (0.0, 0.5, method.epochs))
    assert min(method.all_epochs, method.attack_passes + 1) >= 1
    assert method.command("digits", "mlp", 0, "32-true")
    if isinstance(method, AdversarialMethod):
        method.inner_attack(data)


def command(place: Path, name: str, arguments: list[str], options: dict[str, str]) -> None:
    """A command in an empty directory; it may end well or with exit code 2, and a training is only planned."""
    planned = ["--dry-run"] * (name in ("run", "study"))
    words = [name, *planned, *itertools.chain(*options.items()), *arguments]
    with chdir(place), redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        try:
            cli.main(words)
            code: object = 0
        except SystemExit as stop:
            code = stop.code
    assert code in (None, 0, 2), said.getvalue()


def read(place: Path, text: str) -> None:
    """A study of that content."""
    (place / "study.yaml").write_bytes(text.encode())
    command(place, "study", ["study.yaml"], {})


def call(place: Path, function: Callable[[Any], object], value: object) -> None:
    """A function, in an empty directory."""
    with chdir(place):
        function(value)


def functions(place: Path, data: Dataset) -> dict[str, Callable[[Any], object]]:
    """What notebooks and Python hand to the package, each as a function of one value."""
    method, book = make_method("standard", "digits", arch="mlp_8"), experiments.notebook("baselines")

    def trained(name: str, value: object) -> None:
        with patch("robustlib.training.fit._run"):
            fit(method, data, **{"root": place, name: value})

    def planned(name: str, value: object) -> None:
        experiments.plan([("standard", {})], [0], experiments.Options(**{name: value}))

    return {
        **{"overrides": parse_overrides, "method": make_method, "preset": partial(make_method, "trades")},
        **{"sample": data.test.sample, "dataset": load_dataset, "root": lambda v: load_dataset("digits", root=v)},
        **{
            f"fit {name}": partial(trained, name)
            for name in signature(fit).parameters
            if name not in ("method", "dataset")
        },
        **{f"plan {field.name}": partial(planned, field.name) for field in dataclasses.fields(experiments.Options)},
        **{
            name: lambda v, name=name: check_limits(**{"jobs": 1, "timeout": None, "engine": "local", name: v})
            for name in ("jobs", "timeout", "engine")
        },
        **{
            f"parameter {name}": lambda v, name=name: check(Task(book, {name: v}, place / "x.ipynb"))
            for name in inspect(book)
        },
        "output": lambda v: check(Task(book, {}, Path(f"{v if isinstance(v, str) else 0}.ipynb"))),
        "seeds": lambda v: experiments.plan([("standard", {})], [v], experiments.Options()),
    }
