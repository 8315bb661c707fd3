"""A budget: whose prompts are asked, and what becomes of the others."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import LONG_TERM, SHORT_TERM, Budget, Perspective, Perspectives
from llm4sbr_ray.perspectives import relational
from llm4sbr_ray.perspectives.budget import choose, next_item_entropy
from llm4sbr_ray.perspectives.render import PROMPT_SCHEMA

V = 6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, V - 1), min_size=2, max_size=5), min_size=1, max_size=12))
def test_entropy_is_that_of_the_smoothed_markov_chain(sessions: list[list[int]]) -> None:
    rows = [{"items": s[:k], "target": s[k], "is_last": k == len(s) - 1} for s in sessions for k in range(1, len(s))]
    database = relational.connect()
    database.register("train", pa.Table.from_pylist(rows))
    next_item_entropy(database, V)
    counts = Counter(pair for s in sessions for pair in itertools.pairwise(s))
    found = dict(database.sql("SELECT item, nats FROM entropy").fetchall())
    assert set(found) == {i for i, _ in counts}
    for item, nats in found.items():
        total = sum(c for (i, _), c in counts.items() if i == item)
        shares = [(counts[item, j] + 1 / V) / (total + 1) for j in range(V)]
        assert nats == pytest.approx(-sum(p * math.log(p) for p in shares))


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    """Train: 0 is followed by 1 four times, 2 by many things; sessions a, b in train, c, d in test."""
    data, prompts = Store(str(tmp_path / "data")), Store(str(tmp_path / "prompts"))
    data.write_table(pa.table({"item_idx": list(range(V))}), "items.parquet")
    sessions = {"train": {"a": [0, 1, 0, 1, 0, 1], "b": [2, 3, 2, 4, 2, 5]}, "test": {"c": [0, 1], "d": [2, 3, 1]}}
    rows: list[dict[str, Any]] = []
    for split, own in sessions.items():
        samples = [
            {"sample_key": f"{name}:{k}", "items": s[:k], "target": s[k], "is_last": k == len(s) - 1}
            for name, s in own.items()
            for k in range(1, len(s))
        ]
        data.write_table(pa.Table.from_pylist(samples), split, "part-0.parquet")
        for sample in samples:
            for view in ("long-term", "short-term"):
                key = f"{view} {sample['items']}"
                row = {"position": len(rows) // 2, "split": split, "view": view, "prompt_key": key}
                rows.append(row | {"sample_key": sample["sample_key"], "items": sample["items"]})
    prompts.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA), "part-0.parquet")
    return data, prompts


def chosen(stores: tuple[Store, Store], tmp_path: Path, **budget: Any) -> pa.Table:
    out = Store(str(tmp_path / "chosen"))
    out.delete("")
    config = Perspectives(budget=Budget(**budget), splits=("train", "test"))
    assert choose(stores[1], out, stores[0], config) == len(out.read_table(""))
    return out.read_table("")


def test_one_per_session_is_the_whole_prefix(stores: tuple[Store, Store], tmp_path: Path) -> None:
    table = chosen(stores, tmp_path, policy="one_per_session")
    assert set(table["sample_key"].to_pylist()) == {"a:5", "b:5", "c:1", "d:2", "a:1", "b:2"}  # a:1 asks what c:1 does
    assert len(set(table["prompt_key"].to_pylist())) == 8


def test_uncertain_takes_what_counts_know_least(stores: tuple[Store, Store], tmp_path: Path) -> None:
    # Three different items follow 2; of all others that end a prefix, one.
    table = chosen(stores, tmp_path, policy="uncertain", calls=6)
    assert set(table["sample_key"].to_pylist()) == {"b:1", "b:3", "b:5", "d:1"}  # b:1 and d:1 ask the same


@pytest.mark.parametrize("policy", ["all", "one_per_session", "uncertain"])
def test_a_budget_is_kept_and_choices_are_nested(stores: tuple[Store, Store], tmp_path: Path, policy: str) -> None:
    before: set[str] = set()
    for calls in (1, 3, 5, 7):
        keys = set(chosen(stores, tmp_path, policy=policy, calls=calls)["prompt_key"].to_pylist())
        assert len(keys) == calls
        assert before <= keys
        before = keys


def test_items_are_asked_beside_the_budget(stores: tuple[Store, Store], tmp_path: Path) -> None:
    prompts = stores[1].read_table("")
    about_items = [{"position": 20 + j, "split": "items", "view": "use", "prompt_key": f"use {j}"} for j in range(V)]
    rows = [row | {"sample_key": f"item:{j}", "items": [j]} for j, row in enumerate(about_items)]
    stores[1].write_table(pa.concat_tables([prompts, pa.Table.from_pylist(rows, PROMPT_SCHEMA)]), "part-0.parquet")
    use = Perspective(name="use", level="item", anchor="global", instruction="What is it for?")
    config = Perspectives(views=(LONG_TERM, SHORT_TERM, use), budget=Budget(calls=3), splits=("train", "test"))
    choose(stores[1], stores[1].below("chosen"), stores[0], config)
    keys = set(stores[1].below("chosen").read_table("")["prompt_key"].to_pylist())
    assert {key for key in keys if key.startswith("use")} == {f"use {j}" for j in range(V)}
    assert len(keys) == V + 3


def test_uncertain_needs_a_number() -> None:
    with pytest.raises(ValidationError, match="say with calls"):
        Budget(policy="uncertain")
