"""Which prompts are written already, for Ray Data's checkpoint filter: one number a prompt, in shared memory.

Ray's own filter holds the keys as Python strings, some 115 MB a million in every one of its actors. Numbers are one
array in the object store, 8 MB a million, which all actors of a node read in place. They are 64-bit hashes of the keys:
that any of ten million prompts is taken for another one, which is written, has a chance of about one in a million.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import ray
from ray.data.checkpoint import CheckpointConfig, IdColumnCheckpointManager, NumpyArrayBasedCheckpointFilter

from llm4sbr_ray.artifacts import Store

KEY = "prompt_key"


def checkpoint(done: Store) -> CheckpointConfig:
    """Records the keys of written rows under `done`, and leaves out the rows whose key is there."""
    config = CheckpointConfig(
        id_column=KEY,
        checkpoint_path=done.path(),
        override_filesystem=done.fs,  # as everywhere: a small object is one request with ours, and three with Ray's
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=NumberedKeys,
        checkpoint_filter_cls=NumberFilter,
    )
    # Ray would start up to ten, each with a whole CPU: on a small cluster none is left for the tasks that write, and a
    # resumed call writes nothing before all is answered. One knows far more rows than an engine answers.
    config.checkpoint_actor_pool_max_size = 1
    return config


class NumberedKeys(IdColumnCheckpointManager):
    """Loads the recorded keys as sorted numbers."""

    def _preprocess_data_pipeline(self, checkpoint_ds: ray.data.Dataset) -> ray.data.Dataset:
        return checkpoint_ds.map_batches(_numbered, batch_format="pyarrow", batch_size=None)


class NumberFilter(NumpyArrayBasedCheckpointFilter):
    """Leaves out the rows whose key is recorded."""

    def filter_rows_for_block(self, block: pa.Table) -> pa.Table:
        recorded = self.checkpointed_ids
        if not len(block) or not len(recorded):
            return block
        asked = numbers(block[KEY])
        place = np.searchsorted(recorded, asked).clip(max=len(recorded) - 1)
        return block.filter(pa.array(recorded[place] != asked))


def numbers(keys: pa.ChunkedArray[Any]) -> npt.NDArray[np.uint64]:
    return pd.util.hash_array(keys.to_numpy(zero_copy_only=False), categorize=False)


def _numbered(recorded: pa.Table) -> pa.Table:
    return pa.table({KEY: pa.array(numbers(recorded[KEY]))})
