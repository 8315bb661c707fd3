"""The answer store: what an LLM has answered once, for all runs on one storage.

    <storage>/answers/<hash of the model's identity>/<unique name>.parquet      rows of `STORED_SCHEMA`

Looked up by `prompts.prompt_key`, which covers model, sampling and prompt. Files are written under names of their own
and never rewritten, so several drivers may add at once; where two answered one key, either row serves.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.config import Perspectives
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives import relational

FOLDER = "answers"
_FIELDS: list[pa.Field[Any]] = [
    pa.field("prompt_key", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("generated_tokens", pa.int32()),
]
STORED_SCHEMA = pa.schema(_FIELDS)


def engine_identity(model: str, config: Perspectives) -> str:
    """The model as keys know it: its identity, and those engine settings that change what it answers.

    With default settings it is `model` itself.
    """
    engine, default = config.engine, Perspectives()
    changed: dict[str, Any] = {
        name: getattr(engine, name)
        for name in ("dtype", "quantization", "engine_kwargs")
        if getattr(engine, name) != getattr(default.engine, name)
    }
    if config.chat_template_kwargs != default.chat_template_kwargs:
        changed["chat_template_kwargs"] = config.chat_template_kwargs
    return model + (" " + json.dumps(changed, sort_keys=True) if changed else "")


def open_store(run: Run, identity: str) -> Store | None:
    """The folder of one model's answers; None where `perspectives.store` is false.

    Raises
    ------
    UserError
        The run has the name of the folder that all runs share.
    """
    setting = run.config.perspectives.store
    if setting is False:
        return None
    if setting is True and run.config.name == FOLDER:
        raise UserError(f"name: {FOLDER!r} is the folder of the shared answer store: give the run another name")
    base = Store(run.config.storage).below(FOLDER) if setting is True else Store(str(setting))
    return base.below(hashlib.blake2b(identity.encode(), digest_size=8).hexdigest())


def take(prompts: Store, found: Store, store: Store | None, run: Run, folders: Sequence[str]) -> int:
    """Write to `found` the known answers to `prompts`; returns their number.

    Parameters
    ----------
    prompts
        Parquet rows with a prompt_key.
    found
        Gets rows of `STORED_SCHEMA`, one a key.
    folders
        Of the run, with answers that an earlier commit of the stage left: they are known as well, store or not.
    """
    database = relational.connect()
    sources = []
    for number, files in enumerate(_sources(store, run, folders)):
        database.register(f"source_{number}", files)
        sources.append(f"SELECT {', '.join(STORED_SCHEMA.names)} FROM source_{number} WHERE {_usable(files)}")
    if not sources:
        found.write_table(STORED_SCHEMA.empty_table(), "part-00000.parquet")
        return 0
    database.register("prompts", relational.dataset(prompts))
    query = database.sql(
        "SELECT prompt_key, unnest(any_value(struct_pack(answer, prompt_tokens, generated_tokens))) "
        f"FROM ({' UNION ALL '.join(sources)}) SEMI JOIN prompts USING (prompt_key) GROUP BY prompt_key"
    )
    return relational.copy_to(query, found, "", STORED_SCHEMA)


def add(store: Store | None, answered: Store, *folders: str) -> int:
    """Add the successful answers under `folders` of `answered` that the store lacks; returns their number."""
    paths = [path for folder in folders for path in answered.files(folder, suffix=".parquet")]
    readable = [path for path in paths if _readable(path, answered)]
    if store is None or not readable:
        return 0
    database = relational.connect()
    new = pads.dataset(readable, filesystem=answered.fs, format="parquet")
    database.register("new", new)
    stored = store.files(suffix=".parquet")
    known = pads.dataset(stored, filesystem=store.fs, format="parquet") if stored else STORED_SCHEMA.empty_table()
    database.register("known", known)
    query = database.sql(
        f"SELECT prompt_key, unnest(any_value(struct_pack(answer, prompt_tokens, generated_tokens))) FROM new "
        f"ANTI JOIN known USING (prompt_key) WHERE {_usable(new)} GROUP BY prompt_key"
    )
    aside = answered.below("to-store")
    rows = relational.copy_to(query, aside, "", STORED_SCHEMA)
    for path in aside.files(suffix=".parquet") if rows else []:
        # Whole files, so that a reader never meets a part of one.
        store.write_bytes(aside.read_bytes(posixpath.basename(path)), f"{uuid.uuid4().hex}.parquet")
    aside.delete("")
    return rows


def _sources(store: Store | None, run: Run, folders: Sequence[str]) -> list[pads.Dataset]:
    places = [run.below(folder) for folder in folders] + ([store] if store else [])
    return [relational.dataset(place) for place in places if place.files(suffix=".parquet")]


def _usable(files: pads.Dataset) -> str:
    """No errors; and no prompts that lost items to a short context: their key does not tell."""
    conditions = {"error": "error IS NULL", "shortened": "NOT shortened"}
    return " AND ".join(test for name, test in conditions.items() if name in files.schema.names) or "true"


def _readable(path: str, store: Store) -> bool:
    """Whether a Parquet file is whole: a killed writer leaves a part."""
    try:
        pq.read_metadata(path, filesystem=store.fs)
    except pa.ArrowInvalid:
        return False
    return True
