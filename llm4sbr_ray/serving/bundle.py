"""The bundle: one self-contained, versioned folder with all that the service needs.

    bundle.json               what it is, its version (a content hash), sha256 and size of every file
    model.safetensors         weights of the model, without the text table
    item_text.safetensors     the items' text embeddings in float32 (float16 would not rank as the report did)
    items.parquet             item_idx, item_id, title, train_count
    intents.parquet           intents of the most recent sessions: what the embedding cache starts with

A damaged bundle is refused when the service starts, with one line that names the file.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from llm4sbr_ray.artifacts import Facts, Run, Stage, Store
from llm4sbr_ray.config import MemoryConfig, ModelConfig, Neighbours, Text
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import Recommender
from llm4sbr_ray.models.build import build_model, has_memory, is_llm4sbr
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.serving.cache import KEY_BYTES, CachedIntents, session_key
from llm4sbr_ray.serving.catalogue import Catalogue
from llm4sbr_ray.training.load import DESCRIPTION

FORMAT = 2  # raised with every change that an older or newer service cannot read
MAX_INTENTS = 50_000  # sessions that the cache starts with
MODEL, TEXT, ITEMS, INTENTS = "model.safetensors", "item_text.safetensors", "items.parquet", "intents.parquet"
INTENT_COLUMNS = ["items", "intent_items", "intent_weights", "grounded"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    sha256: str
    bytes: int


class PerspectiveRecord(_Record):
    name: str
    anchor: Literal["global", "local"]


class Manifest(_Record):
    """bundle.json."""

    format: int
    version: str  # hash of everything else in here, so of every file too
    run: str
    model: str
    n_items: int
    settings: ModelConfig
    perspectives: tuple[PerspectiveRecord, ...]
    localised_items: int  # R
    memory: MemoryConfig | None = None  # of a +memory model: its parts, and their settings
    neighbours: Neighbours | None = None
    text: Text | None = None  # the encoder of the text table, for new items; None: an export that did not name it yet
    files: dict[str, FileRecord]

    def content_hash(self) -> str:
        return _content_hash(self.model_dump(mode="json"))


class Bundle:
    """An opened bundle. Every file is checked against its hash when it is read.

    Parameters
    ----------
    location
        Local path or URI of the folder.
    version
        What the bundle must be, where the caller knows: the replicas of one service must not mix two models,
        and the folder may have been exported anew meanwhile.

    Raises
    ------
    UserError
        No bundle there, another format or version, a missing or truncated file.
    """

    def __init__(self, location: str, version: str | None = None) -> None:
        self.store = Store(location)
        self.manifest = _read_manifest(self.store)
        if version not in (None, self.manifest.version):
            raise UserError(
                f"{self.store.uri()}: holds version {self.manifest.version}, the service was started with "
                f"{version}: deploy it again"
            )
        for name, record in self.manifest.files.items():
            info = self.store.fs.get_file_info(self.store.path(name))
            if info.type != pafs.FileType.File:
                raise UserError(f"{self.store.uri(name)}: missing from the bundle: export it again")
            if info.size != record.bytes:
                raise UserError(
                    f"{self.store.uri(name)}: {info.size:,} bytes where {record.bytes:,} were exported: "
                    "copied in part? export or copy it again"
                )

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises
        ------
        UserError
            It is not what was exported.
        """
        content = self.store.read_bytes(name)
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name].sha256:
            raise UserError(f"{self.store.uri(name)}: its content was changed after the export: export it again")
        return content

    def model(self) -> LLM4SBR:
        """The model in eval mode, on the CPU; of a +memory model the network."""
        model = self._recommender()
        network = model.network if isinstance(model, MemoryRecommender) else model
        assert isinstance(network, LLM4SBR)  # `export` takes no other
        return network

    def memory(self) -> MemoryRecommender | None:
        """The whole of a +memory model."""
        model = self._recommender() if has_memory(self.manifest.model) else None
        return model if isinstance(model, MemoryRecommender) else None

    def _recommender(self) -> Recommender:
        manifest = self.manifest
        item_text_VE = load_tensors(self.read(TEXT))["item_text_VE"]
        anchors = [p.anchor for p in manifest.perspectives]
        model = build_model(
            manifest.model,
            manifest.n_items,
            manifest.settings,
            manifest.neighbours or Neighbours(),
            anchors,
            item_text_VE,
            manifest.memory,
        )
        model.load_state_dict(load_tensors(self.read(MODEL)))
        return model.eval()

    def catalogue(self) -> Catalogue:
        return Catalogue(pq.read_table(pa.BufferReader(self.read(ITEMS))))

    def intents(self) -> list[tuple[bytes, CachedIntents]]:
        """Session keys and intents, the most recent last."""
        table = pq.read_table(pa.BufferReader(self.read(INTENTS)))
        P, R = len(self.manifest.perspectives), self.manifest.localised_items

        item_NPR = _flat(table, "intent_items").reshape(-1, P, R)
        weight_NPR = _flat(table, "intent_weights").reshape(-1, P, R)
        grounded_NP = _flat(table, "grounded").reshape(-1, P)
        keys: list[Any] = table["key"].to_pylist()
        rows = zip(item_NPR, weight_NPR, grounded_NP, strict=True)
        return [(key, CachedIntents(*row)) for key, row in zip(keys, rows, strict=True)]


def load_bundle(location: str) -> Bundle:
    """Open a bundle and check every file in it.

    Raises
    ------
    UserError
        It is missing, truncated or changed.
    """
    bundle = Bundle(location)
    for name in bundle.manifest.files:
        bundle.read(name)
    return bundle


def export(run: Run) -> bool:
    """Stage "export": write the bundle of `config.export.model`, by its first seed.

    Without a setting the first "+llm4sbr" model of the run is taken, one with a memory before one without; a run that
    has none writes no bundle and says so.

    Returns
    -------
    bool
        False if there was nothing to do.

    Raises
    ------
    UserError
        `export.model` is not an LLM4SBR model that the run trains.
    """
    trained = sorted(filter(is_llm4sbr, run.config.train.models), key=has_memory, reverse=True)
    name = run.config.export.model
    if name is None and not trained:
        print("[export] no model of the run is a +llm4sbr model: no bundle", flush=True)
        return False
    if name is not None and name not in trained:
        raise UserError(
            f"export.model: {name!r} cannot be served, it must be one of the +llm4sbr models in train.models "
            f"({', '.join(trained) or 'there is none'})"
        )
    chosen = name or trained[0]
    weights = f"train/{chosen}/seed-{run.config.train.seeds[0]}"
    settings = {"format": FORMAT, "weights": weights, "max_intents": MAX_INTENTS}
    return run.stage(
        "export",
        outputs=["bundle"],
        after=["ingest", "intents", weights],
        settings=settings,
        body=lambda stage: _write(stage, chosen, weights),
    )


def _write(stage: Stage, model: str, weights: str) -> Facts:
    run = stage.run
    trained = run.read_json(weights, DESCRIPTION)
    intents = _recent_intents(run)
    manifest = write_bundle(
        stage.store.below("bundle"),
        weights=run.read_bytes(weights, "model.safetensors"),
        item_text_VE=_text_table(run),
        items=run.read_table("data/items.parquet", columns=["item_idx", "item_id", "title", "train_count"]),
        intents=intents,
        run=run.config.name,
        model=model,
        settings=ModelConfig(**trained["model"]),
        perspectives=tuple(PerspectiveRecord(name=v.name, anchor=v.anchor) for v in run.config.perspectives.views),
        localised_items=run.config.text.localised_items,
        memory=MemoryConfig(**trained["memory"]) if has_memory(model) else None,
        neighbours=Neighbours(**trained["neighbours"]) if has_memory(model) else None,
        text=run.config.text,
    )
    return {"rows": intents.num_rows, "model": model, "version": manifest.version}


def write_bundle(
    out: Store,
    *,
    weights: bytes,
    item_text_VE: torch.Tensor,
    items: pa.Table,
    intents: pa.Table,
    run: str,
    model: str,
    settings: ModelConfig,
    perspectives: tuple[PerspectiveRecord, ...],
    localised_items: int,
    memory: MemoryConfig | None = None,
    neighbours: Neighbours | None = None,
    text: Text | None = None,
) -> Manifest:
    """Write a bundle and check that it loads.

    Parameters
    ----------
    out
        Its folder.
    weights
        The model's state dict as safetensors.
    item_text_VE
        float32, L2-normalised.
    items
        Columns `item_idx`, `item_id`, `title`, `train_count`; row j is item j.
    intents
        Columns `key` (`cache.session_key`), `intent_items` and `intent_weights` (P * R values a row), `grounded` (P).
    run, model, settings, perspectives, localised_items, memory, neighbours, text
        As in `Manifest`.
    """
    out.write_bytes(weights, MODEL)
    out.write_bytes(save_tensors({"item_text_VE": item_text_VE}), TEXT)
    out.write_table(items, ITEMS)
    out.write_table(intents, INTENTS)
    unversioned = Manifest(
        format=FORMAT,
        version="",
        run=run,
        model=model,
        n_items=items.num_rows,
        settings=settings,
        perspectives=perspectives,
        localised_items=localised_items,
        memory=memory,
        neighbours=neighbours,
        text=text,
        files={name: _record(out.read_bytes(name)) for name in (MODEL, TEXT, ITEMS, INTENTS)},
    )
    manifest = unversioned.model_copy(update={"version": unversioned.content_hash()})
    out.write_json(manifest.model_dump(mode="json"), "bundle.json")
    load_bundle(out.uri()).model()  # what cannot be loaded must not be committed
    return manifest


def _text_table(run: Run) -> torch.Tensor:
    table = run.read_table("text/items.parquet", columns=["item_idx", "embedding"]).sort_by("item_idx")
    return torch.from_numpy(_flat(table, "embedding").reshape(table.num_rows, -1).astype("float32"))


def _flat(table: pa.Table, column: str) -> NDArray[Any]:
    """All values of a list column, one list after the other."""
    values: Any = pc.list_flatten(table[column])
    return np.asarray(values.to_numpy())


def _recent_intents(run: Run) -> pa.Table:
    """The last `MAX_INTENTS` grounded samples in the order train, valid, test; of equal sessions the last."""
    newest_first: list[pa.Table] = []
    missing = MAX_INTENTS
    for split in ("test", "valid", "train"):
        for path in reversed(run.files("intents/samples", split, suffix=".parquet")):
            if missing > 0:
                table = pq.read_table(path, filesystem=run.fs, columns=INTENT_COLUMNS)
                grounded: list[Any] = table["grounded"].to_pylist()
                table = table.filter(pa.array([any(row) for row in grounded], pa.bool_()))
                newest_first.append(table.slice(max(0, table.num_rows - missing)))
                missing -= newest_first[-1].num_rows
    table = pa.concat_tables(reversed(newest_first))
    sessions: list[Any] = table["items"].to_pylist()
    keys = [session_key(items) for items in sessions]
    last_row = {key: row for row, key in enumerate(keys)}
    table = table.drop_columns(["items"]).append_column("key", pa.array(keys, pa.binary(KEY_BYTES)))
    return table.take(pa.array(sorted(last_row.values()), pa.int64()))


def _record(content: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _content_hash(values: dict[str, Any]) -> str:
    content = {name: value for name, value in values.items() if name != "version"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read_manifest(store: Store) -> Manifest:
    where = posixpath.join(store.uri(), "bundle.json")
    if not store.exists("bundle.json"):
        raise UserError(f"{where}: not found: there is no bundle here, write one with jobs/export.py")
    try:
        values = json.loads(store.read_bytes("bundle.json"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{where}: damaged ({error}): export the bundle again") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(f"{where}: bundle format {found!r}, this service reads {FORMAT}: export the bundle again")
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{where}: field {field!r} is wrong or missing: export the bundle again") from error
    # Of the file as it is: a setting that has come since, with its default, must not make it another bundle.
    if _content_hash(values) != manifest.version:
        raise UserError(f"{where}: changed after the export: export the bundle again")
    return manifest
