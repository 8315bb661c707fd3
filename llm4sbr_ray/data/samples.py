"""From sessions to samples: a prefix of the session and the item that came next."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SAMPLES = pa.schema(
    [
        ("sample_key", pa.string()),
        ("session_id", pa.string()),
        ("items", pa.list_(pa.int32())),
        ("target", pa.int32()),
        ("is_last", pa.bool_()),
    ]
)


def expand(
    session_ids: pa.Array[Any],
    items_N: npt.NDArray[np.int32],
    length_S: npt.NDArray[np.int64],
    mode: Literal["every-prefix", "last-item"],
) -> pa.Table:
    """The samples of S sessions, session after session, shorter prefixes first.

    Parameters
    ----------
    session_ids
        S strings.
    items_N
        item_idx of all clicks, session after session.
    length_S
        Clicks of each session, at least 2.
    mode
        "every-prefix": n - 1 samples of a session of n clicks; "last-item": one.

    Returns
    -------
    pa.Table
        Of schema `SAMPLES`; `sample_key` is ``<session_id>:<number of items in the prefix>``.
    """
    start_S = np.cumsum(length_S) - length_S
    per_session_S = length_S - 1 if mode == "every-prefix" else np.ones_like(length_S)
    session_M = np.repeat(np.arange(len(length_S)), per_session_S)  # M samples
    prefix_M = _counting(per_session_S) + 1 if mode == "every-prefix" else length_S - 1
    start_M = start_S[session_M]
    offsets = np.concatenate([[0], np.cumsum(prefix_M)])
    clicks = np.repeat(start_M, prefix_M) + _counting(prefix_M)
    ids = session_ids.take(session_M)
    keys = [f"{i}:{n}" for i, n in zip(ids.to_pylist(), prefix_M.tolist(), strict=True)]
    items = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(items_N[clicks], pa.int32()))
    columns = [
        pa.array(keys, pa.string()),
        ids.cast(pa.string()),
        items,
        pa.array(items_N[start_M + prefix_M], pa.int32()),
        pa.array(prefix_M == length_S[session_M] - 1),
    ]
    return pa.Table.from_arrays(columns, schema=SAMPLES)


def _counting(count_S: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0..count-1 for each count, one after the other."""
    ends_S = np.cumsum(count_S)
    return np.arange(int(count_S.sum())) - np.repeat(ends_S - count_S, count_S)
