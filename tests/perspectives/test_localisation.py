"""Localisation against a naive float64 loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4sbr_ray.perspectives.localisation import localise


def unit_rows(rng: np.random.Generator, n: int, e: int) -> np.ndarray:
    rows = rng.normal(size=(n, e))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def naive(
    answer: np.ndarray, items: np.ndarray, r: int, min_cosine: float
) -> tuple[list[int], list[float], list[float]]:
    cosines = [sum(float(a) * float(b) for a, b in zip(answer, item, strict=True)) for item in items]
    best = sorted(range(len(items)), key=lambda j: (-cosines[j], j))[:r]
    total = sum(max(0.0, cosines[j]) for j in best)
    if cosines[best[0]] < min_cosine or total <= 0:
        return best, [0.0] * r, [0.0] * len(answer)
    weights = [max(0.0, cosines[j]) / total for j in best]
    vector = [math.fsum(w * float(items[j][d]) for w, j in zip(weights, best, strict=True)) for d in range(len(answer))]
    return best, weights, vector


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 9),
    v=st.integers(5, 40),
    r=st.integers(1, 5),
    chunk=st.integers(1, 4),
)
def test_equals_a_naive_float64_loop(seed: int, n: int, v: int, r: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    items, answers = unit_rows(rng, v, 6), unit_rows(rng, n, 6)
    found = localise(answers, items, r, min_cosine=0.5, chunk=chunk)
    for row in range(n):
        best, weights, vector = naive(answers[row], items, r, 0.5)
        assert found.item_NR[row].tolist() == best
        np.testing.assert_allclose(found.weight_NR[row], weights, atol=1e-6)
        np.testing.assert_allclose(found.vector_NE[row], vector, atol=1e-6)
        assert found.grounded_N[row] == (sum(weights) > 0)


def test_an_exact_title_finds_its_item() -> None:
    items = unit_rows(np.random.default_rng(0), 50, 8)
    found = localise(items[[7, 31]], items, 3, min_cosine=0.9)
    assert found.item_NR[:, 0].tolist() == [7, 31]
    np.testing.assert_allclose(found.cosine_N, 1.0, atol=1e-6)


def test_exact_first_gives_a_named_item_all_the_weight() -> None:
    rng = np.random.default_rng(1)
    items, answers = unit_rows(rng, 30, 8), unit_rows(rng, 5, 8)
    named = np.array([-1, 4, -1, 29, 0], np.int32)
    plain = localise(answers, items, 3, min_cosine=0.2, chunk=2)
    found = localise(answers, items, 3, min_cosine=0.2, chunk=2, exact_N=named)
    for row, item in enumerate(named):
        if item < 0:
            assert found.item_NR[row].tolist() == plain.item_NR[row].tolist()
            np.testing.assert_array_equal(found.weight_NR[row], plain.weight_NR[row])
            continue
        assert found.item_NR[row, 0] == item
        assert found.weight_NR[row].tolist() == [1.0, 0.0, 0.0]
        assert found.grounded_N[row]
        np.testing.assert_array_equal(found.vector_NE[row], items[item])
        np.testing.assert_allclose(found.cosine_N[row], items[item] @ answers[row], atol=1e-6)
        others = [j for j in np.argsort(-(items @ answers[row])) if j != item]
        assert found.item_NR[row, 1:].tolist() == others[:2]


def test_an_answer_far_from_everything_is_ungrounded() -> None:
    items = np.array([[1.0, 0.0], [0.9, math.sqrt(0.19)]], np.float32)
    found = localise(np.array([[-1.0, 0.0]], np.float32), items, 2, min_cosine=0.3)
    assert not found.grounded_N[0]
    assert found.weight_NR.sum() == 0
    assert found.vector_NE.sum() == 0


def test_an_item_without_text_is_never_chosen_before_one_with_text() -> None:
    items = np.array([[0.0, 0.0], [0.6, 0.8]], np.float32)
    found = localise(np.array([[0.6, 0.8]], np.float32), items, 1, min_cosine=0.3)
    assert found.item_NR[0, 0] == 1


@pytest.mark.parametrize("r", [3, 10])
def test_r_is_bounded_by_the_catalogue(r: int) -> None:
    items = unit_rows(np.random.default_rng(1), 3, 4)
    assert localise(items, items, r, 0.0).item_NR.shape == (3, 3)
