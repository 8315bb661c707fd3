"""The catalogue: rows of the user's item table in, `items.parquet` out."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm4sbr_ray.config import Columns
from llm4sbr_ray.data.readers import RawRow
from llm4sbr_ray.data.validate import RowError, parse_attributes, parse_id, parse_text

MAX_TEXT_CHARS = 2000
OURS = ("item_idx", "item_id", "title", "text", "attributes", "train_count")


def row_schema(extra: Sequence[str]) -> pa.Schema:
    """What `parse_rows` gives: an item, or why there is none. `extra`: further text columns that are kept."""
    columns: dict[str, pa.DataType] = {
        "source": pa.string(),
        "row": pa.int64(),
        "order": pa.int64(),
        "session_id": pa.string(),  # always null: the quarantine has this column
        "reason": pa.string(),
        "content": pa.string(),
        "item_id": pa.string(),
        "title": pa.string(),
        "attributes": pa.list_(pa.string()),
    }
    return pa.schema(columns | dict.fromkeys(extra, pa.string()))


def parse_rows(rows: Iterable[RawRow], source: str, order: int, columns: Columns, extra: Sequence[str]) -> pa.Table:
    """Check the rows of the item table; `order` is added to a row's number to place it among all files."""
    parsed = []
    for raw in rows:
        entry: dict[str, object] = {"source": source, "row": raw.number, "order": order + raw.number}
        values = raw.values
        if values is None:
            entry |= {"reason": raw.reason, "content": raw.content()}
        else:
            try:
                title = parse_text(values.get(columns.title), "title")
                entry |= {
                    "item_id": parse_id(values.get(columns.item_id), "item id"),
                    "title": (title and clean(title)) or None,
                    "attributes": parse_attributes(values.get(columns.attributes or "")),
                }
                texts = {name: values.get(name) for name in extra}
                # A list or an object in a further column is no reason to refuse the row.
                entry |= {
                    name: parse_text(text, name) for name, text in texts.items() if isinstance(text, (str, bytes))
                }
            except RowError as error:
                entry |= {"reason": str(error), "content": raw.content()}
        parsed.append(entry)
    return pa.Table.from_pylist(parsed, schema=row_schema(extra))


def build(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Number the items in the order of their rows.

    Parameters
    ----------
    rows
        Of `row_schema`, in any order.

    Returns
    -------
    items
        item_idx, item_id, title, text, attributes and the further columns.
    refused
        Rows with a reason; of rows with the same id all but the first are refused.
    """
    rows = rows.sort_by("order")
    reasons = rows["reason"].to_pylist()
    contents = rows["content"].to_pylist()
    ids = cast("list[str]", rows["item_id"].to_pylist())
    seen: set[str] = set()
    kept = np.zeros(len(ids), bool)
    for number, (item_id, reason) in enumerate(zip(ids, reasons, strict=True)):
        if reason is not None:
            continue
        if item_id in seen:
            title = rows["title"][number].as_py()
            reasons[number], contents[number] = (
                "duplicate item id",
                f"{item_id} {title or ''}".strip()[:MAX_TEXT_CHARS],
            )
        else:
            seen.add(item_id)
            kept[number] = True
    rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))
    rows = rows.set_column(rows.schema.get_field_index("content"), "content", pa.array(contents, pa.string()))
    items = rows.filter(pa.array(kept)).drop_columns(["source", "row", "order", "session_id", "reason", "content"])
    pairs = zip(items["title"].to_pylist(), items["attributes"].to_pylist(), strict=True)
    texts = [item_text(title, attributes or []) for title, attributes in pairs]
    items = items.add_column(0, "item_idx", pa.array(range(len(items)), pa.int32()))
    items = items.add_column(3, "text", pa.array(texts, pa.string()))
    return items, rows.filter(pa.array(~kept))


def from_ids(item_ids: Sequence[str]) -> pa.Table:
    """A catalogue of ids alone, in the order given."""
    n = len(item_ids)
    columns: dict[str, pa.Array[Any]] = {
        "item_idx": pa.array(range(n), pa.int32()),
        "item_id": pa.array(item_ids, pa.string()),
        "title": pa.nulls(n, pa.string()),
        "text": pa.array([""] * n, pa.string()),
        "attributes": pa.array([[]] * n, pa.list_(pa.string())),
    }
    return pa.table(columns)


def with_train_count(items: pa.Table, count_V: npt.NDArray[np.int64]) -> pa.Table:
    """Add the clicks of each item in the training sessions."""
    return items.add_column(5, "train_count", pa.array(count_V, pa.int32()))


def item_text(title: str | None, attributes: Sequence[str]) -> str:
    """What text encoder and prompts read: the title, then each attribute that the title does not name."""
    parts = [clean(title)] if title else []
    known = parts[0].casefold() if parts else ""
    for attribute in map(clean, attributes):
        if attribute and attribute.casefold() not in known:
            parts.append(attribute)
            known += "\n" + attribute.casefold()
    return " | ".join(part for part in parts if part)[:MAX_TEXT_CHARS].rstrip()


def clean(text: str) -> str:
    """HTML entities decoded; runs of white space and control characters made one blank."""
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in html.unescape(text)).split())
