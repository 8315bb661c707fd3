"""Stage "train": every model of `train.models` with every seed of `train.seeds`.

    python jobs/train.py --config configs/demo.yaml

Each pair is a stage of its own, so a run that is killed or gets one more model does the rest only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from llm4sbr_ray.artifacts import Facts, Run, Stage
from llm4sbr_ray.config import TrainConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.build import (
    COUNT_SETTINGS,
    has_memory,
    is_count_model,
    is_llm4sbr,
    reads_texts,
    require_known,
    without_memory,
)
from llm4sbr_ray.training.checkpoint import CHECKPOINT_FILE, Checkpoint, Counters, from_bytes, to_bytes
from llm4sbr_ray.training.counts import fit_count_model
from llm4sbr_ray.training.inputs import read_samples, require_samples, source, stages_before
from llm4sbr_ray.training.load import count_items, model_folder, save_model
from llm4sbr_ray.training.loop import NON_FINITE, NonFiniteLossError, train_model
from llm4sbr_ray.training.memory import fit_memory_model
from llm4sbr_ray.training.progress import epoch_line
from llm4sbr_ray.training.start import starting_model
from llm4sbr_ray.training.tuned import require_known_owners, run_for_model

# Settings that do not change what is learnt, and those that only LLM4SBR has.
OPERATIONAL = {"models", "seeds", "gpus_per_worker", "cpus_per_worker", "max_failures"}
# Settings that runs of earlier versions don't have: at their default what was trained without them counts as trained.
LATER = {"loss", "sampled_above", "negatives", "negatives_by", "gbce_t", "label_smoothing", "rank_seen"}
LATER |= {"schedule", "warm_up", "accumulate", "precision", "min_workers", "shard_items", "random_prefixes"}
LLM4SBR_ONLY = {"fusion", "text_start", "alignment", "uniformity", "predictor"}
TEXTS_ONLY = {"text_spread", "text_smoothing"}  # "+text" models read them too


def train(run: Run) -> None:
    """Train what is not trained yet.

    Count models have no random numbers: they are fitted once, under the first seed. The network of a "+memory" model
    is trained before it, whether it is named or not.

    Raises
    ------
    UserError
        Unknown model, missing stages before this one, too few samples or workers, a loss that is not finite.
    """
    config = run.config.train
    for model in config.models:
        require_known(model)
    require_known_owners(run)
    for model in _with_networks(config.models):
        for seed in config.seeds[:1] if is_count_model(model) else config.seeds:
            folder = model_folder(model, seed)
            own = run_for_model(run, model)
            network = [model_folder(without_memory(model), seed)] if has_memory(model) else []
            own.stage(
                folder,
                outputs=[folder],
                settings=learning_settings(own, model, seed),
                after=[*stages_before(model), *network],
                body=partial(_body, model=model, seed=seed),
            )


def _with_networks(models: Sequence[str]) -> list[str]:
    """Each "+memory" model after its network, no model twice."""
    return list(dict.fromkeys(name for model in models for name in (without_memory(model), model)))


def learning_settings(run: Run, model: str, seed: int) -> dict[str, Any]:
    """All settings that determine the weights of a model."""
    config = run.config
    if is_count_model(model):
        return {"model": model, "neighbours": config.neighbours.model_dump(include=COUNT_SETTINGS[model])}
    if has_memory(model):
        parts = set().union(*(COUNT_SETTINGS[part] for part in config.memory.parts))
        network = learning_settings(run_for_model(run, without_memory(model)), without_memory(model), seed)
        neighbours = config.neighbours.model_dump(include=parts)
        return {"model": model, "network": network, "memory": config.memory, "neighbours": neighbours}
    return {
        "model": model,
        "seed": seed,
        "sizes": config.model.model_dump(exclude=_not_read(model)),
        "train": {
            name: value
            for name, value in config.train.model_dump(exclude=OPERATIONAL).items()
            if name not in LATER or value != TrainConfig.model_fields[name].default
        },
        "anchors": [view.anchor for view in config.perspectives.views] if is_llm4sbr(model) else [],
    }


def _not_read(model: str) -> set[str]:
    """The settings of `model` that a network doesn't read."""
    if is_llm4sbr(model):
        return set()
    return LLM4SBR_ONLY if reads_texts(model) else LLM4SBR_ONLY | TEXTS_ONLY


def _body(stage: Stage, model: str, seed: int) -> Facts:
    if is_count_model(model):
        return fit_count_model(stage, model, seed)
    if has_memory(model):
        return fit_memory_model(stage, model, seed)
    train_model_somewhere: Callable[[Stage, str, int], Checkpoint] = train_here
    if stage.run.config.train.workers:
        from llm4sbr_ray.training.group import train_on_workers  # imports Ray

        train_model_somewhere = train_on_workers
    try:
        done = train_model_somewhere(stage, model, seed)
    except NonFiniteLossError as error:
        raise UserError(f"{stage.name}: {error}. All samples of that batch: {stage.store.uri(NON_FINITE)}") from error
    counters, run = done.counters, stage.run
    save_model(
        stage.store,
        run.config,
        model,
        seed,
        count_items(run),
        done.best,
        counters.history,
        counters.best_epoch,
    )
    seconds = sum(record["seconds"] for record in counters.history)
    samples = sum(record["samples"] for record in counters.history)
    return {
        "rows": counters.history[-1]["samples"],
        "epochs": counters.epoch,
        "best_epoch": counters.best_epoch,
        "valid_score": counters.best_score,
        "samples_per_second": round(samples / seconds, 1),
    }


def train_here(
    stage: Stage, model: str, seed: int, on_epoch: Callable[[Counters], None] = lambda counters: None
) -> Checkpoint:
    """Train in this process (`train.workers` 0), without Ray; a killed try goes on from its last epoch.

    `on_epoch` is called after each epoch, when its checkpoint is written.
    """
    run, store = stage.run, stage.store
    device = torch.device("cuda" if run.config.train.gpus_per_worker else "cpu")
    train_samples, valid_samples = (read_samples(run, source(run, model, split)) for split in ("train", "valid"))
    require_samples(len(train_samples), len(valid_samples))
    torch.manual_seed(seed)
    built = starting_model(run, model).to(device)

    def keep(checkpoint: Checkpoint) -> None:
        store.write_bytes(to_bytes(checkpoint), CHECKPOINT_FILE)
        print(epoch_line(stage.name, checkpoint.counters), flush=True)
        on_epoch(checkpoint.counters)

    try:
        return train_model(
            built,
            train_samples.to(device),
            valid_samples.to(device),
            run.config.train,
            seed,
            resume=from_bytes(store.read_bytes(CHECKPOINT_FILE)) if store.exists(CHECKPOINT_FILE) else None,
            on_epoch=keep,
        )
    except NonFiniteLossError as error:
        store.write_json(error.keys, NON_FINITE)
        raise
