"""A folder of raw files and a DuckDB database to work on them: every line is read, the broken ones too.

DuckDB keeps its tables in a file and spills what it sorts, so that a raw file may be larger than the memory.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa

from llm4sbr_ray.data.quarantine import QUARANTINE
from llm4sbr_ray.data.readers import CONTENT_CHARS
from llm4sbr_ray.errors import UserError

BLOCK_BYTES = 8 * 2**20
BATCH_ROWS = 20_000
MEMORY_LIMIT = "2GB"
_LINES: dict[str, pa.DataType] = {"row": pa.int64(), "line": pa.string()}
LINES = pa.schema(_LINES)
Kind = Literal["id", "seconds", "milliseconds", "iso", "day", "number", "text", "any"]
_PARSED: dict[Kind, str] = {  # SQL that is null where the text {} is no such thing; times become seconds
    "id": "CASE WHEN regexp_full_match({}, '[0-9]+') THEN {} END",
    "seconds": "CASE WHEN regexp_full_match({}, '[0-9]{{1,11}}') THEN CAST({} AS BIGINT) END",
    "milliseconds": "CASE WHEN regexp_full_match({}, '[0-9]{{12,14}}') THEN CAST({} AS BIGINT) END",
    "iso": "CASE WHEN regexp_full_match({}, '\\d{{4}}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(\\.\\d+)?Z') "
    "THEN epoch_us(TRY_CAST(rtrim({}, 'Z') AS TIMESTAMP)) // 1000000 END",
    "day": "CASE WHEN regexp_full_match({}, '\\d{{4}}-\\d\\d-\\d\\d') "
    "THEN epoch_us(TRY_CAST({} AS TIMESTAMP)) // 1000000 END",
    "number": "TRY_CAST({} AS BIGINT)",
    "text": "CASE WHEN trim({}) <> '' THEN {} END",
    "any": "{}",
}


class Workspace:
    """Raw files of one folder, the database made from them, and the counts that go into the provenance."""

    def __init__(self, raw: Path, scratch: Path) -> None:
        if not raw.is_dir():
            raise UserError(f"--raw: no such folder: {raw}")
        self.raw = raw
        self.counts: dict[str, int] = {}
        self.files: list[dict[str, Any]] = []
        self.db = duckdb.connect(str(scratch / "work.duckdb"))
        self.db.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        self.db.execute(f"SET temp_directory = '{str(scratch).replace(chr(39), chr(39) * 2)}'")
        self.db.execute("SET preserve_insertion_order = false")  # rows bear their number
        columns = ", ".join(f"{f.name} {'BIGINT' if f.name == 'row' else 'VARCHAR'}" for f in QUARANTINE)
        self.db.execute(f"CREATE TABLE refused ({columns})")

    # ---- files

    def file(self, name: str) -> Path:
        """A raw file, plain or with ``.gz`` at its end."""
        path = self.optional(name)
        if path is None:
            raise UserError(
                f"--raw: {self.raw} holds no {name} (or {name}.gz); docs/data-sources.md says where to get it"
            )
        return path

    def optional(self, name: str) -> Path | None:
        return next((p for p in (self.raw / name, self.raw / f"{name}.gz") if p.is_file()), None)

    def one(self, pattern: str, without: str | None = None) -> Path:
        """The only file of a pattern, plain or gzipped, whose name does not begin with `without`."""
        found = sorted(p for end in ("", ".gz") for p in self.raw.glob(pattern + end) if p.is_file())
        found = [p for p in found if without is None or not p.name.startswith(without)]
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise UserError(f"--raw: {self.raw} must hold one file {pattern} (or .gz), found: {names}")
        return found[0]

    def lines(self, path: Path, encoding: str = "utf-8") -> Iterator[pa.RecordBatch]:
        """All lines of a file with their numbers from 1, without their ends; memory holds a block at a time."""
        number, count = 1, 0
        try:
            with open_raw(path) as stream:
                rest = b""
                for block in chain(iter(lambda: stream.read(BLOCK_BYTES), b""), [None]):
                    pieces = (rest + (block or b"")).split(b"\n")
                    rest = pieces.pop() if block is not None else b""
                    if block is None and pieces[-1] == b"":
                        pieces.pop()  # what follows the last line end is no line
                    if not pieces:
                        continue
                    texts = [piece.removesuffix(b"\r").decode(encoding, "replace") for piece in pieces]
                    if number == 1:
                        texts[0] = texts[0].removeprefix("\ufeff")
                    count += len(texts)
                    numbers = pa.array(range(number, number + len(texts)), pa.int64())
                    yield pa.RecordBatch.from_arrays([numbers, pa.array(texts, pa.string())], schema=LINES)
                    number += len(texts)
        except (OSError, EOFError) as error:  # a gzip file that is cut off or none
            raise UserError(f"{path}: cannot be read to its end: {error}") from error
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.files.append({"file": path.name, "bytes": path.stat().st_size, "sha256": digest, "lines": count})

    # ---- tables

    def load_delimited(
        self,
        table: str,
        path: Path,
        separator: str,
        columns: dict[str, Kind],
        *,
        header: bool,
        encoding: str = "utf-8",
        where: str = "TRUE",
    ) -> None:
        """Read a delimited file into a table of `columns` and `row`, the line's number.

        Parameters
        ----------
        columns
            Name -> kind, in the order of the file's fields. With a header, names are matched to it instead: case
            and underscores do not count, and further fields are left alone.
        where
            SQL on the columns; well-formed lines for which it does not hold are left out. Refused lines are kept.
        """
        batches = self.lines(path, encoding)
        fields = {name: position for position, name in enumerate(columns, 1)}
        width = len(columns)
        if header:
            first = next(batches, None)
            names = [] if first is None else str(first["line"][0]).split(separator)
            fields, width = _positions(names, list(columns), path), len(names)
            batches = chain([] if first is None else [first.slice(1)], batches)
        field_of = {name: f"f[{position}]" for name, position in fields.items()}
        parsed = {
            name: _PARSED[kind].replace("{}", field_of[name]).replace("{{", "{").replace("}}", "}")
            for name, kind in columns.items()
        }
        values = ", ".join(f"{sql} AS {name}" for name, sql in parsed.items())
        bad = " ".join(f"WHEN {name} IS NULL THEN '{name.replace('_', ' ')} is malformed'" for name in columns)
        reader = pa.RecordBatchReader.from_batches(LINES, batches)
        self.db.register("reader", reader)
        self.db.execute(
            f"""CREATE TABLE {table} AS
            WITH split AS (SELECT row, line, string_split(line, ?) AS f FROM reader WHERE trim(line) <> ''),
            parsed AS (SELECT row, line, len(f) AS n, {values} FROM split),
            judged AS (SELECT *, CASE WHEN n <> {width} THEN 'wrong number of fields' {bad} END AS reason FROM parsed)
            SELECT * EXCLUDE (line, n), CASE WHEN reason IS NOT NULL THEN line END AS line
            FROM judged WHERE reason IS NOT NULL OR ({where})""",
            [separator],
        )
        self.db.unregister("reader")
        self._take_refused(table, path)

    def load_rows(self, table: str, path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
        """Store rows that Python parsed; `schema` holds row, line and reason (null where a row is good)."""

        def batches() -> Iterator[pa.RecordBatch]:
            pending: list[dict[str, Any]] = []
            for row in rows:
                pending.append(row)
                if len(pending) >= BATCH_ROWS:
                    yield pa.RecordBatch.from_pylist(pending, schema=schema)
                    pending = []
            yield pa.RecordBatch.from_pylist(pending, schema=schema)

        self.db.register("reader", pa.RecordBatchReader.from_batches(schema, batches()))
        self.db.execute(f"CREATE TABLE {table} AS SELECT * FROM reader")
        self.db.unregister("reader")
        self._take_refused(table, path)

    def _take_refused(self, table: str, path: Path) -> None:
        """Move the refused lines of a table aside."""
        self.db.execute(
            f"""INSERT INTO refused SELECT ?, row, NULL, reason, line[:{CONTENT_CHARS}]
            FROM {table} WHERE reason IS NOT NULL""",
            [str(path)],
        )
        self.db.execute(f"DELETE FROM {table} WHERE reason IS NOT NULL")
        self.db.execute(f"ALTER TABLE {table} DROP COLUMN reason")
        self.db.execute(f"ALTER TABLE {table} DROP COLUMN line")

    # ---- counting

    def value(self, query: str) -> int:
        row = self.db.execute(query).fetchone()
        return int(row[0] or 0) if row else 0

    def count(self, name: str, query: str) -> int:
        """Note a figure for the provenance."""
        self.counts[name] = self.value(query)
        return self.counts[name]

    def table(self, query: str) -> pa.Table:
        table: pa.Table | None = self.db.sql(query).to_arrow_table()
        assert table is not None  # the query is a SELECT
        return table

    def refused_reasons(self) -> dict[str, int]:
        rows = self.db.execute("SELECT reason, count(*) FROM refused GROUP BY reason ORDER BY 2 DESC, 1").fetchall()
        return dict(Counter(dict(rows)))


def open_raw(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _positions(names: list[str], wanted: list[str], path: Path) -> dict[str, int]:
    """1-based places of the wanted columns in a header."""

    def plain(name: str) -> str:
        return name.strip().strip('"').replace("_", "").lower()

    places = {plain(name): place for place, name in enumerate(names, 1)}
    missing = [name for name in wanted if plain(name) not in places]
    if missing:
        raise UserError(f"{path}, line 1: no column {missing[0]!r}; the header is: {', '.join(names) or 'missing'}")
    return {name: places[plain(name)] for name in wanted}
