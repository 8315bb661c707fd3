"""Perspectives of level item: asked once an item, or taken from the catalogue; what sessions have of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import LONG_TERM, Perspective, Perspectives, Text
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives import relational
from llm4sbr_ray.perspectives.answers import NO_TEXT, take_from_field, write_answers
from llm4sbr_ray.perspectives.intents import INTENT_SCHEMA
from llm4sbr_ray.perspectives.item_level import ItemIntents, item_answers, list_column, session_vectors
from llm4sbr_ray.perspectives.render import ITEMS, RenderFile, sample_files, unique_prompts

USE = Perspective(name="use", level="item", anchor="global", instruction="What is it for?")
GIVEN = Perspective(name="given", level="item", anchor="local", from_field="description")
CONFIG = Perspectives(views=(LONG_TERM, USE, GIVEN), splits=("test",), max_items=2)
PREFIXES = [[0], [0, 1], [0, 1, 3], [2, 3]]


@pytest.fixture
def run(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    items = {"title": ["Tent", "Stove", "Lamp", "Rope"], "attributes": [["Acme"]] * 4}
    description = [" Two  people.", "Gas.", None, ["", "Ten metres."][1]]
    store.write_table(pa.table(items | {"description": description}), "data", "items.parquet")
    samples = {"sample_key": [f"s:{n}" for n in range(4)], "items": pa.array(PREFIXES, pa.list_(pa.int32()))}
    store.write_table(pa.table(samples), "data", "test", "part-0.parquet")
    return store


def rendered(run: Store, config: Perspectives) -> Store:
    data, out = run.below("data"), run.below("rendered")
    actor = RenderFile(data.uri(), "model", config)
    tables = [actor(pa.Table.from_pylist([file])) for file in sample_files(data, config)]
    out.write_table(pa.concat_tables(tables), "part-0.parquet")
    return out


def test_every_item_is_asked_once(run: Store) -> None:
    prompts = rendered(run, CONFIG.asking())
    rows = [row for row in prompts.read_table("").to_pylist() if row["view"] == "use"]
    assert [(row["sample_key"], row["items"]) for row in rows if row["split"] == "test"] == [
        ("s:0", [0]),
        ("s:1", [1]),
        ("s:2", [3]),
        ("s:3", [3]),
    ]
    assert [row["items"] for row in rows if row["split"] == ITEMS] == [[0], [1], [2], [3]]
    unique_prompts(prompts, run.below("asked"), 100)
    asked = run.read_table("asked").to_pylist()
    assert sorted(row["items"] for row in asked if row["view"] == "use") == [[0], [1], [2], [3]]
    assert sorted(row["items"] for row in asked if row["view"] == "long-term") == [[0], [0, 1], [1, 3], [2, 3]]


def test_the_catalogue_answers_without_a_call(run: Store) -> None:
    figures = take_from_field(run, rendered(run, CONFIG.asking(False)), run.below("data"), GIVEN)
    assert (figures["rows"], figures["prompts"], figures["errors"]) == (4, 0, 0)
    rows = run.read_table("perspectives", "given").to_pylist()
    assert [row["answer"] for row in rows] == ["Two people.", "Gas.", "Ten metres.", "Ten metres."]
    assert item_answers(run, "given")["text"].to_pylist() == ["Two people.", "Gas.", "", "Ten metres."]
    assert run.read_table("item-answers", "given")["error"].to_pylist() == [None, None, NO_TEXT, None]


def test_an_unknown_field_is_named(run: Store) -> None:
    view = GIVEN.model_copy(update={"from_field": "plot"})
    with pytest.raises(UserError, match="given: from_field: the catalogue has no field 'plot'"):
        take_from_field(run, rendered(run, CONFIG.asking(False)), run.below("data"), view)


def test_an_error_is_no_text(run: Store) -> None:
    database = relational.connect()
    rows = [("item:0", ITEMS, 4, "", None), ("s:0", "test", 0, "", None), ("item:1", ITEMS, 5, "x", "timed out")]
    names = ("sample_key", "split", "position", "answer", "error")
    filled = [dict(zip(names, row, strict=True)) | {"answer": row[3] or "a tent"} for row in rows]
    database.register("rows", pa.Table.from_pylist(filled))
    answers = database.sql(
        "SELECT sample_key, split, position, '' AS prompt_key, 0 AS prompt_tokens, 0 AS generated_tokens, answer, "
        "error, false AS shortened FROM rows"
    )
    assert write_answers(answers, run, USE) == 1
    assert item_answers(run, "use")["text"].to_pylist() == ["a tent", ""]


def unit_rows(n: int, missing: list[int]) -> np.ndarray:
    rows = np.random.default_rng(n).normal(size=(n, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[missing] = 0
    return rows.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=1, max_size=8),
    st.lists(st.integers(0, 6), max_size=3),
)
def test_session_vectors_equal_a_naive_loop(windows: list[list[int]], missing: list[int]) -> None:
    own = unit_rows(7, missing)
    last, mean = (session_vectors(own, windows, anchor) for anchor in ("local", "global"))
    for row, window in enumerate(windows):
        np.testing.assert_array_equal(last[row], own[window[-1]])
        total = sum(own[item].astype(np.float64) for item in window)
        length = np.linalg.norm(total)
        np.testing.assert_allclose(mean[row], total / length if length else total, atol=1e-5)


@pytest.mark.parametrize("anchor", ["local", "global"])
def test_a_session_has_the_items_near_to_it_in_the_perspective(run: Store, anchor: Any) -> None:
    own, text = unit_rows(4, [2]), unit_rows(9, [])[:4]
    run.write_table(pa.table({"item_idx": range(4), "embedding": list_column(text)}), "text", "items.parquet")
    run.write_table(pa.table({"item_idx": range(4), "embedding": list_column(own)}), "own", "vectors.parquet")
    view = USE.model_copy(update={"anchor": anchor})
    actor = ItemIntents(run.uri(), run.uri("own"), view, Text(localised_items=2, min_cosine=0.0), max_items=2)
    (file,) = [file for file in sample_files(run.below("data"), CONFIG) if file["split"] != ITEMS]
    table = actor(pa.Table.from_pylist([file]))
    database = relational.connect()
    database.register("table_of_actor", table)
    query = database.sql("SELECT * EXCLUDE (split) FROM table_of_actor ORDER BY position")
    relational.copy_to(query, run, "joined", INTENT_SCHEMA.append(pa.field("position", pa.int64())))
    rows = run.read_table("joined").to_pylist()
    assert [row["sample_key"] for row in rows] == ["s:0", "s:1", "s:2", "s:3"]
    assert [row["position"] for row in rows] == [0, 1, 2, 3]
    for row, prefix in zip(rows, PREFIXES, strict=True):
        vector = own[prefix[-1]] if anchor == "local" else own[prefix[-2:]].sum(0)
        cosine = own @ (vector / np.linalg.norm(vector))
        best = row["item_idx"]
        # Two clicks are equally near to their mean: which of them comes first is a matter of rounding.
        np.testing.assert_allclose(cosine[best], np.sort(cosine)[::-1][:2], atol=1e-6)
        assert len(set(best)) == 2
        weight = np.maximum(cosine[best], 0) / np.maximum(cosine[best], 0).sum()
        np.testing.assert_allclose(row["weight"], weight, atol=1e-5)
        np.testing.assert_allclose(row["embedding"], weight @ text[best], atol=2e-3)
        assert row["grounded"]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"from_field": "description"}, "level has to be item"),
        ({"level": "item"}, "give either instruction"),
        ({"level": "item", "from_field": "x", "instruction": "Say it."}, "give either instruction"),
    ],
)
def test_what_a_perspective_lacks_is_said(values: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Perspective.model_validate({"name": "own", "anchor": "local"} | values)
