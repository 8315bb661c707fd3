"""Which models are compared with which: LLM4SBR with its own backbone, and with the strongest baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm4sbr_ray.evaluation.breakdown import RanksOf
from llm4sbr_ray.evaluation.metrics import gain_tables, metric_means
from llm4sbr_ray.evaluation.protocol import PROTOCOLS
from llm4sbr_ray.evaluation.significance import paired_bootstrap
from llm4sbr_ray.evaluation.testset import Ints
from llm4sbr_ray.evaluation.variants import Variant

COMPARED_METRICS = ("recall@20", "mrr@20")


def compare(variants: Sequence[Variant], ranks: RanksOf, group_N: Ints, seed: int) -> list[dict[str, Any]]:
    """Comparisons for metrics.json.

    The strongest baseline is the one with the best value of the metric on the test set itself: the hardest to
    beat, and a choice that can only hurt LLM4SBR.

    Returns
    -------
    list
        Of {a, b, metric, protocol, against, difference, relative, ci95, relative_ci95, p_value, samples}, one
        protocol after the other. `against` is "own backbone", "own backbone with memory" (of LLM4SBR with
        memory) or "strongest baseline"; a backbone that is both
        appears once, as the backbone.
    """
    baselines = [v.name for v in variants if v.backbone is None]
    tables = gain_tables()
    result = []
    for protocol in PROTOCOLS:
        for variant in (v for v in variants if v.backbone is not None):
            for metric in COMPARED_METRICS:
                against = {variant.backbone: "own backbone"} if variant.backbone in baselines else {}
                if variant.without_llm4sbr in ranks:
                    against[variant.without_llm4sbr] = "own backbone with memory"
                if baselines:
                    against.setdefault(_strongest(baselines, ranks, protocol, metric), "strongest baseline")
                for other, role in against.items():
                    a_SN, b_TN = (
                        np.stack([tables[metric][rank_N] for rank_N in ranks[name][protocol]])
                        for name in (variant.name, other)
                    )
                    found = paired_bootstrap(a_SN, b_TN, group_N, seed)
                    result.append(
                        {
                            "a": variant.name,
                            "b": other,
                            "metric": metric,
                            "protocol": protocol,
                            "against": role,
                            "difference": found.difference,
                            "relative": found.relative,
                            "ci95": list(found.ci95),
                            "relative_ci95": found.relative_ci95 and list(found.relative_ci95),
                            "p_value": found.p_value,
                            "samples": len(group_N),
                        }
                    )
    return result


def _strongest(baselines: Sequence[str], ranks: RanksOf, protocol: str, metric: str) -> str:
    def mean(name: str) -> float:
        return sum(metric_means(rank_N)[metric] for rank_N in ranks[name][protocol]) / len(ranks[name][protocol])

    return max(baselines, key=mean)


def sentence(comparison: dict[str, Any], labels: dict[str, str]) -> str:
    """A comparison for people; says so when a difference is negative or may be chance."""
    c = comparison
    metric = c["metric"].replace("recall", "Recall").replace("mrr", "MRR")
    if c["relative"] is None or c["relative_ci95"] is None:
        size = f"{c['difference']:+.4f} (95% CI {c['ci95'][0]:+.4f} to {c['ci95'][1]:+.4f})"
    else:
        low, high = c["relative_ci95"]
        size = f"{c['relative']:+.1%} relative (95% CI {low:+.1%} to {high:+.1%})"
    return f"{labels[c['a']]} over {labels[c['b']]}: {metric} {size}, {p_text(c['p_value'])}. {verdict(c)}"


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def verdict(comparison: dict[str, Any]) -> str:
    if comparison["p_value"] >= 0.05:
        return "Not significant: the difference may be chance."
    return "A significant gain." if comparison["difference"] > 0 else "Significantly worse."
