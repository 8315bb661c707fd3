"""Samples, against a plain loop."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4sbr_ray.data.samples import SAMPLES, expand


@pytest.mark.parametrize("mode", ["every-prefix", "last-item"])
@given(sessions=st.lists(st.lists(st.integers(0, 50), min_size=2, max_size=9), max_size=8))
def test_samples_are_those_of_a_loop(mode: Literal["every-prefix", "last-item"], sessions: list[list[int]]) -> None:
    ids = [f"a:{n}" for n in range(len(sessions))]
    table = expand(
        pa.array(ids, pa.string()),
        np.array([item for session in sessions for item in session], np.int32),
        np.array([len(session) for session in sessions], np.int64),
        mode,
    )
    expected = []
    for session_id, items in zip(ids, sessions, strict=True):
        prefixes = range(1, len(items)) if mode == "every-prefix" else [len(items) - 1]
        expected += [
            {
                "sample_key": f"{session_id}:{n}",
                "session_id": session_id,
                "items": items[:n],
                "target": items[n],
                "is_last": n == len(items) - 1,
            }
            for n in prefixes
        ]
    assert table.schema.equals(SAMPLES)
    assert table.to_pylist() == expected
