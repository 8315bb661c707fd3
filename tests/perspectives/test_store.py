"""The answer store: only good answers go in, each once; what is known is found, by whoever wrote it."""

from pathlib import Path

import pyarrow as pa

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.config import DataConfig, Engine, Perspectives, RunConfig
from llm4sbr_ray.perspectives.ask import determinants
from llm4sbr_ray.perspectives.store import add, engine_identity, open_store, take


def answered(store: Store, name: str, keys: str, error: str | None = None, shortened: bool = False) -> None:
    n = len(keys)
    table = pa.table(
        {
            "prompt_key": list(keys),
            "answer": [f"{name} {key}" for key in keys],
            "prompt_tokens": pa.array([9] * n, pa.int32()),
            "generated_tokens": pa.array([3] * n, pa.int32()),
            "error": pa.array([error] * n, pa.string()),
            "shortened": [shortened] * n,
        }
    )
    store.write_table(table, "answers", "round-0", f"{name}.parquet")


def small_run(tmp_path: Path, **perspectives: object) -> Run:
    config = RunConfig(
        name="one",
        storage=str(tmp_path),
        data=DataConfig(source="demo"),
        perspectives=Perspectives.model_validate(perspectives),
    )
    return Run(config)


def test_good_answers_are_stored_once_and_found_again(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    store = open_store(run, "m")
    assert store is not None
    assert Path(store.root).parent == tmp_path / "answers"
    work = Store(str(tmp_path / "work"))
    answered(work, "good", "abc")
    answered(work, "bad", "d", error="timed out")
    answered(work, "short", "e", shortened=True)
    work.write_bytes(b"PAR1 half of a fi", "answers", "round-0", "torn.parquet")  # its writer was killed
    assert add(store, work, "answers") == 3
    assert add(store, work, "answers") == 0
    answered(work, "later", "cf")  # c again: another driver had it as well
    assert add(store, work, "answers") == 1
    prompts = Store(str(tmp_path / "prompts"))
    prompts.write_table(pa.table({"prompt_key": list("abxfad")}), "part-0.parquet")
    assert take(prompts, work.below("known"), store, run, []) == 3
    found = {row["prompt_key"]: row["answer"] for row in work.read_table("known").to_pylist()}
    assert found == {"a": "good a", "b": "good b", "f": "later f"}


def test_what_the_run_itself_answered_is_known_without_a_store(tmp_path: Path) -> None:
    run = small_run(tmp_path, store=False)
    assert open_store(run, "m") is None
    answered(run, "good", "ab")
    answered(run, "bad", "c", error="empty answer")
    prompts = Store(str(tmp_path / "prompts"))
    prompts.write_table(pa.table({"prompt_key": list("abc")}), "part-0.parquet")
    found = Store(str(tmp_path / "found"))
    assert take(prompts, found, None, run, ["answers"]) == 2
    assert sorted(found.read_table("")["prompt_key"].to_pylist()) == ["a", "b"]


def test_a_store_of_its_own_place(tmp_path: Path) -> None:
    run = small_run(tmp_path / "runs", store=str(tmp_path / "elsewhere"))
    store = open_store(run, "m")
    assert store is not None
    assert Path(store.root).parent == tmp_path / "elsewhere"
    other = open_store(run, "n")
    assert other is not None
    assert other.root != store.root


def test_only_what_determines_answers_is_in_the_hash() -> None:
    base = Perspectives()
    operational = Perspectives(
        engine=Engine(batch_size=7, actors=(1, 9), write_rows=5, kv_cache_gib=3),
        retries=4,
        max_error_rate=0.5,
        schedule_timeout_s=3,
        store=False,
    )
    assert determinants(base) == determinants(operational)
    assert engine_identity("m", base) == engine_identity("m", operational) == "m"
    assert determinants(base) != determinants(Perspectives(engine=Engine(max_model_len=64)))
    quantised = Perspectives(engine=Engine(quantization="fp8"))
    assert engine_identity("m", base) != engine_identity("m", quantised)
