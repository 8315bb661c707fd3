"""Rounds of asking: only what failed is asked again, and a later call goes on where the last one ended."""

from pathlib import Path

import pyarrow as pa

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.perspectives.ask import _answered_rounds, _failed_prompts


def test_the_next_round_asks_what_failed(tmp_path: Path) -> None:
    work = Store(str(tmp_path))
    asked = pa.table({"prompt_key": ["a", "b", "c"], "view": ["v"] * 3, "items": pa.array([[0], [1], [2]])})
    errors = pa.array(["timed out", None, "empty answer"], pa.string())
    work.write_table(asked, "asked", "round-0", "part-0.parquet")
    work.write_table(pa.table({"prompt_key": ["c", "b", "a"], "error": errors}), "answers", "round-0", "part-0.parquet")
    assert _answered_rounds(work) == 0  # written, not committed
    work.write_json(True, "answers", "round-0.json")
    assert _answered_rounds(work) == 1
    assert _failed_prompts(work, 1, work.below("asked", "round-1"), rows_a_file=10) == 2
    assert work.read_table("asked", "round-1")["prompt_key"].to_pylist() == ["a", "c"]


def test_without_failures_there_is_nothing_to_ask(tmp_path: Path) -> None:
    work = Store(str(tmp_path))
    asked = pa.table({"prompt_key": ["a"], "view": ["v"], "items": pa.array([[0]])})
    work.write_table(asked, "asked", "round-0", "part-0.parquet")
    answers = pa.table({"prompt_key": ["a"], "error": pa.array([None], pa.string())})
    work.write_table(answers, "answers", "round-0", "part-0.parquet")
    assert _failed_prompts(work, 1, work.below("asked", "round-1"), rows_a_file=10) == 0
