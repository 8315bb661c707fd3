"""Which models are compared, and what is said of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm4sbr_ray.evaluation.breakdown import RanksOf
from llm4sbr_ray.evaluation.comparisons import compare, sentence
from llm4sbr_ray.evaluation.protocol import PROTOCOLS
from llm4sbr_ray.evaluation.variants import Variant, path_name, variants

LABELS = {"a": "Model A", "b": "Model B"}


def ranks_of(shares: dict[str, float]) -> RanksOf:
    """A share of the samples is hit at rank 1."""
    rng = np.random.default_rng(0)
    return {
        name: {p: [np.where(rng.random(400) < share, 1, 21).astype(np.uint8)] for p in PROTOCOLS}
        for name, share in shares.items()
    }


def pairs(models: tuple[str, ...], shares: dict[str, float]) -> set[tuple[str, str, str]]:
    shown = variants(models, (0,), test_answers=True)
    found = compare(shown, ranks_of(shares), np.arange(400), seed=0)
    assert {c["protocol"] for c in found} in (set(PROTOCOLS), set())
    return {(c["a"], c["b"], c["against"]) for c in found}


def test_llm4sbr_is_compared_with_its_backbone_and_with_the_strongest_baseline() -> None:
    shares = {
        "popularity": 0.1,
        "sknn": 0.4,
        "srgnn": 0.3,
        "srgnn+llm4sbr": 0.5,
        "srgnn+llm4sbr:llm-free": 0.45,
    }
    assert pairs(("popularity", "sknn", "srgnn", "srgnn+llm4sbr"), shares) == {
        ("srgnn+llm4sbr", "srgnn", "own backbone"),
        ("srgnn+llm4sbr", "sknn", "strongest baseline"),
        ("srgnn+llm4sbr:llm-free", "srgnn", "own backbone"),
        ("srgnn+llm4sbr:llm-free", "sknn", "strongest baseline"),
    }


def test_a_backbone_that_is_the_strongest_baseline_appears_once() -> None:
    shares = {"popularity": 0.1, "srgnn": 0.3, "srgnn+llm4sbr": 0.2, "srgnn+llm4sbr:llm-free": 0.2}
    found = pairs(("popularity", "srgnn", "srgnn+llm4sbr"), shares)
    assert {(b, against) for _, b, against in found} == {("srgnn", "own backbone")}


def test_nothing_to_compare() -> None:
    assert pairs(("popularity", "srgnn"), {"popularity": 0.1, "srgnn": 0.3}) == set()
    alone = {"srgnn+llm4sbr": 0.2, "srgnn+llm4sbr:llm-free": 0.2}
    assert pairs(("srgnn+llm4sbr",), alone) == set()


def told(**changes: Any) -> str:
    comparison = {
        "a": "a",
        "b": "b",
        "metric": "recall@20",
        "difference": 0.0123,
        "relative": 0.081,
        "ci95": [0.004, 0.02],
        "relative_ci95": [0.03, 0.14],
        "p_value": 0.0005,
    }
    return sentence(comparison | changes, LABELS)


def test_a_gain_is_told_with_interval_and_p_value() -> None:
    assert told() == (
        "Model A over Model B: Recall@20 +8.1% relative (95% CI +3.0% to +14.0%), p < 0.001. A significant gain."
    )


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"p_value": 0.21}, "p = 0.210. Not significant: the difference may be chance."),
        ({"p_value": 0.05, "difference": -0.1}, "p = 0.050. Not significant: the difference may be chance."),
        ({"p_value": 0.01, "difference": -0.1}, "p = 0.010. Significantly worse."),
    ],
)
def test_no_gain_is_said_plainly(changes: dict[str, Any], end: str) -> None:
    assert told(**changes).endswith(end)


def test_without_a_relative_difference_the_absolute_one_is_told() -> None:
    assert "Recall@20 +0.0123 (95% CI +0.0040 to +0.0200)" in told(relative=None, relative_ci95=None)


def test_variants_are_named_as_in_the_reports() -> None:
    found = variants(("sknn", "srgnn", "srgnn+llm4sbr"), (3, 4), test_answers=True)
    assert [(v.name, v.label, v.seeds) for v in found] == [
        ("sknn", "Session-kNN", (3,)),
        ("srgnn", "SR-GNN", (3, 4)),
        ("srgnn+llm4sbr", "SR-GNN + LLM4SBR", (3, 4)),
        ("srgnn+llm4sbr:llm-free", "SR-GNN + LLM4SBR (LLM-free)", (3, 4)),
    ]
    assert path_name(found[-1].name) == "srgnn+llm4sbr-llm-free"


def test_without_answers_for_test_sessions_llm4sbr_is_shown_llm_free_alone() -> None:
    assert variants(("srgnn+llm4sbr",), (0,), test_answers=False) == [Variant("srgnn+llm4sbr", (0,), False)]
