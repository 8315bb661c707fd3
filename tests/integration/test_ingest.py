"""The ingest stage as a whole, on Ray: tables in, samples out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import RunConfig
from llm4sbr_ray.data.ingest import ingest
from llm4sbr_ray.data.quarantine import QUARANTINE
from llm4sbr_ray.data.samples import SAMPLES
from llm4sbr_ray.errors import UserError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

SHARED = Path(__file__).parents[3] / "shared" / "data"
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(name: str = "run", **data: Any) -> Run:
        return Run(RunConfig(name=name, storage=str(tmp_path / "runs"), data=data))

    return make


def facts(run: Run) -> dict[str, Any]:
    return dict(run.manifest()["stages"]["ingest"])


def samples(run: Run, split: str) -> list[dict[str, Any]]:
    return list(run.read_table("data", split).to_pylist())


def all_bytes(run: Run) -> dict[str, bytes]:
    return {path.removeprefix(run.root): Path(path).read_bytes() for path in run.files("data")}


def write_sessions(path: Path, n: int = 120, n_items: int = 30) -> list[dict[str, Any]]:
    """A session table in Parquet, and its rows."""
    rng = np.random.default_rng(5)
    rows = [
        {
            "session_id": f"s{number}",
            "items": [f"i{item}" for item in rng.integers(0, n_items, rng.integers(2, 9))],
            "at": int(rng.integers(0, 10**6)),
        }
        for number in range(n)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return rows


# ---- the demo shop


def test_demo_shop(make_run: MakeRun) -> None:
    demo = {"source": "demo", "demo": {"sessions": 400, "items": 80}, "split": {"by": "time"}}
    run, again = make_run(**demo), make_run("again", **demo)
    assert ingest(run)
    assert not ingest(run)
    assert ingest(again)
    assert all_bytes(run) == all_bytes(again)

    items = run.read_table("data", "items.parquet")
    assert items.column_names[:6] == ["item_idx", "item_id", "title", "text", "attributes", "train_count"]
    assert items["item_idx"].to_pylist() == list(range(80))
    counts = facts(run)["counts"]
    assert counts["sessions"] == 400
    assert counts["items"] == 80
    whole: dict[str, list[list[int]]] = {}
    for split in ("train", "valid", "test"):
        table = run.read_table("data", split)
        assert table.schema.equals(SAMPLES)
        assert len(table) == counts[f"{split}_samples"]
        whole[split] = [r["items"] + [r["target"]] for r in table.to_pylist() if r["is_last"]]
    assert facts(run)["rows"] == sum(counts[f"{split}_samples"] for split in whole)
    assert len(whole["test"]) == 40
    assert sum(map(len, whole.values())) == 400

    clicks = np.bincount([item for session in whole["train"] for item in session], minlength=80)
    assert items["train_count"].to_pylist() == clicks.tolist()
    assert not run.exists(".partial/ingest")  # where the shop's own tables were
    numbers = [int(r["session_id"][1:]) for r in samples(run, "train")]
    assert numbers == sorted(numbers)  # the shop's sessions are numbered in the order of time
    assert max(numbers) < min(int(r["session_id"][1:]) for r in samples(run, "test"))
    cold = set(items["item_idx"].to_pylist()) - {i for s in whole["train"] + whole["valid"] for i in s}
    assert len(cold) >= 8


# ---- formats and layouts say the same


def test_formats_and_layouts_give_the_same_samples(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_sessions(tmp_path / "s.parquet")
    with (tmp_path / "s.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["session_id", "items", "at"])
        writer.writerows(
            [r["session_id"], json.dumps(r["items"]) if n % 2 else " ".join(r["items"]), r["at"]]
            for n, r in enumerate(rows)
        )
    events = tmp_path / "events"
    events.mkdir()
    # Clicks of all sessions mixed; a session's own clicks are apart by half a second and end at its time.
    clicks = [
        {"session_id": r["session_id"], "item_id": item, "at": r["at"] - (len(r["items"]) - 1 - n) / 2}
        for r in rows
        for n, item in enumerate(r["items"])
    ]
    np.random.default_rng(1).shuffle(clicks)  # type: ignore[arg-type]
    half = len(clicks) // 2
    for name, part in (("a.jsonl", clicks[:half]), ("b.jsonl", clicks[half:])):
        (events / name).write_text("".join(json.dumps(click) + "\n" for click in part))
    monkeypatch.setattr("llm4sbr_ray.data.tables.JSONL_CHUNK_BYTES", 3000)

    columns = {"timestamp": "at", "split": None}
    common = {"columns": columns, "split": {"by": "time", "test_fraction": 0.2, "valid_by": "last"}}
    runs = [
        make_run("parquet", sessions=str(tmp_path / "s.parquet"), **common),
        make_run("csv", sessions=(tmp_path / "s.csv").as_uri(), **common),
        make_run("events", sessions=str(events), layout="event", **common),
    ]
    for run in runs:
        ingest(run)
        assert facts(run)["quarantined"] == {}
        assert run.read_table("data", "items.parquet")["item_id"].to_pylist() == sorted(
            {item for r in rows for item in r["items"]}
        )
    for split in ("train", "valid", "test"):
        first, *others = [samples(run, split) for run in runs]
        assert first
        for other in others:
            assert other == first


def test_many_partitions_and_ranges_give_the_same_samples(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sessions(tmp_path / "s.parquet", n=200)
    common: dict[str, Any] = {"sessions": str(tmp_path / "s.parquet"), "split": {"by": "ratio"}}
    one = make_run("one", **common)
    ingest(one)
    monkeypatch.setattr("llm4sbr_ray.data.ingest.ROWS_PER_PARTITION", 50)
    monkeypatch.setattr("llm4sbr_ray.data.ingest.CLICKS_PER_RANGE", 1000)
    monkeypatch.setattr("llm4sbr_ray.data.ingest.SAMPLED_SESSIONS", 120)
    many = make_run("many", **common)
    ingest(many)
    assert len(many.files("data/train")) > len(one.files("data/train")) == 1
    for split in ("train", "valid", "test"):
        assert samples(many, split) == samples(one, split)
    assert many.read_bytes("data", "items.parquet") == one.read_bytes("data", "items.parquet")


# ---- bad rows


def test_bad_rows_are_kept_and_counted(make_run: MakeRun, tmp_path: Path) -> None:
    good = [f'{{"session_id": "s{n}", "items": ["a", "b", 3]}}'.encode() for n in range(100)]
    bad = [
        b'{"session_id": "s1", "items": ["b", "a"]}',
        b'{"session_id": "x1", "items": ["a"]}',
        b'{"session_id": "x2", "items": []}',
        b'{"session_id": "x3", "items": ["a", "nowhere"]}',
        b'{"session_id": "x4", "items": ["a", ',
        b'{"session_id": "x5\xff", "items": ["a", "b"]}',
        b'{"session_id": 5.5, "items": ["a", "b"]}',
        b'{"session_id": "x6", "items": ' + json.dumps(["a", "b"] * 5000).encode() + b"}",
        b'"text"',
    ]
    (tmp_path / "s.jsonl").write_bytes(b"\n".join(good + bad))
    (tmp_path / "i.csv").write_text(
        'item_id,title,attributes\na,"Red, wine",\nb,,"[""x"", ""y""]"\n3,Three\n3,Three,\na,Twice,\n,None,\n'
    )
    run = make_run(
        sessions=str(tmp_path / "s.jsonl"),
        items=str(tmp_path / "i.csv"),
        split={"by": "ratio", "test_fraction": 0.3},
    )
    ingest(run)
    quarantined = run.read_table("data", "quarantine")
    assert quarantined.schema.equals(QUARANTINE)
    sessions = [r for r in quarantined.to_pylist() if r["source"].endswith("s.jsonl")]
    assert [(r["row"], r["session_id"], r["reason"]) for r in sessions] == [
        (101, "s1", "duplicate session id"),
        (102, "x1", "session of one item"),
        (103, "x2", "empty session"),
        (104, "x3", "item is not in the catalogue"),
        (105, None, "malformed JSON"),
        (106, None, "not valid UTF-8"),
        (107, None, "session id has a wrong type"),
        (108, "x6", "more items than data.max_session_items"),
        (109, None, "not a JSON object"),
    ]
    assert all(0 < len(r["content"]) <= 2000 for r in sessions)
    items = [(r["row"], r["reason"]) for r in quarantined.to_pylist() if r["source"].endswith("i.csv")]
    assert items == [(4, "wrong number of fields"), (6, "duplicate item id"), (7, "item id is missing")]
    assert facts(run)["counts"]["sessions"] == len(good)
    assert sum(facts(run)["quarantined"].values()) == len(bad) + 3
    assert run.read_table("data", "items.parquet").select(["item_id", "title", "text"]).to_pylist() == [
        {"item_id": "a", "title": "Red, wine", "text": "Red, wine"},
        {"item_id": "b", "title": None, "text": "x | y"},
        {"item_id": "3", "title": "Three", "text": "Three"},
    ]


# ---- refusals


def refused(run: Run, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        ingest(run)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert not run.exists("data")


def test_missing_things_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    write_sessions(tmp_path / "s.parquet", n=20)
    path = str(tmp_path / "s.parquet")
    ratio = {"by": "ratio"}
    refused(make_run(sessions="nowhere.parquet"), "data.sessions", "nowhere.parquet")
    refused(
        make_run(sessions=path),
        "s.parquet",
        "no column 'split'",
        "data.columns.split",
        "session_id, items, at",
    )
    refused(
        make_run(sessions=path, columns={"items": "clicks"}, split=ratio),
        "no column 'clicks'",
        "data.columns.items",
    )
    refused(make_run(sessions=path, items=path, split=ratio), "data.items", "no column 'item_id'")
    refused(make_run(sessions=path, columns={"split": None}), "data.columns.split")
    refused(make_run(sessions=path, split={"by": "time"}), "data.columns.timestamp")


def test_an_empty_result_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    def table(name: str, **columns: list[Any]) -> str:
        pq.write_table(pa.table(columns), tmp_path / name)
        return str(tmp_path / name)

    short = table("short.parquet", session_id=["1", "2"], items=[["a"], ["b"]], split=["train", "test"])
    refused(make_run(sessions=short), "no session can be used", "session of one item (2)")
    empty = pa.table({"session_id": pa.array([], pa.string()), "items": pa.array([], pa.list_(pa.string()))})
    pq.write_table(empty, tmp_path / "empty.parquet")
    refused(make_run(sessions=str(tmp_path / "empty.parquet"), split={"by": "ratio"}), "the table is empty")
    (tmp_path / "header.csv").write_text("session_id,items\n")
    refused(make_run(sessions=str(tmp_path / "header.csv"), split={"by": "ratio"}), "the table is empty")
    pairs = [["a", "b"]] * 40
    ids = [str(n) for n in range(40)]
    train = table("train.parquet", session_id=ids, items=pairs, split=["train"] * 40)
    refused(make_run(sessions=train), "no test samples", "data.split.test_values")
    test = table("test.parquet", session_id=ids, items=pairs, split=["test"] * 40)
    refused(make_run(sessions=test), "no train samples")
    numbers = table("numbers.parquet", session_id=ids, items=[1.5] * 40, split=["train"] * 40)
    refused(make_run(sessions=numbers), "items have a wrong type (40)")
    nothing = table("nothing.parquet", item_id=[None, None], title=["x", "y"])
    refused(make_run(sessions=train, items=nothing), "no item can be used", "item id is missing (2)")


def test_a_broken_parquet_file_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    ids = [f"session {n * 7919 % 5000}" for n in range(5000)]
    table = pa.table({"session_id": ids, "items": [["a", "b"]] * 5000})
    pq.write_table(table, path, use_dictionary=False, compression="zstd")
    data = bytearray(path.read_bytes())
    data[60:600] = bytes(540)
    path.write_bytes(data)
    refused(make_run(sessions=str(path), split={"by": "ratio"}), "s.parquet is a broken Parquet file")


# ---- real tables, where they are at hand


@pytest.mark.parametrize(
    ("name", "items", "train_and_valid", "test"),
    [("beauty-small", 7_928, 15_920, 2_459), ("beauty", 12_101, 158_139, 18_000)],
)
def test_real_tables(make_run: MakeRun, name: str, items: int, train_and_valid: int, test: int) -> None:
    folder = SHARED / name
    if not folder.exists():
        pytest.skip("the data set is not on this machine: its terms forbid shipping it")
    run = make_run(sessions=str(folder / "sessions.parquet"), items=str(folder / "items.parquet"))
    ingest(run)
    counts = facts(run)["counts"]
    assert counts["train_samples"] + counts["valid_samples"] == train_and_valid
    assert counts["test_samples"] == test
    assert counts["items"] == items
    assert facts(run)["quarantined"] == {}
