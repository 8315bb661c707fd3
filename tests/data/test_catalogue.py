"""The catalogue: numbering, texts, refused rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4sbr_ray.config import Columns
from llm4sbr_ray.data.catalogue import (
    MAX_TEXT_CHARS,
    build,
    clean,
    from_ids,
    item_text,
    parse_rows,
    with_train_count,
)
from llm4sbr_ray.data.readers import RawRow

COLUMNS = Columns(title="name")


def test_rows_are_numbered_in_order_and_the_bad_ones_refused() -> None:
    rows = [
        RawRow(1, {"item_id": "b", "name": "Tom &amp; Jerry\n", "attributes": ["Film"], "maker": "X"}),
        RawRow(2, {"item_id": 7, "name": None, "attributes": None, "maker": ["no", "text"]}),
        RawRow(3, {"item_id": None, "name": "Lost"}),
        RawRow(4, {"item_id": "b", "name": "Again"}),
        RawRow(5, {"item_id": "c", "name": 1.5}),
        RawRow(6, None, "malformed JSON", "{"),
        RawRow(7, {"item_id": "a", "name": " ", "attributes": "Red"}),
    ]
    parsed = parse_rows(rows, "file", 100, COLUMNS, ["maker"])
    items, refused = build(parsed.take([6, 5, 4, 3, 2, 1, 0]))
    assert items.to_pylist() == [
        {
            "item_idx": 0,
            "item_id": "b",
            "title": "Tom & Jerry",
            "text": "Tom & Jerry | Film",
            "attributes": ["Film"],
            "maker": "X",
        },
        {"item_idx": 1, "item_id": "7", "title": None, "text": "", "attributes": [], "maker": None},
        {"item_idx": 2, "item_id": "a", "title": None, "text": "Red", "attributes": ["Red"], "maker": None},
    ]
    assert items.schema.field("item_idx").type == pa.int32()
    assert [(r["row"], r["reason"]) for r in refused.to_pylist()] == [
        (3, "item id is missing"),
        (4, "duplicate item id"),
        (5, "title has a wrong type"),
        (6, "malformed JSON"),
    ]
    assert refused["content"].to_pylist()[1] == "b Again"


@pytest.mark.parametrize(
    ("title", "attributes", "expected"),
    [
        ("Kestrel Tent", ["kestrel", "Outdoor", "outdoor"], "Kestrel Tent | Outdoor"),
        (None, ["Red", "Wine"], "Red | Wine"),
        ("  A&nbsp;\t&lt;b&gt; \x07bell ", [], "A <b> bell"),
        (None, [], ""),
        ("Title", [" "], "Title"),
    ],
)
def test_item_text(title: str | None, attributes: list[str], expected: str) -> None:
    assert item_text(title, attributes) == expected


@given(st.none() | st.text(), st.lists(st.text(max_size=20), max_size=5))
def test_item_text_is_clean_and_bounded(title: str | None, attributes: list[str]) -> None:
    text = item_text(title and title * 50, attributes)
    assert len(text) <= MAX_TEXT_CHARS
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)
    assert text == " ".join(text.split())


def test_clean_leaves_other_alphabets_alone() -> None:
    assert clean("Café 東京 👩\u200d🍳") == "Café 東京 👩\u200d🍳"


def test_a_catalogue_of_ids_alone_and_counts() -> None:
    items = with_train_count(from_ids(["x", "y"]), np.array([3, 0]))
    assert items.to_pylist() == [
        {"item_idx": 0, "item_id": "x", "title": None, "text": "", "attributes": [], "train_count": 3},
        {"item_idx": 1, "item_id": "y", "title": None, "text": "", "attributes": [], "train_count": 0},
    ]
    assert items.schema.field("train_count").type == pa.int32()
