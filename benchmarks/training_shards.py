"""Item tables spread over the workers of Ray Train, or whole on each: memory of a worker and the time of a step.

    python benchmarks/training_shards.py [--json FILE] [--items 100000 1000000] [--workers 1 2 4] [--losses sampled]

`whole` is what training does unless `train.shard_items` is set: each worker holds all items, and gradients are averaged
by DistributedDataParallel. `shards`: each holds a part, and asks the others for the rows of a batch. A step is that of
training/loop.py with SR-GNN at the default width, over all workers' shares of one batch; sessions are made up, items
clicked with the frequencies of a Zipf law. Memory is what a worker's tables hold (weights, gradient, moments) after the
steps: the model itself is made whole in host memory first. Workers on one machine share its cores: there a ratio of two
rows says what the exchange costs, not what more machines gain. Full softmax over a million items takes seconds a step.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from training_catalogue import BATCHES, WARM_UP, zipf_samples

from llm4sbr_ray.cluster import connect
from llm4sbr_ray.config import ClusterConfig, ModelConfig, Neighbours, TrainConfig
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.training.loop import TrainingStep
from llm4sbr_ray.training.loss import set_loss
from llm4sbr_ray.training.optimizer import AdamOfBoth
from llm4sbr_ray.training.shards import keep_apart, shard_items
from llm4sbr_ray.training.workers import own_share, sum_over_workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--items", nargs="+", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--losses", nargs="+", choices=["full", "sampled", "gbce"], default=["sampled"])
    parser.add_argument("--threads", type=int, default=2, help="of all workers together, where they share a machine")
    parser.add_argument("--gpus-per-worker", type=float, default=0)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    connect(ClusterConfig())
    print(f"SR-GNN, width {ModelConfig().width}, batch {TrainConfig().batch_size} over all workers")
    print(f"{'items':>10} {'loss':9}{'workers':>8} {'tables':8}{'ms a step':>11}{'samples/s':>11}{'tables, MB':>12}")
    figures: dict[str, Any] = {}
    for n_items in arguments.items:
        for loss in arguments.losses:
            for workers in arguments.workers:
                for sharded in (False, True) if workers > 1 else (False,):
                    found = measure(n_items, loss, workers, sharded, arguments)
                    tables = "shards" if sharded else "whole"
                    figures |= {f"items_{n_items}_{loss}_{workers}_{tables}_{key}": v for key, v in found.items()}
                    print(
                        f"{n_items:10,} {loss:9}{workers:8} {tables:8}{found['milliseconds']:11.1f}"
                        f"{found['samples_per_second']:11,}{found['tables_mb']:12,}",
                        flush=True,
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


def measure(n_items: int, loss: str, workers: int, sharded: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """One group of workers; the slowest worker's fastest step, the fullest worker's tables."""
    resources: dict[str, float] = {"CPU": min(1.0, arguments.threads / workers)}
    if arguments.gpus_per_worker:
        resources["GPU"] = arguments.gpus_per_worker
    trainer = ray.train.torch.TorchTrainer(
        steps,
        train_loop_config={
            "n_items": n_items,
            "train": TrainConfig(loss=loss, shard_items=sharded),  # type: ignore[arg-type]
            "threads": max(1, arguments.threads // workers),
            "steps": arguments.steps,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=arguments.gpus_per_worker > 0, resources_per_worker=resources
        ),
    )
    found: dict[str, Any] = trainer.fit().return_value
    return found


def steps(task: dict[str, Any]) -> dict[str, Any]:
    """A worker: some steps of a training."""
    torch.manual_seed(0)
    torch.set_num_threads(task["threads"])
    config: TrainConfig = task["train"]
    device = ray.train.torch.get_device()
    samples = zipf_samples(task["n_items"], config.batch_size * BATCHES)
    model = build_model("srgnn", task["n_items"], ModelConfig(), Neighbours())
    assert isinstance(model, PlainRecommender)
    if config.shard_items:
        shard_items(model)
    model, samples = model.to(device).train(), samples.to(device)
    set_loss(model, config, task["n_items"], samples.target_N)
    step = TrainingStep(model)
    keep_apart(step)
    wrapped = ray.train.torch.prepare_model(step, parallel_strategy_kwargs={"broadcast_buffers": False})
    optimizer = AdamOfBoth(model, config)
    batches = torch.arange(len(samples), device=device).split(config.batch_size)
    seconds: list[float] = []
    while len(seconds) < task["steps"] + WARM_UP:
        sum_over_workers(torch.zeros(1, device=device))  # all begin together
        began = time.perf_counter()
        batch, target_B = samples.batch(own_share(batches[len(seconds) % BATCHES]))
        optimizer.zero_grad()
        wrapped(batch, target_B)["total"].backward()
        optimizer.clip()
        optimizer.step(config.learning_rate)
        sum_over_workers(torch.zeros(1, device=device)).item()  # and end together
        seconds.append(time.perf_counter() - began)
    fastest = min(seconds[WARM_UP:])
    table = model.backbone.item_embedding.weight
    state = [value for name, value in optimizer.tensors().items() if name.startswith("backbone.item_embedding")]
    held = sum(value.numel() * value.element_size() for value in [table.detach(), *state]) + gradient_bytes(table)
    return {
        "milliseconds": round(fastest * 1e3, 1),
        "samples_per_second": round(config.batch_size / fastest),
        "tables_mb": round(held / 1e6),
    }


def gradient_bytes(table: torch.Tensor) -> int:
    assert table.grad is not None
    value = table.grad._values() if table.grad.is_sparse else table.grad
    return value.numel() * value.element_size()


if __name__ == "__main__":
    main()
