"""What asking costs: tokens, seconds, GPU-hours, money. Planned before a run, measured after it, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import Perspectives

PLAN = "plan.json"  # of the run: the cost that `--plan` last stated


@dataclass(frozen=True)
class Cost:
    """Of the prompts that are asked, those with a known answer left out."""

    prompt_tokens: int  # planned: a sample's mean times the prompts
    generated_tokens: int  # planned: max_tokens each, so at most
    seconds: float | None  # planned: None where no rate is known; without the engine's start
    gpu_hours: float | None  # of the whole pool at its upper bound; on CPU engines: hours of its actors
    money: float | None  # None: no price is set, or no hours are known

    @classmethod
    def of(cls, prompt_tokens: float, generated_tokens: int, seconds: float | None, config: Perspectives) -> Cost:
        """`seconds` are those of the whole pool of actors."""
        engine, price = config.engine, config.price_per_gpu_hour
        gpus = engine.actors[1] * engine.tensor_parallel_size * engine.pipeline_parallel_size
        hours = None if seconds is None else seconds * gpus / 3600
        money = None if hours is None or price is None else hours * price
        return cls(round(prompt_tokens), generated_tokens, seconds, hours, money)


def measured(database: duckdb.DuckDBPyConnection, run: Run) -> dict[str, Any]:
    """The cost of what was asked, for run.json; under `planned` the last plan, None where there was none.

    Seconds go from the first prompt that an engine took to the last answer of each round, so the pause between a killed
    call and the one that went on is in them.

    Parameters
    ----------
    database
        Table answers (prompt_tokens, generated_tokens, answered_at, engine_seconds, last_round); what was known
        has no answered_at.
    """
    ((prompt_tokens, generated_tokens, seconds),) = database.sql(
        "SELECT coalesce(sum(prompt), 0)::BIGINT, coalesce(sum(generated), 0)::BIGINT, coalesce(sum(took), 0) FROM ("
        "SELECT sum(prompt_tokens) AS prompt, sum(generated_tokens) AS generated, "
        "max(answered_at) - min(answered_at - engine_seconds) AS took "
        "FROM answers WHERE answered_at IS NOT NULL GROUP BY last_round)"
    ).fetchall()
    cost = Cost.of(prompt_tokens, generated_tokens, round(seconds, 3), run.config.perspectives)
    return asdict(cost) | {"planned": run.read_json(PLAN) if run.exists(PLAN) else None}
