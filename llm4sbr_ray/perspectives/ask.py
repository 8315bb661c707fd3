"""The stage "perspectives": every sample gets an answer from every perspective; identical prompts are asked once."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa

from llm4sbr_ray import cluster
from llm4sbr_ray.artifacts import Facts, Run, Stage, Store
from llm4sbr_ray.config import Candidates, Perspectives
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives import budget, cost, engine, relational
from llm4sbr_ray.perspectives import store as answer_store
from llm4sbr_ray.perspectives.answers import ITEM_ANSWERS, take_from_field, write_answers
from llm4sbr_ray.perspectives.outputs import Question, field_texts, questions
from llm4sbr_ray.perspectives.progress import Progress
from llm4sbr_ray.perspectives.render import ITEMS, render, unique_prompts

WORK = (".partial", "perspectives", "out", "work")  # where the body of the stage works
COUNTS = ("rows", "prompts", "from_store", "not_asked", "calls_saved", "rounds")  # of the stage, in run.json
RETRIES = "perspectives-retries.json"  # how often the committed stage was opened again for its errors


def ask_perspectives(run: Run, model: str, model_identity: str, after: list[str], retry_errors: bool = False) -> bool:
    """Run the LLM stage.

    Parameters
    ----------
    model
        What vLLM loads: a Hugging Face name or a path.
    model_identity
        What stands for the model in prompt keys: its name, or a hash of the pocket LM's files.
    retry_errors
        Open a committed stage again and ask what has an error, and nothing else.

    Raises
    ------
    UserError
        The cluster cannot schedule the actors; or more than `perspectives.max_error_rate` of the prompts failed.
    """
    config = run.config.perspectives
    identity = answer_store.engine_identity(model_identity, config)
    store = answer_store.open_store(run, identity)
    if retry_errors:
        _reopen(run)
    _bank_what_was_left(run, store)
    retries = run.read_json(RETRIES) if run.exists(RETRIES) else 0
    return run.stage(
        "perspectives",
        outputs=[
            *(f"perspectives/{view.name}" for view in config.views),
            *(f"{ITEM_ANSWERS}/{view.name}" for view in config.views if view.level == "item"),
        ],
        settings=[determinants(config), identity, retries],
        after=after,
        body=lambda stage: _body(stage, model, identity, store),
    )


def determinants(config: Perspectives) -> dict[str, Any]:
    """The settings that determine the answers; beside them stands the identity of model and engine."""
    chosen = config.model_dump(mode="json", include={"max_items", "max_title_chars", "sampling", "splits"})
    views = [view.model_dump(mode="json", exclude={"anchor"}) for view in config.views]
    for view in views:
        if view["level"] == "session":  # as it was before there were levels
            del view["level"], view["from_field"]
    if not config.budget.asks_all():
        chosen["budget"] = config.budget.model_dump(mode="json")
    return chosen | {"views": views, "max_model_len": config.engine.max_model_len}


def _reopen(run: Run) -> None:
    """Have the committed stage run again: it finds its own answers known, and its errors not."""
    stage = run.manifest()["stages"].get("perspectives", {})
    errors = sum(figures["errors"] for figures in stage.get("perspectives", {}).values())
    if stage.get("status") != "done":
        return  # a stage under way asks again what failed anyway
    print(f"[perspectives] prompts with an error, to be asked again: {errors:,}", flush=True)
    if errors:
        retries = run.read_json(RETRIES) if run.exists(RETRIES) else 0
        run.write_json(retries + 1, RETRIES)


def _bank_what_was_left(run: Run, store: Store | None) -> None:
    """Save the answers of a killed call, whose working folder is dropped if the settings have changed since."""
    work = run.below(*WORK)
    if store is not None and work.exists("identity.json"):
        store = answer_store.open_store(run, work.read_json("identity.json"))
    answer_store.add(store, work, "answers")


def _body(stage: Stage, model: str, identity: str, store: Store | None) -> Facts:
    run, config = stage.run, stage.run.config.perspectives.asking()
    given = stage.run.config.perspectives.asking(False)
    work = stage.store.below("work")
    data = run.below("data")
    if not work.exists("prompts.done"):
        work.delete("prompts")
        questions(data, config)  # refuses here, in one line, what the actors would meet
        for view in given.views:
            field_texts(data, view)
        if config.views:
            render(data, work.below("prompts"), identity, config)
        work.delete("given")
        if given.views:
            render(data, work.below("given"), identity, given)
        if config.views and not config.budget.asks_all():
            work.delete("chosen")
            budget.choose(work.below("prompts"), work.below("chosen"), data, config)
        work.write_json(identity, "identity.json")
        work.write_json(True, "prompts.done")
    facts: Facts = dict.fromkeys(COUNTS, 0) | {"perspectives": {}}
    if config.views:
        facts = _answer(stage, work, model, store)
    for view in given.views:
        facts["perspectives"][view.name] = take_from_field(stage.store, work.below("given"), data, view)
        for figure in ("rows", "calls_saved"):
            facts[figure] += facts["perspectives"][view.name]["rows"]
    return facts


def _answer(stage: Stage, work: Store, model: str, store: Store | None) -> Facts:
    """Ask what no run has the answer to, and join the answers with the samples."""
    run, config = stage.run, stage.run.config.perspectives.asking()
    if not work.exists("known.json"):
        work.delete("known")
        folders = [f"{folder}/{view.name}" for view in config.views for folder in ("perspectives", ITEM_ANSWERS)]
        work.write_json(
            answer_store.take(_chosen(work, config), work.below("known"), store, run, folders), "known.json"
        )
    try:
        _ask_all(work, model, run.below("data").uri(), config)
    finally:  # answers are paid for, whatever ended the asking
        answer_store.add(store, work, "answers", "known")
    return _collect(stage, work)


def _chosen(work: Store, config: Perspectives) -> Store:
    """The rendered prompts that are asked."""
    return work.below("prompts" if config.budget.asks_all() else "chosen")


def _ask_all(work: Store, model: str, catalogue: str, config: Perspectives) -> None:
    """Round 0, and rounds of what failed until nothing does or `perspectives.retries` are used up."""
    # A call after one that failed for its error rate begins a new round for what failed.
    first = _answered_rounds(work)
    for number in range(first, first + config.retries + 1):
        if not _ask_round(work, number, model, catalogue, config):
            break


def _collect(stage: Stage, work: Store) -> Facts:
    """The answers of all rounds and the known ones, joined with the samples."""
    config = stage.run.config.perspectives.asking()
    answered = range(_answered_rounds(work))
    database = relational.connect()
    for number in answered:
        database.register(f"round_{number}", relational.dataset(work, "answers", f"round-{number}"))
    database.register("known", relational.dataset(work, "known"))
    nothing = (
        "'' AS error, false AS shortened, NULL::DOUBLE AS answered_at, NULL::DOUBLE AS engine_seconds, -1 AS round"
    )
    answer_rounds = " UNION ALL BY NAME ".join(
        [f"SELECT *, {nothing} FROM known"]
        + [f"SELECT *, {number} AS round FROM round_{number}" for number in answered]
    )
    database.register("prompts", relational.dataset(work.below("prompts")))
    database.register("chosen", relational.dataset(_chosen(work, config)))
    # The answer of a later round replaces the error of an earlier one.
    database.execute(
        "CREATE TABLE answers AS SELECT prompt_key, max(round) AS last_round, "
        "arg_max(COLUMNS(* EXCLUDE (prompt_key, round)), round) "
        f"FROM (SELECT * REPLACE (coalesce(error::VARCHAR, '') AS error) FROM ({answer_rounds})) GROUP BY prompt_key"
    )
    unique, errors, example = _one(
        database.sql(
            "SELECT count(*), count(*) FILTER (error <> ''), any_value(error) FILTER (error <> '') FROM answers"
        )
    )
    wanted, served = _one(
        database.sql(f"SELECT count(DISTINCT prompt_key), count(*) FILTER (split <> '{ITEMS}') FROM chosen")
    )
    if unique != wanted:
        raise RuntimeError(f"there are {wanted} prompts and {unique} have a row: an answer was lost")
    if errors > config.max_error_rate * unique:
        raise UserError(
            f"perspectives: {errors:,} of {unique:,} prompts failed, more than perspectives.max_error_rate="
            f"{config.max_error_rate:g} allows. One of the errors: {example}. Mend its cause and run again: what was "
            "answered is kept"
        )
    facts: dict[str, Any] = {}
    asks_candidates = any(isinstance(view.output, Candidates) for view in config.views)
    found = questions(stage.run.below("data"), config) if asks_candidates else {}
    for view in config.views:
        answers_of_view = database.sql(
            "SELECT p.sample_key, p.split, p.position, p.prompt_key, coalesce(a.prompt_tokens, 0) AS prompt_tokens, "
            "coalesce(a.generated_tokens, 0) AS generated_tokens, coalesce(a.answer, '') AS answer, "
            "nullif(coalesce(a.error, $left_out), '') AS error, coalesce(a.shortened, false) AS shortened "
            "FROM prompts p LEFT JOIN answers a USING (prompt_key) WHERE p.view = $view",
            params={"view": view.name, "left_out": budget.NOT_ASKED},
        )
        if isinstance(view.output, Candidates):
            answers_of_view = _with_items(database, answers_of_view, found[view.name])
        written = write_answers(answers_of_view, stage.store, view)
        facts[view.name] = _figures(database, view.name) | {"rows": written}
    rows, known = sum(figures["rows"] for figures in facts.values()), int(work.read_json("known.json"))
    return {
        "rows": rows,
        "prompts": unique,
        "from_store": known,
        "not_asked": rows - served,  # questions beyond the budget
        "calls_saved": served - unique + known,
        "rounds": len(answered),
        "cost": cost.measured(database, stage.run),
        "perspectives": facts,
    }


def _with_items(
    database: duckdb.DuckDBPyConnection, answers: duckdb.DuckDBPyRelation, question: Question
) -> duckdb.DuckDBPyRelation:
    """A sample's candidates beside its answer, and the one of them whose title it is."""
    lines = question.lines
    database.register("lines", pa.table({"item": pa.array(range(len(lines)), pa.int32()), "line": lines}))
    answers.create_view("given")
    return database.sql(
        "WITH offered AS (SELECT position, candidates FROM prompts "
        f"WHERE view = '{question.view.name}' AND candidates IS NOT NULL), "
        "named AS (SELECT position, unnest(candidates) AS item FROM offered), "
        "chosen AS (SELECT position, line, item FROM named JOIN lines USING (item)) "
        "SELECT given.*, candidates, CASE WHEN error IS NULL THEN item END AS item FROM given "
        "JOIN offered USING (position) LEFT JOIN chosen ON given.position = chosen.position AND answer = line",
    )


def _require_engine(config: Perspectives) -> None:
    actors = config.engine.actors[0]
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
            rows = unique_prompts(_chosen(work, config), asked, config.engine.write_rows, work.below("known"))
        else:
            rows = _failed_prompts(work, number, asked, config.engine.write_rows)
        work.write_json(rows, "asked", f"{name}.json")
    rows = int(work.read_json("asked", f"{name}.json"))
    if rows and not work.exists("answers", f"{name}.json"):
        _require_engine(config)
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
    """Figures of one perspective over its distinct prompts; the rate is of those that this stage asked."""
    query = (
        "SELECT count(*), count(answered_at), count(*) FILTER (error <> ''), coalesce(sum(prompt_tokens), 0), "
        "coalesce(sum(generated_tokens), 0), quantile_cont(answered_at, 0.1), quantile_cont(answered_at, 0.9) "
        "FROM answers WHERE prompt_key IN (SELECT prompt_key FROM prompts WHERE view = $view)"
    )
    prompts, asked, errors, prompt_tokens, generated_tokens, tenth, ninetieth = _one(
        database.sql(query, params={"view": view})
    )
    # From the 10th to the 90th percentile of answer times: without the engine's start and the last stragglers.
    steady = 0.8 * asked / (ninetieth - tenth) if asked and ninetieth > tenth else None
    return {
        "prompts": prompts,
        "from_store": prompts - asked,
        "errors": errors,
        "prompt_tokens": int(prompt_tokens),
        "generated_tokens": int(generated_tokens),
        "rows_per_second": None if steady is None else round(steady, 1),
    }


def _one(query: duckdb.DuckDBPyRelation) -> tuple[Any, ...]:
    (row,) = query.fetchall()
    return tuple(row)
