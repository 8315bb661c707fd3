"""The stage "perspectives": every sample gets an answer from every perspective; identical prompts are asked once."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa

from llm4sbr_ray import cluster
from llm4sbr_ray.artifacts import Facts, Run, Stage, Store
from llm4sbr_ray.config import Perspectives
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives import engine, relational
from llm4sbr_ray.perspectives.progress import Progress
from llm4sbr_ray.perspectives.render import render, unique_prompts

_FIELDS: list[pa.Field[Any]] = [
    pa.field("sample_key", pa.string()),
    pa.field("split", pa.string()),
    pa.field("position", pa.int64()),
    pa.field("prompt_key", pa.string()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("generated_tokens", pa.int32()),
    pa.field("answer", pa.string()),
    pa.field("error", pa.string()),
]
PERSPECTIVE_SCHEMA = pa.schema(_FIELDS)


def ask_perspectives(run: Run, model: str, model_identity: str, after: list[str]) -> bool:
    """Run the LLM stage.

    Parameters
    ----------
    model
        What vLLM loads: a Hugging Face name or a path.
    model_identity
        What stands for the model in prompt keys: its name, or a hash of the pocket LM's files.

    Raises
    ------
    UserError
        The cluster cannot schedule the actors; or more than `perspectives.max_error_rate` of the prompts failed.
    """
    config = run.config.perspectives
    names = [view.name for view in config.views]
    return run.stage(
        "perspectives",
        outputs=[f"perspectives/{name}" for name in names],
        settings=[config, model_identity],
        after=after,
        body=lambda stage: _body(stage, model, model_identity),
    )


def _body(stage: Stage, model: str, model_identity: str) -> Facts:
    run, config = stage.run, stage.run.config.perspectives
    work = stage.store.below("work")
    data = run.below("data")
    if not work.exists("prompts.done"):
        work.delete("prompts")
        render(data, work.below("prompts"), model_identity, config)
        work.write_json(True, "prompts.done")
    _require_engine(config)
    # A call after one that failed for its error rate begins a new round for what failed.
    first = _answered_rounds(work)
    for number in range(first, first + config.retries + 1):
        if not _ask_round(work, number, model, data.uri(), config):
            break
    answered = range(_answered_rounds(work))
    database = relational.connect()
    for number in answered:
        database.register(f"round_{number}", relational.dataset(work, "answers", f"round-{number}"))
    answer_rounds = " UNION ALL ".join(f"SELECT *, {number} AS round FROM round_{number}" for number in answered)
    database.register("prompts", relational.dataset(work.below("prompts")))
    # The answer of a later round replaces the error of an earlier one.
    database.execute(
        "CREATE TABLE answers AS SELECT prompt_key, arg_max(COLUMNS(* EXCLUDE (prompt_key, round)), round) "
        f"FROM (SELECT * REPLACE (coalesce(error::VARCHAR, '') AS error) FROM ({answer_rounds})) GROUP BY prompt_key"
    )
    unique, errors, example = _one(
        database.sql(
            "SELECT count(*), count(*) FILTER (error <> ''), any_value(error) FILTER (error <> '') FROM answers"
        )
    )
    wanted = _one(database.sql("SELECT count(DISTINCT prompt_key) FROM prompts"))[0]
    if unique != wanted:
        raise RuntimeError(f"{wanted} prompts were asked and {unique} have a row: an answer was lost")
    if errors > config.max_error_rate * unique:
        raise UserError(
            f"perspectives: {errors:,} of {unique:,} prompts failed, more than perspectives.max_error_rate="
            f"{config.max_error_rate:g} allows. One of the errors: {example}. Mend its cause and run again: what was "
            "answered is kept"
        )
    facts: dict[str, Any] = {}
    for view in config.views:
        query = database.sql(
            "SELECT p.sample_key, p.split, p.position, p.prompt_key, a.prompt_tokens, a.generated_tokens, a.answer, "
            "nullif(a.error, '') AS error FROM prompts p JOIN answers a USING (prompt_key) WHERE p.view = $view "
            "ORDER BY p.position",
            params={"view": view.name},
        )
        rows = relational.copy_to(query, stage.store, f"perspectives/{view.name}", PERSPECTIVE_SCHEMA)
        facts[view.name] = _figures(database, view.name) | {"rows": rows}
    return {
        "rows": sum(figures["rows"] for figures in facts.values()),
        "prompts": unique,
        "calls_saved": sum(figures["rows"] for figures in facts.values()) - unique,
        "rounds": len(answered),
        "perspectives": facts,
    }


def _require_engine(config: Perspectives) -> None:
    actors = max(1, config.engine.actors[0])
    size = config.engine.tensor_parallel_size * config.engine.pipeline_parallel_size
    bundles = [engine.actor_bundle(config.engine)] * size * actors
    helpers = {"CPU": 3 * engine.HELPER_CPUS}  # tokenise, read or extract, write
    cluster.require(
        [*bundles, helpers], f"{actors} vLLM actor(s) and the stages around them", config.schedule_timeout_s
    )


def _ask_round(work: Store, number: int, model: str, catalogue: str, config: Perspectives) -> int:
    """Ask all prompts (round 0) or those that failed in the round before; returns their number."""
    name = f"round-{number}"
    asked, answers, done = (work.below(kind, name) for kind in ("asked", "answers", "done"))
    if not work.exists("asked", f"{name}.json"):
        asked.delete("")
        if number == 0:
            rows = unique_prompts(work.below("prompts"), asked, config.engine.write_rows)
        else:
            rows = _failed_prompts(work, number, asked, config.engine.write_rows)
        work.write_json(rows, "asked", f"{name}.json")
    rows = int(work.read_json("asked", f"{name}.json"))
    if rows and not work.exists("answers", f"{name}.json"):
        what = "prompts" if number == 0 else "prompts that failed, once more"
        print(f"[perspectives] asking {rows:,} {what}: {model}", flush=True)
        with Progress(done, rows, "perspectives"):
            engine.ask(asked, answers, done, model, catalogue, config)
        work.write_json(True, "answers", f"{name}.json")
    return rows


def _answered_rounds(work: Store) -> int:
    number = 0
    while work.exists("answers", f"round-{number}.json"):
        number += 1
    return number


def _failed_prompts(work: Store, number: int, asked: Store, rows_a_file: int) -> int:
    database = relational.connect()
    database.register("answers", relational.dataset(work, "answers", f"round-{number - 1}"))
    database.register("asked_before", relational.dataset(work, "asked", f"round-{number - 1}"))
    query = database.sql(
        "SELECT b.* FROM asked_before b JOIN answers a USING (prompt_key) WHERE a.error IS NOT NULL "
        "ORDER BY view, items"
    )
    return relational.copy_to(query, asked, "", rows_a_file=rows_a_file)


def _figures(database: duckdb.DuckDBPyConnection, view: str) -> dict[str, Any]:
    """Figures of one perspective over its distinct prompts: what was really asked and paid for."""
    query = (
        "SELECT count(*), count(*) FILTER (error <> ''), sum(prompt_tokens), sum(generated_tokens), "
        "quantile_cont(answered_at, 0.1), quantile_cont(answered_at, 0.9) FROM answers "
        "WHERE prompt_key IN (SELECT prompt_key FROM prompts WHERE view = $view)"
    )
    prompts, errors, prompt_tokens, generated_tokens, tenth, ninetieth = _one(
        database.sql(query, params={"view": view})
    )
    # From the 10th to the 90th percentile of answer times: without the engine's start and the last stragglers.
    steady = 0.8 * prompts / (ninetieth - tenth) if ninetieth > tenth else None
    return {
        "prompts": prompts,
        "errors": errors,
        "prompt_tokens": int(prompt_tokens),
        "generated_tokens": int(generated_tokens),
        "rows_per_second": None if steady is None else round(steady, 1),
    }


def _one(query: duckdb.DuckDBPyRelation) -> tuple[Any, ...]:
    (row,) = query.fetchall()
    return tuple(row)
