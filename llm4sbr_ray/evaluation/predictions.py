"""``report/predictions/<model>.parquet``: the lists that every metric can be recomputed from."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.evaluation.protocol import RankedBatch, TopLists
from llm4sbr_ray.evaluation.variants import path_name

PREDICTIONS = pa.schema(
    [
        ("sample_key", pa.string()),
        ("target", pa.string()),  # item id
        ("ranked", pa.list_(pa.string())),  # the 20 best item ids, best first
        ("ranked_unseen", pa.list_(pa.string())),  # the same without the items that the session holds
    ]
)


def predictions_path(variant: str) -> str:
    """Relative to the run."""
    return f"report/predictions/{path_name(variant)}.parquet"


class PredictionWriter:
    """Writes batch after batch; a context manager.

    Parameters
    ----------
    store
        Where the run's files go.
    variant
        Name of the model in the report.
    item_ids
        V strings.
    """

    def __init__(self, store: Store, variant: str, item_ids: pa.StringArray) -> None:
        path = store.path(predictions_path(variant))
        store.fs.create_dir(path.rpartition("/")[0], recursive=True)
        self._item_ids = item_ids
        self._file = pq.ParquetWriter(path, PREDICTIONS, filesystem=store.fs, compression="zstd")

    def write(self, batch: RankedBatch) -> None:
        columns = [
            batch.sample_key.combine_chunks(),
            self._item_ids.take(pa.array(batch.target_B, pa.int64())),
            self._ids(batch.top["test"]),
            self._ids(batch.top["test_unseen_only"]),
        ]
        self._file.write_table(pa.Table.from_arrays(columns, schema=PREDICTIONS))

    def _ids(self, lists: TopLists) -> pa.ListArray[Any]:
        offsets = np.concatenate([[0], np.cumsum(lists.length_B)])
        return pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), self._item_ids.take(pa.array(lists.item_M, pa.int32()))
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._file.close()
