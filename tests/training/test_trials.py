"""The files of a search."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_run import planted_config

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import load_config
from llm4sbr_ray.evaluation.search import render_search
from llm4sbr_ray.training.checkpoint import Record
from llm4sbr_ray.training.space import Domain, apply_settings
from llm4sbr_ray.training.trials import TrialResult, best_trial, write_trials

SPACE = {"model.dropout": Domain("uniform", (0.0, 0.5)), "model.fusion": Domain("choice", ("gate", "average"))}


def history(*scores: float) -> list[Record]:
    return [
        {"epoch": n, "loss": 1.0, "seconds": 2.0, "valid_mrr@20": score, "valid_score": score}
        for n, score in enumerate(scores, start=1)
    ]


RESULTS = [
    TrialResult(1, {"model.dropout": 0.1, "model.fusion": "gate"}, history(0.1, 0.3, 0.2)),
    TrialResult(2, {"model.dropout": 0.2, "model.fusion": "average"}, [], "NonFiniteLossError: <epoch 1>"),
    TrialResult(3, {"model.dropout": 0.4, "model.fusion": "average"}, history(0.3)),
    TrialResult(4, {"model.dropout": 0.45, "model.fusion": "gate"}, history(0.2, 0.1, 0.1, 0.1)),
]


def test_the_best_epoch_of_a_trial_counts_and_the_first_of_equals() -> None:
    assert [result.score() for result in RESULTS] == [0.3, float("-inf"), 0.3, 0.2]
    assert best_trial(RESULTS).number == 1


def test_table_details_and_config(tmp_path: Path) -> None:
    config = planted_config(str(tmp_path), epochs=9, patience=3)
    write_trials(Store(str(tmp_path)), config, "srgnn+llm4sbr", SPACE, RESULTS)
    table = Store(str(tmp_path)).read_table("trials.parquet").to_pylist()
    assert [row["status"] for row in table] == ["stopped", "failed", "stopped", "finished"]
    assert table[0]["model.dropout"] == 0.1
    assert (table[0]["best_epoch"], table[0]["epochs"], table[0]["seconds"], table[0]["valid_mrr@20"]) == (2, 3, 6, 0.3)
    best = load_config(["--config", str(tmp_path / "best.yaml")])
    tuned = apply_settings(config, RESULTS[0].settings)
    assert best == tuned.model_copy(update={"train": tuned.train.model_copy(update={"models": ("srgnn+llm4sbr",)})})


def test_page_of_a_search(tmp_path: Path) -> None:
    write_trials(Store(str(tmp_path)), planted_config(str(tmp_path)), "srgnn+llm4sbr", SPACE, RESULTS)
    page = render_search(Store(str(tmp_path)).read_json("trials.json"), "a <shop>")
    assert page.count("<svg") == 2 + len(SPACE)
    assert "a &lt;shop&gt;" in page
    assert "NonFiniteLossError: &lt;epoch 1&gt;" in page
    assert "<script" not in page


@pytest.mark.parametrize(("scores", "status"), [((0.1,), "stopped"), ((0.1, 0.2, 0.3), "finished")])
def test_a_training_that_ran_all_its_epochs_is_finished(tmp_path: Path, scores: tuple[float, ...], status: str) -> None:
    result = TrialResult(1, {"model.dropout": 0.1}, history(*scores))
    assert result.status(planted_config(str(tmp_path), epochs=3)) == status
