"""The stages "text" and "intents": item texts and answers encoded, answers tied to catalogue items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from llm4sbr_ray.artifacts import Facts, Run, Stage, Store
from llm4sbr_ray.config import Perspectives, Text
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives import relational
from llm4sbr_ray.perspectives.engine import HELPER_CPUS
from llm4sbr_ray.perspectives.localisation import FloatArray, localise
from llm4sbr_ray.perspectives.outputs import readable, shown_titles
from llm4sbr_ray.perspectives.text_encoder import TextEncoder

ENCODER_CPUS = 1.0
BLOCK_ROWS = 4096


def encode_items(run: Run) -> bool:
    """Stage "text": ``text/items.parquet`` with one embedding an item."""

    def body(stage: Stage) -> Facts:
        items = item_texts(run, run.config.text.columns)
        blocks = [items.slice(start, BLOCK_ROWS) for start in range(0, len(items), BLOCK_ROWS)]
        encoded = ray.data.from_arrow(blocks).map_batches(
            EncodeItems,
            fn_constructor_args=(run.config.text,),
            batch_format="pyarrow",
            batch_size=1024,
            num_cpus=ENCODER_CPUS,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        table = pa.concat_tables(encoded.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by("item_idx")
        stage.store.write_table(table, "text", "items.parquet")
        return {"rows": len(table), "model": run.config.text.model}

    return run.stage("text", outputs=["text"], settings=_settings(run.config.text), after=["ingest"], body=body)


def _settings(text: Text) -> dict[str, Any]:
    """Without `columns` where there are none: what was encoded before there was this setting counts as done."""
    return text.model_dump(exclude=set() if text.columns else {"columns"})


def item_texts(run: Store, columns: Sequence[str]) -> pa.Table:
    """item_idx and text of every item: title and attributes, then the texts of these columns.

    Raises
    ------
    UserError
        The catalogue has no such column of texts.
    """
    items = run.read_table("data", "items.parquet")
    for name in columns:
        if name not in items.column_names or not pa.types.is_string(items[name].type):
            texts = [field.name for field in items.schema if pa.types.is_string(field.type)]
            raise UserError(f"text.columns: {name!r} is no text column of the catalogue: those are {', '.join(texts)}")
    rows = zip(*(items[name].to_pylist() for name in ("text", *columns)), strict=True)
    text = pa.array([" ".join(filter(None, row)) for row in rows], pa.string())
    return items.select(["item_idx"]).append_column("text", text)


class EncodeItems:
    """Ray Data actor: (item_idx, text) -> (item_idx, embedding)."""

    def __init__(self, config: Text) -> None:
        self.encoder = TextEncoder(config, threads=2)

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts: list[Any] = batch["text"].to_pylist()
        return batch.select(["item_idx"]).append_column("embedding", list_column(self.encoder.encode(texts)))


def item_embeddings(run: Store) -> FloatArray:
    """V x E from ``text/items.parquet``, in the order of item_idx."""
    table = run.read_table("text", "items.parquet")
    flat = pc.list_flatten(table["embedding"]).to_numpy()
    return np.ascontiguousarray(flat.reshape(len(table), -1), dtype=np.float32)


def list_column(array_NE: npt.NDArray[Any]) -> pa.Array[Any]:
    """A matrix as an Arrow column of lists, a row each."""
    n, e = array_NE.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(0, n * e + 1, e), pa.int32()), pa.array(array_NE.ravel()))


def localise_answers(run: Run) -> bool:
    """Stage "intents": ``intents/<name>/`` and the samples joined with all perspectives, ``intents/samples/``."""
    names = [view.name for view in run.config.perspectives.views]
    return run.stage(
        "intents",
        outputs=["intents"],
        settings=[_settings(run.config.text), names],
        after=["ingest", "text", "perspectives"],
        body=_body,
    )


def _body(stage: Stage) -> Facts:
    run, text = stage.run, stage.run.config.text
    names = [view.name for view in run.config.perspectives.views]
    work = stage.store.below("work")
    work.delete("answers")
    work.delete("localised")
    database = relational.connect()
    for name in names:
        database.register(f"view_{names.index(name)}", relational.dataset(run, "perspectives", name))
    union = " UNION ".join(f"SELECT answer FROM view_{i} WHERE error IS NULL" for i in range(len(names)))
    unique = relational.copy_to(database.sql(union), work, "answers", pa.schema([("answer", pa.string())]))
    r = min(text.localised_items, run.read_table("data", "items.parquet", columns=["item_idx"]).num_rows)
    if unique:
        ray.data.read_parquet(
            work.uri("answers"), num_cpus=HELPER_CPUS, override_num_blocks=len(work.files("answers"))
        ).map_batches(
            Localise,
            fn_constructor_args=(run.uri(), run.config.perspectives, text),
            batch_format="pyarrow",
            batch_size=1024,
            num_cpus=ENCODER_CPUS,
            compute=ray.data.ActorPoolStrategy(size=1),
        ).write_parquet(work.uri("localised"), ray_remote_args={"num_cpus": HELPER_CPUS})
        database.register("localised", relational.dataset(work, "localised"))
    else:  # every prompt failed and max_error_rate allowed it
        database.register("localised", Localise.schema().empty_table())
    width = item_embeddings(run).shape[1]
    facts = {}
    for i, name in enumerate(names):
        database.execute(
            f"CREATE OR REPLACE TABLE intent_{i} AS SELECT v.position, v.split, v.sample_key, "
            f"coalesce(l.item_idx, [0 FOR _ IN range({r})]) AS item_idx, "
            f"coalesce(l.weight, [0.0 FOR _ IN range({r})]) AS weight, "
            "coalesce(l.grounded, false) AS grounded, coalesce(l.exact_title, false) AS exact_title, l.cosine, "
            f"v.answer FROM view_{i} v LEFT JOIN localised l ON v.answer = l.answer AND v.error IS NULL"
        )
        query = database.sql(
            f"SELECT t.sample_key, t.item_idx, t.weight, t.grounded, t.exact_title, t.cosine, "
            f"coalesce(l.embedding, [0.0 FOR _ IN range({width})]) AS embedding "
            f"FROM intent_{i} t LEFT JOIN localised l USING (answer) ORDER BY t.position"
        )
        rows = relational.copy_to(query, stage.store, f"intents/{name}", INTENT_SCHEMA)
        ((exact, grounded),) = database.sql(
            f"SELECT avg(exact_title::INT), avg(grounded::INT) FROM intent_{i}"
        ).fetchall()
        facts[name] = {"rows": rows, "exact_title_rate": round(exact, 4), "grounded_rate": round(grounded, 4)}
    rows = sum(_join_samples(stage, database, split, len(names)) for split in run.config.perspectives.splits)
    stage.store.delete("work")
    return {"rows": rows, "answers": unique, "perspectives": facts}


INTENT_SCHEMA = pa.schema(
    [
        pa.field("sample_key", pa.string()),
        pa.field("item_idx", pa.list_(pa.int32())),
        pa.field("weight", pa.list_(pa.float32())),
        pa.field("grounded", pa.bool_()),
        pa.field("exact_title", pa.bool_()),
        pa.field("cosine", pa.float32()),
        pa.field("embedding", pa.list_(pa.float16())),
    ]
)


def _join_samples(stage: Stage, database: Any, split: str, views: int) -> int:
    """``intents/samples/<split>/``: the samples with the intents of all perspectives, in the samples' order."""
    folder = stage.run.below("data", split)
    schema = relational.dataset(folder).schema
    for field in (
        pa.field("intent_items", pa.list_(pa.int32())),
        pa.field("intent_weights", pa.list_(pa.float32())),
        pa.field("grounded", pa.list_(pa.bool_())),
    ):
        schema = schema.append(field)
    database.register("samples", relational.dataset(folder))
    lists = {
        "intent_items": " || ".join(f"i{n}.item_idx" for n in range(views)),
        "intent_weights": " || ".join(f"i{n}.weight" for n in range(views)),
        "grounded": "[" + ", ".join(f"i{n}.grounded" for n in range(views)) + "]",
    }
    joins = " ".join(f"JOIN intent_{n} i{n} USING (sample_key)" for n in range(views))
    chosen = ", ".join(f"{value} AS {name}" for name, value in lists.items())
    query = database.sql(f"SELECT s.*, {chosen} FROM samples s {joins} ORDER BY i0.position")
    return relational.copy_to(query, stage.store, f"intents/samples/{split}", schema)


class Localise:
    """Ray Data actor: distinct answers -> their items."""

    def __init__(self, run: str, perspectives: Perspectives, text: Text) -> None:
        store = Store(run)
        self.items_VE = item_embeddings(store)
        self.titles = frozenset(title.casefold() for title in shown_titles(store.below("data"), perspectives))
        self.text, self.encoder = text, TextEncoder(text, threads=2)

    @staticmethod
    def schema() -> pa.Schema:
        return pa.schema(
            [
                pa.field("answer", pa.string()),
                pa.field("item_idx", pa.list_(pa.int32())),
                pa.field("weight", pa.list_(pa.float32())),
                pa.field("embedding", pa.list_(pa.float32())),
                pa.field("cosine", pa.float32()),
                pa.field("grounded", pa.bool_()),
                pa.field("exact_title", pa.bool_()),
            ]
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        answers: list[Any] = batch["answer"].to_pylist()
        found = localise(
            self.encoder.encode([readable(answer) for answer in answers]),
            self.items_VE,
            self.text.localised_items,
            self.text.min_cosine,
        )
        return pa.table(
            {
                "answer": batch["answer"].combine_chunks(),
                "item_idx": list_column(found.item_NR).cast(pa.list_(pa.int32())),
                "weight": list_column(found.weight_NR),
                "embedding": list_column(found.vector_NE),
                "cosine": pa.array(found.cosine_N),
                "grounded": pa.array(found.grounded_N),
                "exact_title": pa.array([answer.casefold() in self.titles for answer in answers]),
            },
            schema=self.schema(),
        )
