"""What the stages and the service count, as Ray's own metrics: Prometheus reads them from every node.

A name here is exported as ``ray_<name>``, of a counter as ``ray_<name>_total``. grafana/llm4sbr.json draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "llm4sbr_rows": ("Rows of the stages that were committed", ("stage",)),
    "llm4sbr_stage_seconds": ("Seconds that the committed stages took", ("stage",)),
    "llm4sbr_prompts": ("Prompts that the LLM stage has finished, failed ones too", ()),
    "llm4sbr_prompt_errors": ("Prompts that failed", ()),
    "llm4sbr_prompt_tokens": ("Tokens of the prompts", ()),
    "llm4sbr_generated_tokens": ("Tokens of the answers", ()),
    "llm4sbr_recommendations": ("Answered requests", ("model", "version", "served_by")),
    "llm4sbr_cache_lookups": ("Sessions looked up in the embedding cache", ("result",)),
    "llm4sbr_enrichment": (
        "Sessions for the LLM behind the service: queued, dropped, answered, ungrounded",
        ("result",),
    ),
}
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], list[float]]] = {
    "llm4sbr_latency_ms": (
        "Time of one request by stage, in milliseconds",
        ("stage",),
        [0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 200, 500, 1000],
    ),
    "llm4sbr_intent_age_clicks": ("Clicks of a session after its stored answer of the LLM", (), [0.5, 1.5, 2.5, 5, 10]),
    "llm4sbr_enrichment_seconds": (
        "Time from a session's arrival before the LLM to its answer",
        (),
        [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
    ),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "llm4sbr_enrichment_queue": ("Sessions that wait for the LLM: in a replica, or before the LLM", ("place",)),
}


@cache  # one object a process: Ray exports what it holds
def _counter(name: str) -> Counter:
    description, tags = COUNTERS[name]
    return Counter(name, description, tags)


@cache
def _histogram(name: str) -> Histogram:
    description, tags, boundaries = HISTOGRAMS[name]
    return Histogram(name, description, boundaries, tags)


@cache
def _gauge(name: str) -> Gauge:
    description, tags = GAUGES[name]
    return Gauge(name, description, tags)


def _count(name: str, value: float, **tags: str) -> None:
    if value > 0:  # Ray's counters refuse 0
        _counter(name).inc(value, tags)


def count_stage(stage: str, rows: int, seconds: float) -> None:
    """Count a stage that was committed; the trainings of all models and seeds are one stage here."""
    stage = stage.split("/")[0]
    _count("llm4sbr_rows", rows, stage=stage)
    _count("llm4sbr_stage_seconds", seconds, stage=stage)


def count_prompts(prompts: int, errors: int, prompt_tokens: int, generated_tokens: int) -> None:
    """Count a batch of finished prompts."""
    _count("llm4sbr_prompts", prompts)
    _count("llm4sbr_prompt_errors", errors)
    _count("llm4sbr_prompt_tokens", prompt_tokens)
    _count("llm4sbr_generated_tokens", generated_tokens)


def count_enrichment(result: str) -> None:
    """Count a session: queued, dropped, answered or ungrounded."""
    _count("llm4sbr_enrichment", 1, result=result)


def observe_enrichment(seconds: float) -> None:
    """A session has waited so long for its answer."""
    _histogram("llm4sbr_enrichment_seconds").observe(seconds)


def show_enrichment_queue(place: str, sessions: int) -> None:
    """How many sessions wait now, in this process."""
    _gauge("llm4sbr_enrichment_queue").set(sessions, {"place": place})


def count_answer(answer: Mapping[str, Any], clicks: int) -> None:
    """Count an answer of POST /recommend (`RecommendResponse` as a mapping) for a session of so many known clicks."""
    served_by = answer["served_by"]
    _count("llm4sbr_recommendations", 1, model=answer["model"], version=answer["version"], served_by=served_by)
    if served_by == "model":
        _count("llm4sbr_cache_lookups", 1, result="miss" if answer["llm_clicks"] is None else "hit")
        if answer["llm_clicks"] is not None:
            _histogram("llm4sbr_intent_age_clicks").observe(clicks - answer["llm_clicks"])
    for stage, milliseconds in answer["timings_ms"].items():
        _histogram("llm4sbr_latency_ms").observe(milliseconds, {"stage": stage})
