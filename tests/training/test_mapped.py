"""Samples in files are the samples in memory, and leave nothing behind."""

from __future__ import annotations

import resource
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batches import N_ITEMS, ROWS, P, table_of

from llm4sbr_ray.errors import StorageError
from llm4sbr_ray.training.batches import join_samples, samples_from_table
from llm4sbr_ray.training.mapped import map_samples


@given(rows=ROWS, cuts=st.lists(st.integers(0, 8), max_size=3), perspectives=st.sampled_from([0, P]))
@settings(max_examples=50, deadline=None)
def test_the_same_as_in_memory(rows: list[dict[str, object]], cuts: list[int], perspectives: int) -> None:
    table, bounds = table_of(rows), sorted([0, *cuts, 8])
    tables = [table.slice(a, b - a) for a, b in pairwise(bounds)]  # some are empty
    parts = [samples_from_table(part, N_ITEMS, 5, perspectives) for part in tables]
    mapped, whole = map_samples(iter(parts)), join_samples(parts)
    assert len(mapped) == len(whole) == len(rows)
    assert mapped.keys(range(len(rows))) == [f"s:{i}" for i in range(len(rows))]
    if rows:
        every = torch.arange(len(rows)).flip(0)
        (ours, target_B), (theirs, their_target_B) = mapped.batch(every), whole.batch(every)
        assert torch.equal(target_B, their_target_B)
        assert torch.equal(ours.items_BL, theirs.items_BL)
        assert (ours.intents is None) == (theirs.intents is None)
        if ours.intents is not None and theirs.intents is not None:
            assert torch.equal(ours.intents.item_BPR, theirs.intents.item_BPR)
            assert torch.equal(ours.intents.weight_BPR, theirs.intents.weight_BPR)
            assert torch.equal(ours.intents.grounded_BP, theirs.intents.grounded_BP)


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    row = {"items": [1, 2], "target": 3, "intent_items": [0] * 6, "intent_weights": [0.5] * 6, "grounded": [True] * 2}
    table = table_of([row] * 3000)
    kept = map_samples([samples_from_table(table, N_ITEMS, 5, P)])
    assert not list(tmp_path.iterdir())
    assert kept.items_C.sum() == 3 * 3000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # as a full disk
    try:
        with pytest.raises(StorageError, match=r"temporary files \(TMPDIR\), .* cannot be written"):
            map_samples([samples_from_table(table, N_ITEMS, 5, P)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
