"""The answers of a perspective on disk, and those that stand in the catalogue already.

perspectives/<name>/        a row a sample; of level item with the answer about its last item
                            of output candidates with them, and with the item that the answer names
item-answers/<name>/        of level item: a row an item, in the order of item_idx
"""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa

from llm4sbr_ray.artifacts import Facts, Store
from llm4sbr_ray.config import Candidates, Perspective
from llm4sbr_ray.perspectives import relational
from llm4sbr_ray.perspectives.outputs import field_texts
from llm4sbr_ray.perspectives.render import ITEMS

_FIELDS: list[pa.Field[Any]] = [
    pa.field("sample_key", pa.string()),
    pa.field("split", pa.string()),
    pa.field("position", pa.int64()),
    pa.field("prompt_key", pa.string()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("generated_tokens", pa.int32()),
    pa.field("answer", pa.string()),
    pa.field("error", pa.string()),
    pa.field("shortened", pa.bool_()),
]
PERSPECTIVE_SCHEMA = pa.schema(_FIELDS)
_CHOSEN: list[pa.Field[Any]] = [
    pa.field("candidates", pa.list_(pa.int32())),
    pa.field("item", pa.int32()),  # the one of them that the answer names
]
CANDIDATES_SCHEMA = pa.schema(_FIELDS + _CHOSEN)
ITEM_ANSWERS = "item-answers"
NO_TEXT = "no text in the catalogue"  # stands as the error of an item without an answer


def write_answers(answers: duckdb.DuckDBPyRelation, out: Store, view: Perspective) -> int:
    """Write one perspective's rows of its schema; returns the number of samples."""
    schema = CANDIDATES_SCHEMA if isinstance(view.output, Candidates) else PERSPECTIVE_SCHEMA
    if view.level == "item":
        items = answers.filter(f"split = '{ITEMS}'").order("position")
        relational.copy_to(items, out, f"{ITEM_ANSWERS}/{view.name}", PERSPECTIVE_SCHEMA)
    samples = answers.filter(f"split <> '{ITEMS}'").order("position")
    return relational.copy_to(samples, out, f"perspectives/{view.name}", schema)


def take_from_field(out: Store, rendered: Store, data: Store, view: Perspective) -> Facts:
    """The answers that `view.from_field` of the catalogue has; returns the perspective's figures."""
    database = relational.connect()
    texts = field_texts(data, view)
    database.register("rendered", relational.dataset(rendered))
    database.register("texts", pa.table({"item": pa.array(range(len(texts)), pa.int32()), "answer": texts}))
    answers = database.sql(
        "SELECT sample_key, split, position, prompt_key, 0 AS prompt_tokens, 0 AS generated_tokens, answer, "
        "CASE WHEN answer = '' THEN $missing END AS error, false AS shortened "
        "FROM rendered JOIN texts ON item = items[1] WHERE view = $view",
        params={"view": view.name, "missing": NO_TEXT},
    )
    rows = write_answers(answers, out, view)
    nothing = dict.fromkeys(("prompts", "from_store", "errors", "prompt_tokens", "generated_tokens"), 0)
    return nothing | {"rows_per_second": None, "rows": rows}
