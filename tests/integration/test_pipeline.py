"""The whole way, once: contracts at the stages' borders, and what the report and the bundle hold."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import Engine
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives.intents import item_embeddings
from llm4sbr_ray.perspectives.outputs import shown_titles
from llm4sbr_ray.perspectives.text_encoder import TextEncoder

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parent.parent.parent
VIEWS = ("long-term", "short-term")


def test_every_stage_is_committed(pipeline_run: Run) -> None:
    stages = pipeline_run.manifest()["stages"]
    assert {stage["status"] for stage in stages.values()} == {"done"}
    trained = {f"train/{model}/seed-0" for model in ("popularity", "sknn", "srgnn", "srgnn+llm4sbr")}
    others = {"ingest", "pocket-lm", "perspectives", "text", "intents", "evaluate", "export"}
    assert set(stages) == trained | others
    assert not pipeline_run.files(".partial")


def test_a_second_call_does_nothing_again(pipeline_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = pipeline_run.manifest()["stages"]
    runpy.run_path(str(ROOT / "jobs" / "pipeline.py"))["pipeline"](pipeline_run)
    assert pipeline_run.manifest()["stages"] == before
    assert capsys.readouterr().out.count("done before, skipped") == len(before)


@pytest.mark.parametrize("view", VIEWS)
def test_every_sample_has_its_answer(pipeline_run: Run, view: str) -> None:
    answers = pipeline_run.read_table("perspectives", view)
    keys = [
        key
        for split in ("train", "valid", "test")
        for key in pipeline_run.read_table("data", split)["sample_key"].to_pylist()
    ]
    assert answers["sample_key"].to_pylist() == keys  # all of them, in their order
    rows = answers.to_pylist()
    assert all((row["answer"] == "") == (row["error"] is not None) for row in rows)
    assert all(
        0 < row["prompt_tokens"] <= 512 and 0 < row["generated_tokens"] <= 16 for row in rows if not row["error"]
    )


def test_identical_prompts_have_one_answer(pipeline_run: Run) -> None:
    for view in VIEWS:
        rows = pipeline_run.read_table("perspectives", view).to_pylist()
        by_key: dict[str, set[str]] = {}
        for row in rows:
            by_key.setdefault(row["prompt_key"], set()).add(row["answer"])
        assert {len(answers) for answers in by_key.values()} == {1}
        assert len(by_key) < len(rows)
    facts = pipeline_run.manifest()["stages"]["perspectives"]
    assert facts["calls_saved"] == facts["rows"] - facts["prompts"] > 0


@pytest.mark.parametrize("view", VIEWS)
def test_intents_equal_a_naive_float64_localisation(pipeline_run: Run, view: str) -> None:
    answers = pipeline_run.read_table("perspectives", view).to_pylist()
    intents = pipeline_run.read_table("intents", view).to_pylist()
    assert [row["sample_key"] for row in intents] == [row["sample_key"] for row in answers]
    text = pipeline_run.config.text
    items = item_embeddings(pipeline_run).astype(np.float64)
    encoder = TextEncoder(text)
    titles = {t.casefold() for t in shown_titles(pipeline_run.below("data"), pipeline_run.config.perspectives)}
    for row in range(0, len(answers), max(1, len(answers) // 25)):
        answer, intent = answers[row]["answer"], intents[row]
        query = encoder.encode([answer])[0].astype(np.float64)
        cosines = [math.fsum(a * b for a, b in zip(query, item, strict=True)) for item in items]
        best = sorted(range(len(items)), key=lambda j: -cosines[j])[: text.localised_items]
        np.testing.assert_allclose([cosines[j] for j in intent["item_idx"]], [cosines[j] for j in best], atol=1e-5)
        assert intent["grounded"] == (cosines[best[0]] >= text.min_cosine)
        assert intent["exact_title"] == (answer.casefold() in titles)
        if intent["grounded"]:
            weights = np.array([max(0.0, cosines[j]) for j in intent["item_idx"]])
            weights /= weights.sum()
            np.testing.assert_allclose(intent["weight"], weights, atol=1e-5)
            np.testing.assert_allclose(intent["embedding"], weights @ items[intent["item_idx"]], atol=2e-3)  # float16


def test_samples_carry_the_intents_of_both_perspectives(pipeline_run: Run) -> None:
    for split in ("train", "valid", "test"):
        joined = pipeline_run.read_table("intents", "samples", split)
        plain = pipeline_run.read_table("data", split)
        assert joined.select(plain.column_names).to_pylist() == plain.to_pylist()
        row = joined.slice(len(joined) // 2, 1).to_pylist()[0]
        expected_items, expected_weights, expected_grounded = [], [], []
        for view in VIEWS:
            intents = {r["sample_key"]: r for r in pipeline_run.read_table("intents", view).to_pylist()}
            own = intents[row["sample_key"]]
            expected_items += own["item_idx"]
            expected_weights += own["weight"]
            expected_grounded.append(own["grounded"])
        assert row["intent_items"] == expected_items
        np.testing.assert_allclose(row["intent_weights"], expected_weights)
        assert row["grounded"] == expected_grounded


def test_metrics_follow_the_contract(pipeline_run: Run) -> None:
    metrics = pipeline_run.read_json("report", "metrics.json")
    assert set(metrics["models"]) == {"popularity", "sknn", "srgnn", "srgnn+llm4sbr", "srgnn+llm4sbr:llm-free"}
    for entry in metrics["models"].values():
        for protocol in ("test", "test_unseen_only"):
            assert 0 <= entry[protocol]["mrr@20"] <= entry[protocol]["recall@20"] <= 1
    for view in VIEWS:
        figures = metrics["perspectives"][view]
        assert figures["rows"] == pipeline_run.manifest()["stages"]["ingest"]["rows"]
        assert figures["prompt_tokens"] > figures["generated_tokens"] > 0
    page = pipeline_run.read_bytes("report", "index.html").decode()
    assert "long-term" in page
    assert "<script src" not in page


def test_actors_that_no_node_can_hold_are_refused_with_what_is_asked(pipeline_run: Run) -> None:
    from llm4sbr_ray import cluster
    from llm4sbr_ray.perspectives.engine import actor_bundle

    engine = Engine(cpus_per_actor=64)
    with pytest.raises(UserError, match=r"asked 64 CPU in 1 bundles, the cluster has 8 CPU"):
        cluster.require([actor_bundle(engine)], "1 vLLM actor(s)", timeout_s=2)
