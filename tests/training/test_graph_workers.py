"""Backbones with a graph of the train sessions on two workers of plain torch.distributed."""

from __future__ import annotations

from pathlib import Path

import torch
from gloo_group import gloo_group, run_workers
from planted_run import planted_config, planted_run
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.loop import train_model
from llm4sbr_ray.training.start import starting_model

MODELS = ("gcegnn", "dhcn")


def wrap(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module, broadcast_buffers=False)  # as training.group does


def worker(number: int, run: Run, out: Path) -> None:
    with gloo_group(number, 2, out):
        for model in MODELS:
            train, valid = (read_samples(run, source(run, model, split)) for split in ("train", "valid"))
            built = starting_model(run, model)
            graph = dict(built.backbone.named_buffers(prefix="backbone"))
            save_file(graph, out / f"{model}-graph-{number}.safetensors")
            done = train_model(built, train, valid, run.config.train, seed=0, wrap=wrap)
            save_file(done.last, out / f"{model}-{number}.safetensors")


def test_workers_have_the_same_graph_and_stay_in_step(tmp_path: Path) -> None:
    run = planted_run(planted_config(str(tmp_path), epochs=1))
    run_workers(worker, (run, tmp_path), 2)
    for model in MODELS:
        graph, weights = (
            [load_file(tmp_path / f"{model}{kind}-{n}.safetensors") for n in (0, 1)] for kind in ("-graph", "")
        )
        assert graph[0]
        for first, second in (graph, weights, (graph[0], {name: weights[0][name] for name in graph[0]})):
            assert first.keys() == second.keys()
            for name, value in first.items():
                assert torch.equal(second[name], value), name
