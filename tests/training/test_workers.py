"""The loop on two workers of plain torch.distributed: what Ray Train starts, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from planted_run import planted_config, planted_run
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.training.batches import join_samples
from llm4sbr_ray.training.inputs import Source, parquet_files, source
from llm4sbr_ray.training.load import new_model
from llm4sbr_ray.training.loop import NonFiniteLossError, train_model
from llm4sbr_ray.training.workers import gather_text, max_over_workers, rank, sum_over_workers, world_size

CPU = torch.device("cpu")
TRAIN_SIZES = (95, 60)  # of the two workers: the second repeats samples to take as many steps


def worker(number: int, run: Run, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=number, world_size=2)
    assert (rank(), world_size()) == (number, 2)
    assert gather_text("é" * number, CPU) == ["", "é"]
    assert int(max_over_workers(10 - number, CPU)) == 10
    assert sum_over_workers(torch.tensor([1.0, float(number)])).tolist() == [2.0, 1.0]

    def rows(of: Source, begin: int, size: int) -> Any:
        tables = [run.read_table(file, columns=of.columns()) for file in parquet_files(run, of.folder)]
        return join_samples([of.samples(tables[1].slice(begin, size))])

    train = rows(source(run, "srgnn", "train"), number * TRAIN_SIZES[0], TRAIN_SIZES[number])
    valid = rows(source(run, "srgnn", "valid"), 0, (1 - number) * 50)  # none on the second worker
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
    dist.destroy_process_group()


def test_uneven_workers_stay_in_step_and_stop_together(tmp_path: Path) -> None:
    run = planted_run(planted_config(str(tmp_path)))
    mp.spawn(worker, (run, tmp_path), nprocs=2)
    first, second = (load_file(tmp_path / f"{number}.safetensors") for number in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name
    same = ("epoch", "loss", "samples", "valid_mrr@20", "valid_score")
    histories = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    for ours, theirs in zip(*histories, strict=True):
        assert [ours[name] for name in same] == [theirs[name] for name in same]
        assert ours["samples"] == sum(TRAIN_SIZES)
    first, second = ((tmp_path / f"{number}.txt").read_text() for number in (0, 1))
    assert first == second  # the second training: its loss is not finite, on both workers in the same step
    assert "begins with samples train" in first
