"""Rankings to answers: titles, and for each recommended item the reason in numbers and in one sentence.

What a perspective says of the session is said once an answer; an item's reason holds only what is its own.

A score is a sum over perspectives (see `models.fusion`) and the memory (`models.memory`), so its split is the model's
own arithmetic, no second guess.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm4sbr_ray.serving.catalogue import Catalogue
from llm4sbr_ray.serving.ranker import Ranking, Reasons, shares

DECIMALS = 9  # of numbers in answers
CLICKS = 3  # named for a recommended item
EXAMPLES = 2  # titles named in a sentence
EXAMPLE_CHARS = 60  # of each
READABLE = {"long-term": "long-term taste", "short-term": "current need"}


def recommendations(
    ranking: Ranking, perspectives: Sequence[str], catalogue: Catalogue, clicked: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """The ranked items as plain values, in the form of `types.Recommendation`.

    `clicked` are the items that the columns of the ranking's `effect_kN` are about.
    """
    if ranking.reasons is None:
        explanations: list[Any] = [None] * len(ranking.item_k)
    else:
        explanations = _explanations(ranking.item_k.tolist(), ranking.reasons, perspectives, catalogue)
        if ranking.reasons.effect_kN is not None:
            for explanation, effect_N in zip(explanations, ranking.reasons.effect_kN.tolist(), strict=True):
                explanation["clicks"] = _strongest(clicked, effect_N, catalogue)
    return [
        {
            "item_id": catalogue.item_ids[item],
            "title": catalogue.titles[item],
            "score": score,
            "boost": boost,
            "explanation": explanation,
        }
        for item, score, boost, explanation in zip(
            ranking.item_k.tolist(), _rounded(ranking.score_k), _rounded(ranking.boost_k), explanations, strict=True
        )
    ]


def intents(ranking: Ranking, perspectives: Sequence[str], catalogue: Catalogue) -> list[dict[str, Any]] | None:
    """What each perspective says of the session, in the form of `types.PerspectiveIntent`; None: not asked for."""
    reasons = ranking.reasons
    if reasons is None:
        return None
    return [
        {
            "name": name,
            "source": "predicted" if predicted else "llm",
            "gate": gate,
            "localised_items": [
                _item(catalogue, item) | {"weight": weight} for item, weight in zip(shown_R, weight_R, strict=True)
            ],
        }
        for name, predicted, gate, shown_R, weight_R in zip(
            perspectives,
            reasons.predicted_P.tolist(),
            _rounded(reasons.gate_P),
            reasons.shown_PR.tolist(),
            _rounded(reasons.shown_weight_PR),
            strict=True,
        )
    ]


def _explanations(
    items: list[int], reasons: Reasons, perspectives: Sequence[str], catalogue: Catalogue
) -> list[dict[str, Any]]:
    shown_PR = reasons.shown_PR.tolist()
    parts_kC = reasons.contribution_kP  # the perspectives, then the memory
    if reasons.memory_k is not None:
        parts_kC = np.column_stack([parts_kC, reasons.memory_k])
    P, explanations = len(perspectives), list[dict[str, Any]]()
    for item, contribution_C, share_C in zip(items, _rounded(parts_kC), _rounded(shares(parts_kC)), strict=True):
        details = [
            {"name": name, "contribution": contribution, "share": share}
            for name, contribution, share in zip(perspectives, contribution_C[:P], share_C[:P], strict=True)
        ]
        remembered = [{"contribution": c, "share": s} for c, s in zip(contribution_C[P:], share_C[P:], strict=True)]
        leader = contribution_C.index(max(contribution_C))  # what speaks loudest for the item, not against it
        if leader == P:
            text = memory_sentence(share_C[P])
        else:
            alike = [catalogue.label(j) for j in shown_PR[leader] if j != item]
            text = sentence(perspectives[leader], share_C[leader], alike)
        explanations.append(
            {"text": text, "perspectives": details, "memory": next(iter(remembered), None), "clicks": None}
        )
    return explanations


def _rounded(values: NDArray[Any]) -> Any:
    """As lists. The digits of a float64 beyond a float32's say nothing, and were 7% of an answer's bytes."""
    return values.astype(np.float64).round(DECIMALS).tolist()


def _strongest(clicked: Sequence[int], effect_N: Sequence[float], catalogue: Catalogue) -> list[dict[str, Any]]:
    pairs = sorted(zip(clicked, effect_N, strict=True), key=lambda pair: -pair[1])[:CLICKS]
    return [_item(catalogue, item) | {"effect": effect} for item, effect in pairs]


def clicks_alone(ranking: Ranking, catalogue: Catalogue) -> list[dict[str, Any]] | None:
    """The ranking without perspectives in the form of `types.ScoredItem`; None where it was not asked for."""
    if ranking.clicks_alone is None:
        return None
    item_k, score_k = ranking.clicks_alone
    pairs = zip(item_k.tolist(), _rounded(score_k), strict=True)
    return [_item(catalogue, item) | {"score": score} for item, score in pairs]


def popular(catalogue: Catalogue, k: int, blocked: Collection[int] = ()) -> list[dict[str, Any]]:
    """The most clicked items that are not blocked, for a session of which the catalogue knows nothing."""
    text = "Popular with all visitors: nothing is known of this session yet."
    return [
        _item(catalogue, j)
        | {
            "score": float(catalogue.train_count_V[j]),
            "boost": 0.0,
            "explanation": {"text": text, "perspectives": [], "memory": None, "clicks": None},
        }
        for j in islice((j for j in catalogue.popular_V.tolist() if j not in blocked), k)
    ]


def sentence(perspective: str, share: float, alike: Sequence[str]) -> str:
    """E.g. "Mostly because of long-term taste (62%): like Rose Soap, Lily Soap."

    Parameters
    ----------
    perspective
        Name of the one that contributes most.
    share
        Its share, 0..1; below one half it is "partly".
    alike
        Labels of its localised items, strongest first.
    """
    reason = READABLE.get(perspective, f"the perspective “{perspective}”")
    different = list(dict.fromkeys(alike))[:EXAMPLES]
    examples = f": like {', '.join(map(_shortened, different))}" if different else ""
    return f"{'Mostly' if share >= 0.5 else 'Partly'} because of {reason} ({share:.0%}){examples}."


def memory_sentence(share: float) -> str:
    """E.g. "Mostly because of what others went on to after such clicks, and of like texts (71%)." """
    how_much = "Mostly" if share >= 0.5 else "Partly"
    return f"{how_much} because of what others went on to after such clicks, and of like texts ({share:.0%})."


def _shortened(label: str) -> str:
    return label if len(label) <= EXAMPLE_CHARS else label[: EXAMPLE_CHARS - 1].rstrip() + "…"


def _item(catalogue: Catalogue, index: int) -> dict[str, Any]:
    return {"item_id": catalogue.item_ids[index], "title": catalogue.titles[index]}
