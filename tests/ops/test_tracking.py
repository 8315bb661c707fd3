"""A run in MLflow: settings, figures by epoch, the final table, and nothing twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from evaluation_run import ALL_MODELS, planted_run

from llm4sbr_ray import tracking
from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import RunConfig, TrackingConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.evaluation.evaluate import evaluate

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Any]:
    """An evaluated run, sent twice to a store in a folder; and a client of that store."""
    mlflow = pytest.importorskip("mlflow", reason="the optional extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow prefers a database now, which takes long to make
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    run = planted_run(tmp_path / "runs", tracking=TrackingConfig(mlflow=True, experiment="shop"))
    tracking.send(run)
    evaluate(run)
    tracking.send(run)
    tracking.send(run)
    return run, mlflow.MlflowClient()


def runs(client: Any) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("shop").experiment_id
    found = client.search_runs([experiment])
    by_stage = {each.data.tags["llm4sbr.stage"]: each for each in found}
    assert len(by_stage) == len(found)  # nothing twice
    return by_stage


def test_settings_figures_by_epoch_and_the_final_table(sent: tuple[Run, Any], tmp_path: Path) -> None:
    run, client = sent
    by_stage = runs(client)
    trained = {stage for stage in run.manifest()["stages"] if stage.startswith("train/")}
    assert len(trained) > len(ALL_MODELS)
    assert set(by_stage) == trained | {"evaluate"}
    assert {each.info.status for each in by_stage.values()} == {"FINISHED"}

    one = by_stage["train/srgnn+llm4sbr/seed-1"]
    assert one.data.params["model.width"] == "16"
    assert one.data.params["train.seeds"] == "[0, 1]"
    assert one.data.tags["llm4sbr.run"] == run.uri()
    history = run.read_json("train/srgnn+llm4sbr/seed-1", "history.json")
    points = client.get_metric_history(one.info.run_id, "valid_llm_free_mrr_20")
    assert [(p.step, p.value) for p in sorted(points, key=lambda p: p.step)] == [
        (record["epoch"], record["valid_llm_free_mrr@20"]) for record in history
    ]

    report = by_stage["evaluate"]
    models = run.read_json("report", "metrics.json")["models"]
    for model, entry in models.items():
        key = f"{tracking.NOT_IN_NAMES.sub('_', model)}/test_unseen_only/recall_20"
        assert report.data.metrics[key] == entry["test_unseen_only"]["recall@20"]
    assert {file.path for file in client.list_artifacts(report.info.run_id)} == {"metrics.json", "index.html"}
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"a-secret-key" not in stored


def test_a_server_that_is_away_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="the optional extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking.send(Run(RunConfig(name="r", storage=str(tmp_path), data={"source": "demo"})))
    assert capsys.readouterr().out.startswith("[mlflow] not sent, the next call tries again: ")


def test_without_mlflow_it_is_refused_at_the_start_and_else_never_looked_for() -> None:
    if tracking.importlib.util.find_spec("mlflow") is None:
        with pytest.raises(UserError, match="pip install mlflow-skinny"):
            tracking.require_mlflow()
    code = "import sys, llm4sbr_ray.cli; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
