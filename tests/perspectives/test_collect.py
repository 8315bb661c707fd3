"""Rounds and known answers come together: the last round counts, every sample gets its row, the figures add up."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from llm4sbr_ray.artifacts import Run, Stage, Store
from llm4sbr_ray.config import Budget, DataConfig, Perspectives, RunConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives.ask import _collect, _reopen
from llm4sbr_ray.perspectives.budget import NOT_ASKED
from llm4sbr_ray.perspectives.engine import extract
from llm4sbr_ray.perspectives.render import PROMPT_SCHEMA, unique_prompts
from llm4sbr_ray.perspectives.store import STORED_SCHEMA


def engine_rows(keys: str, texts: list[str], failed: str = "") -> pa.Table:
    """What the vLLM stage gives back, through the code that reads it."""
    n = len(keys)
    frame = pd.DataFrame(
        {
            "prompt_key": list(keys),
            "generated_text": texts,
            "num_input_tokens": [9] * n,
            "num_generated_tokens": [3] * n,
            "shortened": [False] * n,
            "time_taken_llm": [0.5] * n,
            "__inference_error__": ["out of memory" if key in failed else "" for key in keys],
        }
    )
    return extract(frame)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Samples s0..s3 ask a, b, c, a from one perspective and d from the other; c is known."""
    config = RunConfig(
        name="one",
        storage=str(tmp_path),
        data=DataConfig(source="demo"),
        perspectives=Perspectives(max_error_rate=0.25),
    )
    run = Run(config)
    stage = Stage("perspectives", run, run.below("out"))
    work = stage.store.below("work")
    rows = [
        {"position": n, "split": "test", "sample_key": f"s{n}", "view": view, "prompt_key": key, "items": [n]}
        for view, keys in (("long-term", "abca"), ("short-term", "dddd"))
        for n, key in enumerate(keys)
    ]
    work.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA), "prompts", "part-0.parquet")
    known = {"prompt_key": ["c"], "answer": ["of old"], "prompt_tokens": [9], "generated_tokens": [3]}
    work.write_table(pa.table(known).cast(STORED_SCHEMA), "known", "part-0.parquet")
    work.write_json(1, "known.json")
    return stage


def add_round(work: Store, number: int, rows: pa.Table) -> None:
    work.write_table(rows, "answers", f"round-{number}", "part-0.parquet")
    work.write_json(True, "answers", f"round-{number}.json")


def test_what_is_known_is_not_asked(stage: Stage) -> None:
    work = stage.store.below("work")
    assert unique_prompts(work.below("prompts"), work.below("asked"), 10, work.below("known")) == 3
    assert work.read_table("asked")["prompt_key"].to_pylist() == ["a", "b", "d"]


def test_the_last_round_counts_and_every_sample_has_its_row(stage: Stage) -> None:
    work = stage.store.below("work")
    add_round(work, 0, engine_rows("abd", ["tent", "", " rope \n"], failed="b"))
    add_round(work, 1, engine_rows("b", ["lamp"]))
    facts = _collect(stage, work)
    long_term = stage.store.read_table("perspectives", "long-term").to_pylist()
    assert [row["answer"] for row in long_term] == ["tent", "lamp", "of old", "tent"]
    assert {row["error"] for row in long_term} == {None}
    assert stage.store.read_table("perspectives", "short-term")["answer"].to_pylist() == ["rope"] * 4
    assert (facts["rows"], facts["prompts"], facts["from_store"], facts["calls_saved"]) == (8, 4, 1, 5)
    assert facts["perspectives"]["long-term"]["from_store"] == 1
    assert facts["perspectives"]["short-term"]["from_store"] == 0


def test_all_known_needs_no_round(stage: Stage) -> None:
    work = stage.store.below("work")
    known = {"prompt_key": list("abcd"), "answer": list("wxyz"), "prompt_tokens": [9] * 4, "generated_tokens": [3] * 4}
    work.write_table(pa.table(known).cast(STORED_SCHEMA), "known", "part-0.parquet")
    work.write_json(4, "known.json")
    assert unique_prompts(work.below("prompts"), work.below("asked"), 10, work.below("known")) == 0
    facts = _collect(stage, work)
    assert stage.store.read_table("perspectives", "long-term")["answer"].to_pylist() == ["w", "x", "y", "w"]
    assert (facts["from_store"], facts["calls_saved"], facts["rounds"]) == (4, 8, 0)
    assert facts["perspectives"]["long-term"]["rows_per_second"] is None


def test_errors_are_kept_and_too_many_fail_the_stage(stage: Stage) -> None:
    work = stage.store.below("work")
    add_round(work, 0, engine_rows("abd", ["tent", "lamp", ""]))
    facts = _collect(stage, work)
    assert stage.store.read_table("perspectives", "short-term")["error"].to_pylist() == ["empty answer"] * 4
    assert facts["perspectives"]["short-term"]["errors"] == 1
    add_round(work, 1, engine_rows("ad", ["", ""], failed="a"))
    with pytest.raises(UserError, match=r"2 of 4 prompts failed"):
        _collect(stage, work)


def test_a_committed_stage_is_opened_again_only_for_errors(stage: Stage) -> None:
    run = stage.run
    entry = {"status": "done", "perspectives": {"long-term": {"errors": 0}, "short-term": {"errors": 0}}}
    run.write_json({"stages": {"perspectives": entry}}, "run.json")
    _reopen(run)
    assert not run.exists("perspectives-retries.json")
    entry["perspectives"]["short-term"]["errors"] = 2  # type: ignore[index]
    for expected in (1, 2):
        run.write_json({"stages": {"perspectives": entry}}, "run.json")
        _reopen(run)
        assert run.read_json("perspectives-retries.json") == expected


def test_beyond_the_budget_there_is_a_row_without_an_answer(stage: Stage) -> None:
    perspectives = stage.run.config.perspectives.model_copy(update={"budget": Budget(calls=2)})
    stage.run.config = stage.run.config.model_copy(update={"perspectives": perspectives})
    work = stage.store.below("work")
    prompts = work.read_table("prompts")
    within = prompts.filter(pc.is_in(prompts["prompt_key"], pa.array(["a", "c"])))
    work.write_table(within, "chosen", "part-0.parquet")
    add_round(work, 0, engine_rows("a", ["tent"]))
    facts = _collect(stage, work)
    long_term = stage.store.read_table("perspectives", "long-term").to_pylist()
    assert [row["answer"] for row in long_term] == ["tent", "", "of old", "tent"]
    assert [row["error"] for row in long_term] == [None, NOT_ASKED, None, None]
    assert {row["error"] for row in stage.store.read_table("perspectives", "short-term").to_pylist()} == {NOT_ASKED}
    assert (facts["rows"], facts["not_asked"], facts["prompts"], facts["calls_saved"]) == (8, 5, 2, 2)
    assert facts["perspectives"]["short-term"]["errors"] == 0


def test_the_cost_is_of_what_was_asked_and_stands_beside_the_plan(stage: Stage) -> None:
    perspectives = stage.run.config.perspectives.model_copy(update={"price_per_gpu_hour": 3600.0})
    stage.run.config = stage.run.config.model_copy(update={"perspectives": perspectives})
    work = stage.store.below("work")
    first = engine_rows("abd", ["tent", "", "rope"]).set_column(6, "answered_at", pa.array([10.0, 10.0, 12.0]))
    second = engine_rows("b", ["lamp"]).set_column(6, "answered_at", pa.array([100.0]))
    add_round(work, 0, first)
    assert _collect(stage, work)["cost"]["planned"] is None
    add_round(work, 1, second)
    stage.run.write_json({"seconds": 4.0}, "plan.json")
    cost = _collect(stage, work)["cost"]
    assert (cost["prompt_tokens"], cost["generated_tokens"]) == (27, 9)  # c was known
    assert cost["seconds"] == pytest.approx(2.5 + 0.5)  # 9.5 to 12, and 99.5 to 100: not the pause between
    assert cost["money"] == pytest.approx(3600 * cost["gpu_hours"]) == pytest.approx(3.0)
    assert cost["planned"] == {"seconds": 4.0}
