"""One training on a group of Ray Train workers: on any number of machines, restarting what is killed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue
from torch import nn

from llm4sbr_ray import cluster
from llm4sbr_ray.artifacts import Run, Stage, Store
from llm4sbr_ray.errors import StorageError
from llm4sbr_ray.models.base import Recommender
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.checkpoint import Checkpoint
from llm4sbr_ray.training.inputs import Source, require_samples, source
from llm4sbr_ray.training.load import count_items
from llm4sbr_ray.training.loop import NON_FINITE, NonFiniteLossError, train_model
from llm4sbr_ray.training.mapped import map_samples
from llm4sbr_ray.training.progress import epoch_line
from llm4sbr_ray.training.relay import Relay
from llm4sbr_ray.training.row_checkpoint import read_checkpoint, write_checkpoint
from llm4sbr_ray.training.shards import keep_apart, own_rows, require_shardable, shard_items
from llm4sbr_ray.training.start import starting_model

RAY_TRAIN_FOLDER = "ray-train"  # beside the stage's outputs: gone when the stage is committed
MARKER_GONE = "Unable to set up cluster storage"  # how Ray Train says so
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints


@dataclass(frozen=True)
class Task:
    """What a worker is told."""

    run: Run
    model: str
    seed: int
    stage: str
    store: Store  # of the stage
    train: Source
    valid: Source
    progress: Queue


def train_on_workers(
    stage: Stage, model: str, seed: int, callbacks: Sequence[ray.train.UserCallback] = ()
) -> Checkpoint:
    """Train with Ray Train; a try that was killed goes on from its last epoch.

    `callbacks` are told of each epoch: its record, and "best_score" so far.

    Raises
    ------
    UserError
        The cluster is too small, or there are too few samples.
    NonFiniteLossError
        As `train_model` does.
    """
    run, config = stage.run, stage.run.config.train
    resources = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    timeout = run.config.perspectives.schedule_timeout_s
    fewest = config.min_workers or config.workers
    if config.shard_items:
        require_shardable(model, count_items(run), config.workers)
    cluster.require([resources] * fewest, f"{fewest} training workers", timeout)

    train, valid = source(run, model, "train"), source(run, model, "valid")
    train_rows, valid_rows = (read_rows(run, each) for each in (train, valid))
    require_samples(train_rows.count(), valid_rows.count())
    ordered = ray.train.DataConfig.default_ingest_options()
    ordered.preserve_order = True
    _drop_torn_snapshot(stage.store.below(RAY_TRAIN_FOLDER, _name(model, seed)))
    with Relay() as relay:
        task = Task(run, model, seed, stage.name, stage.store, train, valid, relay.queue)
        trainer = ray.train.torch.TorchTrainer(
            _work,
            train_loop_config={"task": task},
            datasets={"train": train_rows, "valid": valid_rows},
            # Every worker gets all rows, in one order: its share of them is another one in each epoch.
            dataset_config=ray.train.DataConfig(datasets_to_split=[], execution_options=ordered),
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.workers if config.min_workers is None else (config.min_workers, config.workers),
                use_gpu=config.gpus_per_worker > 0,
                resources_per_worker={key: value for key, value in resources.items() if value},
            ),
            run_config=ray.train.RunConfig(
                name=_name(model, seed),
                storage_path=stage.store.path(RAY_TRAIN_FOLDER),
                storage_filesystem=stage.store.fs,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),  # it holds the best weights too
                failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
                callbacks=list(callbacks),
            ),
        )
        try:
            result = trainer.fit()
        except (ray.train.TrainingFailedError, OSError) as error:
            refusal = _storage_refusal(error)
            if refusal is None:
                raise
            raise StorageError.of(stage.store.uri(RAY_TRAIN_FOLDER), refusal) from error
    if result.return_value is not None:
        raise NonFiniteLossError(result.return_value)
    return _read(result.checkpoint)


def _storage_refusal(error: BaseException) -> OSError | None:
    """The storage's own error behind a failed training, on whichever side it was met."""
    if isinstance(error, ray.train.WorkerGroupError):
        causes = list(error.worker_failures.values())
    elif isinstance(error, ray.train.ControllerError):
        causes = [error.controller_failure]
    else:
        causes = [error]
    for cause in causes:
        if isinstance(cause, OSError):
            return cause
        if isinstance(cause, RuntimeError) and str(cause).startswith(MARKER_GONE):
            return FileNotFoundError("the file that Ray Train marked it with is gone")
    return None


def _name(model: str, seed: int) -> str:
    return f"{model}-seed-{seed}"


def read_rows(run: Run, source: Source) -> ray.data.Dataset:
    """The rows of a split in the order of the files.

    They are read before the workers start, so that reading and training never wait for each other's CPUs; what the
    object store cannot hold, Ray keeps on disk.
    """
    files = run.files(source.folder, suffix=".parquet")
    rows = ray.data.read_parquet(files, filesystem=run.fs, columns=source.columns())
    rows.context.execution_options.preserve_order = True
    return rows.materialize()


def _drop_torn_snapshot(folder: Store) -> None:
    """Ray Train writes its list of checkpoints in place: a kill just then would block all later tries."""
    if not folder.exists(SNAPSHOT):
        return
    try:
        folder.read_json(SNAPSHOT)
    except json.JSONDecodeError:
        print(f"{folder.uri(SNAPSHOT)}: cut off by a kill, training starts again", flush=True)
        folder.delete("")


def _work(config: dict[str, Any]) -> str | None:
    """A worker's whole life; returns what is wrong with the data or settings, if anything."""
    task: Task = config["task"]
    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // context.get_local_world_size()))
    device = ray.train.torch.get_device()
    train = drain(ray.train.get_dataset_shard("train"), task.train).to(device)
    valid = drain(ray.train.get_dataset_shard("valid"), task.valid).to(device)
    torch.manual_seed(task.seed)
    model = starting_model(task.run, task.model)
    sharded = task.run.config.train.shard_items
    if sharded:
        shard_items(model)
    model = model.to(device)

    def report(checkpoint: Checkpoint) -> None:
        counters = checkpoint.counters
        record = {**counters.history[-1], "best_score": counters.best_score}
        number = context.get_world_rank()
        with tempfile.TemporaryDirectory() as folder:
            wrote = write_checkpoint(checkpoint, Path(folder), number, sharded)
            ray.train.report(record, checkpoint=ray.train.Checkpoint.from_directory(folder) if wrote else None)
        if number == 0:
            task.progress.put(epoch_line(task.stage, checkpoint.counters))

    try:
        train_model(
            model,
            train,
            valid,
            task.run.config.train,
            task.seed,
            resume=_last_checkpoint(model),
            wrap=_distributed,
            on_epoch=report,
        )
    except NonFiniteLossError as error:  # all workers raise it together; another try would end the same way
        if error.keys:
            task.store.write_json(error.keys, NON_FINITE)
        return str(error)
    return None


def drain(rows: ray.data.Dataset | ray.data.DataIterator, source: Source) -> Samples:
    """All samples of a split, block by block: the next one is fetched while this one is written."""
    blocks = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    return map_samples(source.samples(table) for table in blocks)


def _last_checkpoint(model: Recommender) -> Checkpoint | None:
    last = ray.train.get_checkpoint()
    return None if last is None else _read(last, own_rows(model))


def _read(checkpoint: ray.train.Checkpoint, own: slice | None = None) -> Checkpoint:
    with checkpoint.as_directory() as folder:
        return read_checkpoint(Path(folder), own)


def _distributed(module: nn.Module) -> nn.Module:
    keep_apart(module)
    # Buffers are constants, the text table among them: sending them in every step would cost more than it.
    wrapped: nn.Module = ray.train.torch.prepare_model(
        module, parallel_strategy_kwargs={"broadcast_buffers": False, "gradient_as_bucket_view": True}
    )
    return wrapped
