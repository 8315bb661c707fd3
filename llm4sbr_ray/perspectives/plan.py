"""What the LLM stage would ask and cost: counted, tokenised on a sample, priced; no engine starts and nothing is asked.

python jobs/infer.py --config configs/demo.yaml --plan
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.perspectives import budget, relational
from llm4sbr_ray.perspectives import store as answer_store
from llm4sbr_ray.perspectives.answers import ITEM_ANSWERS
from llm4sbr_ray.perspectives.cost import PLAN, Cost
from llm4sbr_ray.perspectives.engine import Tokenise
from llm4sbr_ray.perspectives.outputs import questions
from llm4sbr_ray.perspectives.render import render

FOLDER = ".plan"  # of the run, removed at the end
SAMPLE = 256  # prompts tokenised, a perspective


def plan(run: Run, model: str, identity: str) -> Cost:
    """Print what `ask_perspectives` would do with the same arguments (`identity`: of the model)."""
    config, data, aside = run.config.perspectives.asking(), run.below("data"), run.below(FOLDER)
    identity = answer_store.engine_identity(identity, config)
    store = answer_store.open_store(run, identity)
    questions(data, config)
    aside.delete("")
    try:
        render(data, aside.below("prompts"), identity, config)
        folders = [f"{folder}/{view.name}" for view in config.views for folder in ("perspectives", ITEM_ANSWERS)]
        chosen = aside.below("prompts")
        if not config.budget.asks_all():
            chosen = aside.below("chosen")
            budget.choose(aside.below("prompts"), chosen, data, config)
        known = answer_store.take(chosen, aside.below("known"), store, run, folders)
        database = relational.connect()
        database.register("all_prompts", relational.dataset(aside, "prompts"))
        database.register("prompts", relational.dataset(chosen))
        database.register("known", relational.dataset(aside, "known"))
        database.execute(
            "CREATE TABLE asked AS SELECT DISTINCT prompt_key, view FROM prompts ANTI JOIN known USING (prompt_key)"
        )
        questions_asked, distinct = _count(database, "all_prompts")
        print(f"[plan] model {model}: {questions_asked:,} questions, {distinct:,} distinct prompts")
        if not config.budget.asks_all():
            served, within = _count(database, "prompts")
            print(
                f"[plan] budget {config.budget.policy}: {within:,} of these prompts, which answer {served:,} questions"
            )
        print(f"[plan] answered before: {known:,}")
        tokenise = Tokenise(model, data.uri(), config)
        prompt_tokens, generated = 0.0, 0
        for view in config.views:
            rows = _sample(database, view.name)
            ((asked,),) = database.sql(
                "SELECT count(*) FROM asked WHERE view = $view", params={"view": view.name}
            ).fetchall()
            lengths = [
                len(tokenise.tokens(view.name, items, tokenise.offer(view.name, candidates or ()))[0])
                for items, candidates in rows
            ]
            mean = sum(lengths) / max(1, len(lengths))
            prompt_tokens += asked * mean
            generated += asked * config.sampling_of(view).max_tokens
            print(f"[plan] {view.name}: {asked:,} prompts to ask of {mean:.1f} tokens each ({len(rows)} tokenised)")
    finally:
        aside.delete("")
    rate, origin = _rate(run)
    cost = Cost.of(prompt_tokens, generated, (prompt_tokens + generated) / rate if rate else None, config)
    run.write_json(asdict(cost), PLAN)
    print(f"[plan] {cost.prompt_tokens:,} tokens to read and at most {cost.generated_tokens:,} to write")
    if cost.seconds is None or cost.gpu_hours is None:
        print("[plan] no rate is known: set perspectives.tokens_per_second, or run once and plan again")
    else:
        print(
            f"[plan] at {rate:,.0f} tokens/s ({origin}): {cost.seconds:,.0f} s, {cost.gpu_hours:,.2f} GPU-hours at most"
        )
        money = "set perspectives.price_per_gpu_hour" if cost.money is None else f"{cost.money:,.2f}"
        print(f"[plan] price: {money}", flush=True)
    return cost


def _count(database: Any, table: str) -> tuple[int, int]:
    """Questions and distinct prompts."""
    ((rows, distinct),) = database.sql(f"SELECT count(*), count(DISTINCT prompt_key) FROM {table}").fetchall()
    return rows, distinct


def _sample(database: Any, view: str) -> list[tuple[list[int], list[int] | None]]:
    query = (
        "SELECT items, candidates FROM "
        "(SELECT items, candidates FROM prompts SEMI JOIN asked USING (prompt_key) WHERE view = $view) "
        f"USING SAMPLE reservoir({SAMPLE} ROWS) REPEATABLE (0)"
    )
    rows: list[tuple[list[int], list[int] | None]] = database.sql(query, params={"view": view}).fetchall()
    return rows


def _rate(run: Run) -> tuple[float | None, str]:
    """Tokens a second of the pool: as configured, or as this run's last asking had it."""
    configured = run.config.perspectives.tokens_per_second
    if configured is not None:
        return configured, "perspectives.tokens_per_second"
    asked = run.manifest()["stages"].get("perspectives", {}).get("perspectives", {})
    rates = [
        (view["prompt_tokens"] + view["generated_tokens"]) / view["prompts"] * view["rows_per_second"]
        for view in asked.values()
        if view.get("rows_per_second")
    ]
    return (sum(rates) / len(rates), "measured in this run") if rates else (None, "")
