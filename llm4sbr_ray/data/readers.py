"""From files to rows: every row of a table, the broken ones too, with its number and its text.

    for row in read_rows(table, chunk, columns): ...

A row is a `RawRow`: the values of its columns, or the reason why it has none.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from llm4sbr_ray.data.tables import Chunk, File, TableFiles, open_parquet
from llm4sbr_ray.data.validate import Microseconds
from llm4sbr_ray.errors import UserError

BATCH_ROWS = 20_000
RECORD_LINES = 200  # a quoted CSV field may run over this many lines; a longer one is a quote that was never closed
PEEKED_ROWS = 100  # of a JSON lines file, to learn its keys
CONTENT_CHARS = 2000


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in the file."""

    number: int  # from 1: the row of a Parquet file, the line of a text file
    values: dict[str, Any] | None  # None: refused, see `reason`
    reason: str | None = None
    text: str = ""  # of a refused row; else `content` makes it from the values

    def content(self) -> str:
        """The row as text, cut at 2,000 characters."""
        text = self.text if self.values is None else json.dumps(_plain(self.values), ensure_ascii=False, default=str)
        return text[:CONTENT_CHARS]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def column_names(table: TableFiles, file: File) -> list[str]:
    """The columns of a file: of a Parquet schema, of a CSV header, the keys of the first 100 JSON lines."""
    if file.format == "parquet":
        return list(open_parquet(table, file).schema_arrow.names)
    with _open(table, file) as stream:
        if file.format == "csv":
            return _header(table, file, stream)
        names: dict[str, None] = {}
        for row in islice(_json_rows(stream, 1, file.end), PEEKED_ROWS):
            names.update(dict.fromkeys(row.values or ()))
        return list(names)


def text_columns(table: TableFiles) -> list[str]:
    """The columns of the first file that hold text: all of CSV, string columns, keys with a text value."""
    file = table.files[0]
    if file.format == "csv":
        return column_names(table, file)
    if file.format == "parquet":
        schema = open_parquet(table, file).schema_arrow
        return [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    with _open(table, file) as stream:
        names: dict[str, None] = {}
        for row in islice(_json_rows(stream, 1, file.end), PEEKED_ROWS):
            names.update((key, None) for key, value in (row.values or {}).items() if isinstance(value, str))
        return list(names)


def batched(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    """Lists of at most `BATCH_ROWS` rows."""
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def read_rows(table: TableFiles, chunk: Chunk, columns: list[str]) -> Iterator[RawRow]:
    """All rows of a chunk; of their columns only those named.

    Raises
    ------
    UserError
        A Parquet file that cannot be read: its pages are compressed, so no row of a broken one can be told.
        A gzipped file that is cut off.
    """
    if chunk.file.format == "parquet":
        yield from _parquet_rows(table, chunk, columns)
        return
    with _open(table, chunk.file) as stream:
        try:
            if chunk.file.format == "csv":
                yield from _csv_rows(stream, _header(table, chunk.file, stream), columns)
            else:
                if chunk.start:
                    stream.seek(chunk.start - 1)
                    stream.readline()  # the line that began in the chunk before
                yield from _json_rows(stream, chunk.first_row, chunk.stop)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{table.name}: {chunk.file.path} cannot be read to its end: {error}") from error


def _open(table: TableFiles, file: File) -> io.BufferedReader:
    try:
        stream: Any = table.fs.open_input_file(file.path)
    except OSError as error:
        raise UserError(f"{table.name}: {file.path} cannot be opened: {error}") from error
    raw: Any = gzip.GzipFile(fileobj=stream, mode="rb") if file.is_gzipped else stream
    return io.BufferedReader(raw, 2**20)


# ---- Parquet


def _parquet_rows(table: TableFiles, chunk: Chunk, columns: list[str]) -> Iterator[RawRow]:
    file = open_parquet(table, chunk.file)
    schema = file.schema_arrow
    present = [name for name in columns if name in schema.names]
    number = chunk.first_row
    groups = list(range(chunk.start, chunk.stop))
    try:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=present):
            # Text comes as bytes: a Parquet string column may hold any, and a bad row must not end the batch.
            arrays = [_values(batch.column(name)) for name in present]
            for values in zip(*arrays, strict=True):
                yield RawRow(number, dict(zip(present, values, strict=True)))
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{table.name}: {chunk.file.path} is a broken Parquet file: {error}") from error


def _values(array: Any) -> list[Any]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = array.cast(pa.large_binary())
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        value = kind.value_type
        if pa.types.is_string(value) or pa.types.is_large_string(value):
            array = array.cast(pa.large_list(pa.large_binary()))
    elif pa.types.is_date(kind):
        days = array.cast(pa.date32()).cast(pa.int32()).to_pylist()
        return [None if day is None else Microseconds(day * 86_400_000_000) for day in days]
    elif pa.types.is_timestamp(kind):
        per_unit, unit_per = {"s": (10**6, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}[kind.unit]
        ticks = array.cast(pa.int64()).to_pylist()
        return [None if tick is None else Microseconds(tick * per_unit // unit_per) for tick in ticks]
    return list(array.to_pylist())


# ---- JSON lines


def _json_rows(stream: io.BufferedReader, number: int, stop: int) -> Iterator[RawRow]:
    at = stream.tell()
    while at < stop:
        line = stream.readline()
        if not line:
            return
        at += len(line)
        row = _json_row(line, number)
        if row is not None:
            yield row
        number += 1


def _json_row(line: bytes, number: int) -> RawRow | None:
    line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
    if not line:
        return None  # a blank line is no row
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return RawRow(number, None, "malformed JSON" if _is_utf8(line) else "not valid UTF-8", _text(line))
    if not isinstance(value, dict):
        return RawRow(number, None, "not a JSON object", _text(line))
    return RawRow(number, value)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text(line: bytes) -> str:
    return line[: 4 * CONTENT_CHARS].decode("utf-8", "replace")


# ---- CSV


def _header(table: TableFiles, file: File, stream: io.BufferedReader) -> list[str]:
    """Read the first line of a CSV file."""
    try:
        names = next(csv.reader([stream.readline().decode("utf-8-sig").rstrip("\r\n")], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table.name}: {file.path}, line 1: not a CSV header in UTF-8: {error}") from error
    if len(set(names)) < len(names):
        raise UserError(f"{table.name}: {file.path}, line 1: two columns have the same name: {', '.join(names)}")
    return names


def _csv_rows(stream: io.BufferedReader, names: list[str], columns: list[str]) -> Iterator[RawRow]:
    """A record is a line, or several when a quoted field holds line ends.

    A record of several lines that does not parse is taken back: its first line alone is refused, and reading
    goes on with its second. So a quote that was never closed costs one row and not the rest of the file.
    """
    kept = [name in columns for name in names]
    lines = _Lines(stream)
    while True:
        record = lines.take()
        if record is None:
            return
        number, pieces = record
        if not pieces[0].strip():
            lines.give_back(pieces[1:])
            continue  # a blank line is no row
        fields, reason = _csv_fields(b"".join(pieces), len(names))
        if reason is not None:
            lines.give_back(pieces[1:])
            yield RawRow(number, None, reason, _text(pieces[0].rstrip(b"\r\n")))
        else:
            values = {name: field for name, field, keep in zip(names, fields, kept, strict=True) if keep}
            yield RawRow(number, values)


class _Lines:
    """The lines of a CSV file as records: as many lines as close all quotes, at most `RECORD_LINES`."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._returned: list[bytes] = []  # the next line last
        self._number = 1  # of the last line taken; the header is line 1

    def _next(self) -> bytes:
        self._number += 1
        return self._returned.pop() if self._returned else self._stream.readline()

    def take(self) -> tuple[int, list[bytes]] | None:
        line = self._next()
        if not line:
            return None
        number, pieces, quotes = self._number, [line], line.count(b'"')
        while quotes % 2 and len(pieces) < RECORD_LINES:
            line = self._next()
            if not line:
                self._number -= 1
                break
            pieces.append(line)
            quotes += line.count(b'"')
        return number, pieces

    def give_back(self, pieces: list[bytes]) -> None:
        self._number -= len(pieces)
        self._returned += reversed(pieces)


def _csv_fields(record: bytes, expected: int) -> tuple[list[str], str | None]:
    try:
        text = record.decode()
    except UnicodeDecodeError:
        return [], "not valid UTF-8"
    try:
        parsed = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error:
        return [], "malformed CSV"
    if len(parsed) != 1 or len(parsed[0]) != expected:
        return [], "wrong number of fields"
    return parsed[0], None
