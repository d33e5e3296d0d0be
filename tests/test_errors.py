"""What a field takes: types, intervals and choices, and the sentences for all else."""

from typing import Annotated, Literal

import numpy as np
import pytest
import torch

from robustlib.errors import Count, InputError, Positive, Share, Whole, check_path, shown, typed, unknown

Pairs = tuple[tuple[float, float], ...]
Mode = Literal["repo", "paper"]


@pytest.mark.parametrize(
    ("hint", "value", "taken"),
    [
        *((Count, value, 5) for value in (5, np.int64(5), np.array(5), torch.tensor(5))),
        *((float | None, *pair) for pair in ((8, 8.0), (None, None), (np.float64(0.5), 0.5), (torch.tensor(0.5), 0.5))),
        *((bool, value, True) for value in (True, np.bool_(True))),
        (Mode, np.str_("repo"), "repo"),
        (Pairs, [[0, 1], (2, 0.5)], ((0.0, 1.0), (2.0, 0.5))),
        (Annotated[float, "(0, inf]"], float("inf"), float("inf")),
        (Share, 1, 1.0),
        (tuple[int, ...], [], ()),
        (Mode | None, None, None),
    ],
)
def test_a_field_gets_a_plain_value_of_its_type(hint, value, taken):
    got = typed(value, hint, "it")
    assert (got, type(got)) == (taken, type(taken))


def test_whole_numbers_in_a_tuple_stay_whole():
    assert repr(typed([[0, 1.0], [np.int64(2), True + 1]], Pairs, "it")) == "((0, 1.0), (2.0, 2))"


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        *((Count, v, f"it={v!r}: give a whole number of at least 1 and at most 1000000.") for v in (0, 2.0, True, "5")),
        (Count, 10**5000, "it=<int>: give a whole number of at least 1 and at most 1000000."),
        (int, float("nan"), "it=nan: give a finite whole number."),
        (float, 10**400, f"it=1{'0' * 79} ...: give a number at most 3.4e+38."),
        (Positive, float("inf"), "it=inf: give a finite number above 0."),
        (Positive, 1e39, "it=1e+39: give a number above 0 and at most 3.4e+38."),
        (Whole, 2**63, "it=9223372036854775808: give a whole number of at least 0 and at most 9.2e+18."),
        (Annotated[float, "[0, 0]", "leave it at 0"], 0.1, "it=0.1: leave it at 0."),
        (Annotated[Positive, "or null"] | None, 0, "it=0: give a number above 0, or null."),
        (Pairs, [[0, 1], [2]], "it[1]=[2]: give a list of 2."),
        (Pairs, [[0, "a"]], "it[0][1]='a': give a number."),
        (Annotated[tuple[int, ...], "[1, inf)"], [], "it=[]: give a list of numbers."),
        (Mode, "rep", "Unknown it 'rep'. Did you mean 'repo'? Known: paper, repo."),
        (Mode, np.array(["repo"]), "Unknown it array(['repo'], dtype='<U4'). Known: paper, repo."),
        (str, 5, "it=5: give a text."),
        (bool, 1, "it=1: give true or false."),
    ],
    ids=shown,
)
def test_anything_else_is_a_sentence(hint, value, said):
    with pytest.raises(InputError) as raised:
        typed(value, hint, "it")
    assert str(raised.value) == said


def test_names_of_any_length_and_kind_are_unknown():
    for name in ("x" * 100_000, 10**5000, None, torch.ones(99)):
        assert len(str(unknown("method", name, ["trades"]))) < 200


@pytest.mark.parametrize("path", ["a" * 201, "a/" * 1501, "é" * 101, "a\0b"])
def test_paths_that_no_file_system_takes_are_refused(path):
    with pytest.raises(InputError, match="is no path: give one of at most 3000 bytes"):
        check_path(path)
    assert check_path("a" * 200) == "a" * 200
