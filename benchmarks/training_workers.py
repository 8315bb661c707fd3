"""The same training alone and on 1, 2 and 4 workers of Ray Train: samples/s, and the validation metric it ends with.

    python benchmarks/training_workers.py --config configs/demo.yaml [--model srgnn+llm4sbr] [--json FILE]

The run has to be done up to what the model reads (jobs/ingest.py; of a "+llm4sbr" model jobs/infer.py). Each number of
workers trains anew, outside the run, with the run's settings but for the epochs. The first epoch is left out of the
rate. Batches are the same for any number of workers: the metric differs by dropout and rounding alone. Workers on one
machine share its cores: there the figures show what the distribution costs, not what it gains.

`input` is Ray Data's part: each worker takes all train rows from it once, block by block, before its first step; what a
batch costs after that is in benchmarks/training.py. Its share is of one worker's steps of all epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from llm4sbr_ray.artifacts import Run, Stage, Store
from llm4sbr_ray.cli import main as run_main
from llm4sbr_ray.training.group import drain, read_rows, train_on_workers
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.trainer import train_here

TRIES = 3


def measure(run: Run, model: str, workers: int, epochs: int, precision: str) -> dict[str, Any]:
    """One training; 0 workers is this process."""
    settings = {"workers": workers, "min_workers": None, "epochs": epochs, "patience": epochs, "precision": precision}
    own = Run(run.config.model_copy(update={"train": run.config.train.model_copy(update=settings)}))
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(f"{workers} workers", own, Store(folder))
        began = time.perf_counter()
        counters = (train_on_workers if workers else train_here)(stage, model, 0).counters
        seconds = time.perf_counter() - began
    rates = [record["samples_per_second"] for record in counters.history[1:]]
    return {
        "samples_per_second": round(max(rates)),
        "valid_recall@20": round(counters.history[-1]["valid_recall@20"], 4),
        "loss": round(counters.history[-1]["loss"], 5),
        "start_and_end_s": round(seconds - sum(record["seconds"] for record in counters.history), 1),
        "spread_of_rate": round(statistics.pstdev(rates) / statistics.mean(rates), 3),
    }


def measure_input(run: Run, model: str) -> float:
    """Seconds that a worker needs for the train samples, from Parquet to what batches are made of."""
    rows_from = source(run, model, "train")
    began = time.perf_counter()
    drain(read_rows(run, rows_from), rows_from)
    return time.perf_counter() - began


def benchmark(own: argparse.Namespace, run: Run) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for workers in own.workers:
        rows[f"{workers}_workers"] = measure(run, own.model, workers, own.epochs, own.precision)
    alone = next(iter(rows.values()))["samples_per_second"]
    print(f"{own.model}, {own.precision}, {own.epochs} epochs, batch {run.config.train.batch_size}")
    print(f"{'':12}{'samples/s':>11}{'of the first':>14}{'loss':>10}{'recall@20':>11}{'start and end, s':>18}")
    for name, row in rows.items():
        row["of_the_first"] = round(row["samples_per_second"] / alone, 2)
        print(f"{name:12}{row['samples_per_second']:>11,}{row['of_the_first']:>14}{row['loss']:>10.4f}", end="")
        print(f"{row['valid_recall@20']:>11.4f}{row['start_and_end_s']:>18}")
    seconds = min(measure_input(run, own.model) for _ in range(TRIES))
    samples = len(read_samples(run, source(run, own.model, "train")))
    share = seconds / (seconds + samples * run.config.train.epochs / alone)
    print(
        f"input: {samples:,} samples in {seconds:.2f} s, {share:.1%} of a training of {run.config.train.epochs} epochs"
    )
    if own.json:
        figures = {f"{name}_{key}": value for name, row in rows.items() for key, value in row.items()}
        figures |= {"input_s": round(seconds, 2), "input_share": round(share, 4)}
        own.json.write_text(json.dumps({"figures": figures, "model": own.model}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--model", default="srgnn+llm4sbr")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2, 4])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    own, settings = parser.parse_known_args()
    return run_main(partial(benchmark, own), ["--config", own.config, *settings])


if __name__ == "__main__":
    sys.exit(main())
