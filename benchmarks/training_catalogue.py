"""Large catalogues: samples/s and memory of a training step, by loss and by catalogue size.

    python benchmarks/training_catalogue.py [--json FILE] [--items 10000 100000 1000000] [--losses full sampled gbce]

Each pair runs in a process of its own; its memory is what the peak rose by since the samples were made. A step is that
of training/loop.py with SR-GNN at the default width: batch, loss, gradient, clipping, optimizer. Sessions are made up,
items clicked with the frequencies of a Zipf law. `dense` is sampled softmax with the gradient of the whole item table:
what the row-wise one saves. Full softmax over a million items takes seconds a step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from llm4sbr_ray.config import ModelConfig, Neighbours, TrainConfig
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.training.batches import Samples, samples_from_table
from llm4sbr_ray.training.loss import set_loss
from llm4sbr_ray.training.optimizer import AdamOfBoth

LOSSES = ("full", "sampled", "gbce", "dense")
MEAN_LENGTH = 6
BATCHES = 8
WARM_UP = 2
MAX_SECONDS = 60  # of the measured steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--items", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--negatives", type=int, default=TrainConfig().negatives)
    parser.add_argument("--width", type=int, default=ModelConfig().width)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--one", nargs=2, metavar=("LOSS", "ITEMS"), help="measure this pair here and print it as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]), arguments)))
        return
    print(f"SR-GNN, width {arguments.width}, batch {TrainConfig().batch_size}, {arguments.threads} threads")
    print(f"{'items':>10} {'loss':10}{'ms a step':>11}{'samples/s':>11}{'peak MB':>10}{'bytes/item':>12}")
    figures: dict[str, dict[str, Any]] = {}
    for n_items in arguments.items:
        for loss in arguments.losses:
            found = in_own_process(loss, n_items)
            figures.setdefault(str(n_items), {})[loss] = found
            print(
                f"{n_items:10,} {loss:10}{found['milliseconds']:11.1f}{found['samples_per_second']:11,}"
                f"{found['peak_mb']:10,}{found['peak_mb'] * 1e6 / n_items:12,.0f}",
                flush=True,
            )
    if arguments.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        arguments.json.write_text(json.dumps({"figures": flat(figures), "settings": settings}, indent=1) + "\n")


def flat(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One level of names."""
    return {
        f"items_{n_items}_{loss}_{name}": value
        for n_items, losses in figures.items()
        for loss, found in losses.items()
        for name, value in found.items()
    }


def in_own_process(loss: str, n_items: int) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", loss, str(n_items)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure(loss: str, n_items: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of one loss: the fastest step, and what memory rose by."""
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    config = TrainConfig(loss="sampled" if loss == "dense" else loss, negatives=arguments.negatives)  # type: ignore[arg-type]
    samples = zipf_samples(n_items, config.batch_size * BATCHES)
    before = peak_mb()
    model = build_model("srgnn", n_items, ModelConfig(width=arguments.width), Neighbours())
    assert isinstance(model, PlainRecommender)
    model.train()
    set_loss(model, config, n_items, samples.target_N)
    if loss == "dense":
        model.backbone.item_embedding.sparse = False
    optimizer = AdamOfBoth(model, config)
    batches = torch.arange(len(samples)).split(config.batch_size)
    seconds: list[float] = []
    while len(seconds) < arguments.steps + WARM_UP and (len(seconds) <= WARM_UP or sum(seconds) < MAX_SECONDS):
        began = time.perf_counter()
        batch, target_B = samples.batch(batches[len(seconds) % BATCHES])
        optimizer.zero_grad()
        model.loss(batch, target_B)["total"].backward()
        optimizer.clip()
        optimizer.step(config.learning_rate)
        seconds.append(time.perf_counter() - began)
    fastest = min(seconds[WARM_UP:])
    return {
        "milliseconds": round(fastest * 1e3, 1),
        "samples_per_second": round(config.batch_size / fastest),
        "peak_mb": round(peak_mb() - before),
        "process_mb": round(peak_mb()),
    }


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def zipf_samples(n_items: int, n: int) -> Samples:
    rng = np.random.default_rng(0)
    length_N = np.minimum(rng.geometric(1 / MEAN_LENGTH, n), 50)
    item_of_rank = rng.permutation(n_items)
    clicks = item_of_rank[np.minimum(n_items ** rng.random(length_N.sum() + n), n_items).astype(np.int64) - 1]
    items = np.split(clicks[: length_N.sum()], length_N.cumsum()[:-1])
    keys = [str(i) for i in range(n)]
    return samples_from_table(pa.table({"sample_key": keys, "items": items, "target": clicks[-n:]}), n_items, 50)


if __name__ == "__main__":
    main()
