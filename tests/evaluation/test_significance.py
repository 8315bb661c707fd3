"""The paired bootstrap: coverage under no difference, power, pairing, clusters, seeds."""

from __future__ import annotations

import numpy as np
import pytest

from llm4sbr_ray.evaluation.significance import paired_bootstrap


def own_groups(n: int) -> np.ndarray:
    return np.arange(n)


def test_difference_is_that_of_the_means() -> None:
    rng = np.random.default_rng(0)
    a_SN, b_TN = rng.random((3, 200)), rng.random((2, 200))
    found = paired_bootstrap(a_SN, b_TN, own_groups(200), seed=1)
    expected = float(np.mean(a_SN) - np.mean(b_TN))
    assert found.difference == pytest.approx(expected, abs=1e-12)
    assert found.relative == pytest.approx(expected / float(np.mean(b_TN)))
    assert found.ci95[0] < expected < found.ci95[1]


def test_interval_has_the_width_of_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    a_N, b_N = rng.random(900), rng.random(900)
    found = paired_bootstrap(a_N[None], b_N[None], own_groups(900), seed=1)
    expected = 2 * 1.96 * (a_N - b_N).std(ddof=1) / np.sqrt(900)
    assert found.ci95[1] - found.ci95[0] == pytest.approx(expected, rel=0.1)


def test_without_a_difference_about_one_in_twenty_is_called_significant() -> None:
    rng = np.random.default_rng(3)
    p_values = []
    for trial in range(300):
        a_N, b_N = rng.random(80), rng.random(80)
        found = paired_bootstrap(a_N[None], b_N[None], own_groups(80), seed=trial, resamples=400)
        p_values.append(found.p_value)
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.10
    assert 0.4 < np.mean(p_values) < 0.6


def test_a_small_gain_on_the_same_samples_is_found_because_they_are_paired() -> None:
    rng = np.random.default_rng(5)
    b_N = (rng.random(800) < 0.2).astype(float)
    a_N = np.where(rng.random(800) < 0.02, 1.0, b_N)
    paired = paired_bootstrap(a_N[None], b_N[None], own_groups(800), seed=0, resamples=1000)
    shuffled = paired_bootstrap(rng.permutation(a_N)[None], b_N[None], own_groups(800), seed=0, resamples=1000)
    assert paired.p_value < 0.01 < shuffled.p_value


def test_samples_of_a_session_are_not_taken_for_independent_ones() -> None:
    rng = np.random.default_rng(7)
    session_gain = rng.normal(0.0, 1.0, 50)
    a_N, b_N = np.repeat(session_gain, 20) + 1, np.ones(1000)
    clustered = paired_bootstrap(a_N[None], b_N[None], np.repeat(np.arange(50), 20), seed=0)
    naive = paired_bootstrap(a_N[None], b_N[None], own_groups(1000), seed=0)
    ratio = (clustered.ci95[1] - clustered.ci95[0]) / (naive.ci95[1] - naive.ci95[0])
    assert ratio == pytest.approx(np.sqrt(20), rel=0.15)


def test_seeds_that_disagree_widen_the_interval() -> None:
    b_N = np.random.default_rng(9).random(500)
    steady = paired_bootstrap(np.stack([b_N + 0.02] * 3), b_N[None], own_groups(500), seed=0)
    varied = np.stack([b_N + 0.15, b_N - 0.1, b_N + 0.01])
    lucky = paired_bootstrap(varied, b_N[None], own_groups(500), seed=0)
    assert lucky.difference == pytest.approx(steady.difference)
    assert steady.p_value < 0.001
    assert lucky.p_value > 0.2


def test_equal_models_differ_by_nothing() -> None:
    a_N = np.random.default_rng(0).random(100)
    found = paired_bootstrap(a_N[None], a_N[None], own_groups(100), seed=0)
    assert (found.difference, found.ci95, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_a_baseline_that_never_hits_has_no_relative_gain() -> None:
    found = paired_bootstrap(np.ones((1, 50)), np.zeros((2, 50)), own_groups(50), seed=0)
    assert found.difference == 1.0
    assert found.relative is None
    assert found.relative_ci95 is None


def test_same_seed_same_result() -> None:
    rng = np.random.default_rng(0)
    a_SN, b_TN = rng.random((3, 60)), rng.random((3, 60))
    group_N = np.arange(60) // 3 * 17  # any numbers serve
    assert paired_bootstrap(a_SN, b_TN, group_N, seed=4) == paired_bootstrap(a_SN, b_TN, group_N, seed=4)
    assert paired_bootstrap(a_SN, b_TN, group_N, seed=4) != paired_bootstrap(a_SN, b_TN, group_N, seed=5)
