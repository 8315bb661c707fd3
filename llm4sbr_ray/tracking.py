"""A run's settings and figures to MLflow, as its stages are committed (`tracking.mlflow: true`).

    pip install mlflow-skinny
    MLFLOW_TRACKING_URI=http://mlflow:5000 python jobs/pipeline.py --config configs/demo.yaml --tracking.mlflow true

Where it goes is said by MLflow's own environment variables, so that no password gets into run.json. Each training is an
MLflow run with its validation figures by epoch, and the report is one with the final table; both have all settings as
parameters. What stands there already is not sent again, so a run that goes on, goes on there too.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.errors import UserError

TRAINING = "train/"  # how the stages begin that have a history
REPORT = "evaluate"
PARAMS_A_CALL = 100  # MLflow's limits
LONGEST_PARAM = 6000
NOT_IN_NAMES = re.compile(r"[^\w.:/ -]")


def require_mlflow() -> None:
    """Refuse at the beginning what would fail at the end.

    Raises
    ------
    UserError
        MLflow is not installed.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise UserError("tracking.mlflow: MLflow is not installed: pip install mlflow-skinny, or mlflow")


def send(run: Run) -> None:
    """Send every committed training and the report. A server that is away costs a line, never the run."""
    from mlflow.exceptions import MlflowException

    try:
        _send(run)
    except (MlflowException, OSError) as error:
        print(f"[mlflow] not sent, the next call tries again: {error}", flush=True)


def _send(run: Run) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient()
    name = run.config.tracking.experiment
    found = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if found is None else found.experiment_id
    manifest = run.manifest()
    for stage, entry in manifest["stages"].items():
        if entry["status"] != "done" or not (stage.startswith(TRAINING) or stage == REPORT):
            continue
        tags = {"llm4sbr.run": run.uri(), "llm4sbr.stage": stage, "llm4sbr.input_hash": entry["input_hash"]}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        if client.search_runs([experiment], f"{query} and attributes.status = 'FINISHED'"):
            continue
        sent = client.create_run(experiment, run_name=f"{run.config.name}/{stage}", tags=tags).info.run_id
        params = [Param(key, value[:LONGEST_PARAM]) for key, value in flat(manifest["config"])]
        for start in range(0, len(params), PARAMS_A_CALL):
            client.log_batch(sent, params=params[start : start + PARAMS_A_CALL])
        now = int(1000 * time.time())
        figures = _report(run) if stage == REPORT else _epochs(run, stage)
        for step, values in figures:
            named = [Metric(NOT_IN_NAMES.sub("_", key), value, now, step) for key, value in values.items()]
            client.log_batch(sent, metrics=named)
        if stage == REPORT:
            with tempfile.TemporaryDirectory() as folder:
                for file in ("metrics.json", "index.html"):
                    Path(folder, file).write_bytes(run.read_bytes("report", file))
                client.log_artifacts(sent, folder)
        client.set_terminated(sent)
        print(f"[mlflow] {stage} sent to the experiment {name!r}", flush=True)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text); a list is JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield NOT_IN_NAMES.sub("_", prefix + key), value if isinstance(value, str) else json.dumps(value)


def _epochs(run: Run, folder: str) -> Iterator[tuple[int, dict[str, float]]]:
    """(epoch, figures by name); a model that only counts has none."""
    for record in run.read_json(folder, "history.json"):
        figures = {key: float(value) for key, value in record.items() if isinstance(value, (int, float))}
        yield int(figures.pop("epoch", 0)), figures


def _report(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    """The final table: ``<model>/<protocol>/<metric>``."""
    for model, entry in run.read_json("report", "metrics.json")["models"].items():
        for protocol in ("test", "test_unseen_only"):
            yield 0, {f"{model}/{protocol}/{name}": float(value) for name, value in entry[protocol].items()}
