"""Deletion test of the explanations: does leaving out the click that an answer names hurt more than another one?

    python benchmarks/explanations.py runs/demo --json FILE

For the best items recommended to each test session, the service names the clicked item that moved them most
(`explain_clicks`). The session is then asked again, the whole way, without that item, without one drawn from its other
items, and without the item clicked last; what counts is how far the score and the rank of the recommended item fall.
Asking again changes more than the named effect does, as the embedding cache may know the shorter session, or no longer
know it. Also: by how much the perspectives' contributions miss the score that they have to add up to.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.graph import Fused, Wanted, clicked_items

MIN_DISTINCT = 3  # items of a session: with two the other one is no choice
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--top", type=int, default=5, help="recommended items a session")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bundle = Bundle(str(arguments.run / "bundle"))
    table = pq.read_table(arguments.run / "data" / "test", columns=["items", "is_last"])
    sessions = [row["items"] for row in table.to_pylist() if row["is_last"] and len(set(row["items"])) >= MIN_DISTINCT]
    figures = deletion_test(bundle, sessions[: arguments.sessions], arguments.top)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        named = {f"explanations_{name}": value for name, value in figures.items() if value is not None}
        arguments.json.write_text(json.dumps({"figures": named}, indent=1) + "\n")


def deletion_test(bundle: Bundle, sessions: list[list[int]], top: int) -> dict[str, Any]:
    fused, draw = Fused(bundle, 100_000, 3), random.Random(0)
    falls: dict[str, list[float]] = {"named": [], "other": [], "last": []}
    ranks: dict[str, list[int]] = {"nothing": [], "named": [], "other": [], "last": []}
    misses: list[float] = []
    stored: list[bool] = []  # whether the answer stood on an LLM's answer of the cache
    for start in range(0, len(sessions), BATCH):
        asked = [Wanted(items, [], top, explain_clicks=True) for items in sessions[start : start + BATCH]]
        for wanted, ranked in zip(asked, fused.rank_all(asked), strict=True):
            ranking, clicked = ranked.ranking, clicked_items(wanted)
            assert ranking.reasons is not None
            assert ranking.reasons.effect_kN is not None
            misses.append(float(np.abs(ranking.reasons.contribution_kP.sum(1) - ranking.score_k).max()))
            without = dict(zip(clicked, all_scores(fused, bundle, wanted.items, clicked), strict=True))
            for place, item in enumerate(ranking.item_k.tolist()):
                named = clicked[int(ranking.reasons.effect_kN[place].argmax())]
                left_out = {
                    "named": named,
                    "other": draw.choice([j for j in clicked if j != named]),
                    "last": clicked[0],
                }
                ranks["nothing"].append(place + 1)
                stored.append(ranked.llm_clicks is not None)
                for name, left in left_out.items():
                    falls[name].append(float(ranking.score_k[place] - without[left][item]))
                    ranks[name].append(int((without[left] >= without[left][item]).sum()))
    wins = np.array(falls["named"]) > np.array(falls["other"])
    return {
        "sessions": len(sessions),
        "recommended_items": len(wins),
        "named_falls_more_than_another": round(float(wins.mean()), 4),
        "of_those_predicted_from_clicks": _mean(wins[~np.array(stored)]),
        "of_those_with_a_stored_answer": _mean(wins[np.array(stored)]),
        **{f"score_falls_without_{name}": round(float(np.mean(values)), 4) for name, values in falls.items()},
        **{f"median_rank_without_{name}": float(np.median(values)) for name, values in ranks.items()},
        "contributions_miss_the_score_by_at_most": max(misses),
    }


def _mean(values: np.ndarray[Any, Any]) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def all_scores(
    fused: Fused, bundle: Bundle, items: Sequence[int], left_out: Sequence[int]
) -> list[np.ndarray[Any, Any]]:
    """The scores of all items for the session without each of some items, V each, asked of the service's own graph."""
    V = bundle.manifest.n_items
    asked = [Wanted([j for j in items if j != left], [], V, explain=False) for left in left_out]
    scores = []
    for ranked in fused.rank_all(asked):
        score_V = np.empty(V, dtype=np.float32)
        score_V[ranked.ranking.item_k] = ranked.ranking.score_k
        scores.append(score_V)
    return scores


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
