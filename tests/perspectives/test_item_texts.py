"""What of the catalogue the text encoder reads."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Perspectives
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives.intents import exact_titles, item_texts


@pytest.fixture
def run(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    items = {"item_idx": [0, 1, 2], "text": ["Soap", "", "Oil"], "description": ["Smells good.", "Nameless.", None]}
    store.write_table(pa.table(items | {"train_count": [1, 2, 3]}), "data", "items.parquet")
    return store


def test_further_columns_follow_title_and_attributes(run: Store) -> None:
    assert item_texts(run, ["description"])["text"].to_pylist() == ["Soap Smells good.", "Nameless.", "Oil"]
    assert item_texts(run, [])["text"].to_pylist() == ["Soap", "", "Oil"]


@pytest.mark.parametrize("name", ["descr", "train_count"])
def test_a_column_that_is_no_text_is_named(run: Store, name: str) -> None:
    with pytest.raises(UserError, match=f"text.columns: '{name}' is no text column .*: those are text, description"):
        item_texts(run, [name])


def test_an_answer_may_name_an_item_by_its_title_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    items = {"item_idx": [0, 1, 2], "title": ["Soap", "Oil", None], "attributes": [["Rose"], [], ["Soap"]]}
    store.write_table(pa.table(items), "items.parquet")
    found = exact_titles(store, Perspectives())
    assert found == {"soap - rose": 0, "oil": 1, "soap": 2}  # what prompts show of item 2 goes before item 0's title
