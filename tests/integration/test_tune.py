"""Ray Tune for real, on a planted run: it finds better settings, a killed search goes on, refusals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from planted_run import planted_config, planted_run
from small_run import ROOT

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import RunConfig, load_config
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.training.trainer import train
from llm4sbr_ray.training.tune import tune

pytestmark = pytest.mark.integration

SPACE = """
train.learning_rate: {loguniform: [3.0e-3, 0.1]}
model.dropout: {uniform: [0.0, 0.3]}
model.alignment: {loguniform: [0.01, 1.0]}
neighbours.k: {logint: [1, 100]}
"""


def config_with(storage: Path, **search: object) -> RunConfig:
    space = storage / "space.yaml"
    space.write_text(SPACE)
    # A learning rate at which nothing is learnt.
    config = planted_config(str(storage), models=("srgnn",), epochs=4, learning_rate=1e-5)
    values = config.model_dump(mode="json")
    values["tune"] = {"space": str(space), "trials": 4, "grace_epochs": 2, "models": ["srgnn"], **search}
    return RunConfig.model_validate(values)


def two_trials_are_written(run: Run) -> bool:
    """Whether the state that Ray Tune left holds two trials that ended, and its other files are copied too."""
    files = run.files(".partial/tune-srgnn/out/ray-tune", suffix=".json")
    states = [run.read_bytes(path) for path in files if "/experiment_state-" in path]
    time.sleep(0.2)
    return any(state.count(b"TERMINATED") >= 2 for state in states)


def test_better_than_bad_settings_and_best_yaml_trains_as_the_trial_did(ray_cluster: None, tmp_path: Path) -> None:
    values = config_with(tmp_path, models=["srgnn", "sknn"]).model_dump(mode="json")
    values["tuned"] = {"srgnn": {"train.learning_rate": 2e-5}}  # would undo what the search finds
    run = planted_run(RunConfig.model_validate(values))
    train(run)
    before = run.manifest()["stages"]["train/srgnn/seed-0"]["valid_score"]
    assert tune(run) == ["srgnn", "sknn"]
    details = run.read_json("tune", "srgnn", "trials.json")
    assert list(details["space"]) == ["train.learning_rate", "model.dropout"]  # a plain model reads no more of it
    assert len(details["trials"]) == 4
    found = run.manifest()["stages"]["tune/srgnn"]["valid_score"]
    assert found > before + 0.2

    best = Run(load_config(["--config", run.path("tune/srgnn/best.yaml"), "--storage", run.config.storage]))
    train(best)
    entry = best.manifest()["stages"]["train/srgnn/seed-0"]
    assert entry["valid_score"] == pytest.approx(found, abs=1e-6)

    neighbours = run.read_json("tune", "sknn", "trials.json")
    assert [trial["status"] for trial in neighbours["trials"]] == ["finished"] * 4
    assert all(1 <= trial["settings"]["neighbours.k"] <= 100 for trial in neighbours["trials"])
    assert not run.exists(".partial/tune-srgnn")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trial_here_and_on_ray_train_workers(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    config = config_with(tmp_path, workers=workers, trials=1, concurrent=1)
    monkeypatch.chdir(tmp_path)  # actors work in other folders
    run = planted_run(config.model_copy(update={"storage": "runs"}), sessions=40)
    tune(run)
    (trial,) = run.read_json("tune", "srgnn", "trials.json")["trials"]
    assert trial["epochs"] == 4
    assert trial["valid_score"] == max(record["valid_score"] for record in trial["history"])


def test_a_search_killed_with_its_driver_goes_on(tmp_path: Path) -> None:
    run = planted_run(config_with(tmp_path, trials=16, concurrent=1), sessions=400)  # many seconds on a fast machine
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(run.config.model_dump(mode="json")))
    command = [sys.executable, str(ROOT / "jobs" / "tune.py"), "--config", str(file)]
    command += ["--space", str(tmp_path / "space.yaml"), "--cluster.object_store_mb", "128"]
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with first.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while not two_trials_are_written(run):
        assert process.poll() is None, first.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()

    with second.open("w") as log:
        assert subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=240).returncode == 0
    shown = second.read_text()
    assert "goes on with the trials" in shown
    assert "trial 1 of 16" not in shown  # it was finished, and isn't done again
    assert "trial 2 of 16" not in shown
    assert "trial 16 of 16" in shown
    assert len(run.read_json("tune", "srgnn", "trials.json")["trials"]) == 16
    assert load_config(["--config", run.path("tune/srgnn/best.yaml")]).train.models == ("srgnn",)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": None}, "tune.space is missing"),
        ({"models": ["srgn"]}, "tune.models: no model 'srgn'; known are"),
        ({"models": ["popularity"]}, "space.yaml: 'popularity' reads none of these settings"),
        ({"models": ["srgnn"], "space": "/nowhere.yaml"}, "search space not found: /nowhere.yaml"),
    ],
)
def test_refusals(tmp_path: Path, search: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tune(Run(config_with(tmp_path, **search)))
