"""A run directory as ingest and the LLM stages leave it, with a rule to learn: f(j) follows item j."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import RunConfig

N_ITEMS, TEXT_WIDTH, LOCALISED = 60, 8, 3


def planted_config(storage: str, **train: object) -> RunConfig:
    """A small run; `train` are settings of `config.train`."""
    return RunConfig.model_validate(
        {
            "name": "planted",
            "storage": storage,
            "data": {"source": "demo"},
            "model": {"width": 16, "max_length": 6, "dropout": 0.1},
            "text": {"localised_items": LOCALISED},
            "train": {
                "workers": 0,
                "seeds": [0],
                "epochs": 3,
                "batch_size": 32,
                "learning_rate": 1e-2,
                **train,
            },
        }
    )


def planted_run(config: RunConfig, sessions: int = 150) -> Run:
    """Write the outputs of "ingest", "text" and "intents", and their entries in the manifest."""
    run = Run(config)
    rng = np.random.default_rng(7)
    follows = rng.permutation(N_ITEMS)
    text = rng.normal(size=(N_ITEMS, TEXT_WIDTH)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    index = pa.array(np.arange(N_ITEMS), pa.int32())
    embedding = pa.array(text.tolist(), pa.list_(pa.float32()))

    def ingest(stage):  # type: ignore[no-untyped-def]
        stage.store.write_table(pa.table({"item_idx": index}), "data", "items.parquet")
        for split, count in (("train", sessions), ("valid", sessions // 5), ("test", sessions // 5)):
            rows = _samples(rng, follows, split, count)
            half = len(rows) // 3  # several files, of different sizes
            for part, table in enumerate((rows.slice(0, half), rows.slice(half))):
                stage.store.write_table(table, "data", split, f"part-{part:05}.parquet")
        return {"rows": sessions}

    def texts(stage):  # type: ignore[no-untyped-def]
        stage.store.write_table(pa.table({"item_idx": index, "embedding": embedding}), "text", "items.parquet")
        return {"rows": N_ITEMS}

    def intents(stage):  # type: ignore[no-untyped-def]
        for split in ("train", "valid", "test"):
            for path in run.files("data", split, suffix=".parquet"):
                rows = run.read_table(path.removeprefix(run.root + "/"))
                stage.store.write_table(_with_intents(rng, rows), "intents", "samples", split, path.rsplit("/")[-1])
        return {"rows": sessions}

    run.stage("ingest", outputs=["data"], settings=sessions, body=ingest)
    run.stage("text", outputs=["text"], settings=0, after=["ingest"], body=texts)
    run.stage("intents", outputs=["intents"], settings=0, after=["ingest", "text"], body=intents)
    return run


def _samples(rng: np.random.Generator, follows: np.ndarray, split: str, sessions: int) -> pa.Table:
    rows = []
    for s in range(sessions):
        clicks = [int(rng.integers(N_ITEMS))]
        for _ in range(int(rng.integers(1, 8))):
            clicks.append(int(follows[clicks[-1]]))
        for n in range(1, len(clicks)):
            key, last = f"{split}{s}:{n}", n == len(clicks) - 1
            rows.append((key, f"{split}{s}", clicks[:n], clicks[n], last))
    names = ["sample_key", "session_id", "items", "target", "is_last"]
    types = [pa.string(), pa.string(), pa.list_(pa.int32()), pa.int32(), pa.bool_()]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    return pa.table(dict(zip(names, columns, strict=True)))


def _with_intents(rng: np.random.Generator, rows: pa.Table) -> pa.Table:
    n, answers = len(rows), 2  # the default perspectives
    items = rng.integers(N_ITEMS, size=(n, answers * LOCALISED))
    items[:, 0] = rows["target"].to_numpy()
    grounded = rng.random((n, answers)) < 0.8
    weights = np.repeat(grounded, LOCALISED, axis=1) / LOCALISED
    return (
        rows.append_column("intent_items", pa.array(items.tolist(), pa.list_(pa.int32())))
        .append_column("intent_weights", pa.array(weights.tolist(), pa.list_(pa.float32())))
        .append_column("grounded", pa.array(grounded.tolist(), pa.list_(pa.bool_())))
    )
