"""The stage on a small run: every figure recomputed from what it wrote, or from the models by a naive loop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_run import HOSTILE, ID_ONLY, R, V, planted_run

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.evaluation.evaluate import evaluate
from llm4sbr_ray.evaluation.metrics import METRICS
from llm4sbr_ray.models.base import Intents, SessionBatch
from llm4sbr_ray.training.load import load_model

Rows = list[dict[str, Any]]
NAMES = ("popularity", "sknn", "srgnn", "srgnn+llm4sbr", "srgnn+llm4sbr:llm-free")
LISTS = {"test": "ranked", "test_unseen_only": "ranked_unseen"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = planted_run(tmp_path_factory.mktemp("runs"))
    assert evaluate(run)
    return run


@pytest.fixture(scope="module")
def metrics(run: Run) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found: dict[str, Any] = json.loads(run.read_bytes("report", "metrics.json"), parse_constant=refuse)
    return found


def predictions(run: Run, name: str) -> Rows:
    return run.read_table("report", "predictions", f"{name.replace(':', '-')}.parquet").to_pylist()


def from_lists(rows: Rows, column: str, metric: str) -> float:
    name, k = metric.split("@")
    total = 0.0
    for row in rows:
        top = row[column][: int(k)]
        if row["target"] in top:
            rank = top.index(row["target"]) + 1
            total += {"recall": 1.0, "mrr": 1 / rank, "ndcg": 1 / math.log2(rank + 1)}[name]
    return total / len(rows)


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_follows_from_the_prediction_files(run: Run, metrics: dict[str, Any], name: str) -> None:
    rows, first = predictions(run, name), metrics["models"][name]["per_seed"][0]
    assert len(rows) == metrics["counts"]["test_samples"]
    for protocol, column in LISTS.items():
        for metric in METRICS:
            assert from_lists(rows, column, metric) == pytest.approx(first[protocol][metric], abs=1e-12), metric


@pytest.mark.parametrize("name", NAMES)
def test_prediction_files_hold_test_samples_and_lists_of_20_items(run: Run, name: str) -> None:
    samples = {row["sample_key"]: row for row in run.read_table("data", "test").to_pylist()}
    rows = predictions(run, name)
    assert [row["sample_key"] for row in rows] == list(samples)
    for row in rows:
        seen = {f"id-{item}" for item in samples[row["sample_key"]]["items"]}
        assert row["target"] == f"id-{samples[row['sample_key']]['target']}"
        assert len(row["ranked"]) == len(set(row["ranked"])) == 20
        assert len(row["ranked_unseen"]) == len(set(row["ranked_unseen"])) == 20
        assert not seen & set(row["ranked_unseen"])


@pytest.mark.parametrize(("name", "seed"), [("srgnn", 1), ("srgnn+llm4sbr", 1), ("srgnn+llm4sbr:llm-free", 0)])
def test_figures_are_those_of_the_model_scored_one_sample_at_a_time(
    run: Run, metrics: dict[str, Any], name: str, seed: int
) -> None:
    model = load_model(run, name.removesuffix(":llm-free"), seed)
    reciprocal = {"test": 0.0, "test_unseen_only": 0.0}
    rows = run.read_table("intents", "samples", "test").to_pylist()
    for row in rows:
        intents = None
        if name == "srgnn+llm4sbr":
            intents = Intents(
                torch.tensor(row["intent_items"]).view(1, 2, R),
                torch.tensor(row["intent_weights"]).view(1, 2, R),
                torch.tensor([row["grounded"]]),
            )
        clicks = row["items"][-run.config.model.max_length :]
        with torch.no_grad():
            scores = model.score(SessionBatch(torch.tensor([clicks]), torch.tensor([len(clicks)]), intents))[0]
        for protocol in reciprocal:
            left_out = set(row["items"]) if protocol == "test_unseen_only" else set()
            if row["target"] in left_out:
                continue
            better = [j for j in range(V) if j not in left_out and j != row["target"]]
            rank = 1 + sum(float(scores[j]) >= float(scores[row["target"]]) for j in better)
            reciprocal[protocol] += 1 / rank if rank <= 20 else 0
    (figures,) = (f for f in metrics["models"][name]["per_seed"] if f["seed"] == seed)
    for protocol, total in reciprocal.items():
        # Scores of a batch and of one sample may differ in the last bit, and so may a near tie.
        assert total / len(rows) == pytest.approx(figures[protocol]["mrr@20"], abs=2e-3)


def test_metrics_json_has_what_the_contract_names(metrics: dict[str, Any]) -> None:
    assert metrics["run"] == "planted"
    assert metrics["dataset"] == "planted shop"
    assert metrics["counts"]["items"] == V
    assert metrics["counts"]["train_samples"] == 518
    assert tuple(metrics["models"]) == NAMES
    for name, model in metrics["models"].items():
        assert model["seeds"] == ([0] if name in ("popularity", "sknn") else [0, 1])
        assert model["seconds"] >= 0
        assert model["train_samples_per_second"] == (1000.0 if name in ("popularity", "sknn") else 250.0)
        for protocol in LISTS:
            assert set(model[protocol]) == {key for m in METRICS for key in (m, f"{m}_std")}
            for metric in METRICS:
                values = [figures[protocol][metric] for figures in model["per_seed"]]
                assert model[protocol][metric] == pytest.approx(sum(values) / len(values))
    assert set(metrics["perspectives"]) == {"long-term", "short-term"}
    assert metrics["perspectives"]["long-term"] == {
        "rows": 900,
        "errors": 2,
        "exact_title_rate": 0.4,
        "grounded_rate": 0.8,
        "prompt_tokens": 81000,
        "generated_tokens": 5400,
        "rows_per_second": None,
    }
    first = metrics["comparisons"][0]
    assert (first["a"], first["b"], first["protocol"]) == ("srgnn+llm4sbr", "srgnn", "test")
    assert {"metric", "difference", "relative", "ci95", "p_value"} <= set(first)


def test_llm_answers_change_the_lists(run: Run) -> None:
    assert predictions(run, "srgnn+llm4sbr") != predictions(run, "srgnn+llm4sbr:llm-free")


def test_the_batch_size_changes_nothing(run: Run, metrics: dict[str, Any], tmp_path: Path) -> None:
    other = planted_run(tmp_path, evaluate={"batch_size": 17, "example_sessions": 4})
    evaluate(other)
    found = other.read_json("report", "metrics.json")
    for name in NAMES:
        assert found["models"][name]["test"]["mrr@20"] == pytest.approx(
            metrics["models"][name]["test"]["mrr@20"], abs=2e-3
        )
    assert found["counts"] == metrics["counts"]


def test_the_page_shows_the_run_and_escapes_its_titles(run: Run) -> None:
    page = run.read_bytes("report", "index.html").decode()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert HOSTILE not in page
    assert "{{ 7 * 7 }} balm" in page
    for text in ("id-3", "Then came", "SR-GNN + LLM4SBR over SR-GNN: Recall@20", "session has one item"):
        assert text in page
    assert page.count("<article>") == run.config.evaluate.example_sessions


def test_a_second_evaluation_is_skipped_and_still_prints(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert not evaluate(run)
    out = capsys.readouterr().out
    assert "skipped" in out
    assert "Session-kNN" in out
    assert "\x1b" not in out
    assert out.rstrip().endswith("report/index.html")


def test_a_set_of_ids_alone_needs_no_intents(tmp_path: Path) -> None:
    run = planted_run(tmp_path, train={"models": ID_ONLY, "seeds": (0,)})
    assert evaluate(run)
    metrics = run.read_json("report", "metrics.json")
    assert tuple(metrics["models"]) == ID_ONLY
    assert metrics["perspectives"] == {}
    assert metrics["comparisons"] == []
    page = run.read_bytes("report", "index.html").decode()
    assert "What the LLM said" not in page
    assert "Is the difference real?" not in page
    assert page.count("<article>") == 4


def test_llm4sbr_without_answers_for_test_sessions_is_evaluated_llm_free(tmp_path: Path) -> None:
    run = planted_run(tmp_path, perspectives={"splits": ("train", "valid")})
    run.delete("intents/samples/test")
    assert evaluate(run)
    assert tuple(run.read_json("report", "metrics.json")["models"]) == (*ID_ONLY, "srgnn+llm4sbr:llm-free")


def test_an_untrained_model_is_one_clear_line(tmp_path: Path) -> None:
    run = planted_run(tmp_path, train={"models": ("popularity",), "seeds": (0,)})
    config = run.config.model_copy(
        update={"train": run.config.train.model_copy(update={"models": ("popularity", "sknn")})}
    )
    with pytest.raises(UserError, match="'train/sknn/seed-0' has not been run"):
        evaluate(Run(config))
