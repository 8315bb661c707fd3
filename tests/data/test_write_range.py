"""Writing one time range of sessions, without Ray."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import DataConfig, Split
from llm4sbr_ray.data.ingest import write_range
from llm4sbr_ray.data.sessions import SESSIONS
from llm4sbr_ray.data.split import Cuts

ROWS = [
    {"session_id": "late", "items": ["a", "c"], "time": 9, "order": 1, "split": "train"},
    {"session_id": "test", "items": ["b", "b", "a"], "time": 1, "order": 2, "split": "test"},
    {"session_id": "early", "items": ["c", "c", "b"], "time": 2, "order": 3, "split": "train"},
    {"session_id": "valid", "items": ["a", "b"], "time": 10, "order": 4, "split": "train"},
]


def test_a_range_is_sorted_split_and_encoded(tmp_path: Path) -> None:
    config = DataConfig(sessions="x", split=Split(valid_by="last"))
    rows = pa.Table.from_pylist(ROWS, schema=SESSIONS)
    store = Store(str(tmp_path))
    counts, count_V = write_range(store, "part", rows, pa.array(["a", "b", "c"]), config, 0, Cuts(None, (10, 0)))
    assert counts == {"train": 3, "valid": 1, "test": 2}
    assert count_V.tolist() == [1, 1, 3]  # clicks of "early" and "late" alone
    train = store.read_table("data", "train")
    assert train["sample_key"].to_pylist() == ["early:1", "early:2", "late:1"]
    assert train["items"].to_pylist() == [[2], [2, 2], [0]]
    assert train["target"].to_pylist() == [2, 1, 2]
    assert store.read_table("data", "test")["sample_key"].to_pylist() == ["test:1", "test:2"]


def test_a_split_without_sessions_has_no_file_and_no_counts(tmp_path: Path) -> None:
    config = DataConfig(sessions="x", split=Split(test_values=("train", "test"), valid_by="last"))
    rows = pa.Table.from_pylist(ROWS, schema=SESSIONS)
    counts, count_V = write_range(
        Store(str(tmp_path)), "part", rows, pa.array(["a", "b", "c"]), config, 0, Cuts(None, None)
    )
    assert counts == {"train": 0, "valid": 0, "test": 6}
    assert count_V.tolist() == [0, 0, 0]
    assert not (tmp_path / "data" / "train").exists()
