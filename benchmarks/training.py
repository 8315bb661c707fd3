"""How close training comes to the machine's limit: samples/s beside the arithmetic that no model can do without.

    python benchmarks/training.py [--json FILE] [--threads 2] [--data FOLDER] [--recbole PYTHON]

The floor is the score product alone, forward and backward: session vectors (B x D) times item vectors (D x V), and the
two products of its gradient. A step is forward, backward, clipping and Adam with full softmax over the catalogue, as in
training/loop.py, on batches made from real sessions. The intents are random (right shapes, a tenth ungrounded): their
values don't change the speed. Without --data the sessions are synthetic, with catalogues of the same sizes.

All steps of a catalogue are taken in turns, so that a busy machine is unfair to none, and each counts with its fastest:
others on the machine only slow a step. `batch` is the input alone: samples, mapped from disk as in training, to a batch
with its intents. --clock cpu counts processor seconds in place of those on the wall, divided by
the threads: on a machine that is shared with many, with one thread.

With --recbole the same turns also run RecBole's SR-GNN; PYTHON is an interpreter that has recbole installed
(`python -m venv X; X/bin/pip install recbole==1.2.1 'numpy<2' 'scipy<1.12' 'pandas<3'`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F  # noqa: N812

from llm4sbr_ray.config import ModelConfig, Neighbours, TrainConfig
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.training.batches import Samples, samples_from_table
from llm4sbr_ray.training.mapped import map_samples
from llm4sbr_ray.training.optimizer import AdamOfBoth

CATALOGUES = {"beauty": (12_101, 9), "diginetica": (43_097, 5)}  # items, mean clicks of a session
BACKBONE_NAMES = ("srgnn", "gru4rec", "sasrec")
E, P, R = 384, 2, 5  # text width, perspectives, localised items
BATCHES = 16  # different batches that the steps go through
WARM_UP = 2
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each model (default 20)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what a step's time is (default wall)")
    parser.add_argument("--data", type=Path, help="folder with <catalogue>/sessions.parquet")
    parser.add_argument("--catalogues", nargs="+", choices=list(CATALOGUES), default=list(CATALOGUES))
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONE_NAMES))
    parser.add_argument("--recbole", type=Path, help="an interpreter that has recbole")
    parser.add_argument("--profile", action="store_true", help="also show where the time of srgnn+llm4sbr goes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    catalogues = {name: measure(name, arguments) for name in arguments.catalogues}
    first = catalogues[arguments.catalogues[0]]
    name = arguments.backbones[0]
    figures: dict[str, Any] = {
        "fraction_of_floor": first[f"{name}+llm4sbr"]["fraction_of_floor"],
        "wrapper_overhead": first[f"{name}+llm4sbr"]["wrapper_overhead"],
        "input_share": first[f"{name}+llm4sbr"]["input_share"],
        "ratio_to_recbole": first.get("recbole", {}).get("ratio_to_recbole"),
    }
    for catalogue, models in catalogues.items():
        for model, rates in models.items():
            figures |= {f"{catalogue}_{model}_{key}": value for key, value in rates.items()}
    if arguments.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        settings["torch"] = torch.__version__
        arguments.json.write_text(json.dumps({"figures": figures, "settings": settings}, indent=1) + "\n")


def measure(catalogue: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rates of all models on one catalogue; prints them."""
    torch.manual_seed(0)
    config, train = ModelConfig(), TrainConfig()
    V, B = CATALOGUES[catalogue][0], train.batch_size
    samples = map_samples([read_samples(catalogue, arguments.data, B * BATCHES, config.max_length)])
    models = [f"{name}{suffix}" for name in arguments.backbones for suffix in ("", "+llm4sbr")]
    steps: dict[str, Step] = {"floor": floor_step(B, V, config.width), "batch": batch_step(samples, B)}
    steps |= {name: training_step(name, samples, config, train) for name in models}
    recbole = Recbole(arguments, samples, config.width, B) if arguments.recbole else None
    clock, shared = CLOCKS[arguments.clock], arguments.threads if arguments.clock == "cpu" else 1
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.steps + WARM_UP):
        for name, step in steps.items():
            began = clock()
            step()
            if turn >= WARM_UP:
                seconds[name].append((clock() - began) / shared)
        if recbole is not None and turn >= WARM_UP:
            seconds.setdefault("recbole", []).append(recbole.step() / shared)
    if recbole is not None:
        recbole.close()
    if arguments.profile:
        profile(steps[models[1]])
    fastest = {name: min(values) for name, values in seconds.items()}
    flops = 3 * 2 * B * V * config.width / fastest["floor"]
    print(f"\n{catalogue}: {V:,} items, width {config.width}, batch {B}, {arguments.threads} threads, ", end="")
    print(f"matrix product {flops / 1e9:.0f} GFLOP/s")
    print(f"{'step':20}{'ms':>8}{'samples/s':>12}{'of floor':>10}{'overhead':>10}")
    rates: dict[str, dict[str, Any]] = {}
    for name, value in fastest.items():
        rates[name] = {"samples_per_second": round(B / value), "fraction_of_floor": round(fastest["floor"] / value, 3)}
        plain = name.removesuffix("+llm4sbr")
        overhead = ""
        if plain != name:
            rates[name]["wrapper_overhead"] = round(value / fastest[plain] - 1, 3)
            rates[name]["input_share"] = round(fastest["batch"] / value, 4)
            overhead = f"{rates[name]['wrapper_overhead']:+.1%}"
        fraction = rates[name]["fraction_of_floor"]
        print(f"{name:20}{value * 1e3:8.1f}{B / value:12,.0f}{fraction:10.2f}{overhead:>10}")
    if recbole is not None:
        rates["recbole"]["ratio_to_recbole"] = round(fastest["recbole"] / fastest["srgnn"], 2)
        print(f"srgnn is {rates['recbole']['ratio_to_recbole']:.1f} times as fast as RecBole's")
    return rates


def read_samples(catalogue: str, data: Path | None, n: int, max_length: int) -> Samples:
    """n samples, every prefix of random sessions, with random intents."""
    V, mean_length = CATALOGUES[catalogue]
    rng = np.random.default_rng(0)
    if data is None:
        sessions = [rng.integers(V, size=size).tolist() for size in 1 + rng.geometric(1 / (mean_length - 1), n)]
    else:
        rows = pq.read_table(data / catalogue / "sessions.parquet", columns=["items"])["items"].to_pylist()
        number = {item: j for j, item in enumerate(sorted({item for row in rows for item in row}))}
        sessions = [[number[item] for item in rows[s]] for s in rng.permutation(len(rows))[:n]]
    prefixes = [(session[:k], session[k]) for session in sessions for k in range(1, len(session))]
    chosen = [prefixes[i] for i in rng.permutation(len(prefixes))[:n]]
    return samples_from_table(
        pa.table(
            {
                "sample_key": [str(i) for i in range(n)],
                "items": [items for items, _ in chosen],
                "target": [target for _, target in chosen],
                "intent_items": list(rng.integers(V, size=(n, P * R), dtype=np.int32)),
                "intent_weights": list(np.full((n, P * R), 1 / R, dtype=np.float32)),
                "grounded": (rng.random((n, P)) > 0.1).tolist(),
            }
        ),
        V,
        max_length,
        P,
    )


def floor_step(B: int, V: int, D: int) -> Step:
    session_BD, item_VD = (torch.randn(n, D, requires_grad=True) for n in (B, V))
    gradient_BV = torch.randn(B, V)

    def step() -> None:
        session_BD.grad = item_VD.grad = None
        (session_BD @ item_VD.T).backward(gradient_BV)

    return step


def batch_step(samples: Samples, B: int) -> Step:
    batches = itertools.cycle(torch.arange(len(samples)).split(B))

    def step() -> None:
        samples.batch(next(batches))

    return step


def training_step(name: str, samples: Samples, config: ModelConfig, train: TrainConfig) -> Step:
    """The inner part of training.loop: a batch is made, then loss, gradient, clipping and Adam."""
    text_VE = F.normalize(torch.randn(samples.n_items, E), dim=1)
    model = build_model(name, samples.n_items, config, Neighbours(), ("global", "local"), text_VE).train()
    optimizer = AdamOfBoth(model, train)
    batches = torch.arange(len(samples)).split(train.batch_size)
    with_intents = name.endswith("+llm4sbr")
    turn = 0

    def step() -> None:
        nonlocal turn
        batch, target_B = samples.batch(batches[turn % len(batches)])
        if not with_intents:
            batch.intents = None
        turn += 1
        optimizer.zero_grad()
        model.loss(batch, target_B)["total"].backward()  # type: ignore[operator]
        optimizer.clip()
        optimizer.step(train.learning_rate)

    return step


def profile(step: Step) -> None:
    """The most expensive operators of a step."""
    with torch.profiler.profile() as profiler:
        for _ in range(5):
            step()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=40))


class Recbole:
    """RecBole's SR-GNN in an interpreter of its own, one step at a call."""

    def __init__(self, arguments: argparse.Namespace, samples: Samples, width: int, B: int) -> None:
        worker = Path(__file__).with_name("recbole_worker.py")
        command = [str(arguments.recbole), str(worker)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        batches = []
        for rows_B in torch.arange(len(samples)).split(B):
            batch, target_B = samples.batch(rows_B)
            batches.append([batch.items_BL.tolist(), batch.length_B.tolist(), target_B.tolist()])
        self._ask(
            {
                "threads": arguments.threads,
                "clock": arguments.clock,
                "n_items": samples.n_items,
                "width": width,
                "max_length": samples.max_length,
                "batches": batches,
            }
        )
        for _ in range(WARM_UP):
            self.step()

    def step(self) -> float:
        """Seconds of a step."""
        return float(self._ask("step"))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, message: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("answer "):  # libraries may print as well
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"{self.process.args[0]}: RecBole's process ended")  # type: ignore[index]


if __name__ == "__main__":
    main()
