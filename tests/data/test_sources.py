"""Each public data set from tiny raw files in its exact format; the sessions expected are worked out by hand."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import DataConfig, RunConfig
from llm4sbr_ray.data.ingest import ingest
from llm4sbr_ray.data.quarantine import QUARANTINE
from llm4sbr_ray.data.sources import SOURCES
from llm4sbr_ray.data.sources import prepare as prepare_module
from llm4sbr_ray.data.sources.kcore import k_core
from llm4sbr_ray.data.sources.movielens_1m import windows
from llm4sbr_ray.data.sources.prepare import main, prepare
from llm4sbr_ray.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
NOON = int(datetime(2000, 12, 31, 12, tzinfo=UTC).timestamp())
DAY = 86_400


class Made:
    """What `prepare` wrote."""

    def __init__(self, source: str, raw: Path, out: Path) -> None:
        self.provenance = prepare(source, raw, out)
        self.out = out
        self.sessions = pq.read_table(out / "sessions.parquet").to_pylist()
        self.items = {row["item_id"]: row for row in pq.read_table(out / "items.parquet").to_pylist()}
        self.refused = pq.read_table(out / "refused.parquet")
        assert json.loads((out / "provenance.json").read_text()) == self.provenance
        assert not list(out.glob(".scratch*"))

    def of(self, split: str) -> list[list[str]]:
        return [row["items"] for row in self.sessions if row["split"] == split]

    def reasons(self) -> list[tuple[str, int, str]]:
        return [(Path(r["source"]).name, r["row"], r["reason"]) for r in self.refused.to_pylist()]


# ---- MovieLens 1M


def rating(user: int, movie: int, second: int) -> str:
    return f"{user}::{movie}::5::{NOON + second}"


def write_movielens(raw: Path) -> None:
    raw.mkdir()
    lines = [
        rating(1, 12, 301),  # 301 s after the first: a window of its own, which it shares with movie 13
        rating(1, 10, 0),
        rating(1, 11, 300),  # just within 5 minutes
        rating(1, 13, 301),  # same second: in the order of the file
        rating(1, 99, 2),  # a movie with one rating
        "1::10::5",
        "1::x::5::978300000",
        "",
        rating(9, 10, 0),  # a day with one rating
    ]
    # Users 2 to 5: a window of four a day later each, so every movie has at least 5 ratings; then a lonely window.
    for user in range(2, 6):
        lines += [rating(user, movie, user * DAY + movie) for movie in (13, 12, 11, 10)]
        lines.append(rating(user, 10 + user % 2, user * DAY + 4000))
    lines += [rating(6, 11, 6 * DAY + 1), rating(6, 10, 6 * DAY)]
    (raw / "ratings.dat").write_bytes("\r\n".join(lines).encode("latin-1"))
    movies = "10::Misérables, Les (1995)::Drama|Musical\n11::Heat (1995)::Action\n12::::\n99::Rare (1990)::Drama\n"
    (raw / "movies.dat").write_bytes(movies.encode("latin-1"))


def test_movielens(tmp_path: Path) -> None:
    write_movielens(tmp_path / "raw")
    made = Made("movielens-1m", tmp_path / "raw", tmp_path / "out")
    # Windows by last rating: 2 of user 1, one of four and one of one for each of users 2 to 5, 1 of user 6: 11;
    # 9 are train; the tenth is a lonely one.
    assert made.provenance["counts"]["windows"] == 11
    assert made.provenance["counts"]["windows of one rating"] == 4
    assert made.provenance["counts"]["ratings of rare movies"] == 1
    assert made.provenance["counts"]["days with one rating"] == 1
    assert made.of("train") == [["10", "11"], ["12", "13"]] + [["10", "11", "12", "13"]] * 4
    assert made.of("test") == [["10", "11"]]
    assert [row["timestamp"] - NOON for row in made.sessions[:2]] == [300, 301]
    assert made.items["10"]["title"] == "Misérables, Les (1995)"
    assert made.items["10"]["attributes"] == ["Drama", "Musical"]
    assert made.items["12"]["title"] is None  # an empty title
    assert made.items["13"]["title"] is None  # not in movies.dat
    assert set(made.items) == {"10", "11", "12", "13"}
    assert made.reasons() == [
        ("ratings.dat", 6, "wrong number of fields"),
        ("ratings.dat", 7, "item is malformed"),
    ]
    assert made.refused.schema.equals(QUARANTINE)
    assert made.refused["content"].to_pylist() == ["1::10::5", "1::x::5::978300000"]


@given(
    ratings=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1500)), max_size=60),
)
def test_windows_match_a_naive_loop(ratings: list[tuple[int, int]]) -> None:
    ratings.sort()
    numbers = windows(np.array([d for d, _ in ratings], np.int64), np.array([t for _, t in ratings], np.int64))
    naive: list[list[tuple[int, int]]] = []
    for day in sorted({d for d, _ in ratings}):
        left = [r for r in ratings if r[0] == day]
        while left:
            naive.append([r for r in left if r[1] - left[0][1] <= 300])
            left = left[len(naive[-1]) :]
    assert numbers.tolist() == [n for n, window in enumerate(naive) for _ in window]


# ---- Amazon


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=80),
    k=st.integers(1, 4),
)
def test_k_core_matches_a_naive_loop(pairs: list[tuple[int, int]], k: int) -> None:
    left = list(pairs)
    while True:
        users, items = Counter(u for u, _ in left), Counter(i for _, i in left)
        bad = next((p for p in left if users[p[0]] < k or items[p[1]] < k), None)
        if bad is None:
            break
        left.remove(bad)  # one row at a time: the core does not depend on the order
    with duckdb.connect(":memory:") as db:
        columns = {name: pa.array([p[n] for p in pairs], pa.int64()) for n, name in enumerate(("user", "item"))}
        db.register("given", pa.table(columns))
        db.execute("CREATE TABLE clicks AS SELECT * FROM given")
        k_core(db, "clicks", k)
        assert sorted(db.execute("SELECT * FROM clicks").fetchall()) == sorted(left)


ASINS = ["B1", "B2", "B3", "B4", "B5"]
USERS = [f"U{n:02d}" for n in range(11)]  # int(0.9 * 11) = 9 are train


def reviews(key_user: str, key_item: str, key_time: str, ticks: int = 1) -> list[str]:
    """User n begins at item n % 5; days are 86,400 s; U00 has two reviews on its first day."""
    lines = []
    for n, user in enumerate(USERS):
        for step in range(5):
            day = max(step, 1) if n == 0 else step
            record = {
                key_user: user,
                key_item: ASINS[(n + step) % 5],
                key_time: (day + 1) * DAY * ticks + 10**9 * ticks,
            }
            lines.append(json.dumps({**record, "reviewText": 'line\u2028separator "quoted"'}, ensure_ascii=False))
    again = {key_user: "U03", key_item: "B4", key_time: 50 * DAY * ticks + 10**9 * ticks}
    outside = {key_user: "U99", key_item: "B1", key_time: DAY * ticks + 10**9 * ticks}
    rare = {key_user: "U01", key_item: "B9", key_time: DAY * ticks + 10**9 * ticks}
    return [json.dumps(again), *reversed(lines), json.dumps(outside), json.dumps(rare)]


def zipped(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))


def expected(n: int) -> list[str]:
    return [ASINS[(n + step) % 5] for step in range(5)]


def test_amazon_2014(tmp_path: Path) -> None:
    lines = reviews("reviewerID", "asin", "unixReviewTime")
    lines.insert(3, '{"reviewerID": "U01", "asin": ')
    lines.insert(4, '{"reviewerID": "U01", "asin": "B1", "unixReviewTime": 1400000000000}')  # ms in a set of seconds
    zipped(tmp_path / "reviews_Beauty_5.json.gz", lines)
    metadata = [
        "{'asin': 'B1', 'title': 'Rose &amp; Lily\\'s  Soap', 'brand': 'A&amp;B',"
        " 'categories': [['Beauty', 'Bath', 'Soap']]}",
        "{'asin': 'B2', 'imUrl': 'http://x', 'salesRank': {'Beauty': 5}, 'categories': [['Beauty', 'Hair'], ['Home']]}",
        '{"asin": "B3", "title": "JSON, too", "price": 2.5}',
        "{'asin': 'B1', 'title': 'Again'}",
        "{'asin': 'B9', 'title': 'Nobody has it'}",
        "{'asin': __import__('os').system('true')}",
        "['asin']",
        "{'asin': " + "(" * 5000 + "}",
        "{'asin': 'B4', 'title': '" + "x" * 1_000_000 + "'}",
        "{'title': 'No id'}",
    ]
    zipped(tmp_path / "meta_Beauty.json.gz", metadata)
    made = Made("amazon-2014", tmp_path, tmp_path / "out")
    # U00's first two reviews are of one day and stand in the file in reverse.
    assert made.of("train") == [["B2", "B1", "B3", "B4", "B5"], *(expected(n) for n in range(1, 9))]
    assert made.of("test") == [expected(9), expected(10)]
    assert [row["session_id"] for row in made.sessions] == USERS
    assert list(made.items) == ASINS
    assert made.items["B1"]["title"] == "Rose & Lily's Soap"
    assert made.items["B1"]["attributes"] == ["A&B", "Bath", "Soap"]
    assert made.items["B2"]["title"] is None
    assert made.items["B2"]["brand"] is None
    assert made.items["B2"]["attributes"] == ["Hair"]
    assert made.items["B3"]["title"] == "JSON, too"
    assert made.items["B5"] == {"item_id": "B5", "title": None, "brand": None, "category": [], "attributes": []}
    assert made.reasons() == [
        ("meta_Beauty.json.gz", 6, "neither JSON nor a Python literal"),
        ("meta_Beauty.json.gz", 7, "not an object"),
        ("meta_Beauty.json.gz", 8, "neither JSON nor a Python literal"),
        ("meta_Beauty.json.gz", 9, "line is too long"),
        ("meta_Beauty.json.gz", 10, "item id is missing"),
        ("reviews_Beauty_5.json.gz", 4, "neither JSON nor a Python literal"),
        ("reviews_Beauty_5.json.gz", 5, "time is not in seconds"),
    ]
    counts = made.provenance["counts"]
    assert counts["repeated reviews of an item"] == 1
    assert counts["reviews outside the 5-core"] == 2
    assert counts["repeated metadata of an item"] == 1
    assert counts["items without a title"] == 3


def test_amazon_2018_and_2023(tmp_path: Path) -> None:
    old, new = tmp_path / "2018", tmp_path / "2023"
    old.mkdir()
    new.mkdir()
    zipped(old / "All_Beauty_5.json.gz", reviews("reviewerID", "asin", "unixReviewTime"))
    script = "var aPageStart = (new Date()).getTime();"
    zipped(
        old / "meta_All_Beauty.json.gz",
        [
            json.dumps({"asin": "B1", "title": script, "brand": "", "category": ["All Beauty", "Skin"]}),
            "{'asin': 'B2'}",
        ],
    )
    lines = reviews("user_id", "parent_asin", "timestamp", ticks=1000)
    (new / "All_Beauty.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (new / "meta_All_Beauty.jsonl").write_text(
        json.dumps({"parent_asin": "B1", "title": "Soap", "store": "Shop", "categories": ["Beauty", "Bath"]})
    )
    first, second = Made("amazon-2018", old, tmp_path / "a"), Made("amazon-2023", new, tmp_path / "b")
    assert first.sessions == second.sessions
    assert len(first.sessions) == 11
    assert first.items["B1"]["title"] is None
    assert first.items["B1"]["attributes"] == ["Skin"]
    assert first.reasons() == [("meta_All_Beauty.json.gz", 2, "malformed JSON")]  # Python literals are of 2014 alone
    assert second.items["B1"]["attributes"] == ["Shop", "Bath"]
    assert second.reasons() == []


# ---- Diginetica and Yoochoose


def diginetica_lines() -> list[str]:
    """Sessions by day; items 1, 2 and 3 are frequent, 7 occurs 4 times, 8 in test alone."""
    lines = ["sessionId;userId;itemId;timeframe;eventdate"]

    def view(session: int, item: int, timeframe: int, day: int) -> None:
        lines.append(f"{session};NA;{item};{timeframe};2016-05-{day:02d}")

    for n in range(5):
        view(100 + n, 2, 900, 2)
        view(100 + n, 1, 50, 2)
        view(100 + n, 3, 900, 2)  # the same moment as item 2: in the order of the file
    view(200, 1, 0, 1)
    view(200, 1, 5, 1)  # the same item twice
    view(200, 7, 9, 1)
    view(201, 1, 0, 1)  # a session of one view does not count
    for n in range(3):
        view(300 + n, 7, 0, 3)  # with rare 7 gone, one view is left
        view(300 + n, 1, 1, 3)
    view(400, 1, 0, 24)  # exactly 7 days before the last: in no part
    view(400, 2, 1, 24)
    for n in range(5):
        view(500 + n, 1, 0, 31)
        view(500 + n, 8, 1, 31)  # unknown to train
        view(500 + n, 2, 2, 31)
    view(600, 8, 0, 31)
    view(600, 1, 1, 31)  # alone once item 8 is gone
    return lines


def test_diginetica(tmp_path: Path) -> None:
    lines = diginetica_lines()
    lines += ["700;NA;1;zero;2016-05-02", "700;NA;1;0;2016-13-02", "700;1;0;2016-05-02"]
    (tmp_path / "train-item-views.csv").write_text("\r\n".join(lines) + "\r\n")
    made = Made("diginetica", tmp_path, tmp_path / "out")
    assert made.of("train") == [["1", "1"], *[["1", "2", "3"]] * 5]
    assert made.of("test") == [["1", "2"]] * 5
    assert [row["session_id"] for row in made.sessions][:2] == ["200", "100"]
    assert list(made.items) == ["1", "2", "3"]
    n = len(lines)
    assert made.reasons() == [
        ("train-item-views.csv", n - 2, "timeframe is malformed"),
        ("train-item-views.csv", n - 1, "eventdate is malformed"),
        ("train-item-views.csv", n, "wrong number of fields"),
    ]
    counts = made.provenance["counts"]
    assert counts["sessions of one click"] == 1
    assert counts["sessions that rare items leave with one click or none"] == 3
    assert counts["sessions at the cut, in no part"] == 1
    assert counts["test sessions that items unknown to train leave with one click or none"] == 1


def test_yoochoose_and_its_parts(tmp_path: Path) -> None:
    lines = []

    def click(session: int, item: int, second: int, category: str = "0") -> None:
        moment = datetime.fromtimestamp(NOON + second, UTC)
        lines.append(f"{session},{moment:%Y-%m-%dT%H:%M:%S}.{session:03d}Z,{item},{category}")

    for n in range(8):  # each session of 3 clicks gives 2 samples: 16
        for step, item in enumerate((1, 2, 3)):
            click(n, item, 1000 * n + step, "S")
    click(50, 3, 3 * DAY)
    click(50, 2, 3 * DAY - 5)  # against the order of time: the file's order stays, the last line is the date
    click(51, 2, 3 * DAY + 20)
    click(51, 1, 3 * DAY + 30)
    lines += ["52,2014-04-07 10:00:00,1,0", "52,2014-04-07T10:00:00.000Z,1"]
    (tmp_path / "yoochoose-clicks.dat").write_text("\n".join(lines))
    whole = Made("yoochoose", tmp_path, tmp_path / "whole")
    assert whole.of("train") == [["1", "2", "3"]] * 8
    assert whole.of("test") == [["3", "2"], ["2", "1"]]
    assert [row["timestamp"] - NOON for row in whole.sessions[-2:]] == [3 * DAY - 5, 3 * DAY + 30]
    assert [r[2] for r in whole.reasons()] == ["time is malformed", "wrong number of fields"]
    quarter = Made("yoochoose-1-4", tmp_path, tmp_path / "quarter")  # int(16 / 4) = 4 samples: 2 sessions
    assert [row["session_id"] for row in quarter.sessions] == ["6", "7", "50", "51"]
    with pytest.raises(UserError, match="too few sessions for the last 1/64"):
        prepare("yoochoose-1-64", tmp_path, tmp_path / "none")


# ---- RetailRocket


def test_retailrocket(tmp_path: Path) -> None:
    lines = []

    def event(visitor: int, item: int, second: float, kind: str = "view") -> None:
        lines.append(f"{int((NOON + second) * 1000)},{visitor},{kind},{item},{'77' if kind == 'transaction' else ''}")

    for n in range(5):
        event(n, 2, 10)
        event(n, 1, 9.5)  # out of order, half a second earlier
    event(7, 1, 0)
    event(7, 2, 1800, "addtocart")  # keeps the session open
    event(7, 2, 3600)
    event(7, 1, 5401)  # 1801 s later: a new session, of one view
    event(8, 1, 2 * DAY)
    event(8, 2, 2 * DAY + 1)
    event(8, 2, 2 * DAY + 1)  # a duplicate event is kept
    event(8, 2, 2 * DAY + 2, "transaction")
    lines.append("1433221332,9,view,1,")  # seconds where milliseconds belong
    header = "timestamp,visitorid,event,itemid,transactionid"
    (tmp_path / "events.csv").write_text("\n".join([header, *lines]) + "\n")
    bare = Made("retailrocket", tmp_path, tmp_path / "bare")
    assert bare.of("train") == [["1", "2"]] * 6
    assert bare.of("test") == [["1", "2", "2"]]
    assert bare.reasons() == [("events.csv", len(lines) + 1, "timestamp is malformed")]
    assert bare.items["1"]["attributes"] == []
    rows = ["1435460400000,1,categoryid,1338", "1435460400000,1,888,666 n277.200", "1435460400001,x,categoryid,5"]
    (tmp_path / "item_properties_part1.csv").write_text("\n".join(["timestamp,itemid,property,value", *rows]))
    newer = ["1441508400000,1,categoryid,9", "1431508400000,1,categoryid,3"]
    (tmp_path / "item_properties_part2.csv").write_text("\n".join(["timestamp,itemid,property,value", *newer]))
    made = Made("retailrocket", tmp_path, tmp_path / "out")
    assert made.sessions == bare.sessions
    assert made.items["1"]["category"] == "9"
    assert made.items["1"]["attributes"] == ["category 9"]
    assert made.items["2"]["category"] is None
    assert ("item_properties_part1.csv", 4, "itemid is malformed") in made.reasons()


# ---- all


def test_sessions_do_not_depend_on_blocks_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train-item-views.csv").write_text("\n".join(diginetica_lines()))
    whole = Made("diginetica", tmp_path, tmp_path / "whole")
    monkeypatch.setattr("llm4sbr_ray.data.sources.workspace.BLOCK_BYTES", 7)
    monkeypatch.setattr(prepare_module, "BATCH_CLICKS", 1)
    pieces = Made("diginetica", tmp_path, tmp_path / "pieces")
    assert pieces.sessions == whole.sessions
    assert pieces.provenance == whole.provenance


def test_the_written_config_is_a_config(tmp_path: Path) -> None:
    (tmp_path / "train-item-views.csv").write_text("\n".join(diginetica_lines()))
    assert main(["--source", "diginetica", "--raw", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert written["name"] == "diginetica"
    assert DataConfig.model_validate(written["data"]).split.valid_by == "last"
    for source in SOURCES.values():
        DataConfig.model_validate({"sessions": "x", **source.data})


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(source: str, *parts: str) -> None:
        assert main(["--source", source, "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        for part in parts:
            assert part in message
        assert not (tmp_path / "out" / "provenance.json").exists()

    refused("diginetica", "--raw", "no such folder")
    (tmp_path / "raw").mkdir()
    refused("nothing", "--source", "movielens-1m")
    refused("movielens-1m", "ratings.dat", "docs/data-sources.md")
    refused("amazon-2023", "*.jsonl", "found: none")
    for name in ("a.json", "a_5.json"):
        (tmp_path / "raw" / name).write_text("")
    refused("amazon-2018", "a.json, a_5.json")
    (tmp_path / "raw" / "train-item-views.csv").write_text("a;b\n1;2\n")
    refused("diginetica", "line 1", "session_id", "a, b")
    (tmp_path / "raw" / "events.csv.gz").write_bytes(gzip.compress(b"timestamp,visitorid\n" * 9)[:-9])
    refused("retailrocket", "events.csv.gz", "cannot be read to its end")


@pytest.mark.integration
@pytest.mark.usefixtures("ray_cluster")
def test_ingest_takes_every_row(tmp_path: Path) -> None:
    raw = tmp_path / "amazon"
    raw.mkdir()
    zipped(raw / "reviews_Beauty_5.json.gz", reviews("reviewerID", "asin", "unixReviewTime"))
    zipped(raw / "meta_Beauty.json.gz", ["{'asin': 'B1', 'title': 'Soap'}"])
    write_movielens(tmp_path / "movielens-1m")
    folders = {"amazon-2014": raw, "movielens-1m": tmp_path / "movielens-1m"}
    for source, folder in folders.items():
        made = Made(source, folder, tmp_path / f"{source}-out")
        config = yaml.safe_load((made.out / "config.yaml").read_text())
        config["data"]["split"]["valid_by"] = "last"  # so few sessions may give a random tenth of none
        run = Run(RunConfig(**config, storage=str(tmp_path / "runs")))
        ingest(run)
        facts = run.manifest()["stages"]["ingest"]
        assert facts["quarantined"] == {}
        assert facts["counts"]["sessions"] == len(made.sessions)
        assert facts["counts"]["items"] == len(made.items)
        last = [row for split in ("train", "valid", "test") for row in run.read_table("data", split).to_pylist()]
        lengths = {row["session_id"]: len(row["items"]) + 1 for row in last if row["is_last"]}
        assert lengths == {row["session_id"]: len(row["items"]) for row in made.sessions}


# ---- real tables, where they are at hand: their raw form made up, and rebuilt from it


def shared(name: str) -> list[dict[str, Any]]:
    if not (SHARED / name).exists():
        pytest.skip("the data set is not on this machine: its terms forbid shipping it")
    return pq.read_table(SHARED / name / "sessions.parquet").to_pylist()


def test_beauty_is_its_own_core(tmp_path: Path) -> None:
    """Beauty's sequences as reviews: nothing falls out of the 5-core and the cut is where the paper has it."""
    rows = shared("beauty")
    path = tmp_path / "reviews_Beauty_5.json"
    with path.open("w") as file:
        for row in rows:
            for step, item in enumerate(row["items"]):
                user = f"U{int(row['session_id']):06d}"
                file.write(json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": 10**9 + step}) + "\n")
    (tmp_path / "meta_Beauty.json").write_text("{'asin': 'X'}\n")
    made = Made("amazon-2014", tmp_path, tmp_path / "out")
    assert made.provenance["counts"]["reviews outside the 5-core"] == 0
    assert made.provenance["counts"]["train sessions"] == 20_126
    assert made.of("train") == [row["items"] for row in rows if row["split"] == "train"]
    assert made.of("test") == [row["items"] for row in rows if row["split"] == "test"]
    assert len(made.items) == 12_101
