"""Groups of samples, and metrics within them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4sbr_ray.evaluation.breakdown import breakdown, length_groups, popularity_groups
from llm4sbr_ray.evaluation.testset import TestSet

counts = st.lists(st.integers(0, 50), min_size=1, max_size=80)


@given(counts)
def test_every_sample_is_in_exactly_one_group(values: list[int]) -> None:
    count_N = np.array(values)
    for groups in (popularity_groups(count_N), length_groups(count_N + 1)):
        assert (np.sum([inside_N for _, inside_N in groups], axis=0) == 1).all()


def test_quarters_hold_a_quarter_of_the_warm_samples_each() -> None:
    groups = popularity_groups(np.concatenate([np.zeros(10, np.int64), np.arange(1, 101)]))
    assert [(name, int(inside_N.sum())) for name, inside_N in groups] == [
        ("cold: 0 training clicks", 10),
        ("1-26 training clicks", 26),
        ("27-51 training clicks", 25),
        ("52-76 training clicks", 25),
        ("77-100 training clicks", 24),
    ]


def test_names_say_what_is_in_a_group() -> None:
    lengths = np.array([1, 2, 3, 5, 6, 90])
    named = {name: lengths[inside_N].tolist() for name, inside_N in length_groups(lengths)}
    assert named == {"1 click": [1], "2 clicks": [2], "3-5 clicks": [3, 5], "6+ clicks": [6, 90]}
    assert [name for name, _ in popularity_groups(np.array([4, 4, 4]))] == [
        "cold: 0 training clicks",
        "1-4 training clicks",
    ]


def test_metrics_are_means_within_the_group_over_seeds_and_empty_groups_are_left_out() -> None:
    test = TestSet(np.array([1, 1, 7]), np.array([0, 3, 3]), np.array([0, 1, 2]), repeats=0)
    rank_SN = [np.array([1, 21, 4], np.uint8), np.array([2, 10, 21], np.uint8)]
    found = breakdown(test, {"model": {"test": rank_SN}})
    short, long = found["session_length"]
    assert (short["group"], short["samples"]) == ("1 click", 2)
    assert short["models"]["model"]["test"]["recall@20"] == pytest.approx(0.75)
    assert short["models"]["model"]["test"]["mrr@20"] == pytest.approx((1 + 0 + 0.5 + 0.1) / 4)
    assert long["models"]["model"]["test"]["mrr@20"] == pytest.approx(0.125)
    assert [group["samples"] for group in found["target_popularity"]] == [1, 2]
