"""The rows that were refused: one Parquet row each, with the reason."""

from __future__ import annotations

from collections import Counter
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Store

FOLDER = "data/quarantine"
_QUARANTINE: dict[str, pa.DataType] = {
    "source": pa.string(),  # the file
    "row": pa.int64(),  # row of a Parquet file, line of a text file, from 1
    "session_id": pa.string(),  # where it is known
    "reason": pa.string(),
    "content": pa.string(),  # the row as text, cut at 2,000 characters
}
QUARANTINE = pa.schema(_QUARANTINE)


def write(store: Store, name: str, rows: pa.Table) -> None:
    """Write refused rows (in the order given) as ``data/quarantine/<name>.parquet``."""
    store.write_table(rows.select(QUARANTINE.names).cast(QUARANTINE), FOLDER, f"{name}.parquet")


def count_reasons(store: Store) -> dict[str, int]:
    """How many rows were refused for each reason, the most frequent first."""
    counts: Counter[str] = Counter()
    for path in store.files(FOLDER, suffix=".parquet"):
        reasons = pq.read_table(path, filesystem=store.fs, columns=["reason"])["reason"]
        counts.update(cast("list[str]", reasons.to_pylist()))
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
