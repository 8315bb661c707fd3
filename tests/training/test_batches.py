"""Tables to batches, against plain Python lists."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4sbr_ray.training.batches import join_samples, samples_from_table

N_ITEMS, P, R = 9, 2, 3

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "items": st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=7),
            "target": st.integers(0, N_ITEMS - 1),
            "intent_items": st.lists(st.integers(0, N_ITEMS - 1), min_size=P * R, max_size=P * R),
            "intent_weights": st.lists(st.floats(0, 1, width=32), min_size=P * R, max_size=P * R),
            "grounded": st.lists(st.booleans(), min_size=P, max_size=P),
        }
    ),
    max_size=8,
)

SCHEMA = pa.schema(
    {
        "sample_key": pa.string(),
        "items": pa.list_(pa.int32()),
        "target": pa.int32(),
        "intent_items": pa.list_(pa.int32()),
        "intent_weights": pa.list_(pa.float32()),
        "grounded": pa.list_(pa.bool_()),
    }
)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"sample_key": f"s:{i}", **row} for i, row in enumerate(rows)], schema=SCHEMA)


@given(rows=ROWS.filter(bool), max_length=st.integers(1, 8), cut=st.integers(0, 8), data=st.data())
@settings(max_examples=100, deadline=None)
def test_batches_hold_the_rows(rows: list[dict[str, Any]], max_length: int, cut: int, data: st.DataObject) -> None:
    table = table_of(rows)
    # A slice has offsets that don't begin at 0; several parts and chunks are the rule with Ray Data.
    parts = [samples_from_table(t, N_ITEMS, max_length, P) for t in (table.slice(0, cut), table.slice(cut))]
    samples = join_samples(parts)
    assert len(samples) == len(rows)

    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    batch, target_B = samples.batch(torch.tensor(picked))
    width = max(min(len(rows[i]["items"]), max_length) for i in picked)
    for b, i in enumerate(picked):
        kept = rows[i]["items"][-max_length:]
        assert batch.items_BL[b].tolist() == kept + [N_ITEMS] * (width - len(kept))
        assert batch.length_B[b] == len(kept)
        assert target_B[b] == rows[i]["target"]
        assert batch.intents is not None
        assert batch.intents.item_BPR[b].flatten().tolist() == rows[i]["intent_items"]
        assert batch.intents.weight_BPR[b].flatten().tolist() == rows[i]["intent_weights"]
        assert batch.intents.grounded_BP[b].tolist() == rows[i]["grounded"]
    assert batch.items_BL.dtype == batch.length_B.dtype == target_B.dtype == torch.int64

    row, item = samples.seen(torch.tensor(picked))
    clicks = [(b, item) for b, i in enumerate(picked) for item in rows[i]["items"]]  # whole, not cut
    assert list(zip(row.tolist(), item.tolist(), strict=True)) == clicks
    assert samples.keys(picked) == [f"s:{i}" for i in picked]


def test_intents_are_optional() -> None:
    table = table_of([{"items": [1], "target": 2}]).select(["sample_key", "items", "target"])
    batch, _ = samples_from_table(table, N_ITEMS, 5).batch(torch.tensor([0]))
    assert batch.intents is None


def test_an_empty_table_has_no_samples() -> None:
    empty = samples_from_table(table_of([]), N_ITEMS, 5, P)
    assert len(empty) == len(join_samples([empty, empty])) == 0
