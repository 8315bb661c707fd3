"""Limits of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from llm4sbr_ray.serving.types import RecommendRequest


def parse(**changes: Any) -> RecommendRequest:
    body = {"session_id": "s", "items": ["a", 7]} | changes
    return RecommendRequest.model_validate_json(json.dumps(body))


def test_defaults_and_kept_ids() -> None:
    request = parse(session_id=12)
    defaults = {
        "k": 20,
        "exclude_seen": True,
        "compare": False,
        "explain": True,
        "explain_clicks": False,
        "block": [],
        "boost": {},
    }
    assert request.model_dump() == {"session_id": 12, "items": ["a", 7], **defaults}


def test_a_whole_number_may_be_written_with_a_point() -> None:
    request = parse(session_id=3.0, items=[7.0], k=5.0)
    assert repr((request.session_id, request.items, request.k)) == "(3, [7], 5)"


@pytest.mark.parametrize(
    "changes", [{"items": []}, {"items": ["x" * 256]}, {"items": ["a"] * 1000}, {"k": 1}, {"k": 100}]
)
def test_at_the_limit(changes: dict[str, Any]) -> None:
    parse(**changes)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"k": 0}, ("k",)),
        ({"k": 101}, ("k",)),
        ({"k": "20"}, ("k",)),
        ({"k": True}, ("k",)),
        ({"k": 2.5}, ("k",)),
        ({"k": float("nan")}, ("k",)),
        ({"exclude_seen": "no"}, ("exclude_seen",)),
        ({"items": "abc"}, ("items",)),
        ({"items": None}, ("items",)),
        ({"items": ["a"] * 1001}, ("items",)),
        ({"items": ["a", ""]}, ("items", 1)),
        ({"items": ["x" * 257]}, ("items", 0)),
        ({"items": [1.5]}, ("items", 0)),
        ({"items": [True]}, ("items", 0)),
        ({"items": [None]}, ("items", 0)),
        ({"items": [["a"]]}, ("items", 0)),
        ({"items": [2**63]}, ("items", 0)),
        ({"session_id": ""}, ("session_id",)),
        ({"session_id": {}}, ("session_id",)),
        ({"K": 5}, ("K",)),
        ({"block": "a"}, ("block",)),
        ({"block": [None]}, ("block", 0)),
        ({"block": ["a"] * 1001}, ("block",)),
        ({"boost": ["a"]}, ("boost",)),
        ({"boost": {"a": "1"}}, ("boost", "a")),
        ({"boost": {"a": float("nan")}}, ("boost", "a")),
        ({"boost": {"a": 1001}}, ("boost", "a")),
        ({"boost": {str(j): 1 for j in range(101)}}, ("boost",)),
    ],
)
def test_bad_fields_are_named(changes: dict[str, Any], where: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**changes)
    assert [problem["loc"] for problem in caught.value.errors()] == [where]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"null", b'{"session_id": "\\ud800", "items": []}', b"\xff", b"[" * 5000]
)
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(ValidationError):
        RecommendRequest.model_validate_json(body)
