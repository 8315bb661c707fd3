"""Public raw files in; sessions.parquet, items.parquet, refused.parquet, provenance.json and config.yaml out.

python jobs/prepare.py --source movielens-1m --raw ~/Downloads/ml-1m --out data/ml-1m
python jobs/pipeline.py --config data/ml-1m/config.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from llm4sbr_ray.data.quarantine import QUARANTINE
from llm4sbr_ray.data.sources import SOURCES
from llm4sbr_ray.data.sources.workspace import Workspace
from llm4sbr_ray.errors import UserError

BATCH_CLICKS = 500_000
SESSIONS = pa.schema(
    [
        pa.field("session_id", pa.string()),
        pa.field("items", pa.list_(pa.string())),
        pa.field("timestamp", pa.int64()),  # seconds
        pa.field("split", pa.string()),
    ]
)


def prepare(name: str, raw: Path, out: Path) -> dict[str, Any]:
    """Convert one data set.

    Parameters
    ----------
    name
        A key of `SOURCES`.
    raw
        Folder of the raw files.
    out
        Folder for the tables; made if missing. Its files are replaced; provenance.json is written last.

    Returns
    -------
    dict
        What provenance.json holds.

    Raises
    ------
    UserError
        An unknown name, a missing or unreadable file, or nothing left to train or test with.
    """
    if name not in SOURCES:
        raise UserError(f"--source: no data set {name!r}; there are: {', '.join(SOURCES)}")
    source = SOURCES[name]
    out.mkdir(parents=True, exist_ok=True)
    (out / "provenance.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=out) as scratch:
        work = Workspace(raw, Path(scratch))
        try:
            source.convert(work)
            refused = work.refused_reasons()
            counts = {**work.counts, **_write_sessions(work, out / "sessions.parquet", refused)}
            items = work.table("SELECT * FROM items ORDER BY length(item_id), item_id")
            counts |= {"items": len(items), "items without a title": items["title"].null_count}
            pq.write_table(items, out / "items.parquet", compression="zstd")
            rows = work.table("SELECT * FROM refused ORDER BY source, row")
            pq.write_table(rows.cast(QUARANTINE), out / "refused.parquet", compression="zstd")
        finally:
            work.db.close()
    settings = {
        "name": name,
        "dataset": source.title,
        "data": {
            "sessions": str((out / "sessions.parquet").absolute()),
            "items": str((out / "items.parquet").absolute()),
            "columns": {"timestamp": "timestamp"},
            **source.data,
        },
    }
    (out / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    provenance = {
        "source": name,
        "title": source.title,
        "protocol": source.protocol,
        "terms": source.terms,
        "files": work.files,
        "refused": refused,
        "counts": counts,
        "versions": {package: version(package) for package in ("llm4sbr-ray", "duckdb", "pyarrow")},
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return provenance


def _write_sessions(work: Workspace, path: Path, refused: dict[str, int]) -> dict[str, int]:
    """Stream the sorted clicks into the session table: train first, then test."""
    query = "SELECT session_id, item_id, time, split FROM clicks ORDER BY split DESC, place, step, row"
    reader = work.db.sql(query).to_arrow_reader(BATCH_CLICKS)
    assert reader is not None  # the query is a SELECT
    counts = dict.fromkeys(("train sessions", "test sessions", "clicks"), 0)
    with pq.ParquetWriter(path, SESSIONS, compression="zstd") as writer:
        for table in _whole_sessions(reader):
            sessions = _gather(table)
            writer.write_table(sessions)
            counts["clicks"] += len(table)
            n_test = sessions["split"].to_pylist().count("test")
            counts["test sessions"] += n_test
            counts["train sessions"] += len(sessions) - n_test
    for part in ("train", "test"):
        if not counts[f"{part} sessions"]:
            why = ", ".join(f"{reason} ({n:,})" for reason, n in refused.items()) or "none refused"
            raise UserError(f"{work.raw}: no {part} session is left; refused lines: {why}")
    return counts


def _whole_sessions(reader: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of clicks that end where a session ends."""
    rest: pa.Table | None = None
    for batch in reader:
        table = pa.Table.from_batches([batch])
        if rest is not None:
            table = pa.concat_tables([rest, table]).combine_chunks()
        starts = _starts(table)
        if len(starts) > 1:
            yield table.slice(0, int(starts[-1]))
        rest = table.slice(int(starts[-1])) if len(starts) else None
    if rest is not None and len(rest):
        yield rest


def _starts(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    ids = table["session_id"].combine_chunks()
    if not len(ids):
        return np.array([], np.int64)
    changes = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.flatnonzero(changes) + 1]).astype(np.int64)


def _gather(table: pa.Table) -> pa.Table:
    starts = _starts(table)
    items = table["item_id"].combine_chunks()
    offsets = pa.array(np.append(starts, len(table)), pa.int32())
    first = table.take(pa.array(starts))
    lists = pa.ListArray.from_arrays(offsets, items)
    columns: list[Any] = [first["session_id"], lists, first["time"], first["split"]]
    return pa.Table.from_arrays(columns, schema=SESSIONS)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit status 0, or 2 with one clear line."""
    parser = argparse.ArgumentParser(description="Turn a public data set's raw files into tables for the pipeline.")
    parser.add_argument("--source", required=True, help=", ".join(SOURCES))
    parser.add_argument("--raw", required=True, type=Path, help="folder of the raw files, see docs/data-sources.md")
    parser.add_argument("--out", required=True, type=Path, help="folder for the tables")
    args = parser.parse_args(argv)
    try:
        provenance = prepare(args.source, args.raw, args.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    for name, count in provenance["counts"].items():
        print(f"{count:>12,}  {name}")
    for reason, count in provenance["refused"].items():
        print(f"{count:>12,}  lines refused: {reason} (see {args.out / 'refused.parquet'})")
    print(f"terms: {provenance['terms']}\nnext: python jobs/pipeline.py --config {args.out / 'config.yaml'}")
    return 0
