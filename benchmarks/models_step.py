"""How fast a training step is: every backbone, and SR-GNN inside LLM4SBR, beside the arithmetic floor of the same run.

    python benchmarks/models_step.py [--json FILE] [--threads 2] [--steps 20]

A step is forward, backward and Adam with full softmax over the catalogue. The sessions are synthetic, with
lengths like those of Amazon Beauty. The floor is the product of session and item vectors alone, forward and
backward: no model that scores the whole catalogue can do with less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llm4sbr_ray.config import ModelConfig, Neighbours
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import Intents, SessionBatch
from llm4sbr_ray.models.build import build_model

V, E, B, P, R = 12_101, 384, 512, 2, 5
MEAN_LENGTH = 9


def sessions(config: ModelConfig) -> tuple[SessionBatch, Tensor]:
    length_B = torch.empty(B).geometric_(1 / MEAN_LENGTH).long().clamp_(1, config.max_length)
    items_BL = torch.randint(0, V, (B, int(length_B.max())))
    items_BL[torch.arange(items_BL.shape[1]) >= length_B[:, None]] = V
    intents = Intents(torch.randint(0, V, (B, P, R)), torch.full((B, P, R), 1 / R), torch.rand(B, P) > 0.1)
    return SessionBatch(items_BL, length_B, intents), torch.randint(0, V, (B,))


def training_step(name: str, config: ModelConfig) -> Callable[[], None]:
    torch.manual_seed(0)
    text_VE = F.normalize(torch.randn(V, E), dim=1)
    model = build_model(name, V, config, Neighbours(), ("global", "local"), text_VE).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batches = [sessions(config) for _ in range(8)]
    turn = 0

    def step() -> None:
        nonlocal turn
        batch, target_B = batches[turn % len(batches)]
        turn += 1
        optimizer.zero_grad()
        model.loss(batch, target_B)["total"].backward()  # type: ignore[operator]
        optimizer.step()

    return step


def floor_step(width: int) -> Callable[[], None]:
    session_BD, item_VD = (torch.randn(n, width, requires_grad=True) for n in (B, V))
    gradient_BV = torch.randn(B, V)

    def step() -> None:
        session_BD.grad = item_VD.grad = None
        (session_BD @ item_VD.T).backward(gradient_BV)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = ModelConfig()
    steps = {
        "floor": floor_step(config.width),
        **{name: training_step(name, config) for name in BACKBONES},
        "srgnn+llm4sbr": training_step("srgnn+llm4sbr", config),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.steps + 2):  # taken in turns, so that a busy machine is unfair to none
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if turn >= 2:  # the first ones warm up
                seconds[name].append(time.perf_counter() - began)
    fastest = {name: min(values) for name, values in seconds.items()}  # others on the machine only slow a step
    print(f"{'step':16}{'ms':>8}{'samples/s':>12}")
    for name, value in fastest.items():
        print(f"{name:16}{value * 1e3:8.1f}{B / value:12,.0f}")
    figures = {
        "floor_samples_per_second": round(B / fastest["floor"]),
        "llm4sbr_samples_per_second": round(B / fastest["srgnn+llm4sbr"]),
        **{f"{name}_samples_per_second": round(B / fastest[name]) for name in BACKBONES},
        "fraction_of_floor": round(fastest["floor"] / fastest["srgnn"], 3),
        "wrapper_overhead": round(fastest["srgnn+llm4sbr"] / fastest["srgnn"] - 1, 3),
    }
    print(f"fraction of floor {figures['fraction_of_floor']:.2f}")
    print(f"overhead of LLM4SBR {figures['wrapper_overhead']:+.1%}")
    if arguments.json:
        settings = {"B": B, "V": V, "D": config.width, "threads": arguments.threads, "steps": arguments.steps}
        arguments.json.write_text(json.dumps({"figures": figures, "settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
