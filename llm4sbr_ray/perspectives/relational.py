"""Joins and deduplication over Parquet files, in bounded memory.

DuckDB rather than a Ray Data shuffle: a hash shuffle starts an actor a partition, which takes longer than the join
itself up to many millions of rows, and DuckDB spills to disk beyond its memory limit. Reads and writes go through the
run's pyarrow filesystem, so it works on any storage.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Store

ROWS_A_FILE = 32_768  # several files, so that readers work in parallel and a row group fits any memory
MEMORY_LIMIT = "2GB"


def connect() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
    connection.execute("SET preserve_insertion_order = false")
    # What doesn't fit spills here; DuckDB's own choice is the working directory of whoever called.
    connection.execute("SET temp_directory = ?", [str(Path(tempfile.gettempdir()) / "llm4sbr-duckdb")])
    return connection


def dataset(store: Store, *parts: str) -> pads.Dataset:
    """A folder of Parquet files as a lazily read dataset for a query."""
    return pads.dataset(store.files(*parts, suffix=".parquet"), filesystem=store.fs, format="parquet")


def copy_to(
    query: duckdb.DuckDBPyRelation,
    store: Store,
    folder: str,
    schema: pa.Schema | None = None,
    rows_a_file: int = ROWS_A_FILE,
) -> int:
    """Stream the rows of `query` into ``<folder>/part-00000.parquet``, ...; returns the number of rows."""
    reader = query.fetch_arrow_reader(rows_a_file)
    schema = schema or reader.schema
    rows = part = 0
    pending: list[pa.RecordBatch] = []

    def flush() -> None:
        nonlocal part, pending
        store.fs.create_dir(store.path(folder), recursive=True)
        table = pa.Table.from_batches(pending, reader.schema).cast(schema)
        path = store.path(folder, f"part-{part:05d}.parquet")
        pq.write_table(table, path, filesystem=store.fs, compression="zstd")
        part, pending = part + 1, []

    for batch in reader:
        rows += batch.num_rows
        pending.append(batch)
        if sum(b.num_rows for b in pending) >= rows_a_file:
            flush()
    if pending or part == 0:  # an empty answer still has a schema to read
        flush()
    return rows
