"""Count models (popularity, session-kNN): fitted in one pass over whole training sessions."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from llm4sbr_ray.artifacts import Facts, Stage
from llm4sbr_ray.models.base import CountModel
from llm4sbr_ray.training.inputs import parquet_files
from llm4sbr_ray.training.load import count_items, new_model, save_model


def train_sessions(files: list[pa.Table]) -> tuple[Tensor, Tensor]:
    """Whole sessions from sample tables.

    Parameters
    ----------
    files
        Columns items, target and is_last; in time order where known.

    Returns
    -------
    items_N, offsets_S1
        int64: session s is items_N[offsets_S1[s] : offsets_S1[s + 1]].
    """
    rows = pa.concat_tables([table.filter(table["is_last"]) for table in files])
    prefix_length = pc.list_value_length(rows["items"]).to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], (prefix_length + 1).cumsum()])
    is_target = np.zeros(offsets[-1], dtype=np.bool_)
    is_target[offsets[1:] - 1] = True
    items = np.empty(offsets[-1], dtype=np.int64)
    items[is_target] = rows["target"].to_numpy()
    items[~is_target] = pc.list_flatten(rows["items"]).to_numpy()
    return torch.from_numpy(items), torch.from_numpy(offsets)


def fit_count_model(stage: Stage, name: str, seed: int) -> Facts:
    """Body of a count model's stage. Only whole sessions stay in memory: samples are read file by file."""
    run, config = stage.run, stage.run.config
    files, samples = [], 0
    for file in parquet_files(run, "data/train"):
        table = run.read_table(file, columns=["items", "target", "is_last"])
        samples += table.num_rows
        files.append(table.filter(table["is_last"]))
    model = new_model(run, config, name)
    assert isinstance(model, CountModel)
    began = time.perf_counter()
    model.fit(*train_sessions(files))
    seconds = time.perf_counter() - began
    rate = round(samples / seconds, 1)
    history = [{"epoch": 1, "seconds": round(seconds, 3), "samples_per_second": rate}]
    save_model(stage.store, config, name, seed, count_items(run), model.state_dict(), history, best_epoch=1)
    return {"rows": samples, "samples_per_second": rate}
