"""Perspectives of level item: an answer an item, and what a session has of them.

The answer's embedding g_j is the item's vector, in a space of the perspective's own. A session's vector is that of its
last item (anchor local) or the mean over its items (anchor global). The items nearest to it in that space become the
session's intent, as the items nearest to an answer do for a perspective of level session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.config import Perspective, Text
from llm4sbr_ray.perspectives.answers import ITEM_ANSWERS
from llm4sbr_ray.perspectives.engine import HELPER_CPUS
from llm4sbr_ray.perspectives.localisation import FloatArray, localise
from llm4sbr_ray.perspectives.outputs import readable
from llm4sbr_ray.perspectives.render import ITEMS, sample_files

CHUNK = 2048  # samples whose items' vectors are in memory at once


def list_column(array_NE: npt.NDArray[Any]) -> pa.Array[Any]:
    """A matrix as an Arrow column of lists, a row each."""
    n, e = array_NE.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(0, n * e + 1, e), pa.int32()), pa.array(array_NE.ravel()))


def item_answers(run: Store, name: str) -> pa.Table:
    """item_idx and text of every item; empty where it has no answer."""
    table = run.read_table(ITEM_ANSWERS, name, columns=["answer", "error"])
    answers: list[Any] = pc.if_else(pc.is_null(table["error"]), table["answer"], "").to_pylist()
    texts = [readable(answer) for answer in answers]
    return pa.table({"item_idx": pa.array(range(len(texts)), pa.int32()), "text": pa.array(texts, pa.string())})


def session_vectors(
    own_VE: FloatArray, windows: Sequence[Sequence[int]], anchor: Literal["global", "local"]
) -> FloatArray:
    """N x E, L2-normalised; zeros where no item of a session has an answer.

    Parameters
    ----------
    own_VE
        g: L2-normalised, zeros for an item without an answer.
    windows
        N sessions, item indices in click order, at least one each.
    anchor
        "local": the last item's vector; "global": the mean of all.
    """
    if anchor == "local":
        return own_VE[[window[-1] for window in windows]]
    starts = np.cumsum([0, *(len(window) for window in windows[:-1])])
    sum_NE = np.add.reduceat(own_VE[np.concatenate(windows)], starts, axis=0)
    length_N1 = np.linalg.norm(sum_NE, axis=1, keepdims=True)
    mean_NE: FloatArray = sum_NE / np.maximum(length_N1, 1e-12)  # its length is of no account
    return mean_NE


def write_intents(run: Run, view: Perspective, vectors: str, out: Store) -> None:
    """Write the intents of all samples under one perspective of level item to `out`.

    Parameters
    ----------
    vectors
        Location of the folder of vectors.parquet: item_idx and embedding of every item.
    out
        Rows of ``intents/<name>/``, with position and split.
    """
    config = run.config.perspectives
    files = [file for file in sample_files(run.below("data"), config) if file["split"] != ITEMS]
    ray.data.from_items(files, override_num_blocks=len(files)).map_batches(
        ItemIntents,
        fn_constructor_args=(run.uri(), vectors, view, run.config.text, config.max_items),
        batch_format="pyarrow",
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=1),
    ).write_parquet(out.path(), filesystem=out.fs, ray_remote_args={"num_cpus": HELPER_CPUS})


class ItemIntents:
    """Ray Data actor: one sample file -> the rows of `write_intents`."""

    def __init__(self, run: str, vectors: str, view: Perspective, text: Text, max_items: int) -> None:
        self.run, self.view, self.text, self.max_items = Store(run), view, text, max_items
        self.items_VE = embeddings(self.run.read_table("text", "items.parquet"))
        self.own_VE = embeddings(Store(vectors).read_table("vectors.parquet"))

    def __call__(self, batch: pa.Table) -> pa.Table:
        (file,) = batch.to_pylist()
        samples = pq.read_table(file["path"], filesystem=self.run.fs, columns=["sample_key", "items"])
        table = pa.concat_tables(self.intents(samples.slice(start, CHUNK)) for start in range(0, len(samples), CHUNK))
        position = pa.array(np.arange(file["position"], file["position"] + len(table)))
        split = pa.array([file["split"]] * len(table), pa.string())
        return table.append_column("position", position).append_column("split", split)

    def intents(self, samples: pa.Table) -> pa.Table:
        prefixes: list[Any] = samples["items"].to_pylist()
        found = localise(
            session_vectors(self.own_VE, [items[-self.max_items :] for items in prefixes], self.view.anchor),
            self.own_VE,
            self.text.localised_items,
            self.text.min_cosine,
        )
        # Near in the perspective's space; their sum, as of all intents, is over the items' own texts.
        h_NE = np.einsum("nr,nre->ne", found.weight_NR, self.items_VE[found.item_NR])
        return pa.table(
            {
                "sample_key": samples["sample_key"].combine_chunks(),
                "item_idx": list_column(found.item_NR).cast(pa.list_(pa.int32())),
                "weight": list_column(found.weight_NR),
                "grounded": pa.array(found.grounded_N),
                "exact_title": pa.array(np.zeros(len(samples), np.bool_)),
                "cosine": pa.array(found.cosine_N),
                "embedding": list_column(h_NE),  # float32: DuckDB, which these pass through, has no float16
            }
        )


def embeddings(table: pa.Table) -> FloatArray:
    """V x E of a table of (item_idx, embedding) in the order of item_idx."""
    flat = pc.list_flatten(table["embedding"]).to_numpy()
    return np.ascontiguousarray(flat.reshape(len(table), -1), dtype=np.float32)
