"""The same training alone and on 1, 2 and 4 workers of Ray Train: samples/s, and the validation metric it ends with.

    python benchmarks/training_workers.py --config configs/demo.yaml [--model srgnn+llm4sbr] [--json FILE]

The run has to be done up to what the model reads (jobs/ingest.py; of a "+llm4sbr" model jobs/infer.py). Each number of
workers trains anew, outside the run, with the run's settings but for the epochs. The first epoch is left out of the
rate. Batches are the same for any number of workers: the metric differs by dropout and rounding alone. Workers on one
machine share its cores: there the figures show what the distribution costs, not what it gains.
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
from llm4sbr_ray.training.group import train_on_workers
from llm4sbr_ray.training.trainer import train_here


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


def benchmark(own: argparse.Namespace, run: Run) -> None:
    rows = {}
    for workers in own.workers:
        rows[f"{workers}_workers"] = measure(run, own.model, workers, own.epochs, own.precision)
    alone = next(iter(rows.values()))["samples_per_second"]
    print(f"{own.model}, {own.precision}, {own.epochs} epochs, batch {run.config.train.batch_size}")
    print(f"{'':12}{'samples/s':>11}{'of the first':>14}{'loss':>10}{'recall@20':>11}{'start and end, s':>18}")
    for name, row in rows.items():
        row["of_the_first"] = round(row["samples_per_second"] / alone, 2)
        print(f"{name:12}{row['samples_per_second']:>11,}{row['of_the_first']:>14}{row['loss']:>10.4f}", end="")
        print(f"{row['valid_recall@20']:>11.4f}{row['start_and_end_s']:>18}")
    if own.json:
        figures = {f"{name}_{key}": value for name, row in rows.items() for key, value in row.items()}
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
