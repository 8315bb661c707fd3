"""Stage "ingest": from the user's tables to samples, with Ray Data.

    python jobs/ingest.py --config configs/demo.yaml

1. The catalogue is read, checked and numbered; the driver holds it, and nothing else that grows with the
   data.
2. Chunks of the session table are read and checked row by row, then shuffled by a hash of the session id;
   each partition drops repeated ids (or orders the clicks of its sessions) and writes its refused rows to
   the quarantine.
3. A sample of the sessions tells when the splits begin, and the time ranges that share the writing.
4. Each time range is sorted, split, expanded into samples and written: part-00000 holds the earliest
   sessions.

A file's name and content depend on the input alone, whatever the order in which tasks end or are repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.exceptions

from llm4sbr_ray.artifacts import Facts, Run, Stage, Store
from llm4sbr_ray.config import DataConfig
from llm4sbr_ray.data import catalogue, demo_shop, quarantine, sessions
from llm4sbr_ray.data.readers import batched, column_names, read_rows, text_columns
from llm4sbr_ray.data.samples import expand
from llm4sbr_ray.data.split import SPLITS, TRAIN, Cuts, Moments, assign, find_cuts, unit_hash
from llm4sbr_ray.data.tables import (
    Chunk,
    TableFiles,
    chunks,
    estimated_rows,
    line_ends_before,
    locate,
    number_lines,
)
from llm4sbr_ray.errors import UserError

ROWS_PER_PARTITION = 200_000
SAMPLED_SESSIONS = 100_000  # up to this many sessions all are in the sample and the cuts are exact
CLICKS_PER_RANGE = 4_000_000  # in the prefixes of the samples that one task writes
FILE_STEP = 1 << 40  # rows of file i are numbered from i * FILE_STEP on


def ingest(run: Run) -> bool:
    """Run the stage, unless its output is there already.

    Parameters
    ----------
    run
        `run.config.data` says what to read and how to split it.

    Returns
    -------
    bool
        False if it was skipped.

    Raises
    ------
    UserError
        A missing file or column, a split that the table cannot give, or nothing left to train or test with.
    """
    config = run.config.data
    if config.source == "demo":
        config = config.model_copy(update={"columns": demo_shop.COLUMNS, "layout": "session"})
    _check_split(config)
    named = {"data.sessions": config.sessions, "data.items": config.items} if config.source == "tables" else {}
    tables = {name: locate(path, config.format, name) for name, path in named.items() if path is not None}

    def body(stage: Stage) -> Facts:
        stage.store.delete("data")
        stage.store.delete("shop")
        read = tables or _write_shop(stage.store, config)
        try:
            return _ingest(stage.store, config, read, run.config.seed)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):  # of a file that only a task has opened
                raise UserError(str(error.cause).splitlines()[0]) from error  # Ray adds lines on its retries
            raise

    fingerprints = {name: table.fingerprint() for name, table in tables.items()}
    settings = {"data": config, "seed": run.config.seed, "files": fingerprints}
    return run.stage("ingest", outputs=["data"], settings=settings, body=body)


def _check_split(config: DataConfig) -> None:
    if config.split.by == "column" and config.columns.split is None:
        raise UserError("data.split.by: column needs data.columns.split, the column that says which rows are test")
    if config.split.by == "time" and config.columns.timestamp is None:
        raise UserError("data.split.by: time needs data.columns.timestamp (or take data.split.by: ratio)")


def _write_shop(store: Store, config: DataConfig) -> dict[str, TableFiles]:
    for name, table in zip(("sessions", "items"), demo_shop.generate(config.demo), strict=True):
        store.write_table(table, "shop", f"{name}.parquet")
    return {
        f"data.{name}": locate(store.uri("shop", f"{name}.parquet"), "parquet", f"data.{name}")
        for name in ("sessions", "items")
    }


def _ingest(store: Store, config: DataConfig, tables: dict[str, TableFiles], seed: int) -> Facts:
    session_table = tables["data.sessions"]
    _require(session_table, {f"data.columns.{s}": c for s, c in sessions.columns_read(config).items()})
    items = _catalogue(store, config, tables["data.items"]) if "data.items" in tables else None
    ids_ref = None if items is None else ray.put(items["item_id"].combine_chunks())
    found = _sessions(store, config, session_table, ids_ref)
    refused = quarantine.count_reasons(store)
    n_sessions = found.count()
    if n_sessions == 0:
        raise UserError(f"data.sessions: no session can be used: {_reasons(refused) or 'the table is empty'}")
    if items is None:
        items = catalogue.from_ids(_distinct_items(found))
        ids_ref = ray.put(items["item_id"].combine_chunks())
    counts, count_V = _write_samples(store, config, found, n_sessions, ids_ref, len(items), seed)
    for split, advice in _ADVICE.items():
        if counts[split] == 0:
            raise UserError(f"data.split: no {split} samples: {advice}")
    store.write_table(catalogue.with_train_count(items, count_V), "data", "items.parquet")
    if refused:
        print(
            f"[ingest] {sum(refused.values()):,} rows refused, see {quarantine.FOLDER}: {_reasons(refused)}",
            flush=True,
        )
    return {
        "rows": sum(counts.values()),
        "counts": {
            **{f"{split}_samples": n for split, n in counts.items()},
            "items": len(items),
            "sessions": n_sessions,
        },
        "quarantined": refused,
    }


_ADVICE = {
    "train": "every session is test or validation; lower data.split.test_fraction or valid_fraction, or see "
    "that data.split.test_values names only the values of the split column that mean test",
    "valid": "there are too few training sessions; raise data.split.valid_fraction",
    "test": "raise data.split.test_fraction, or name the values of the split column that mean test in "
    "data.split.test_values",
}


def _reasons(refused: dict[str, int]) -> str:
    return ", ".join(f"{reason} ({n:,})" for reason, n in refused.items())


def _require(table: TableFiles, columns: dict[str, str]) -> None:
    """Every file has the columns that the settings (the keys) name."""
    for file in table.files:
        present = column_names(table, file)
        if file.format == "jsonl" and not present:
            continue  # no line that can be read among the first: each is refused on its own
        for setting, column in columns.items():
            if column not in present:
                names = ", ".join(present)
                raise UserError(f"{table.name}: {file.path} has no column {column!r} ({setting}); it has: {names}")


# ---- reading


def _read(table: TableFiles, columns: list[str], parse: Callable[..., pa.Table]) -> ray.data.Dataset:
    """One Ray task a chunk; `parse(raw rows, file, order of the file's row 0)` makes tables of them."""
    planned = _numbered_chunks(table)
    if not planned:
        raise UserError(f"{table.name}: the table is empty: {table.files[0].path}")

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        chunk = planned[batch["id"][0].as_py()]
        for rows in batched(read_rows(table, chunk, columns)):
            yield parse(rows, chunk.file.path, chunk.file.index * FILE_STEP)
        yield parse([], chunk.file.path, 0)  # Ray cannot shuffle a dataset that has no row and no columns either

    numbers = ray.data.range(len(planned), override_num_blocks=len(planned))
    return numbers.map_batches(read, batch_size=1, batch_format="pyarrow")


def _numbered_chunks(table: TableFiles) -> list[Chunk]:
    planned = chunks(table)
    several = {c.file.path for c in planned if c.file.format == "jsonl" and c.start}
    cut = [c for c in planned if c.file.path in several]
    if not cut:
        return number_lines(planned, {})

    def count(batch: pa.Table) -> pa.Table:
        number = batch["id"][0].as_py()
        return pa.table({"chunk": [number], "ends": [line_ends_before(table, cut[number])]})

    counting = ray.data.range(len(cut), override_num_blocks=len(cut)).map_batches(
        count, batch_size=1, batch_format="pyarrow"
    )
    ends = {(cut[row["chunk"]].file.path, cut[row["chunk"]].start): row["ends"] for row in counting.iter_rows()}
    return number_lines(planned, ends)


def _catalogue(store: Store, config: DataConfig, table: TableFiles) -> pa.Table:
    columns = config.columns
    wanted = {"data.columns.item_id": columns.item_id, "data.columns.title": columns.title}
    # The default name of the attributes is a guess that a table may lack; a name that the user gave is not.
    if columns.attributes is not None and "attributes" in columns.model_fields_set:
        wanted["data.columns.attributes"] = columns.attributes
    _require(table, wanted)
    taken = {
        *catalogue.OURS,
        *quarantine.QUARANTINE.names,
        columns.item_id,
        columns.title,
        columns.attributes,
    }
    extra = [name for name in text_columns(table) if name not in taken | {"order"}]
    read = [columns.item_id, columns.title, *([columns.attributes] if columns.attributes else []), *extra]

    def parse(rows: list[Any], source: str, order: int) -> pa.Table:
        return catalogue.parse_rows(rows, source, order, columns, extra)

    tables = _tables(_read(table, read, parse))
    items, refused = catalogue.build(pa.concat_tables([catalogue.row_schema(extra).empty_table(), *tables]))
    quarantine.write(store, "items", refused)
    if len(items) == 0:
        raise UserError(f"data.items: no item can be used: {_reasons(quarantine.count_reasons(store)) or 'no rows'}")
    return items


def _sessions(store: Store, config: DataConfig, table: TableFiles, ids_ref: ray.ObjectRef | None) -> ray.data.Dataset:
    """Usable sessions (schema `sessions.SESSIONS`), in no order; what is refused is written."""
    n_parts = math.ceil(max(1, estimated_rows(table)) / ROWS_PER_PARTITION)

    def parse(rows: list[Any], source: str, order: int) -> pa.Table:
        return sessions.parse_rows(rows, source, order, config, _known(ids_ref), n_parts)

    def assemble(rows: pa.Table) -> pa.Table:
        accepted, refused = sessions.assemble(rows, config, _known(ids_ref))
        quarantine.write(store, f"sessions-{rows['part'][0].as_py():05d}", refused)
        return accepted

    rows = _read(table, list(sessions.columns_read(config).values()), parse)
    grouped = rows.groupby("part", num_partitions=n_parts).map_groups(assemble, batch_format="pyarrow")
    return grouped.materialize()


_KNOWN: dict[ray.ObjectRef, frozenset[str]] = {}  # of this worker process


def _known(ids_ref: ray.ObjectRef | None) -> frozenset[str] | None:
    """The catalogue's ids; made once in a worker process."""
    if ids_ref is None:
        return None
    if ids_ref not in _KNOWN:
        _KNOWN.clear()
        _KNOWN[ids_ref] = frozenset(ray.get(ids_ref).to_pylist())
    return _KNOWN[ids_ref]


def _distinct_items(found: ray.data.Dataset) -> list[str]:
    def distinct(batch: pa.Table) -> pa.Table:
        return pa.table({"item_id": pc.unique(pc.list_flatten(batch["items"]))})

    ids: set[str] = set()
    for table in _tables(found.map_batches(distinct, batch_format="pyarrow", batch_size=None)):
        ids.update(cast("list[str]", table["item_id"].to_pylist()))
    return sorted(ids)


def _tables(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        if batch.num_rows:
            yield cast(pa.Table, batch)


# ---- splitting and writing


def _write_samples(
    store: Store,
    config: DataConfig,
    found: ray.data.Dataset,
    n_sessions: int,
    ids_ref: ray.ObjectRef,
    n_items: int,
    seed: int,
) -> tuple[dict[str, int], np.ndarray[Any, np.dtype[np.int64]]]:
    """Write ``data/{train,valid,test}/``; gives samples a split, clicks an item in train sessions."""
    cuts, starts = _plan(config, found, n_sessions, seed)
    for split in SPLITS:
        store.fs.create_dir(store.path("data", split), recursive=True)

    def place(batch: pa.Table) -> pa.Table:
        when = _moments(batch)
        part = sum((when.since(start).astype(np.int32) for start in starts), np.zeros(len(batch), np.int32))
        return batch.append_column("part", pa.array(part, pa.int32()))

    def write(rows: pa.Table) -> pa.Table:
        part = rows["part"][0].as_py()
        counts, count_V = write_range(store, f"part-{part:05d}", rows, ray.get(ids_ref), config, seed, cuts)
        clicked = np.flatnonzero(count_V)
        return pa.table(
            {
                **{split: [n] for split, n in counts.items()},
                "item": pa.array([clicked], pa.list_(pa.int64())),
                "clicks": pa.array([count_V[clicked]], pa.list_(pa.int64())),
            }
        )

    placed = found.map_batches(place, batch_format="pyarrow", batch_size=None)
    written = placed.groupby("part", num_partitions=len(starts) + 1).map_groups(write, batch_format="pyarrow")
    counts = dict.fromkeys(SPLITS, 0)
    count_V = np.zeros(n_items, np.int64)
    for table in _tables(written):
        for split in SPLITS:
            counts[split] += int(pc.sum(table[split]).as_py() or 0)
        np.add.at(count_V, pc.list_flatten(table["item"]).to_numpy(), pc.list_flatten(table["clicks"]).to_numpy())
    return counts, count_V


def _plan(
    config: DataConfig, found: ray.data.Dataset, n_sessions: int, seed: int
) -> tuple[Cuts, list[tuple[int, int]]]:
    """Cuts of the splits, and where each time range but the first starts, from a sample of the sessions."""
    share = min(1.0, SAMPLED_SESSIONS / n_sessions)

    def sample(batch: pa.Table) -> pa.Table:
        length = pc.list_value_length(batch["items"])
        ids: list[Any] = batch["session_id"].to_pylist()
        drawn = unit_hash(ids, seed, "sample") < share
        return batch.drop_columns(["items"]).append_column("length", length).filter(pa.array(drawn))

    sampled = pa.concat_tables(_tables(found.map_batches(sample, batch_format="pyarrow", batch_size=None)))
    when = _moments(sampled)
    session_ids: list[Any] = sampled["session_id"].to_pylist()
    cuts = find_cuts(config.split, seed, session_ids, sampled["split"].to_pylist(), when)
    order = when.sorted()
    length = sampled["length"].to_numpy()[order].astype(np.int64)
    clicks = length * (length - 1) // 2 if config.samples == "every-prefix" else length - 1
    range_S = (np.cumsum(clicks) / share / CLICKS_PER_RANGE).astype(np.int64)
    starts = [when.at(int(order[n])) for n in np.flatnonzero(np.diff(range_S)) + 1]
    return cuts, starts


def _moments(rows: pa.Table) -> Moments:
    return Moments(rows["time"].to_numpy(), rows["order"].to_numpy())


def write_range(
    store: Store,
    name: str,
    rows: pa.Table,
    item_ids: pa.Array[Any],
    config: DataConfig,
    seed: int,
    cuts: Cuts,
) -> tuple[dict[str, int], np.ndarray[Any, np.dtype[np.int64]]]:
    """Write the samples of the sessions of one time range, a file for each split that has any.

    Returns
    -------
    counts
        Samples of each split.
    count_V
        Clicks of each item in the training sessions.
    """
    rows = rows.take(_moments(rows).sorted())
    session_ids = rows["session_id"].combine_chunks()
    ids: list[Any] = session_ids.to_pylist()
    part_S = assign(config.split, seed, ids, rows["split"].to_pylist(), _moments(rows), cuts)
    length_S = pc.list_value_length(rows["items"]).to_numpy().astype(np.int64)
    items_N = pc.index_in(pc.list_flatten(rows["items"]), value_set=item_ids).to_numpy().astype(np.int32)
    part_N = np.repeat(part_S, length_S)
    counts = {}
    for number, split in enumerate(SPLITS):
        chosen = part_S == number
        kept = session_ids.filter(pa.array(chosen))
        table = expand(kept, items_N[part_N == number], length_S[chosen], config.samples)
        counts[split] = len(table)
        if len(table):
            store.write_table(table, "data", split, f"{name}.parquet")
    return counts, np.bincount(items_N[part_N == TRAIN], minlength=len(item_ids))
