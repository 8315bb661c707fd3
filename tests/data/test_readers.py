"""Every row of a file is read, whatever it looks like, and bears its number."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4sbr_ray.data import tables
from llm4sbr_ray.data.readers import RawRow, batched, column_names, read_rows, text_columns
from llm4sbr_ray.data.validate import parse_time
from llm4sbr_ray.errors import UserError


def read(path: Path, columns: list[str] | None = None) -> list[RawRow]:
    table = tables.locate(str(path), "auto", "data.sessions")
    planned = tables.chunks(table)
    ends = {(c.file.path, c.start): tables.line_ends_before(table, c) for c in planned if c.file.format == "jsonl"}
    names = columns or column_names(table, table.files[0])
    return [r for c in tables.number_lines(planned, ends) for r in read_rows(table, c, names)]


def outcome(row: RawRow) -> Any:
    return row.reason or row.values


# ---- JSON lines


def test_json_lines_good_and_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": 1, "items": ["a", "b"]}\r\n\n{"id": 2, "items": [\n[1, 2]\n{"id": "\xff"}\n{"id": 3}'
    )
    assert [(r.number, outcome(r)) for r in read(path)] == [
        (1, {"id": 1, "items": ["a", "b"]}),
        (3, "malformed JSON"),
        (4, "not a JSON object"),
        (5, "not valid UTF-8"),
        (6, {"id": 3}),
    ]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.one_of(st.binary(max_size=30), st.just(b'{"a": 1}'), st.just(b"")), max_size=20),
    size=st.integers(1, 64),
)
def test_json_lines_read_the_same_in_chunks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], size: int
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    data = b"\n".join(lines)
    path.write_bytes(data)
    whole = read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "JSONL_CHUNK_BYTES", size)
        assert read(path) == whole
    physical = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert [r.number for r in whole] == [n for n, line in enumerate(physical, 1) if line.strip()]


# ---- CSV


def test_csv_good_and_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,title\r\n"
        b"1,plain\r\n"
        b'2,"two\nlines, ""quoted"""\r\n'
        b"\r\n"
        b"3,too,many\r\n"
        b"4\r\n"
        b"5,caf\xe9\r\n"
        b'6,"open\r\n'
        b"7,after\r\n"
        b'8,"a"b\r\n'
        b"9,last"
    )
    assert [(r.number, outcome(r)) for r in read(path)] == [
        (2, {"id": "1", "title": "plain"}),
        (3, {"id": "2", "title": 'two\nlines, "quoted"'}),
        (6, "wrong number of fields"),
        (7, "wrong number of fields"),
        (8, "not valid UTF-8"),
        (9, "malformed CSV"),
        (10, {"id": "7", "title": "after"}),
        (11, "malformed CSV"),
        (12, {"id": "9", "title": "last"}),
    ]


def test_a_quote_left_open_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,title\n" + "".join(f"{n},{chr(34) if n == 5 else ''}t\n" for n in range(1000)))
    rows = read(path)
    assert len(rows) == 1000
    assert [r.number for r in rows if r.reason] == [7]


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.text(st.sampled_from('a,"\u00e9\0 1'), max_size=12).map(str.encode) | st.binary(max_size=8)))
def test_csv_of_any_bytes_is_read_to_its_end(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    body = b"\n".join(lines)
    path.write_bytes(b"id,title\n" + body + b"\nlast,row\n")
    rows = read(path)
    numbers = [r.number for r in rows]
    assert numbers == sorted(set(numbers))
    reached = rows[-1]
    inside_quotes = reached.values is not None and "\nlast,row" in reached.values["title"]
    assert inside_quotes or reached.values == {"id": "last", "title": "row"}
    spanned = {
        n + extra
        for n, r in zip(numbers, rows, strict=True)
        for extra in range(1 + sum(str(v).count("\n") for v in (r.values or {}).values()))
    }
    blank = {n for n, line in enumerate(body.split(b"\n"), 2) if not line.strip()}
    last = 2 + (body + b"\nlast,row").count(b"\n")
    assert spanned | blank == set(range(2, last + 1))


def test_csv_header_must_be_usable(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,id\n1,2\n")
    with pytest.raises(UserError, match=r"a\.csv, line 1: two columns have the same name"):
        read(path)
    path.write_bytes(b"id,\xff\n1,2\n")
    with pytest.raises(UserError, match=r"a\.csv, line 1: not a CSV header in UTF-8"):
        read(path)


# ---- Parquet


def test_parquet_rows_survive_bytes_that_are_no_text(tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"\xff\xfe", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": bad, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert [(r.number, outcome(r)) for r in rows] == [
        (1, {"id": b"ok", "n": 1}),
        (2, {"id": b"\xff\xfe", "n": 2}),
        (3, {"id": None, "n": 3}),
    ]
    assert rows[1].content() == '{"id": "\ufffd\ufffd", "n": 2}'


def test_parquet_text_of_any_encoding_is_the_same(tmp_path: Path) -> None:
    plain = pa.array([["a", "b"], [], None])
    kinds = {
        "plain": plain,
        "large": plain.cast(pa.large_list(pa.large_string())),
        "coded": pa.array(["x", "y", "x"]).dictionary_encode(),
    }
    pq.write_table(pa.table(kinds), tmp_path / "a.parquet")
    first = read(tmp_path / "a.parquet")[0].values
    assert first == {"plain": [b"a", b"b"], "large": [b"a", b"b"], "coded": b"x"}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquet_times_come_as_microseconds(tmp_path: Path, unit: Any) -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    columns = {
        "moment": pa.array([moment, None], pa.timestamp(unit, "UTC")),
        "day": pa.array([date(2024, 5, 6), None]),
        "far": pa.array([2**62, None], pa.timestamp("us")),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    values = read(tmp_path / "a.parquet")[0].values
    assert values is not None
    assert parse_time(values["moment"]) == int(moment.timestamp()) * 10**6
    assert parse_time(values["day"]) == int(datetime(2024, 5, 6, tzinfo=UTC).timestamp()) * 10**6
    assert parse_time(values["far"]) == 2**62


def test_a_broken_parquet_page_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [str(n) for n in range(5000)]}), path, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[60:400] = b"\0" * 340
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"data\.sessions: .*a\.parquet is a broken Parquet file"):
        read(path)


# ---- gzipped


def test_gzipped_text_reads_as_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "JSONL_CHUNK_BYTES", 8)  # a plain file would be cut here
    texts = {
        "a.csv": b'\xef\xbb\xbfid,title\r\n1,"two\r\nlines"\r\n2\r\n3,c\r\n',
        "b.jsonl": b'{"id": 1}\n\n{"id": \n{"id": 3}',
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
        # Two gzip members, as `cat a.gz b.gz` leaves them.
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text[:9]) + gzip.compress(text[9:]))
        rows = read(tmp_path / f"{name}.gz")
        assert rows == read(tmp_path / name)
        assert len(rows) == 3
    table = tables.locate(str(tmp_path / "b.jsonl.gz"), "auto", "data.items")
    assert column_names(table, table.files[0]) == ["id"]


def test_a_gzipped_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    for name, data in (("cut.csv.gz", gzip.compress(b"id\n" + b"1\n" * 999)[:-9]), ("not.csv.gz", b"id\n1\n")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"data\.sessions: .*{name} cannot be read"):
            read(tmp_path / name, ["id"])


# ---- all


def test_columns_and_text_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,n\na,1\n")
    (tmp_path / "b.jsonl").write_text('{"id": "a"}\n{"n": 1, "l": ["x"]}\n')
    pq.write_table(pa.table({"id": ["a"], "n": [1], "l": [["x"]]}), tmp_path / "c.parquet")
    for name, columns, text in (
        ("a.csv", ["id", "n"], ["id", "n"]),
        ("b.jsonl", ["id", "n", "l"], ["id"]),
        ("c.parquet", ["id", "n", "l"], ["id"]),
    ):
        table = tables.locate(str(tmp_path / name), "auto", "data.items")
        assert column_names(table, table.files[0]) == columns
        assert text_columns(table) == text


def test_content_is_cut() -> None:
    assert len(RawRow(1, {"x": "y" * 5000}).content()) == 2000
    assert json.loads(RawRow(1, {"x": "é"}).content()) == {"x": "é"}


def test_batches_hold_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm4sbr_ray.data.readers.BATCH_ROWS", 4)
    rows = [RawRow(n, {}) for n in range(10)]
    assert [len(b) for b in batched(iter(rows))] == [4, 4, 2]
