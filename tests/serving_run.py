"""A small run with a real LLM4SBR model of random weights, all its stages committed: for service tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from llm4sbr_ray.artifacts import Facts, Run, Stage
from llm4sbr_ray.config import RunConfig
from llm4sbr_ray.models.base import Intents
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.training.load import save_model

V, E, R, P = 60, 12, 3, 2
MODEL = "srgnn+llm4sbr"
EVIL_TITLE = "<script>document.title='owned'</script>"


def run_config(storage: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "name": "planted",
        "storage": str(storage),
        "data": {"source": "demo"},
        "model": {"width": 16, "max_length": 8},
        "text": {"localised_items": R},
        "train": {"models": ("popularity", MODEL), "seeds": (0, 1)},
    }
    return RunConfig(**(settings | changes))


def items_table() -> pa.Table:
    """60 items; item 3 has no title, item 4 a hostile one; item 7 was clicked most."""
    titles: list[str | None] = [f"Soap number {j}" for j in range(V)]
    titles[3], titles[4] = None, EVIL_TITLE
    counts = [5] * V
    counts[7] = 50
    return pa.table(
        {
            "item_idx": pa.array(range(V), pa.int32()),
            "item_id": [f"id-{j}" for j in range(V)],
            "title": pa.array(titles, pa.string()),
            "train_count": pa.array(counts, pa.int32()),
        }
    )


def text_table() -> torch.Tensor:
    """Unit rows; item 3 has no text."""
    text_VE = torch.nn.functional.normalize(torch.randn(V, E, generator=torch.Generator().manual_seed(1)), dim=1)
    text_VE[3] = 0
    return text_VE


def planted_model(config: RunConfig) -> LLM4SBR:
    """Random weights, large enough that no two scores come close."""
    torch.manual_seed(0)
    anchors = [view.anchor for view in config.perspectives.views]
    model = build_model(MODEL, V, config.model, config.neighbours, anchors, text_table())
    assert isinstance(model, LLM4SBR)
    with torch.no_grad():
        model.backbone.item_embedding.weight[:-1].normal_(0, 1)
    return model.eval()


def samples_table(seed: int, rows: int) -> pa.Table:
    """Random sessions of 1 to 12 clicks with intents; a third of the answers is ungrounded."""
    rng = np.random.default_rng(seed)
    sessions = [rng.choice(V, size=int(rng.integers(1, 13)), replace=False).tolist() for _ in range(rows)]
    items = rng.integers(0, V, size=(rows, P, R))
    weights = rng.random((rows, P, R)) + 0.1
    grounded = rng.random((rows, P)) < 2 / 3
    weights = weights / weights.sum(2, keepdims=True) * grounded[..., None]
    return pa.table(
        {
            "sample_key": [f"s{seed}-{n}:{len(s)}" for n, s in enumerate(sessions)],
            "session_id": [f"s{seed}-{n}" for n in range(rows)],
            "items": pa.array(sessions, pa.list_(pa.int32())),
            "target": pa.array(rng.integers(0, V, size=rows), pa.int32()),
            "is_last": [True] * rows,
            "intent_items": pa.array(items.reshape(rows, -1).tolist(), pa.list_(pa.int32())),
            "intent_weights": pa.array(weights.reshape(rows, -1).tolist(), pa.list_(pa.float32())),
            "grounded": pa.array(grounded.tolist(), pa.list_(pa.bool_())),
        }
    )


def intents_of(rows: list[dict[str, Any]]) -> Intents:
    """The intents of rows of a samples table as a batch."""
    return Intents(
        torch.tensor([row["intent_items"] for row in rows]).view(-1, P, R),
        torch.tensor([row["intent_weights"] for row in rows]).view(-1, P, R),
        torch.tensor([row["grounded"] for row in rows]),
    )


def planted_run(storage: Path, **changes: Any) -> Run:
    """All stages before the export, committed."""
    run = Run(run_config(storage, **changes))
    splits = {"train": samples_table(1, 40), "valid": samples_table(2, 20), "test": samples_table(3, 60)}

    def ingest(stage: Stage) -> Facts:
        stage.store.write_table(items_table(), "data/items.parquet")
        for split, table in splits.items():
            plain = table.drop_columns(["intent_items", "intent_weights", "grounded"])
            stage.store.write_table(plain, f"data/{split}/part-0.parquet")
        return {"rows": V}

    def intents(stage: Stage) -> Facts:
        for split, table in splits.items():
            half = table.num_rows // 2
            stage.store.write_table(table.slice(0, half), f"intents/samples/{split}/part-0.parquet")
            stage.store.write_table(table.slice(half), f"intents/samples/{split}/part-1.parquet")
        embedding = pa.array(text_table().tolist(), pa.list_(pa.float32()))
        table = pa.table({"item_idx": pa.array(range(V), pa.int32()), "embedding": embedding})
        stage.store.write_table(table, "text/items.parquet")
        return {"rows": V}

    def train(stage: Stage) -> Facts:
        weights = planted_model(run.config).state_dict()
        save_model(stage.store, run.config, MODEL, 0, V, weights, [], best_epoch=1)
        return {"rows": 1}

    run.stage("ingest", outputs=["data"], settings={}, body=ingest)
    run.stage("intents", outputs=["intents", "text"], settings={}, body=intents, after=["ingest"])
    name = f"train/{MODEL}/seed-0"
    run.stage(name, outputs=[name], settings={}, body=train, after=["intents"])
    return run
