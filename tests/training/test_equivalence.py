"""Any number of workers sees the same batches and takes the same steps, on plain torch.distributed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_group import gloo_group, run_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_run import N_ITEMS, planted_config, planted_run
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.training import loop, workers
from llm4sbr_ray.training.checkpoint import Checkpoint, from_bytes, to_bytes
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.loop import train_model
from llm4sbr_ray.training.start import starting_model

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"batch_size": 100, "schedule": "linear"},
    # Of all items: drawn negatives would be each worker's own. Gradients are rows.
    "sampled": {"batch_size": 101, "loss": "sampled", "negatives": N_ITEMS, "accumulate": 3},
}
SIZES = (2, 3)


def whole(module: nn.Module) -> nn.Module:
    return module


def distributed(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)  # as training.group


def trained(runs: dict[str, Run], number: int, size: int, out: Path) -> None:
    """All trainings as the worker of this number in a group of this size."""
    for name, run in runs.items():
        (out / f"{name}-{size}-{number}.safetensors").write_bytes(to_bytes(one_training(run, size)))


def one_training(run: Run, size: int) -> Checkpoint:
    torch.manual_seed(0)
    return train_model(
        starting_model(run, "srgnn").double(),  # what is left of rounding is far below what a wrong batch would do
        read_samples(run, source(run, "srgnn", "train")),
        read_samples(run, source(run, "srgnn", "valid")),
        run.config.train,
        seed=0,
        wrap=distributed if size > 1 else whole,
    )


def worker(number: int, runs: dict[str, Run], out: Path) -> None:
    for size in SIZES:
        if number < size:
            with gloo_group(number, size, out):
                trained(runs, number, size, out)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of one worker and of groups of several."""
    folder, runs = tmp_path_factory.mktemp("out"), {}
    for name, own in SETTINGS.items():
        config = planted_config(str(folder / name), epochs=2, **own)
        runs[name] = planted_run(config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.0})}))
    trained(runs, 0, 1, folder)
    run_workers(worker, (runs, folder), max(SIZES))
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SETTINGS)
def test_workers_train_as_one_does_over_whole_epochs(out: Path, name: str, size: int) -> None:
    alone, first, last = (
        from_bytes((out / f"{name}-{each}.safetensors").read_bytes())
        for each in ("1-0", f"{size}-0", f"{size}-{size - 1}")
    )
    for record in alone.counters.history:
        assert record["samples"] % SETTINGS[name]["batch_size"]  # the last batch is smaller
    for ours, theirs in zip(first.counters.history, alone.counters.history, strict=True):
        assert (ours["samples"], ours["workers"]) == (theirs["samples"], size)
        for metric in ("loss", "valid_mrr@20", "valid_recall@20"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-6), metric
    for part, value in alone.last.items():
        assert torch.equal(first.last[part], last.last[part]), part
        torch.testing.assert_close(first.last[part], value, rtol=1e-4, atol=1e-7, msg=part)


@settings(deadline=None)
@given(n=st.integers(1, 200), batch=st.integers(1, 64), seed=st.integers(0, 9), epoch=st.integers(1, 9))
def test_workers_share_the_batches_of_an_epoch(n: int, batch: int, seed: int, epoch: int) -> None:
    """Shares put together are the batch of one worker; in an epoch each sample is in one batch."""
    batches: dict[int, list[list[int]]] = {}
    for size in (1, 2, 4):
        shares = []
        for number in range(size):
            with pytest.MonkeyPatch.context() as patch:
                for module in (workers, loop):
                    patch.setattr(module, "rank", lambda number=number: number)
                    patch.setattr(module, "world_size", lambda size=size: size)
                order_N = loop.epoch_order(n, seed, epoch)
                shares.append([workers.own_share(rows_B).tolist() for rows_B in order_N.split(batch)])
        batches[size] = [[row for share in batch_shares for row in share] for batch_shares in zip(*shares, strict=True)]
        lengths = {len(share) for share in next(zip(*shares, strict=True))}
        assert max(lengths) - min(lengths) <= 1
    assert batches[1] == batches[2] == batches[4]
    assert sorted(row for rows in batches[1] for row in rows) == list(range(n))


def test_each_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = [loop.epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (1, 2)]
    assert all(ours != theirs for ours, theirs in pairwise(orders))
