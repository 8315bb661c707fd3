"""The test samples as a stream, and the few numbers of each that every table needs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.data.split import unit_hash
from llm4sbr_ray.evaluation.significance import MAX_GROUPS

Ints = npt.NDArray[np.int64]


@dataclass
class TestSet:
    """What is kept of N test samples, in the order of the stream."""

    __test__ = False  # for pytest: no tests in here

    length_N: Ints  # clicks in the prefix
    target_count_N: Ints  # clicks on the target in training sessions
    group_N: Ints  # the session's group in the bootstrap
    repeats: int  # samples whose target is in the prefix
    examples: list[dict[str, Any]] = field(default_factory=list)  # whole rows

    def __len__(self) -> int:
        return len(self.length_N)


def stream(store: Store, folder: str, batch_size: int) -> Iterator[pa.Table]:
    """Rows of all Parquet files of a folder in the order of their names, at most `batch_size` at a time."""
    for path in store.files(folder, suffix=".parquet"):
        with store.fs.open_input_file(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=batch_size):
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])


def read_testset(tables: Iterator[pa.Table], train_count_V: Ints, examples: int, seed: int) -> TestSet:
    """One pass over the samples.

    Parameters
    ----------
    tables
        Samples, a batch each; at least one row in all.
    train_count_V
        Clicks of each item in training sessions.
    examples
        How many whole sessions to show: those with the lowest hash, so that nobody picks them.
    seed
        Of the hashes.
    """
    lengths, counts, groups, repeats = [], [], [], 0
    lowest: list[tuple[float, dict[str, Any]]] = []
    for table in tables:
        length_B = pc.list_value_length(table["items"]).to_numpy().astype(np.int64)
        target_B = table["target"].to_numpy().astype(np.int64)
        flat = pc.list_flatten(table["items"]).to_numpy()
        row_C = np.repeat(np.arange(len(table)), length_B)
        repeats += len(np.unique(row_C[flat == target_B[row_C]]))
        lengths.append(length_B)
        counts.append(train_count_V[target_B])
        groups.append((_hash(table, seed, "bootstrap") * MAX_GROUPS).astype(np.int64))
        whole = table.filter(pc.field("is_last"))
        drawn = _hash(whole, seed, "example")
        best = np.argsort(drawn, kind="stable")[:examples]
        rows = zip(drawn[best].tolist(), whole.take(pa.array(best, pa.int64())).to_pylist(), strict=True)
        lowest = heapq.nsmallest(examples, [*lowest, *rows], key=lambda pair: pair[0])
    return TestSet(
        np.concatenate(lengths),
        np.concatenate(counts),
        np.concatenate(groups),
        repeats,
        [row for _, row in lowest],
    )


def _hash(table: pa.Table, seed: int, purpose: str) -> npt.NDArray[np.float64]:
    return unit_hash(cast(list[str], table["session_id"].to_pylist()), seed, purpose)
