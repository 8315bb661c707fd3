"""Where a user's table lies: the files behind a path or URI, and the chunks they are read in."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from llm4sbr_ray.errors import UserError

Format = Literal["parquet", "csv", "jsonl"]
ENDINGS: dict[str, Format] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
PARQUET_CHUNK_ROWS = 200_000
JSONL_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class File:
    """One file of a table; `index` is its place in the order of names."""

    path: str
    size: int
    mtime_ns: int
    format: Format
    index: int

    @property
    def is_gzipped(self) -> bool:
        return self.path.lower().endswith(".gz")

    @property
    def end(self) -> int:
        """Bytes of text, or a number above any: how many a gzipped file holds is known at its end alone."""
        return 2**62 if self.is_gzipped else self.size


@dataclass(frozen=True)
class TableFiles:
    """A table: its files, in the order of their names, on one filesystem."""

    name: str  # the setting that names it, for messages: "data.sessions"
    fs: pafs.FileSystem
    files: tuple[File, ...]

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """What changes when the table does: path, size in bytes and modification time of each file."""
        return [(file.path, file.size, file.mtime_ns) for file in self.files]


@dataclass(frozen=True)
class Chunk:
    """The piece of a file that one task reads.

    `start` and `stop` are row groups (Parquet) or bytes (JSON lines: the lines that begin in between); a CSV
    file is one chunk, because a quoted field may hold line ends, and so is a gzipped file. `first_row` numbers
    the chunk's first row: rows of a Parquet file count from 1, rows of text files bear the number of their line.
    """

    file: File
    start: int
    stop: int
    first_row: int


def locate(location: str, format: str, name: str) -> TableFiles:
    """The files of the table at `location` (a file or a folder; a local path or any pyarrow filesystem URI).

    Files and folders whose names start with "." or "_" are left out, as Spark and Hive write their marks so.

    Raises
    ------
    UserError
        Nothing is there, a file's format is not known, or the filesystem cannot be opened.
    """
    try:
        if "://" in location:
            fs, root = pafs.FileSystem.from_uri(location)
        else:
            fs, root = pafs.LocalFileSystem(), str(Path(location).absolute())
        info = fs.get_file_info(root)
        if info.type == pafs.FileType.NotFound:
            raise UserError(f"{name}: no such file or folder: {location}")
        found = [info]
        if info.type == pafs.FileType.Directory:
            below = fs.get_file_info(pafs.FileSelector(root, recursive=True))
            found = [i for i in below if i.type == pafs.FileType.File and not _is_hidden(i.path, root)]
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{name}: {location} cannot be opened: {error}") from error
    if not found:
        raise UserError(f"{name}: the folder holds no files: {location}")
    found.sort(key=lambda i: i.path)
    files = [File(i.path, i.size, i.mtime_ns or 0, _format(i.path, format, name), n) for n, i in enumerate(found)]
    return TableFiles(name, fs, tuple(files))


def _is_hidden(path: str, root: str) -> bool:
    return any(part[0] in "._" for part in posixpath.relpath(path, root).split("/"))


def _format(path: str, format: str, name: str) -> Format:
    if format != "auto":
        return {"parquet": "parquet", "csv": "csv", "jsonl": "jsonl"}[format]  # type: ignore[return-value]
    ending = posixpath.splitext(path.lower().removesuffix(".gz"))[1]
    if ending not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise UserError(
            f"{name}: {path} ends in none of {known} (or one with .gz): set data.format, or move the file away"
        )
    return ENDINGS[ending]


def open_parquet(table: TableFiles, file: File) -> pq.ParquetFile:
    """Open one Parquet file; a file that is none is a `UserError`."""
    try:
        return pq.ParquetFile(file.path, filesystem=table.fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{table.name}: {file.path} is not a readable Parquet file: {error}") from error


def chunks(table: TableFiles) -> list[Chunk]:
    """All chunks in the order of the rows; those of JSON lines get their `first_row` by `number_lines`."""
    planned: list[Chunk] = []
    for file in table.files:
        if file.format == "csv" or (file.format == "jsonl" and file.is_gzipped):
            planned.append(Chunk(file, 0, file.end, 1))
        elif file.format == "jsonl":
            starts = range(0, file.size, JSONL_CHUNK_BYTES)
            planned += [Chunk(file, at, min(file.size, at + JSONL_CHUNK_BYTES), 0) for at in starts]
        else:
            planned += _row_group_chunks(table, file)
    return planned


def _row_group_chunks(table: TableFiles, file: File) -> list[Chunk]:
    metadata = open_parquet(table, file).metadata
    sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    planned, start, first_row, rows = [], 0, 1, 0
    for group, size in enumerate(sizes):
        rows += size
        if rows >= PARQUET_CHUNK_ROWS or group == len(sizes) - 1:
            planned.append(Chunk(file, start, group + 1, first_row))
            start, first_row, rows = group + 1, first_row + rows, 0
    return planned


def line_ends_before(table: TableFiles, chunk: Chunk) -> int:
    """Line ends in the bytes ``[start - 1, stop - 1)`` of a JSON lines chunk."""
    count, at, stop = 0, max(0, chunk.start - 1), chunk.stop - 1
    with table.fs.open_input_file(chunk.file.path) as stream:
        stream.seek(at)
        while at < stop:
            block = stream.read(min(2**20, stop - at))
            if not block:
                break  # the file has become shorter, or is gzipped
            count += block.count(b"\n")
            at += len(block)
    return count


def number_lines(planned: list[Chunk], line_ends: Mapping[tuple[str, int], int]) -> list[Chunk]:
    """Give JSON lines chunks their `first_row`.

    Parameters
    ----------
    planned
        From `chunks`.
    line_ends
        `line_ends_before` of the chunks of each file that was cut, by path and start.
    """
    numbered: list[Chunk] = []
    ends = 0  # line ends before the byte before the chunk: each begins a line, after line 1
    for chunk in planned:
        if chunk.file.format == "jsonl":
            ends = ends if chunk.start else 0
            numbered.append(replace(chunk, first_row=ends + 2 if chunk.start else 1))
            ends += line_ends.get((chunk.file.path, chunk.start), 0)
        else:
            numbered.append(chunk)
    return numbered


def estimated_rows(table: TableFiles) -> int:
    """About how many rows the table has; exact for Parquet, else by 50 bytes a row, 10 where they are gzipped."""
    text = sum(file.size // (10 if file.is_gzipped else 50) for file in table.files if file.format != "parquet")
    parquet = [open_parquet(table, file).metadata.num_rows for file in table.files if file.format == "parquet"]
    return int(text + sum(parquet))
