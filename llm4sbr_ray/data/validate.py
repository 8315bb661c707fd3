"""What a row must be: values of a raw row in, typed values out, or a `RowError` with one stable reason.

Ids are strings or integers and become strings; a whole float is an integer, because a column of integers with
nulls becomes one of floats in pandas. A list is a list, or a text cell: a JSON list, else ids separated by blanks.
A time is a number since the epoch, an ISO 8601 text (without a zone: UTC), or a date or time of Parquet. A number
counts seconds below 1e11 (the year 5138), milliseconds below 1e14, microseconds below 1e17, else nanoseconds.
"""

from __future__ import annotations

from collections.abc import Container
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

MAX_MICROSECONDS = 2**63  # times are int64
MAX_EXACT_FLOAT = 2**53
# The first bound that a number is below says what it counts, and how many microseconds that is (as a fraction).
TIME_UNITS = ((10**11, 1_000_000, 1), (10**14, 1_000, 1), (10**17, 1, 1), (2**63, 1, 1_000))


class Microseconds(int):
    """Microseconds since the epoch, as the readers give the date and time columns of Parquet files."""


class RowError(ValueError):
    """Why a row is refused: the text stands in the quarantine's `reason` column and in the run's counts."""


def parse_id(value: Any, what: str) -> str:
    """An id as text; `what` names it in the reason ("session id")."""
    if value is None:
        raise RowError(f"{what} is missing")
    if isinstance(value, bytes):
        value = _decode(value)
    elif isinstance(value, float) and value.is_integer() and abs(value) < MAX_EXACT_FLOAT:
        value = str(int(value))
    elif isinstance(value, float) and value != value:
        raise RowError(f"{what} is missing")  # how pandas writes a null among numbers
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RowError(f"{what} has a wrong type")
    if not value.strip():
        raise RowError(f"{what} is missing")
    if not _encodes(value):
        raise RowError("not valid UTF-8")
    return value


def parse_items(value: Any) -> list[str]:
    """The item ids of a session."""
    if value is None:
        raise RowError("items are missing")
    if isinstance(value, bytes):
        value = _decode(value)
    if isinstance(value, str):
        value = _list_cell(value)
    if not isinstance(value, list):
        raise RowError("items have a wrong type")
    return [parse_id(item, "item id") for item in value]


def parse_time(value: Any) -> int:
    """Microseconds since the epoch."""
    if value is None:
        raise RowError("timestamp is missing")
    if isinstance(value, bytes):
        value = _decode(value)
    if isinstance(value, str):
        value = _time_text(value.strip())
    if isinstance(value, datetime):
        value = value if value.tzinfo else value.replace(tzinfo=UTC)
        elapsed: timedelta = value - datetime(1970, 1, 1, tzinfo=UTC)
        return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("timestamp has a wrong type")
    if isinstance(value, Microseconds):
        if abs(value) < MAX_MICROSECONDS:
            return int(value)
        raise RowError("timestamp is out of range")
    for below, times, per in TIME_UNITS:
        if abs(value) < below:  # not a number is not below anything
            return value * times // per if isinstance(value, int) else round(value * times / per)
    raise RowError("timestamp is out of range")


def parse_text(value: Any, what: str) -> str | None:
    """A title or another text; integers are taken, because a film may be called 1984."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return _decode(value)
    if isinstance(value, str):
        if not _encodes(value):
            raise RowError("not valid UTF-8")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RowError(f"{what} has a wrong type")


def parse_attributes(value: Any) -> list[str]:
    """A list of texts; one text alone is one attribute, unless it is a JSON list."""
    if isinstance(value, bytes):
        value = _decode(value)
    if isinstance(value, str):
        value = _json_list(value) if value.lstrip().startswith("[") else [value]
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError("attributes have a wrong type")
    texts = [parse_text(item, "attributes") for item in value]
    return [text for text in texts if text]


def check_session(items: list[str], known: Container[str] | None, drop_unknown: bool, max_items: int) -> list[str]:
    """The session's items if it can be used.

    Parameters
    ----------
    known
        Ids of the catalogue; None: there is no catalogue, all ids are items.
    drop_unknown
        Leave items that the catalogue lacks out; False: refuse the session.

    Raises
    ------
    RowError
        Empty, too long, an unknown item, or a single item: nothing to predict from.
    """
    if not items:
        raise RowError("empty session")
    if len(items) > max_items:
        raise RowError("more items than data.max_session_items")
    if known is not None and not all(item in known for item in items):
        if not drop_unknown:
            raise RowError("item is not in the catalogue")
        items = [item for item in items if item in known]
        if len(items) < 2:
            raise RowError("fewer than two items that the catalogue has")
    if len(items) < 2:
        raise RowError("session of one item")
    return items


def _list_cell(cell: str) -> list[Any]:
    return _json_list(cell) if cell.lstrip().startswith("[") else list(cell.split())


def _json_list(cell: str) -> list[Any]:
    try:
        value = orjson.loads(cell)
    except orjson.JSONDecodeError:
        raise RowError("malformed list") from None
    if not isinstance(value, list):
        raise RowError("malformed list")
    return value


def _time_text(text: str) -> int | float | datetime:
    if not text:
        raise RowError("timestamp is missing")
    try:
        return int(text)
    except ValueError:
        pass  # not a whole number: a decimal one or a date
    try:
        return float(text)
    except ValueError:
        pass  # not a number
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise RowError("timestamp is malformed") from None


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RowError("not valid UTF-8") from None


def _encodes(value: str) -> bool:
    """False for a lone surrogate, which JSON can spell and Arrow cannot store."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
