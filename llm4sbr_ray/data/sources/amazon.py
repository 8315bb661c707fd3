"""Amazon reviews of 2014, 2018 and 2023 (McAuley et al.): a user's reviews in order of time are one session.

The raw folder holds the reviews and the metadata of one category, JSON lines, plain or gzipped:

    2014   reviews_Beauty_5.json.gz (or reviews_Beauty.json.gz), meta_Beauty.json.gz: Python literals, not JSON
    2018   All_Beauty_5.json.gz (or All_Beauty.json.gz), meta_All_Beauty.json.gz
    2023   All_Beauty.jsonl.gz, meta_All_Beauty.jsonl.gz
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from llm4sbr_ray.data.catalogue import clean
from llm4sbr_ray.data.readers import CONTENT_CHARS
from llm4sbr_ray.data.sources.kcore import k_core
from llm4sbr_ray.data.sources.source import Source
from llm4sbr_ray.data.sources.workspace import Workspace
from llm4sbr_ray.data.validate import RowError, parse_id, parse_text

CORE = 5
TRAIN_SHARE = 0.9
MAX_LITERAL_CHARS = 1_000_000  # of a line in Python's notation: parsing takes a hundred times its size in memory
Record = dict[str, Any]

_COMMON: dict[str, pa.DataType] = {"row": pa.int64(), "line": pa.string(), "reason": pa.string()}
_REVIEW: dict[str, pa.DataType] = {"user": pa.string(), "item": pa.string(), "time": pa.int64()}
_ITEM: dict[str, pa.DataType] = {"item": pa.string(), "title": pa.string(), "brand": pa.string()}
REVIEWS = pa.schema(_COMMON | _REVIEW)
METADATA = pa.schema(_COMMON | _ITEM | {"category": pa.list_(pa.string())})


@dataclass(frozen=True)
class Release:
    """How one release names its files and keys."""

    reviews: str  # file pattern
    metadata: str
    user: str
    item: str
    time: str
    ticks: int  # of `time` in a second
    brand: str
    category: Callable[[Record], Any]
    literals: bool = False  # lines may be Python literals


def convert(work: Workspace, release: Release) -> None:
    db = work.db
    path = work.one(release.reviews, without="meta_")
    work.load_rows("reviews", path, REVIEWS, _rows(work, path, release, partial(_review, release=release)))
    db.execute(
        """CREATE TABLE kept AS SELECT "user", item, min(time) AS time, arg_min(row, (time, row)) AS row
        FROM reviews GROUP BY "user", item"""
    )
    work.count("repeated reviews of an item", "SELECT (SELECT count(*) FROM reviews) - (SELECT count(*) FROM kept)")
    first = work.value("SELECT count(*) FROM kept")
    k_core(db, "kept", CORE)
    work.counts[f"reviews outside the {CORE}-core"] = first - work.value("SELECT count(*) FROM kept")
    users = 'SELECT "user", row_number() OVER (ORDER BY "user") AS place, max(time) AS last FROM kept GROUP BY "user"'
    n_train = int(TRAIN_SHARE * work.value('SELECT count(DISTINCT "user") FROM kept'))
    db.execute(
        f"""CREATE TABLE clicks AS SELECT "user" AS session_id, item AS item_id, last AS time, place, time AS step, row,
        CASE WHEN place <= {n_train} THEN 'train' ELSE 'test' END AS split
        FROM kept JOIN ({users}) USING ("user")"""
    )
    wanted = {item for (item,) in db.execute("SELECT DISTINCT item_id FROM clicks").fetchall()}
    path = work.one(release.metadata)
    described = _rows(work, path, release, partial(_metadata, release=release))
    mine = (row for row in described if row["reason"] is not None or row["item"] in wanted)
    work.load_rows("metadata", path, METADATA, mine)
    work.count("repeated metadata of an item", "SELECT count(*) - count(DISTINCT item) FROM metadata")
    db.execute(
        """CREATE TABLE items AS WITH first AS (SELECT item, arg_min({t: title, b: brand, c: category}, row) AS m
        FROM metadata GROUP BY item)
        SELECT item_id, m.t AS title, m.b AS brand, CAST(coalesce(m.c, []) AS VARCHAR[]) AS category,
        CAST(list_concat(CASE WHEN m.b IS NULL THEN [] ELSE [m.b] END, coalesce(m.c, [])) AS VARCHAR[]) AS attributes
        FROM (SELECT DISTINCT item_id FROM clicks) LEFT JOIN first ON item = item_id"""
    )


def _rows(
    work: Workspace, path: Path, release: Release, parse: Callable[[Record], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    for batch in work.lines(path):
        numbers: list[Any] = batch["row"].to_pylist()
        texts: list[Any] = batch["line"].to_pylist()
        for number, line in zip(numbers, texts, strict=True):
            if not line.strip():
                continue
            row: dict[str, Any] = {"row": number, "reason": None}
            try:
                row |= parse(parse_record(line, release.literals))
            except RowError as error:
                row |= {"reason": str(error), "line": line[:CONTENT_CHARS]}
            yield row


def parse_record(line: str, literals: bool) -> Record:
    """A JSON object, or where `literals` are allowed a Python dict; never evaluated.

    Raises
    ------
    RowError
        Neither of them.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        if not literals:
            raise RowError("malformed JSON") from None
        if len(line) > MAX_LITERAL_CHARS:
            raise RowError("line is too long") from None
        try:
            value = ast.literal_eval(line)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise RowError("neither JSON nor a Python literal") from None
    if not isinstance(value, dict):
        raise RowError("not an object")
    return value


def _review(record: Record, release: Release) -> dict[str, Any]:
    time = record.get(release.time)
    if isinstance(time, bool) or not isinstance(time, int):
        raise RowError("time is malformed")
    if not 10**8 < time // release.ticks < 10**11:  # 1973 to 5138: a time in the other unit lies outside
        raise RowError("time is not in " + ("milliseconds" if release.ticks == 1000 else "seconds"))
    return {
        "user": parse_id(record.get(release.user), "user id"),
        "item": parse_id(record.get(release.item), "item id"),
        "time": time // release.ticks,
    }


def _metadata(record: Record, release: Release) -> dict[str, Any]:
    title = _text(record.get("title"), "title")
    if title is not None and "getTime" in title:
        title = None  # 2018: a script of the page was taken for its title
    path = release.category(record)
    names = [_text(name, "category") for name in path] if isinstance(path, list) else []
    return {
        "item": parse_id(record.get(release.item), "item id"),
        "title": title,
        "brand": _text(record.get(release.brand), "brand"),
        "category": [name for name in names if name],
    }


def _text(value: Any, what: str) -> str | None:
    text = parse_text(value, what)
    return (clean(text) or None) if text else None


def _first_path(record: Record) -> Any:
    """2014: a list of paths, each from the category of the set down."""
    paths = record.get("categories")
    return paths[0][1:] if isinstance(paths, list) and paths and isinstance(paths[0], list) else []


def _flat_path(key: str, record: Record) -> Any:
    path = record.get(key)
    return path[1:] if isinstance(path, list) else []


def _source(year: int, release: Release) -> Source:
    return Source(
        title=f"Amazon reviews {year}",
        protocol="Of a user's reviews of one item the first; 5-core (every user and item has at least 5 reviews); one "
        "session a user, reviews in order of time, those of the same time in the order of the file; sessions sorted "
        "by user id, the first 90% are train; every prefix -> its next item.",
        terms="offered for research; texts belong to Amazon and its sellers; see docs/data-sources.md",
        convert=partial(convert, release=release),
        data={"samples": "every-prefix", "split": {"by": "column"}},
    )


_OLD = {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "ticks": 1, "brand": "brand"}
SOURCE_2014 = _source(
    2014,
    Release("reviews_*.json", "meta_*.json", category=_first_path, literals=True, **_OLD),  # type: ignore[arg-type]
)
SOURCE_2018 = _source(
    2018,
    Release("*.json", "meta_*.json", category=partial(_flat_path, "category"), **_OLD),  # type: ignore[arg-type]
)
SOURCE_2023 = _source(
    2023,
    Release(
        "*.jsonl",
        "meta_*.jsonl",
        user="user_id",
        item="parent_asin",
        time="timestamp",
        ticks=1000,
        brand="store",
        category=partial(_flat_path, "categories"),
    ),
)
