"""Workers that hold a part of the item table each train as workers that hold all do, on plain torch.distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo_group import gloo_group, run_workers
from planted_run import N_ITEMS, planted_config, planted_run
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import TrainConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.ranking import target_ranks
from llm4sbr_ray.models.row_shards import RowShards, ShardedEmbedding, blocks
from llm4sbr_ray.models.sharded_softmax import sharded_ranks
from llm4sbr_ray.training.checkpoint import Checkpoint
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.loop import train_model
from llm4sbr_ray.training.row_checkpoint import TABLE, read_checkpoint, write_checkpoint
from llm4sbr_ray.training.shards import keep_apart, own_rows, require_shardable, shard_items
from llm4sbr_ray.training.start import starting_model

MODEL = "srgnn+llm4sbr"
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"batch_size": 100, "label_smoothing": 0.1, "clip_norm": 0.5},
    "sampled": {"batch_size": 101, "loss": "sampled", "negatives": 20, "clip_norm": 0.5},
    "gbce": {"batch_size": 100, "loss": "gbce", "negatives": 20},
}
SIZES = (2, 3)


def wrap(module: nn.Module) -> nn.Module:
    keep_apart(module)
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)  # as training.group


def started(run: Run, sharded: bool) -> LLM4SBR:
    torch.manual_seed(0)
    model = starting_model(run, MODEL)
    assert isinstance(model, LLM4SBR)
    if sharded:
        shard_items(model)
    return model.double()  # what is left of rounding is far below what a wrong row would do


def trained(run: Run, model: LLM4SBR, epochs: int, resume: Checkpoint | None = None) -> Checkpoint:
    train, valid = (read_samples(run, source(run, MODEL, split)) for split in ("train", "valid"))
    config = run.config.train.model_copy(update={"epochs": epochs})
    return train_model(model, train, valid, config, 0, wrap=wrap, resume=resume)


def check_rows(number: int, size: int) -> None:
    """Rows, ranks and lengths against a table that every worker has whole."""
    generator = torch.Generator().manual_seed(5)
    table = nn.Embedding(11, 4, padding_idx=10, _weight=torch.randn(11, 4, generator=generator))
    shards = RowShards(11, number, size, dist.new_group())
    ours = ShardedEmbedding(table, shards)
    assert ours.weight.shape[0] == shards.own.stop - shards.own.start < 11
    index = torch.tensor([[3, 10, 0], [9, 3, number]])
    assert torch.equal(ours(index), table(index))
    session_BD = torch.randn(3, 4, generator=generator)[: 1 + number]  # each worker has another number of sessions
    session_BD[0] = session_BD[0].floor() * 0  # all its scores are equal
    target_B = torch.tensor([2, 9, 0])[: 1 + number]
    with torch.inference_mode():
        expected = target_ranks(session_BD @ table.weight[:-1].T, target_B)
        assert sharded_ranks(session_BD, ours, target_B).tolist() == expected.tolist()
        nan = torch.full((1, 4), float("nan"))
        assert sharded_ranks(nan, ours, torch.tensor([0])).tolist() == [10]


def worker(number: int, runs: dict[str, Run], out: Path) -> None:
    for size in SIZES:
        if number < size:
            with gloo_group(number, size, out):
                check_and_train(number, size, runs, out)


def check_and_train(number: int, size: int, runs: dict[str, Run], out: Path) -> None:
    check_rows(number, size)
    for name, run in runs.items():
        for sharded in (False, True):
            folder = out / f"{name}-{size}-{sharded}"
            folder.mkdir(exist_ok=True)
            write_checkpoint(trained(run, started(run, sharded), 2), folder, number, sharded)
    # Two workers began it, and as many go on, or one more.
    run, before = runs["sampled"], out / "begun"
    if size == 2:
        before.mkdir(exist_ok=True)
        write_checkpoint(trained(run, started(run, True), 1), before, number, sharded=True)
        dist.barrier()
    model = started(run, True)
    folder = out / f"gone-on-{size}"
    folder.mkdir(exist_ok=True)
    done = trained(run, model, 2, resume=read_checkpoint(before, own_rows(model)))
    write_checkpoint(done, folder, number, sharded=True)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, runs = tmp_path_factory.mktemp("out"), {}
    for name, own in SETTINGS.items():
        runs[name] = planted_run(planted_config(str(folder / name), epochs=2, **own))
    run_workers(worker, (runs, folder), max(SIZES))
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SETTINGS)
def test_sharded_rows_are_trained_as_whole_tables_are(out: Path, name: str, size: int) -> None:
    whole, sharded = (read_checkpoint(out / f"{name}-{size}-{each}") for each in (False, True))
    assert whole.last[TABLE].shape == (N_ITEMS + 1, 16)
    for ours, theirs in zip(sharded.counters.history, whole.counters.history, strict=True):
        for metric in ("loss", "valid_mrr@20", "valid_llm_free_recall@20"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-6), metric
    for group in ("last", "best", "optimizer"):
        ours, theirs = getattr(sharded, group), getattr(whole, group)
        assert ours.keys() == theirs.keys()
        for part, value in theirs.items():
            torch.testing.assert_close(ours[part], value, rtol=1e-4, atol=1e-7, msg=f"{group} {part}")


def test_a_training_goes_on_from_its_rows(out: Path) -> None:
    undisturbed, gone_on = (read_checkpoint(out / name) for name in ("sampled-2-True", "gone-on-2"))
    for part, value in undisturbed.last.items():
        assert torch.equal(gone_on.last[part], value), part


def test_another_number_of_workers_goes_on_from_the_same_rows(out: Path) -> None:
    begun, gone_on = (read_checkpoint(out / name) for name in ("begun", "gone-on-3"))
    assert len(list((out / "begun").glob("items-*"))) == 2
    assert len(list((out / "gone-on-3").glob("items-*"))) == 3
    assert [record["workers"] for record in gone_on.counters.history] == [2, 3]
    assert gone_on.counters.history[0]["loss"] == begun.counters.history[0]["loss"]
    assert gone_on.counters.history[1]["loss"] < begun.counters.history[0]["loss"]
    undisturbed = read_checkpoint(out / "sampled-2-True")
    # Its dropout and negatives are others: the weights are near, and would not be if a row had gone to another item.
    cosine = torch.cosine_similarity(gone_on.last[TABLE][:-1], undisturbed.last[TABLE][:-1])
    assert cosine.min() > 0.5


def test_what_cannot_be_shared_is_refused() -> None:
    require_shardable("gcegnn+llm4sbr", 6, 3)
    with pytest.raises(UserError, match="5 items are too few for 3 workers"):
        require_shardable("srgnn", 5, 3)
    with pytest.raises(UserError, match="'dhcn' computes item vectors from the whole table"):
        require_shardable("dhcn", 600, 3)
    with pytest.raises(ValueError, match="leave accumulate at 1"):
        TrainConfig(shard_items=True, accumulate=2)
    with pytest.raises(ValueError, match="leave rank_seen at true"):
        TrainConfig(shard_items=True, rank_seen=False)


def test_blocks_cover_all_rows() -> None:
    assert blocks(7, 10, 20) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert blocks(2, 100, 20) == [(0, 1), (1, 2)]
    assert blocks(3, 0, 20) == [(0, 3)]
