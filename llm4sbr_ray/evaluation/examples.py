"""A few test sessions in full, for the report: clicks, what the LLM said, lists before and after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Perspective
from llm4sbr_ray.evaluation.predictions import predictions_path
from llm4sbr_ray.evaluation.variants import Variant

TOP = 5
SHOWN_CLICKS = 12
COLUMNS = {"test": "ranked", "test_unseen_only": "ranked_unseen"}


class Names:
    """Items as people know them: the title, or the id where there is none."""

    def __init__(self, items: pa.Table) -> None:
        self._ids = items["item_id"].combine_chunks()
        self._names = pc.coalesce(items["title"], items["item_id"]).combine_chunks()

    def of_indices(self, indices: Sequence[int]) -> list[str]:
        return cast(list[str], self._names.take(pa.array(indices, pa.int64())).to_pylist())

    def of_ids(self, ids: Sequence[str]) -> list[str]:
        indices = pc.index_in(pa.array(ids, pa.string()), value_set=self._ids)
        return self.of_indices(cast(list[int], indices.to_pylist()))


def before_and_after(variants: Sequence[Variant]) -> list[Variant]:
    """Whose lists the examples show: the first LLM4SBR and its backbone, or without one the last model."""
    for variant in variants:
        if variant.backbone is not None:
            return [v for v in variants if v.name == variant.backbone] + [variant]
    return list(variants[-1:])


def collect_examples(
    run: Store,
    report: Store,
    rows: Sequence[dict[str, Any]],
    names: Names,
    views: Sequence[Perspective],
    shown: Sequence[Variant],
) -> list[dict[str, Any]]:
    """Everything the report shows of `rows`.

    Parameters
    ----------
    run
        Where answers and intents are.
    report
        Where the predictions of this evaluation are.
    rows
        Test samples; those with intents have the intent columns.
    names
        Titles.
    views
        The perspectives asked for the test sessions; none for models without an LLM.
    shown
        The models whose lists are shown.
    """
    keys = [row["sample_key"] for row in rows]
    said = {view.name: _said(run, view.name, keys) for view in views}
    lists = {v.name: _rows_by_key([report.path(predictions_path(v.name))], report, keys) for v in shown}
    return [
        {
            "clicked": names.of_indices(row["items"][-SHOWN_CLICKS:]),
            "earlier": max(0, len(row["items"]) - SHOWN_CLICKS),
            "next": names.of_indices([row["target"]])[0],
            "perspectives": [
                said[view.name][row["sample_key"]] | {"name": view.name, "items": _localised(row, p, len(views), names)}
                for p, view in enumerate(views)
            ],
            "lists": {
                protocol: [
                    {"label": v.label, "items": _top(lists[v.name][row["sample_key"]], column, names)} for v in shown
                ]
                for protocol, column in COLUMNS.items()
            },
        }
        for row in rows
    ]


def _said(run: Store, view: str, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    answers = _rows_by_key(run.files("perspectives", view, suffix=".parquet"), run, keys)
    intents = _rows_by_key(run.files("intents", view, suffix=".parquet"), run, keys)
    return {
        key: {
            "answer": answers[key]["answer"],
            "error": answers[key]["error"],
            "grounded": intents[key]["grounded"],
            "exact": intents[key]["exact_title"],
        }
        for key in keys
    }


def _localised(row: dict[str, Any], p: int, views: int, names: Names) -> list[dict[str, Any]]:
    """Items and weights of perspective p; none where the answer is ungrounded."""
    r = len(row["intent_items"]) // views
    items, weights = (row[column][p * r : (p + 1) * r] for column in ("intent_items", "intent_weights"))
    titles = names.of_indices(items)
    return [{"title": t, "weight": w} for t, w in zip(titles, weights, strict=True) if w > 0]


def _top(row: dict[str, Any], column: str, names: Names) -> list[dict[str, Any]]:
    ids = row[column][:TOP]
    return [{"title": t, "hit": i == row["target"]} for i, t in zip(ids, names.of_ids(ids), strict=True)]


def _rows_by_key(paths: Iterable[str], store: Store, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows with these sample keys, from Parquet files on the store's filesystem."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        rows = pq.read_table(path, filesystem=store.fs, filters=[("sample_key", "in", list(keys))]).to_pylist()
        found |= {row["sample_key"]: row for row in rows}
    return found
