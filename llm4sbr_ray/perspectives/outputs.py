"""What a perspective shows and what its answer may be: item lines, choices, JSON, resolved for one catalogue."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Candidates, Choice, JsonOutput, Perspective, Perspectives
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives.prompts import UNTITLED, clean_title

IDS = ("item_idx", "item_id")  # must not reach a model as text


@dataclass(frozen=True)
class Question:
    """One perspective on one catalogue."""

    view: Perspective
    lines: list[str]  # V, one an item, as its prompts show them
    choices: tuple[str, ...]  # () unless the output is a choice

    def structured(self, offered: Sequence[str] = ()) -> dict[str, Any] | None:
        """What vLLM's structured outputs take; None for free text. `offered`: the titles of a sample's candidates."""
        if isinstance(self.view.output, Candidates):
            return {"choice": list(offered), "json": None}
        if isinstance(self.view.output, Choice):
            return {"choice": list(self.choices), "json": None}
        if isinstance(self.view.output, JsonOutput):
            return {"choice": None, "json": json.dumps(self.view.output.json_schema)}
        return None

    def fault(self, answer: str, offered: Sequence[str] = ()) -> str | None:
        """Why an answer breaks its form (one that `max_tokens` cuts does); None if it does not."""
        if isinstance(self.view.output, Candidates) and answer not in offered:
            return "not one of the candidates (is sampling.max_tokens too small?)"
        if isinstance(self.view.output, Choice) and answer not in self.choices:
            return "not one of the choices (is sampling.max_tokens too small?)"
        if isinstance(self.view.output, JsonOutput):
            try:
                jsonschema.validate(json.loads(answer), self.view.output.json_schema)
            except (json.JSONDecodeError, jsonschema.ValidationError):
                return "not JSON of the schema (is sampling.max_tokens too small?)"
        return None


def questions(catalogue: Store, config: Perspectives) -> dict[str, Question]:
    """Perspective name -> its question.

    Raises
    ------
    UserError
        A field that the catalogue lacks; an output of choices or of candidates without any.
    """
    found = {}
    for view in config.views:
        lines = shown_titles(catalogue, config, view.fields, f"perspectives.views: {view.name}: fields")
        if isinstance(view.output, Candidates) and set(lines) <= {UNTITLED}:
            raise UserError(f"perspectives.views: {view.name}: output.candidates: no item has a title")
        found[view.name] = Question(view, lines, _choices(view, catalogue))
    return found


def shown_titles(
    catalogue: Store,
    config: Perspectives,
    fields: Sequence[str] = ("title", "attributes"),
    setting: str = "perspectives.views: fields",
) -> list[str]:
    """V lines of text, one an item: the first field, and those values of the others that it does not already hold."""
    columns = [_column(catalogue, field, setting) for field in fields]
    lines = []
    for values in zip(*columns, strict=True):
        head = values[0] if isinstance(values[0], str) else None
        rest = [text for value in values[0 if head is None else 1 :] for text in _texts(value)]
        lines.append(clean_title(head, rest, config.max_title_chars))
    return lines


def field_texts(catalogue: Store, view: Perspective) -> list[str]:
    """V texts: what `view.from_field` holds of each item, on one line; empty where it holds nothing."""
    assert view.from_field is not None
    column = _column(catalogue, view.from_field, f"perspectives.views: {view.name}: from_field")
    return [" ".join(" ".join(_texts(value)).split()) for value in column]


def readable(answer: str) -> str:
    """An answer as text to be localised: of a JSON object its values, else the answer itself."""
    try:
        value = json.loads(answer)
    except json.JSONDecodeError:
        return answer
    return ", ".join(_texts(value)) if isinstance(value, dict) else answer


def _choices(view: Perspective, catalogue: Store) -> tuple[str, ...]:
    if not isinstance(view.output, Choice):
        return ()
    if view.output.choice_from is None:
        return view.output.choice
    setting = f"perspectives.views: {view.name}: output.choice_from"
    values = _column(catalogue, view.output.choice_from, setting)
    # One line each and no repeated white space: such is the form of answers.
    counts = Counter(clean_title(text, None, 80) for value in values for text in set(_texts(value)) if text.strip())
    ranked = sorted(counts, key=lambda text: (-counts[text], text))[: view.output.most_frequent]
    if not ranked:
        raise UserError(f"{setting}: no item has a value of {view.output.choice_from!r}")
    return tuple(ranked)


def _column(catalogue: Store, field: str, setting: str) -> list[Any]:
    there = pq.read_schema(catalogue.path("items.parquet"), filesystem=catalogue.fs).names
    allowed = [name for name in there if name not in IDS]
    if field not in allowed:
        raise UserError(f"{setting}: the catalogue has no field {field!r} to show; it has {', '.join(allowed)}")
    values: list[Any] = catalogue.read_table("items.parquet", columns=[field])[field].to_pylist()
    return values


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif value is not None:
        yield str(value)
