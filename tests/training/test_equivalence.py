"""Two workers with half a batch each take the step of one with the whole batch, on plain torch.distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from planted_run import N_ITEMS, planted_config, planted_run
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.training.checkpoint import from_bytes, to_bytes
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.loop import train_model
from llm4sbr_ray.training.start import starting_model

SESSIONS = 401  # with an even number of samples: no worker repeats one


def whole(module: nn.Module) -> nn.Module:
    return module


def distributed(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)  # as training.group


def one_update(run: Run, number: int, workers: int, out: Path) -> None:
    """Train this worker's half, or all, for one epoch of one batch."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=number, world_size=workers)
    of = source(run, "srgnn", "train")
    table = run.read_table("data", "train", columns=of.columns())
    size = len(table) // workers
    torch.manual_seed(0)
    done = train_model(
        starting_model(run, "srgnn"),
        of.samples(table.slice(number * size, size)),
        read_samples(run, source(run, "srgnn", "valid")),
        run.config.train,
        seed=0,
        wrap=distributed if workers > 1 else whole,
    )
    (out / f"{workers}-{number}.safetensors").write_bytes(to_bytes(done))
    if workers > 1:
        dist.destroy_process_group()


def worker(number: int, run: Run, out: Path) -> None:
    one_update(run, number, 2, out)


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": "sampled", "negatives": N_ITEMS, "accumulate": 2}],  # dense gradients, and rows
    ids=["full", "sampled"],
)
def test_two_workers_take_the_step_of_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = planted_config(str(tmp_path), epochs=1, batch_size=4096, **settings)
    still = config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.0})})
    run = planted_run(still, SESSIONS)
    assert len(run.read_table("data", "train")) % 2 == 0
    one_update(run, 0, 1, tmp_path)
    mp.spawn(worker, (run, tmp_path), nprocs=2)
    alone, first, second = (
        from_bytes((tmp_path / f"{name}.safetensors").read_bytes()) for name in ("1-0", "2-0", "2-1")
    )
    moments = [name for name in alone.optimizer if "exp_avg" in name]  # after one update: the gradient and its square
    assert len(moments) == 2 * len(alone.last)
    for name in moments:
        value = alone.optimizer[name]
        torch.testing.assert_close(
            first.optimizer[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name
        )
    for name, value in alone.last.items():
        assert torch.equal(first.last[name], second.last[name]), name
        certain = alone.optimizer[f"{name}.exp_avg"].abs() > 1e-6  # Adam's first step is the sign of the gradient
        torch.testing.assert_close(first.last[name][certain], value[certain], rtol=0, atol=2e-5, msg=name)
