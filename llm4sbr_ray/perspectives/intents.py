"""The stages "text" and "intents": item texts and answers encoded, answers tied to catalogue items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray

from llm4sbr_ray.artifacts import Facts, Run, Stage, Store
from llm4sbr_ray.config import Candidates, Perspectives, Text
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives import relational
from llm4sbr_ray.perspectives.engine import HELPER_CPUS, uses_gpu
from llm4sbr_ray.perspectives.item_level import embeddings, item_answers, list_column, write_intents
from llm4sbr_ray.perspectives.localisation import FloatArray, localise
from llm4sbr_ray.perspectives.outputs import readable, shown_titles
from llm4sbr_ray.perspectives.prompts import UNTITLED
from llm4sbr_ray.perspectives.text_encoder import TextEncoder

ENCODER_CPUS = 1.0
BLOCK_ROWS = 4096


def encode_items(run: Run) -> bool:
    """Stage "text": ``text/items.parquet`` with one embedding an item."""

    def body(stage: Stage) -> Facts:
        table = encode(item_texts(run, run.config.text.columns), run.config.text)
        stage.store.write_table(table, "text", "items.parquet")
        return {"rows": len(table), "model": run.config.text.model}

    return run.stage("text", outputs=["text"], settings=_settings(run.config.text), after=["ingest"], body=body)


def _settings(text: Text) -> dict[str, Any]:
    """Without `columns` where there are none: what was encoded before there was this setting counts as done."""
    return text.model_dump(exclude={"localisation", "actors", "device"} | (set() if text.columns else {"columns"}))


def encoder_pool(text: Text) -> dict[str, Any]:
    """How many actors of the text encoder there are and what each takes, as arguments of `map_batches`."""
    pool = ray.data.ActorPoolStrategy(min_size=text.actors[0], max_size=text.actors[1])
    return {"num_cpus": ENCODER_CPUS, "num_gpus": int(uses_gpu(text)), "compute": pool}


def encode(texts: pa.Table, config: Text) -> pa.Table:
    """(item_idx, text) of every item -> (item_idx, embedding), in the order of item_idx."""
    blocks = [texts.slice(start, BLOCK_ROWS) for start in range(0, len(texts), BLOCK_ROWS)]
    encoded = ray.data.from_arrow(blocks).map_batches(
        EncodeItems,
        fn_constructor_args=(config,),
        batch_format="pyarrow",
        batch_size=1024,
        **encoder_pool(config),
    )
    return pa.concat_tables(encoded.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by("item_idx")


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


def exact_titles(catalogue: Store, perspectives: Perspectives) -> dict[str, int]:
    """Item by what an answer calls it: its line as prompts show it, or its title alone; of equal ones the first."""
    found: dict[str, int] = {}
    for fields in (("title",), ("title", "attributes")):  # a line goes before another item's title
        lines = shown_titles(catalogue, perspectives, fields)
        found |= {line.casefold(): item for item, line in reversed(list(enumerate(lines))) if line != UNTITLED}
    return found


def item_embeddings(run: Store) -> FloatArray:
    """V x E from ``text/items.parquet``, in the order of item_idx."""
    return embeddings(run.read_table("text", "items.parquet"))


def localise_answers(run: Run) -> bool:
    """Stage "intents": ``intents/<name>/`` and the samples joined with all perspectives, ``intents/samples/``."""
    config, text = run.config.perspectives, run.config.text
    settings: list[Any] = [_settings(text), [view.name for view in config.views]]
    if text.localisation != "nearest":
        settings.append(text.localisation)
    if item_level := [(view.name, view.anchor) for view in config.views if view.level == "item"]:
        settings.append(item_level)
    return run.stage(
        "intents",
        outputs=["intents"],
        settings=settings,
        after=["ingest", "text", "perspectives"],
        body=_body,
    )


def _body(stage: Stage) -> Facts:
    run, text = stage.run, stage.run.config.text
    views = run.config.perspectives.views
    names = [view.name for view in views]
    work = stage.store.below("work")
    work.delete("")
    database = relational.connect()
    for name in names:
        database.register(f"view_{names.index(name)}", relational.dataset(run, "perspectives", name))
    union = " UNION ".join(
        f"SELECT DISTINCT answer FROM view_{i} WHERE error IS NULL"
        for i, view in enumerate(views)
        if view.level == "session"
    )
    answers = database.sql(union or "SELECT answer FROM view_0 WHERE false")
    unique = relational.copy_to(answers, work, "answers", pa.schema([("answer", pa.string())]))
    r = min(text.localised_items, run.read_table("data", "items.parquet", columns=["item_idx"]).num_rows)
    if unique:
        ray.data.read_parquet(
            work.uri("answers"), num_cpus=HELPER_CPUS, override_num_blocks=len(work.files("answers"))
        ).map_batches(
            Localise,
            fn_constructor_args=(run.uri(), run.config.perspectives, text),
            batch_format="pyarrow",
            batch_size=1024,
            **encoder_pool(text),
        ).write_parquet(work.path("localised"), filesystem=work.fs, ray_remote_args={"num_cpus": HELPER_CPUS})
        database.register("localised", relational.dataset(work, "localised"))
    else:  # every prompt failed and max_error_rate allowed it
        database.register("localised", Localise.schema().empty_table())
    items_VE = item_embeddings(run)
    width = items_VE.shape[1]
    vectors = {"item": pa.array(range(len(items_VE)), pa.int32()), "embedding": list_column(items_VE)}
    database.register("item_vectors", pa.table(vectors))
    facts = {}
    for i, name in enumerate(names):
        if views[i].level == "item":
            item_vectors = encode(item_answers(run, name), text)
            here = work.below("item-level", name)
            here.write_table(item_vectors, "vectors.parquet")
            write_intents(run, views[i], here.uri(), here.below("intents"))
            database.register(f"intent_{i}", relational.dataset(here, "intents"))
            query = database.sql(f"SELECT {', '.join(INTENT_SCHEMA.names)} FROM intent_{i} ORDER BY position")
            rows = relational.copy_to(query, stage.store, f"intents/{name}", INTENT_SCHEMA)
            ((grounded,),) = database.sql(f"SELECT avg(grounded::INT) FROM intent_{i}").fetchall()
            answered = int(np.count_nonzero(embeddings(item_vectors).any(axis=1)))
            facts[name] = {"rows": rows, "items_answered": answered, "grounded_rate": round(grounded, 4)}
            continue
        if isinstance(views[i].output, Candidates):
            _of_chosen(database, i, r)
            vector = "item_vectors e ON t.answered AND e.item = t.item_idx[1]"
        else:
            _of_nearest(database, i, r)
            vector = "localised e ON t.answer = e.answer"
        query = database.sql(
            f"SELECT t.sample_key, t.item_idx, t.weight, t.grounded, t.exact_title, t.cosine, "
            f"coalesce(e.embedding, [0.0 FOR _ IN range({width})]) AS embedding "
            f"FROM intent_{i} t LEFT JOIN {vector} ORDER BY t.position"
        )
        rows = relational.copy_to(query, stage.store, f"intents/{name}", INTENT_SCHEMA)
        facts[name] = {"rows": rows} | _hallucination(database, f"intent_{i}")
    rows = sum(_join_samples(stage, database, split, len(names)) for split in run.config.perspectives.splits)
    stage.store.delete("work")
    return {"rows": rows, "answers": unique, "perspectives": facts}


def _of_nearest(database: Any, i: int, r: int) -> None:
    """The table intent_<i>: a sample's answer, and the items that it was localised to."""
    database.execute(
        f"CREATE OR REPLACE TABLE intent_{i} AS SELECT v.position, v.split, v.sample_key, "
        f"coalesce(l.item_idx, [0 FOR _ IN range({r})]) AS item_idx, "
        f"coalesce(l.weight, [0.0 FOR _ IN range({r})]) AS weight, "
        "coalesce(l.grounded, false) AS grounded, coalesce(l.exact_title, false) AS exact_title, l.cosine, "
        f"v.answer, v.error IS NULL AS answered FROM view_{i} v "
        "LEFT JOIN localised l ON v.answer = l.answer AND v.error IS NULL"
    )


def _of_chosen(database: Any, i: int, r: int) -> None:
    """The same where the answer names one of the sample's candidates: that item has the whole weight."""
    database.execute(
        f"CREATE OR REPLACE TABLE intent_{i} AS SELECT v.position, v.split, v.sample_key, "
        f"CASE WHEN v.item IS NULL THEN [0 FOR _ IN range({r})] "
        f"ELSE ([v.item] || [x FOR x IN l.item_idx IF x <> v.item])[1:{r}] END AS item_idx, "
        f"[(v.item IS NOT NULL AND n = 0)::INT::DOUBLE FOR n IN range({r})] AS weight, "
        "v.item IS NOT NULL AS grounded, v.item IS NOT NULL AS exact_title, l.cosine, "
        f"v.answer, v.error IS NULL AS answered FROM view_{i} v "
        "LEFT JOIN localised l ON v.answer = l.answer AND v.error IS NULL"
    )


def _hallucination(database: Any, intents: str) -> dict[str, Any]:
    """How far answers are from the catalogue: shares of the samples that have one; exact + near + far = 1."""
    ((answers, exact, grounded, near),) = database.sql(
        "SELECT count(*), coalesce(avg(exact_title::INT), 0), coalesce(avg(grounded::INT), 0), "
        f"coalesce(avg((grounded AND NOT exact_title)::INT), 0) FROM {intents} WHERE answered"
    ).fetchall()
    return {
        "answers": answers,
        "exact_title_rate": round(exact, 4),  # a catalogue title, letter by letter but for case
        "grounded_rate": round(grounded, 4),
        "near_rate": round(near, 4),  # another text, close enough to an item
        "far_rate": round(1 - exact - near if answers else 0.0, 4),  # neither: ungrounded
    }


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
        # Of items with the same title, the first.
        self.titles = exact_titles(store.below("data"), perspectives)
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
        answers = [readable(answer) for answer in cast("list[str]", batch["answer"].to_pylist())]
        named_N = np.array([self.titles.get(answer.casefold(), -1) for answer in answers], np.int32)
        found = localise(
            self.encoder.encode(answers),
            self.items_VE,
            self.text.localised_items,
            self.text.min_cosine,
            exact_N=named_N if self.text.localisation == "exact_first" else None,
        )
        return pa.table(
            {
                "answer": batch["answer"].combine_chunks(),
                "item_idx": list_column(found.item_NR).cast(pa.list_(pa.int32())),
                "weight": list_column(found.weight_NR),
                "embedding": list_column(found.vector_NE),
                "cosine": pa.array(found.cosine_N),
                "grounded": pa.array(found.grounded_N),
                "exact_title": pa.array(named_N >= 0),
            },
            schema=self.schema(),
        )
