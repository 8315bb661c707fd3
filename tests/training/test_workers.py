"""The loop on two workers of plain torch.distributed: what Ray Train starts, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from gloo_group import gloo_group, run_workers
from planted_run import planted_config, planted_run
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.inputs import Split, parquet_files, source
from llm4sbr_ray.training.load import new_model
from llm4sbr_ray.training.loop import NonFiniteLossError, train_model
from llm4sbr_ray.training.workers import gather_text, own_share, rank, sum_over_workers, world_size

CPU = torch.device("cpu")
TRAIN_ROWS = 4 * 32 + 1  # the last batch is one sample: one of the two workers has no share of it


def worker(number: int, run: Run, out: Path) -> None:
    with gloo_group(number, 2, out):
        check_and_train(number, run, out)


def check_and_train(number: int, run: Run, out: Path) -> None:
    assert (rank(), world_size()) == (number, 2)
    assert gather_text("é" * number, CPU) == ["", "é"]
    assert own_share(torch.arange(7)).tolist() == ([0, 1, 2], [3, 4, 5, 6])[number]
    assert sum_over_workers(torch.tensor([1.0, float(number)])).tolist() == [2.0, 1.0]

    def rows(split: Split, size: int) -> Samples:
        of = source(run, "srgnn", split)
        return of.samples(run.read_table(parquet_files(run, of.folder)[1], columns=of.columns()).slice(0, size))

    train, valid = rows("train", TRAIN_ROWS), rows("valid", 1)  # one worker has no validation sample
    for learning_rate in (1e-2, 1e30):
        torch.manual_seed(number)  # DistributedDataParallel gives the second the weights of the first
        model = new_model(run, run.config, "srgnn")
        assert isinstance(model, PlainRecommender)
        config = run.config.train.model_copy(update={"learning_rate": learning_rate})
        try:
            done = train_model(model, train, valid, config, seed=0, wrap=DistributedDataParallel)
            save_file(done.last, out / f"{number}.safetensors")
            (out / f"{number}.json").write_text(json.dumps(done.counters.history))
        except NonFiniteLossError as error:
            (out / f"{number}.txt").write_text(str(error))


def test_uneven_workers_stay_in_step_and_stop_together(tmp_path: Path) -> None:
    run = planted_run(planted_config(str(tmp_path)))
    run_workers(worker, (run, tmp_path), 2)
    first, second = (load_file(tmp_path / f"{number}.safetensors") for number in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name
    same = ("epoch", "loss", "samples", "valid_mrr@20", "valid_score")
    histories = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    for ours, theirs in zip(*histories, strict=True):
        assert [ours[name] for name in same] == [theirs[name] for name in same]
        assert (ours["samples"], ours["workers"]) == (TRAIN_ROWS, 2)
    first, second = ((tmp_path / f"{number}.txt").read_text() for number in (0, 1))
    assert first == second  # the second training: its loss is not finite, on both workers in the same step
    assert "begins with samples train" in first
