"""Synthetic bundles for `benchmarks/serving.py`: a model of random weights over a catalogue of any size.

Random weights cost what trained ones cost, and are the hardest case for an index: the items have no clusters.
Clicks follow a Zipf law; every fifth session of the load is one whose intents the cache knows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import LONG_TERM, SHORT_TERM, ModelConfig, Neighbours
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.serving.bundle import PerspectiveRecord, write_bundle
from llm4sbr_ray.serving.cache import KEY_BYTES, session_key

MODEL, E, R = "srgnn+llm4sbr", 384, 5
MEAN_CLICKS, MAX_CLICKS = 9, 50  # as in Amazon Beauty
SESSIONS = 5000
KNOWN = 5  # every so many sessions are in the cache


def sessions(V: int) -> list[list[int]]:
    """The sessions of the load, the same for every call."""
    rng = np.random.default_rng(1)
    lengths = rng.geometric(1 / MEAN_CLICKS, size=SESSIONS).clip(1, MAX_CLICKS)
    return [((rng.zipf(1.2, size=n) * 7919) % V).tolist() for n in lengths]


def write_synthetic(folder: Path, V: int) -> None:
    """A bundle of V items at the default width (100)."""
    if (folder / "bundle.json").exists():
        return
    torch.manual_seed(0)
    views = (LONG_TERM, SHORT_TERM)
    text_VE = F.normalize(torch.randn(V, E), dim=1)
    settings = ModelConfig()
    model = build_model(MODEL, V, settings, Neighbours(), [view.anchor for view in views], text_VE)
    with torch.no_grad():
        model.backbone.item_embedding.weight[:-1].normal_(0, 1)  # type: ignore[operator, index, union-attr]
    known = sessions(V)[::KNOWN]
    rng = np.random.default_rng(2)
    size = (len(known), len(views) * R)
    intents = {
        "key": pa.array([session_key(session) for session in known], pa.binary(KEY_BYTES)),
        "intent_items": pa.array(rng.integers(0, V, size=size).tolist(), pa.list_(pa.int32())),
        "intent_weights": pa.array(np.full(size, 1 / R).tolist(), pa.list_(pa.float32())),
        "grounded": pa.array([[True] * len(views)] * len(known), pa.list_(pa.bool_())),
    }
    items = {
        "item_idx": pa.array(range(V), pa.int32()),
        "item_id": [f"item-{j:07d}" for j in range(V)],
        "title": [f"Rose and lavender hand soap with shea butter, number {j}" for j in range(V)],
        "train_count": pa.array(rng.integers(1, 1000, size=V), pa.int32()),
    }
    write_bundle(
        Store(str(folder)),
        weights=save(dict(model.state_dict())),
        item_text_VE=text_VE,
        items=pa.table(items),
        intents=pa.table(intents),
        run=f"synthetic-{V}",
        model=MODEL,
        settings=settings,
        perspectives=tuple(PerspectiveRecord(name=v.name, anchor=v.anchor) for v in views),
        localised_items=R,
    )


def bodies(bundle: Path, explain: bool = True) -> bytes:
    """Request bodies of the load over a bundle's catalogue, one a line."""
    ids: list[Any] = pq.read_table(bundle / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
    return b"\n".join(
        json.dumps({"session_id": f"s{n}", "items": [ids[j] for j in session], "k": 20, "explain": explain}).encode()
        for n, session in enumerate(sessions(len(ids)))
    )
