"""Stage "tune/<model>": Ray Tune searches the settings of a model, on validation data alone.

    python jobs/tune.py --config configs/beauty-small.yaml --space configs/spaces/srgnn.yaml --tune.trials 20

Optuna proposes (TPE; the first trial has the settings of the config, those of `tuned` for this model among them), ASHA
stops what lags behind, and every model of `tune.models` gets the same number of trials. A search that was killed goes
on where it was: Ray Tune restores its trials, a trial its last epoch. (ASHA then compares a trial with those that ran
after the kill.)
"""

from __future__ import annotations

import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import ray.tune
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.experiment import Trial
from ray.tune.search.optuna import OptunaSearch

from llm4sbr_ray import cluster
from llm4sbr_ray.artifacts import Facts, Run, Stage, Store
from llm4sbr_ray.config import RunConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.build import backbone_of, has_memory, is_count_model, require_known, without_memory
from llm4sbr_ray.training.inputs import stages_before
from llm4sbr_ray.training.space import Domain, Scalar, Settings, Space, apply_settings, read_setting, read_space
from llm4sbr_ray.training.trainer import learning_settings
from llm4sbr_ray.training.trial import HISTORY, METRIC, SETTINGS, Task, run_trial
from llm4sbr_ray.training.trials import TrialResult, best_trial, write_trials
from llm4sbr_ray.training.tuned import require_known_owners, run_to_search

EXPERIMENT = "ray-tune"  # beside the stage's outputs: gone when the stage is committed
SHOWN_SETTINGS = 6
RAY_TUNE = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # the state of the search is written at most this often
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Ctrl-C ends a search as if it were complete
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files of its own
    "RAY_AIR_NEW_OUTPUT": "0",  # the other one prints a box even when it is told to print nothing
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def tune(run: Run) -> list[str]:
    """Search what is not searched yet.

    Returns
    -------
    list of str
        The models: of each there is ``tune/<model>/`` with trials.parquet, trials.json and best.yaml.

    Raises
    ------
    UserError
        A malformed space, an unknown model, settings in `tuned` that are refused, missing stages before this one, no
        trial that worked.
    """
    config = run.config
    if config.tune.space is None:
        raise UserError("tune.space is missing: name a search space (--space configs/spaces/srgnn.yaml)")
    for model in config.tune.models or config.train.models:
        require_known(model, "tune.models")
        if has_memory(model) and config.tune.models:
            raise UserError(f"tune.models: {model!r} has nothing to tune: tune {without_memory(model)!r} and its parts")
    require_known_owners(run)
    spaces = _spaces(run, Path(config.tune.space))
    for model, space in spaces.items():
        folder, own = tune_folder(model), run_to_search(run, model)
        own.stage(
            folder,
            outputs=[folder],
            settings={
                "space": {name: [domain.kind, domain.values] for name, domain in space.items()},
                "budget": config.tune.model_dump(exclude={"space", "models"}),
                "training": learning_settings(own, model, config.train.seeds[0]),
            },
            after=stages_before(model),
            body=partial(_search, model=model, space=space),
        )
    return list(spaces)


def tune_folder(model: str) -> str:
    """Where a search's results are kept, relative to the run; also the name of its stage."""
    return f"tune/{model.replace(':', '-')}"


def _spaces(run: Run, path: Path) -> dict[str, Space]:
    """The space of each model to tune; without `tune.models` those of `train.models` that there is a space for."""
    config, spaces = run.config, {}
    for model in config.tune.models or [model for model in config.train.models if not has_memory(model)]:
        file = _space_file(path, model)
        if file is None and not config.tune.models:
            continue
        if file is None:
            raise UserError(f"tune.space: {path} has no {model}.yaml: write one, or leave it out of tune.models")
        own = run_to_search(run, model)
        space = read_space(file, own.config)
        kept = {name: domain for name, domain in space.items() if _is_read(own, model, name, domain)}
        if not kept and config.tune.models:
            raise UserError(f"{file}: {model!r} reads none of these settings: {', '.join(space)}")
        if kept:
            spaces[model] = kept
    if not spaces:
        raise UserError(f"tune.space: {path} holds no setting that a model of train.models reads: name tune.models")
    return spaces


def _space_file(path: Path, model: str) -> Path | None:
    """The space itself, or where a folder is given the model's or else its backbone's in it."""
    if not path.is_dir():
        return path
    names = (model, backbone_of(model))
    return next((path / f"{name}.yaml" for name in names if (path / f"{name}.yaml").exists()), None)


def _is_read(run: Run, model: str, name: str, domain: Domain) -> bool:
    """Whether the values of a setting make a difference to this model."""
    changed = (Run(apply_settings(run.config, {name: value})) for value in domain.values)
    seen = {
        json.dumps(learning_settings(each, model, 0), sort_keys=True, default=_plain_model) for each in (run, *changed)
    }
    return len(seen) > 1


def _plain_model(value: Any) -> Any:
    return value.model_dump(mode="json")


def _search(stage: Stage, model: str, space: Space) -> Facts:
    """Body of a model's stage."""
    os.environ.update(RAY_TUNE)  # read when a search begins
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # It looks for the files that we do without.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    config = trial_config(stage.run.config)
    resources = _resources(config)
    cluster.require([resources], "a trial", config.perspectives.schedule_timeout_s)
    task = Task(Run(config), model, stage.store.below("trials"))
    trainable = ray.tune.with_resources(ray.tune.with_parameters(run_trial, task=task), resources)
    experiment = stage.store.below(EXPERIMENT)
    if _restorable(experiment):
        print(f"[{stage.name}] goes on with the trials of a search that was interrupted", flush=True)
        tuner = ray.tune.Tuner.restore(experiment.path(), trainable, storage_filesystem=stage.store.fs)
    else:
        for leftover in (EXPERIMENT, "trials"):
            stage.store.delete(leftover)
        tuner = _new_tuner(stage, trainable, config, model, space)
    results = _read_results(tuner.fit(), task)
    for leftover in (EXPERIMENT, "trials"):
        stage.store.delete(leftover)
    if not any(result.history for result in results):
        raise UserError(f"{stage.name}: no trial worked; the first one: {results[0].error}")
    write_trials(stage.store.below(tune_folder(model)), stage.run.config, model, space, results)
    best = best_trial(results)
    return {"rows": len(results), "valid_score": best.score(), "best_trial": best.number}


def trial_config(config: RunConfig) -> RunConfig:
    """The config of all trials: how many workers train one is a setting of the search."""
    workers = {"workers": config.tune.workers, "min_workers": None}
    return config.model_copy(update={"train": config.train.model_copy(update=workers)})


def _resources(config: RunConfig) -> dict[str, float]:
    """What Ray reserves for a trial; its Ray Train workers ask for their own."""
    if config.tune.workers:
        return {"CPU": 0.1}
    resources = {"CPU": config.train.cpus_per_worker, "GPU": config.train.gpus_per_worker}
    return {name: value for name, value in resources.items() if value} or {"CPU": 0.1}


def _new_tuner(stage: Stage, trainable: Any, config: RunConfig, model: str, space: Space) -> ray.tune.Tuner:
    settings, epochs = config.tune, _most_epochs(config, space)
    current: Settings = {name: read_setting(config, name) for name in space}
    outside = [name for name, value in current.items() if not space[name].holds(value)]
    if outside:
        print(f"[{stage.name}] the config's own {', '.join(outside)} lies outside the space: not tried", flush=True)
    scheduler = None
    if not is_count_model(model) and settings.grace_epochs < epochs:
        scheduler = ray.tune.schedulers.ASHAScheduler(
            time_attr="epoch",
            max_t=epochs,
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction_factor,
        )
    return ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            metric=METRIC,
            mode="max",
            search_alg=OptunaSearch(
                {name: _distribution(domain) for name, domain in space.items()},
                metric=METRIC,
                mode="max",
                points_to_evaluate=[] if outside else [current],
                seed=config.seed,
            ),
            scheduler=scheduler,
            num_samples=settings.trials,
            max_concurrent_trials=settings.concurrent,
            time_budget_s=None if settings.max_minutes is None else settings.max_minutes * 60,
            trial_dirname_creator=_trial_id,
            reuse_actors=not settings.workers,  # the process of a trial takes seconds to start
        ),
        run_config=ray.tune.RunConfig(
            name=EXPERIMENT,
            storage_path=stage.store.path(),
            storage_filesystem=stage.store.fs,
            verbose=0,
            callbacks=[_Progress(stage.name, settings.trials, tuple(space), config.train.select_by)],
        ),
    )


def _most_epochs(config: RunConfig, space: Space) -> int:
    domain = space.get("train.epochs")
    return config.train.epochs if domain is None else max(value for value in domain.values if isinstance(value, int))


def _distribution(domain: Domain) -> BaseDistribution:
    values: Any = domain.values
    match domain.kind:
        case "choice":
            return CategoricalDistribution(values)
        case "int" | "logint":
            return IntDistribution(*values, log=domain.kind == "logint")
    return FloatDistribution(*values, log=domain.kind == "loguniform")


def _restorable(experiment: Store) -> bool:
    """Whether Ray Tune left a state that is whole: it copies its files in place, and a kill may cut one off."""
    states = [path for path in experiment.files() if "/experiment_state-" in path]
    if not states:
        return False
    names = [path.removeprefix(experiment.root + "/") for path in experiment.files()]
    try:
        for name in names:
            if name.startswith("experiment_state-"):
                experiment.read_json(name)
            elif "/" not in name and name.endswith(".pkl") and not experiment.read_bytes(name).endswith(b"."):
                return False  # a pickle ends with its stop mark
    except json.JSONDecodeError:
        return False
    return True


def _trial_id(trial: Trial) -> str:
    return str(trial.trial_id)


def _read_results(grid: ray.tune.ResultGrid, task: Task) -> list[TrialResult]:
    """The trials that began, in that order. Of one that failed before a kill Ray Tune knows little more than its id."""
    results: list[TrialResult] = []
    for result in grid:
        folder = task.folder(Path(result.path).name)
        if folder.exists(SETTINGS):
            history = folder.read_json(HISTORY) if folder.exists(HISTORY) else []
            error = "" if result.error is None else str(result.error).strip().splitlines()[-1]
            results.append(TrialResult(len(results) + 1, folder.read_json(SETTINGS), history, error))
    return results


class _Progress(ray.tune.Callback):  # type: ignore[misc]  # Ray is untyped
    """A line on the console for each trial that ended."""

    def __init__(self, stage: str, trials: int, names: tuple[str, ...], metric: str) -> None:
        self._stage, self._trials, self._names, self._metric = stage, trials, names, metric
        self._done, self._best = 0, float("-inf")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._done += 1
        score = (trial.last_result or {}).get(METRIC, float("-inf"))
        mark = ", best so far" if score > self._best else ""
        self._best = max(self._best, score)
        self._say(trial, f"valid {self._metric} {score:.4f}, {trial.last_result.get('epoch', 0)} epochs{mark}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._done += 1
        self._say(trial, "failed")

    def _say(self, trial: Trial, outcome: str) -> None:
        shown = [f"{name.split('.')[-1]} {_short(trial.config[name])}" for name in self._names[:SHOWN_SETTINGS]]
        print(f"[{self._stage}] trial {self._done} of {self._trials}: {outcome} ({', '.join(shown)})", flush=True)

    def get_state(self) -> dict[str, Any]:
        return {"done": self._done, "best": self._best}

    def set_state(self, state: dict[str, Any]) -> None:
        self._done, self._best = state["done"], state["best"]


def _short(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
