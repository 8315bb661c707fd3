"""Splits: reproducible, of the size asked for, without a leak in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm4sbr_ray.config import Split
from llm4sbr_ray.data.split import TEST, TRAIN, VALID, Moments, assign, find_cuts, unit_hash

N = 2000
RNG = np.random.default_rng(0)
IDS = [f"s{n}" for n in range(N)]
WHEN = Moments(RNG.integers(0, 500, N), RNG.permutation(N))  # many sessions at the same time
VALUES: list[str | None] = [("train", "valid", "test")[n % 3] for n in range(N)]


def parts(split: Split, seed: int = 0) -> Any:
    return assign(split, seed, IDS, VALUES, WHEN, find_cuts(split, seed, IDS, VALUES, WHEN))


def test_by_column_valid_rows_count_as_train() -> None:
    part = parts(Split(by="column", valid_fraction=0.2))
    assert ((part == TEST) == (np.array(VALUES) == "test")).all()
    marked = part[np.array(VALUES) == "valid"]
    assert {TRAIN, VALID} == set(marked.tolist())


def test_by_time_takes_the_last() -> None:
    part = parts(Split(by="time", test_fraction=0.25))
    keys = list(zip(WHEN.time.tolist(), WHEN.order.tolist(), strict=True))
    expected = set(sorted(range(N), key=keys.__getitem__)[-500:])
    assert set(np.flatnonzero(part == TEST).tolist()) == expected


@pytest.mark.parametrize("by", ["column", "time", "ratio"])
def test_validation_by_last_takes_the_last_of_train(by: Any) -> None:
    part = parts(Split(by=by, test_fraction=0.2, valid_by="last", valid_fraction=0.1))
    keys = np.array(list(zip(WHEN.time.tolist(), WHEN.order.tolist(), strict=True)))
    train, valid = keys[part == TRAIN].tolist(), keys[part == VALID].tolist()
    assert max(train) < min(valid)
    assert len(valid) == round(0.1 * (len(train) + len(valid)))


def test_by_ratio_hashes_the_session_id() -> None:
    split = Split(by="ratio", test_fraction=0.2, valid_fraction=0.1)
    part = parts(split)
    assert np.isclose((part == TEST).mean(), 0.2, atol=0.03)
    assert np.isclose((part == VALID).mean(), 0.08, atol=0.02)
    assert (part != parts(split, seed=1)).any()
    order = RNG.permutation(N)
    shuffled = assign(
        split,
        0,
        [IDS[n] for n in order],
        [None] * N,
        Moments(WHEN.time[order], np.arange(N)),
        find_cuts(split, 0, IDS, VALUES, WHEN),
    )
    assert (shuffled == part[order]).all()


def test_unit_hash_is_uniform_and_fixed() -> None:
    values = unit_hash(IDS, 0, "test")
    assert unit_hash([], 0, "test").tolist() == []
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(values, unit_hash(IDS, 0, "valid"))[0, 1]) < 0.1
    assert np.isclose(unit_hash(["s0"], 0, "test")[0], 0.28153557477242186, atol=0)  # the same in every release


def test_tiny_tables_get_one_test_and_one_validation_session() -> None:
    split = Split(by="time", test_fraction=0.01, valid_by="last", valid_fraction=0.01)
    when = Moments(np.array([3, 1, 2]), np.arange(3))
    part = assign(split, 0, IDS[:3], [None] * 3, when, find_cuts(split, 0, IDS[:3], [None] * 3, when))
    assert part.tolist() == [TEST, TRAIN, VALID]
