"""Prompts, deduplication and joins over files: nothing lost, nothing doubled, order kept."""

from pathlib import Path

import pyarrow as pa
import pytest

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Perspectives
from llm4sbr_ray.perspectives import relational
from llm4sbr_ray.perspectives.render import RenderFile, sample_files, unique_prompts

CONFIG = Perspectives(max_items=2)


@pytest.fixture
def data(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "data"))
    titles = ["Tent", "Stove", "Lamp", None]
    store.write_table(
        pa.table({"title": pa.array(titles), "attributes": pa.array([["Acme"]] * 4)}),
        "items.parquet",
    )
    for split, keys in (("train", ["a:1", "a:3", "b:1"]), ("valid", ["c:1"]), ("test", ["d:1"])):
        items = {"a:1": [0], "a:3": [0, 1, 2], "b:1": [0], "c:1": [3], "d:1": [0]}
        store.write_table(
            pa.table({"sample_key": keys, "items": pa.array([items[k] for k in keys], pa.list_(pa.int32()))}),
            split,
            "part-0.parquet",
        )
    return store


def rendered(data: Store) -> pa.Table:
    files = sample_files(data, CONFIG)
    actor = RenderFile(data.uri(), "model", CONFIG)
    return pa.concat_tables(actor(pa.Table.from_pylist([file])) for file in files)


def test_every_sample_asks_every_perspective_in_order(data: Store) -> None:
    rows = rendered(data).to_pylist()
    assert len(rows) == 5 * 2
    for view in ("long-term", "short-term"):
        own = [row for row in rows if row["view"] == view]
        assert [row["sample_key"] for row in own] == ["a:1", "a:3", "b:1", "c:1", "d:1"]
        assert [row["position"] for row in own] == [0, 1, 2, 3, 4]
        assert own[1]["items"] == [1, 2]  # the last max_items


def test_identical_prompts_are_asked_once(data: Store, tmp_path: Path) -> None:
    prompts, asked = Store(str(tmp_path / "prompts")), Store(str(tmp_path / "asked"))
    table = rendered(data)
    prompts.write_table(table, "part-0.parquet")
    count = unique_prompts(prompts, asked, rows_a_file=2)
    rows = asked.read_table("").to_pylist()
    assert count == len(rows) == len(set(table["prompt_key"].to_pylist())) == 6  # [0] three times, [1, 2], [3]
    assert len(asked.files(suffix=".parquet")) == 3
    assert [row["view"] for row in rows] == sorted(row["view"] for row in rows)


def test_an_empty_answer_keeps_its_schema(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert relational.copy_to(relational.connect().sql("SELECT 1 AS x WHERE false"), store, "empty") == 0
    assert store.read_table("empty").schema.names == ["x"]
