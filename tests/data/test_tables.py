"""Finding the files of a table and cutting them into chunks."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


def test_a_folder_is_its_files_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "_SUCCESS", ".hidden.csv", "sub/c.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    table = locate(str(tmp_path), "auto", "data.sessions")
    assert [(Path(f.path).name, f.format, f.index) for f in table.files] == [
        ("a.csv", "csv", 0),
        ("b.jsonl", "jsonl", 1),
        ("c.parquet", "parquet", 2),
    ]


def test_a_uri_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n")
    assert locate((tmp_path / "a.csv").as_uri(), "auto", "data.items").files[0].size == 2


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n")
    before = locate(str(path), "auto", "data.items").fingerprint()
    assert before == locate(str(path), "auto", "data.items").fingerprint()
    path.write_text("x\ny\n")
    assert before != locate(str(path), "auto", "data.items").fingerprint()


@pytest.mark.parametrize(
    ("make", "location", "message"),
    [
        (None, "missing.csv", r"data\.sessions: no such file or folder: .*missing\.csv"),
        (None, ".", "the folder holds no files"),
        ("notes.txt", ".", r"notes\.txt ends in none of \.parquet.*data\.format"),
        (None, "nosuchfs://bucket/x", "cannot be opened"),
    ],
)
def test_what_cannot_be_found_is_one_clear_line(tmp_path: Path, make: str | None, location: str, message: str) -> None:
    if make:
        (tmp_path / make).write_text("")
    place = location if "://" in location else str(tmp_path / location)
    with pytest.raises(UserError, match=message) as caught:
        locate(place, "auto", "data.sessions")
    assert "\n" not in str(caught.value)


def test_parquet_chunks_are_row_groups_and_number_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm4sbr_ray.data.tables.PARQUET_CHUNK_ROWS", 40)
    pq.write_table(pa.table({"x": list(range(100))}), tmp_path / "a.parquet", row_group_size=25)
    table = locate(str(tmp_path), "auto", "data.sessions")
    assert [(c.start, c.stop, c.first_row) for c in chunks(table)] == [(0, 2, 1), (2, 4, 51)]
    assert estimated_rows(table) == 100


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("session_id,items\n")
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file"):
        chunks(locate(str(tmp_path), "auto", "data.sessions"))


def numbered(table: TableFiles) -> list[Chunk]:
    """Chunks with their line numbers, as the stage makes them."""
    planned = chunks(table)
    ends = {(c.file.path, c.start): line_ends_before(table, c) for c in planned if c.file.format == "jsonl"}
    return number_lines(planned, ends)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
def test_json_lines_chunks_bear_the_number_of_their_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("llm4sbr_ray.data.tables.JSONL_CHUNK_BYTES", size)
    texts = {"a.jsonl": b"11\n2\n\n4444444\n5\n", "b.jsonl": b"1\n22\n3"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    for chunk in numbered(locate(str(tmp_path), "auto", "data.sessions")):
        text = texts[Path(chunk.file.path).name]
        starts = [0, *(at + 1 for at, byte in enumerate(text) if byte == 10)]
        inside = [line for line, at in enumerate(starts, 1) if chunk.start <= at < chunk.stop]
        if inside:
            assert chunk.first_row == inside[0]
