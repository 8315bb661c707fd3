"""Where a model is good: metrics by length of the session and by popularity of the target."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llm4sbr_ray.evaluation.metrics import Ranks, gain_tables
from llm4sbr_ray.evaluation.testset import Ints, TestSet

BREAKDOWN_METRICS = ("recall@20", "mrr@20")
Groups = list[tuple[str, npt.NDArray[np.bool_]]]  # name, and which of the N samples are in it
RanksOf = dict[str, dict[str, list[Ranks]]]  # variant -> protocol -> one array of N ranks a seed


def length_groups(length_N: Ints) -> Groups:
    """By the number of clicks in the prefix."""
    bounds = [("1 click", 1, 1), ("2 clicks", 2, 2), ("3-5 clicks", 3, 5), ("6+ clicks", 6, np.inf)]
    return [(name, (length_N >= low) & (length_N <= high)) for name, low, high in bounds]


def popularity_groups(count_N: Ints) -> Groups:
    """Cold targets (never clicked in training), and the others in quarters of the samples by training clicks.

    Samples of equal count stay together, so quarters can be uneven and a quarter can be missing.
    """
    warm_N = count_N > 0
    groups: Groups = [("cold: 0 training clicks", ~warm_N)]
    if not warm_N.any():
        return groups
    bounds = np.unique(np.quantile(count_N[warm_N], [0.25, 0.5, 0.75, 1], method="higher"))
    low = 1
    for high in bounds.tolist():
        name = f"{low:,}-{high:,} training clicks" if high > low else f"{low:,} training clicks"
        groups.append((name, (count_N >= low) & (count_N <= high)))
        low = high + 1
    return groups


def breakdown(test: TestSet, ranks: RanksOf) -> dict[str, list[dict[str, Any]]]:
    """Means over seeds of `BREAKDOWN_METRICS` in each group; groups without samples are left out.

    Returns
    -------
    dict
        "session_length" and "target_popularity": a list of
        {"group", "samples", "models": {variant: {protocol: {metric: mean}}}}.
    """
    kinds = {
        "session_length": length_groups(test.length_N),
        "target_popularity": popularity_groups(test.target_count_N),
    }
    tables = gain_tables()
    result: dict[str, list[dict[str, Any]]] = {}
    for kind, groups in kinds.items():
        result[kind] = [
            {
                "group": name,
                "samples": int(inside_N.sum()),
                "models": {
                    variant: {
                        protocol: {
                            metric: float(np.mean([tables[metric][rank_N[inside_N]].mean() for rank_N in seeds]))
                            for metric in BREAKDOWN_METRICS
                        }
                        for protocol, seeds in protocols.items()
                    }
                    for variant, protocols in ranks.items()
                },
            }
            for name, inside_N in groups
            if inside_N.any()
        ]
    return result
