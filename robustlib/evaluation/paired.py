"""Several runs on the same images: what each withstands, paired differences, and who fails where."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pandas as pd

from robustlib.errors import InputError
from robustlib.evaluation.measurements import records_of
from robustlib.evaluation.metrics import paired_interval, withstood
from robustlib.runs import Run


def withstood_by(runs: Mapping[str, Run], attack: str = "worst") -> pd.DataFrame:
    """What evaluated runs withstand of the images that all of them met: images as rows, a column a run, each 0 or 1 (a stochastic
    model's share of draws). `attack` is "worst" for everything together, "clean" for none, or one of the evaluation."""
    columns = {}
    for name, run in runs.items():
        records = records_of(run)
        met = records if attack == "worst" else records[records["attack"].isin([attack])]
        if not len(met):
            known = ", ".join(dict.fromkeys(records["attack"]))
            raise InputError(f"{run.path} did not meet {attack!r}. It met {known}.")
        columns[name] = withstood(met)
    table = pd.concat(columns, axis=1, join="inner").sort_index()
    if table.empty:
        raise InputError("These runs were evaluated on different images: evaluate them on a number that all share.")
    return table


def paired_differences(table: pd.DataFrame, against: str = "") -> pd.DataFrame:
    """Each pair of columns of `withstood_by`, or that column `against` each other one: one, other, n, only_one and only_other (images that it alone withstands; sums of shares),
    difference (of the accuracies, one less other, in [-1, 1]), low, high (95 %, see `paired_interval`)."""
    rows: list[dict[str, Any]] = []
    beside = [(against, other) for other in table.columns if other != against]
    for one, other in beside if against else combinations(table.columns, 2):
        differences = table[one] - table[other]
        low, high = paired_interval(differences)
        alone = {"only_one": differences.clip(lower=0).sum(), "only_other": (-differences).clip(lower=0).sum()}
        rows.append({"one": one, "other": other, "n": len(table), **alone, "difference": differences.mean()})
        rows[-1] |= {"low": low, "high": high}
    return pd.DataFrame(rows, columns=["one", "other", "n", "only_one", "only_other", "difference", "low", "high"])


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Who fails where: of the images that the row fails on, the share that the column withstands; NaN where the row fails on none.

    Low numbers in both directions mean that two models fail on the same images.
    """
    fails = 1 - table
    shares = {
        row: {
            column: float((fails[row] * table[column]).sum() / total) if (total := fails[row].sum()) else float("nan")
            for column in table
        }
        for row in table
    }
    return pd.DataFrame.from_dict(shares, orient="index", columns=table.columns)
