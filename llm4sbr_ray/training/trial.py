"""One trial of a search: train a model with some settings changed, and report each epoch to Ray Tune."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.tune
import torch
from ray.tune.integration.ray_train import TuneReportCallback

from llm4sbr_ray.artifacts import Run, Stage, Store
from llm4sbr_ray.models.build import is_count_model
from llm4sbr_ray.training.checkpoint import CHECKPOINT_FILE, Counters, Record, from_bytes
from llm4sbr_ray.training.counts import fit_count_model
from llm4sbr_ray.training.group import train_on_workers
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.load import load_model
from llm4sbr_ray.training.space import Settings, apply_settings
from llm4sbr_ray.training.trainer import train_here
from llm4sbr_ray.training.validation import valid_score, validate

HISTORY, SETTINGS = "history.json", "settings.json"
METRIC = "best_score"  # reported each epoch: the best validation score so far


@dataclass(frozen=True)
class Task:
    """What all trials of a search share."""

    run: Run
    model: str
    store: Store  # a folder a trial

    def folder(self, trial_id: str) -> Store:
        return self.store.below(trial_id)


def run_trial(settings: Settings, task: Task) -> None:
    """A trial's whole life, in an actor of Ray Tune. One that was killed goes on from its last epoch."""
    run = copy.copy(task.run)  # not a new Run: an actor has a working directory of its own, and storage may be relative
    run.config = apply_settings(task.run.config, settings)
    tune, seed = run.config.tune, run.config.train.seeds[0]
    folder = task.folder(ray.tune.get_context().get_trial_id())
    folder.write_json(settings, SETTINGS)
    stage = Stage(f"tune/{task.model}", run, folder)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // tune.concurrent))

    def report(counters: Counters) -> None:
        folder.write_json(counters.history, HISTORY)
        ray.tune.report({**counters.history[-1], METRIC: counters.best_score})

    if is_count_model(task.model):
        record = _count_record(stage, task.model, seed)
        report(Counters(1, 1, record["valid_score"], [record]))
    elif tune.workers:
        train_on_workers(stage, task.model, seed, [_Report(folder)])
    else:
        if folder.exists(CHECKPOINT_FILE):  # killed, maybe after its last epoch: Ray Tune may not know that one
            report(from_bytes(folder.read_bytes(CHECKPOINT_FILE)).counters)
        train_here(stage, task.model, seed, report)


def _count_record(stage: Stage, model: str, seed: int) -> Record:
    """Fit a count model and validate it, as the only epoch of its history."""
    facts = fit_count_model(stage, model, seed)
    run, config = stage.run, stage.run.config
    samples = read_samples(run, source(run, model, "valid"))
    fitted = load_model(stage.store, model, seed)
    metrics = validate(fitted, samples, config.evaluate.batch_size, config.train.rank_seen)
    rate = facts["samples_per_second"]
    seconds = round(facts["rows"] / rate, 3)
    record: Record = {"epoch": 1, "samples": facts["rows"], "seconds": seconds, "samples_per_second": rate}
    return {**record, **metrics, "valid_score": valid_score(metrics, config.train.select_by)}


class _Report(TuneReportCallback):  # type: ignore[misc]  # Ray is untyped
    """Passes the epochs of Ray Train's workers on to Ray Tune, and keeps them."""

    def __init__(self, folder: Store) -> None:
        super().__init__()
        self._folder = folder

    def after_report(
        self,
        run_context: Any,
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        history: list[Record] = self._folder.read_json(HISTORY) if self._folder.exists(HISTORY) else []
        record = {key: value for key, value in metrics[0].items() if key != METRIC}
        self._folder.write_json([*history, record], HISTORY)
        super().after_report(run_context, metrics, checkpoint)
