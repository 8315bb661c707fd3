"""Trained models on disk: ``train/<model>/seed-<s>/`` with model.safetensors, model.json and history.json."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import torch
from safetensors.torch import load, save
from torch import Tensor

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import MemoryConfig, ModelConfig, Neighbours, RunConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import Recommender
from llm4sbr_ray.models.build import build_model, has_memory, is_llm4sbr, needs_text_table
from llm4sbr_ray.training.checkpoint import Record, Tensors

WEIGHTS, DESCRIPTION, HISTORY = "model.safetensors", "model.json", "history.json"


def model_folder(model: str, seed: int) -> str:
    """Where a model is kept, relative to the run; also the name of the stage that trains it."""
    return f"train/{model.replace(':', '-')}/seed-{seed}"


def count_items(run: Store) -> int:
    """V."""
    return int(run.read_table("data", "items.parquet", columns=["item_idx"]).num_rows)


def read_item_text(run: Store) -> Tensor:
    """item_text_VE from ``text/items.parquet``, float32."""
    column = run.read_table("text", "items.parquet", columns=["embedding"])["embedding"]
    flat = pc.list_flatten(column).to_numpy().astype(np.float32)
    return torch.from_numpy(flat).reshape(len(column), -1)


def new_model(run: Store, config: RunConfig, model: str) -> Recommender:
    """An untrained model for this run's catalogue; its weights come from torch's global generator."""
    return build_model(
        model,
        count_items(run),
        config.model,
        config.neighbours,
        [view.anchor for view in config.perspectives.views],
        read_item_text(run) if needs_text_table(model) else None,
        config.memory,
    )


def save_model(
    store: Store,
    config: RunConfig,
    model: str,
    seed: int,
    n_items: int,
    weights: Tensors,
    history: list[Record],
    best_epoch: int,
) -> None:
    """Write the three files of a trained model.

    Parameters
    ----------
    store
        A stage's store, or the run.
    config, model, seed, n_items
        What was trained, on a catalogue of how many items.
    weights
        State dict.
    history
        A record an epoch.
    best_epoch
        The epoch of these weights.
    """
    folder = model_folder(model, seed)
    views = config.perspectives.views if is_llm4sbr(model) else ()
    projection = weights.get("network.text_projection.weight", weights.get("text_projection.weight"))  # D x E
    description = {
        "name": model,
        "seed": seed,
        "n_items": n_items,
        "model": config.model.model_dump(mode="json"),
        "neighbours": config.neighbours.model_dump(mode="json"),
        "memory": config.memory.model_dump(mode="json") if has_memory(model) else None,
        "perspectives": [{"name": view.name, "anchor": view.anchor} for view in views],
        "text_width": None if projection is None else projection.shape[1],
        "best_epoch": best_epoch,
    }
    store.write_bytes(save({k: v.contiguous() for k, v in weights.items()}), folder, WEIGHTS)
    store.write_json(history, folder, HISTORY)
    store.write_json(description, folder, DESCRIPTION)


def load_model(run: Store, model: str, seed: int) -> Recommender:
    """A trained model in eval mode, on the CPU.

    Raises
    ------
    UserError
        It has not been trained, or the run's texts have another width than those it was trained with.
    """
    folder = model_folder(model, seed)
    if not run.exists(folder, DESCRIPTION):
        raise UserError(f"{run.uri(folder)}: no trained model there: run the train stage (jobs/train.py) first")
    description = run.read_json(folder, DESCRIPTION)
    item_text_VE = read_item_text(run) if needs_text_table(model) else None
    if item_text_VE is not None and description["text_width"] not in (None, item_text_VE.shape[1]):
        raise UserError(
            f"{run.uri('text/items.parquet')}: embeddings of width {item_text_VE.shape[1]}, {model!r} was "
            f"trained with {description['text_width']}: run the train stage again"
        )
    built = build_model(
        description["name"],
        description["n_items"],
        ModelConfig(**description["model"]),
        Neighbours(**description["neighbours"]),
        [view["anchor"] for view in description["perspectives"]],
        item_text_VE,
        MemoryConfig(**(description.get("memory") or {})),
    )
    built.load_state_dict(load(run.read_bytes(folder, WEIGHTS)))
    return built.eval()
