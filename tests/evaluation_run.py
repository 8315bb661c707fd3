"""A small run with every kind of model, neural ones with random weights, committed up to the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from llm4sbr_ray.artifacts import Facts, Run, Stage
from llm4sbr_ray.config import RunConfig
from llm4sbr_ray.models.build import is_count_model, is_llm4sbr
from llm4sbr_ray.models.neighbours import SessionKNN
from llm4sbr_ray.models.popularity import Popularity
from llm4sbr_ray.training.counts import train_sessions
from llm4sbr_ray.training.load import model_folder, new_model, save_model

V, E, R, TEST_SESSIONS = 60, 12, 3, 70
VIEWS = ("long-term", "short-term")
HOSTILE = "<script>document.title='owned'</script> & \"Soap\" 'n' <b>more</b>"
ID_ONLY = ("popularity", "sknn", "srgnn")
ALL_MODELS = (*ID_ONLY, "srgnn+llm4sbr")


def run_config(storage: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "name": "planted",
        "dataset": "planted shop",
        "storage": str(storage),
        "data": {"source": "demo"},
        "model": {"width": 16, "max_length": 4},
        "text": {"localised_items": R},
        "train": {"models": ALL_MODELS, "seeds": (0, 1)},
        "evaluate": {"batch_size": 64, "example_sessions": 4},
    }
    return RunConfig(**(settings | changes))


def samples_table(split: str, sessions: int, seed: int) -> pa.Table:
    """Every prefix of random sessions with repeats. Half of the clicks go to the catalogue's next item."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for s in range(sessions):
        session = [int(rng.zipf(1.6)) % V]
        for _ in range(int(rng.integers(1, 9))):
            session.append((session[-1] + 1) % V if rng.random() < 0.5 else int(rng.zipf(1.6)) % V)
        for n in range(1, len(session)):
            weight = rng.random((2, R)).astype(np.float32) + 0.1
            grounded = rng.random(2) < 0.8
            weight = weight / weight.sum(1, keepdims=True) * grounded[:, None]
            rows.append(
                {
                    "sample_key": f"{split}{s}:{n}",
                    "session_id": f"{split}{s}",
                    "items": session[:n],
                    "target": session[n],
                    "is_last": n == len(session) - 1,
                    "intent_items": rng.choice(V, 2 * R).tolist(),
                    "intent_weights": weight.ravel().tolist(),
                    "grounded": grounded.tolist(),
                }
            )
    fields = {
        "sample_key": pa.string(),
        "session_id": pa.string(),
        "items": pa.list_(pa.int32()),
        "target": pa.int32(),
        "is_last": pa.bool_(),
        "intent_items": pa.list_(pa.int32()),
        "intent_weights": pa.list_(pa.float32()),
        "grounded": pa.list_(pa.bool_()),
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(list(fields.items())))


def items_table(train: pa.Table) -> pa.Table:
    """Item 3 has no title, items 0 and 1 have hostile ones."""
    whole = train.filter(train["is_last"]).to_pylist()
    clicks = np.bincount([i for row in whole for i in (*row["items"], row["target"])], minlength=V)
    titles: list[str | None] = [f"Soap number {j}" for j in range(V)]
    titles[0], titles[1], titles[3] = HOSTILE, "A {{ 7 * 7 }} balm " + "with a very long name " * 6, None
    return pa.table(
        {
            "item_idx": pa.array(range(V), pa.int32()),
            "item_id": [f"id-{j}" for j in range(V)],
            "title": pa.array(titles, pa.string()),
            "train_count": pa.array(clicks, pa.int32()),
        }
    )


def planted_run(storage: Path, **changes: Any) -> Run:
    """All stages before the evaluation, committed; sets without an LLM have no intents."""
    run = Run(run_config(storage, **changes))
    models = run.config.train.models
    splits = {
        "train": samples_table("a", 120, 1),
        "valid": samples_table("b", 9, 2),
        "test": samples_table("c", TEST_SESSIONS, 3),
    }

    def ingest(stage: Stage) -> Facts:
        stage.store.write_table(items_table(splits["train"]), "data/items.parquet")
        for split, table in splits.items():
            plain = table.drop_columns(["intent_items", "intent_weights", "grounded"])
            half = table.num_rows // 2
            stage.store.write_table(plain.slice(0, half), f"data/{split}/part-0.parquet")
            stage.store.write_table(plain.slice(half), f"data/{split}/part-1.parquet")
        reasons = ["session has one item", "session has one item", "unknown item"]
        stage.store.write_table(pa.table({"reason": reasons}), "data/quarantine/sessions-00000.parquet")
        return {"rows": sum(map(len, splits.values()))}

    run.stage("ingest", outputs=["data"], settings={}, body=ingest)
    if any(is_llm4sbr(model) for model in models):
        _plant_intents(run, splits)
    for model in models:
        for seed in run.config.train.seeds[: 1 if is_count_model(model) else None]:
            _plant_model(run, model, seed, splits["train"])
    return run


def _plant_intents(run: Run, splits: dict[str, pa.Table]) -> None:
    def perspectives(stage: Stage) -> Facts:
        for name in VIEWS:
            parts = [
                pa.table(
                    {
                        "sample_key": table["sample_key"],
                        "answer": [f"{HOSTILE if n % 3 == 0 else 'Soap'} said by {name}" for n in range(len(table))],
                        "error": pa.array([None] * len(table), pa.string()),
                    }
                )
                for table in splits.values()
            ]
            stage.store.write_table(pa.concat_tables(parts), f"perspectives/{name}/part-0.parquet")
        figures = {
            "rows": 900,
            "errors": 2,
            "prompt_tokens": 81000,
            "generated_tokens": 5400,
            "rows_per_second": None,
        }
        return {"rows": 1800, "perspectives": dict.fromkeys(VIEWS, figures)}

    def intents(stage: Stage) -> Facts:
        for p, name in enumerate(VIEWS):
            table = pa.concat_tables(splits.values())
            grounded = [row[p] for row in table["grounded"].to_pylist()]
            exact = [g and n % 2 == 0 for n, g in enumerate(grounded)]
            columns = {"sample_key": table["sample_key"], "grounded": grounded, "exact_title": exact}
            stage.store.write_table(pa.table(columns), f"intents/{name}/part-0.parquet")
        for split, table in splits.items():
            stage.store.write_table(table, f"intents/samples/{split}/part-0.parquet")
        text_VE = torch.nn.functional.normalize(torch.randn(V, E, generator=torch.Generator().manual_seed(1)), dim=1)
        embedding = pa.array(text_VE.tolist(), pa.list_(pa.float32()))
        stage.store.write_table(pa.table({"item_idx": range(V), "embedding": embedding}), "text/items.parquet")
        figures = {"rows": 900, "exact_title_rate": 0.4, "grounded_rate": 0.8}
        return {"rows": 900, "perspectives": dict.fromkeys(VIEWS, figures)}

    run.stage("perspectives", outputs=["perspectives"], settings={}, body=perspectives, after=["ingest"])
    run.stage("intents", outputs=["intents", "text"], settings={}, body=intents, after=["perspectives"])


def _plant_model(run: Run, name: str, seed: int, train: pa.Table) -> None:
    def body(stage: Stage) -> Facts:
        torch.manual_seed(seed + 17)
        model = new_model(run, run.config, name)
        history: list[dict[str, Any]]
        if isinstance(model, Popularity | SessionKNN):
            model.fit(*train_sessions([train]))
            history = [{"epoch": 1, "seconds": 0.5, "samples_per_second": 1000.0}]
        else:
            ways = ("valid_", "valid_llm_free_") if is_llm4sbr(name) else ("valid_",)
            history = [
                {
                    "epoch": epoch,
                    "loss": (4.5 - len(name) / 10) / epoch + 0.1 * seed,
                    "seconds": 2.0,
                    "samples_per_second": 250.0,
                    **{
                        f"{way}mrr@20": 0.1 - 0.06 / epoch + 0.001 * (len(way) + len(name)) + 0.002 * seed
                        for way in ways
                    },
                }
                for epoch in range(1, 7)
            ]
        weights = dict(model.state_dict())
        save_model(stage.store, run.config, name, seed, V, weights, history, best_epoch=history[-1]["epoch"])
        return {"rows": len(train)}

    folder = model_folder(name, seed)
    run.stage(folder, outputs=[folder], settings={}, body=body, after=["ingest"])
