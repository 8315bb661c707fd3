"""The stream of test samples and what is kept of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from evaluation_run import V, samples_table

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.evaluation.testset import TestSet, read_testset, stream

COUNT_V = np.arange(V, dtype=np.int64) * 10


def read(table: pa.Table, batch: int, examples: int = 3, seed: int = 0) -> TestSet:
    tables = (table.slice(start, batch) for start in range(0, len(table), batch))
    return read_testset(tables, COUNT_V, examples, seed)


def test_the_stream_gives_every_row_once_in_order_in_small_tables(tmp_path: Path) -> None:
    table, store = samples_table("c", 20, 3), Store(str(tmp_path))
    store.write_table(table.slice(0, 33), "data/test/part-0.parquet")
    store.write_table(table.slice(33), "data/test/part-1.parquet")
    parts = list(stream(store, "data/test", 10))
    assert max(map(len, parts)) <= 10
    assert pa.concat_tables(parts).equals(table)


def test_figures_of_each_sample_are_those_of_a_naive_loop() -> None:
    table = samples_table("c", 30, 3)
    rows, test = table.to_pylist(), read(table, 7)
    assert test.length_N.tolist() == [len(row["items"]) for row in rows]
    assert test.target_count_N.tolist() == [10 * row["target"] for row in rows]
    assert test.repeats == sum(row["target"] in row["items"] for row in rows) > 0


def test_samples_of_a_session_share_a_group_and_sessions_rarely_do() -> None:
    table = samples_table("c", 30, 3)
    groups: dict[str, set[int]] = {}
    for row, group in zip(table.to_pylist(), read(table, 7).group_N.tolist(), strict=True):
        groups.setdefault(row["session_id"], set()).add(group)
    assert {len(found) for found in groups.values()} == {1}
    assert len(set.union(*groups.values())) >= 28


def test_examples_are_whole_sessions_and_depend_on_the_seed_alone() -> None:
    table = samples_table("c", 30, 3)
    keys = [row["sample_key"] for row in read(table, 7).examples]
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    assert [row["sample_key"] for row in read(shuffled, 50).examples] == keys
    assert all(row["is_last"] for row in read(table, 7).examples)
    assert [row["sample_key"] for row in read(table, 7, seed=1).examples] != keys
    assert len(read(table, 7, examples=100).examples) == 30
    assert read(table, 7, examples=0).examples == []
