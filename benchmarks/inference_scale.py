"""Memory of the LLM stage by the number of sessions: flat, as rows stream from Parquet to Parquet.

    python benchmarks/inference_scale.py [--json FILE] [--sizes 100000 1000000 10000000] [--storage FOLDER]

No LLM answers here: a stand-in takes the place of the vLLM stage (`engine.processor`), gives every prompt the
same answer, and returns the columns that the real stage returns. All else is the product's own code, in its order:

    render      samples -> prompts
    distinct    prompts -> distinct prompts, in the order in which they are asked
    ask         `perspectives.engine.ask`: read, tokenise, answer, extract, write, the keys of written rows recorded
    resume      the same call again, as after a kill at the end: every row is recognised by its key and left out
    collect     answers joined with the samples

Sessions are made up: `MIN_CLICKS` to `MAX_CLICKS` random items of a small demo shop, one perspective, so that nearly
every session has a prompt of its own. Each size runs in a process and a Ray of its own, and is removed when measured.

Memory is read twice a second from the kernel (Linux): of each process its proportional share (PSS), objects in Ray's
store left out; these are a column of their own. `driver` is the process that calls, `worker` the largest of Ray's
workers and `processes` the sum over all of them, Ray's own included: peaks of each phase.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray

from llm4sbr_ray.artifacts import Run, Stage
from llm4sbr_ray.cluster import connect
from llm4sbr_ray.config import SHORT_TERM, DataConfig, DemoShop, Perspectives, RunConfig
from llm4sbr_ray.data.demo_shop import generate
from llm4sbr_ray.data.samples import SAMPLES
from llm4sbr_ray.perspectives import engine
from llm4sbr_ray.perspectives.ask import _collect
from llm4sbr_ray.perspectives.outputs import shown_titles
from llm4sbr_ray.perspectives.pocket_lm import _train_tokenizer
from llm4sbr_ray.perspectives.render import render, unique_prompts
from llm4sbr_ray.perspectives.store import STORED_SCHEMA

PHASES = ("render", "distinct", "ask", "resume", "collect")
ITEMS = 800
MIN_CLICKS, MAX_CLICKS = 3, 6
FILE_ROWS = 32_768
EVERY_S = 0.5
MEMORY = ("driver", "worker", "processes", "objects")  # MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--storage", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.one:
        print(json.dumps(measure(own.one, own.storage)))
        return
    print("A stand-in answers in place of vLLM. Peaks in MB")
    print(f"{'sessions':>12} {'phase':10}{'seconds':>9}{'rows/s':>10}" + "".join(f"{name:>11}" for name in MEMORY))
    figures: dict[str, float] = {}
    for size in own.sizes:
        command = [sys.executable, __file__, "--storage", str(own.storage), "--one", str(size)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for phase, found in json.loads(output.splitlines()[-1]).items():
            memory = "".join(f"{found[name]:11,}" for name in MEMORY)
            print(f"{size:12,} {phase:10}{found['seconds']:9.1f}{size / found['seconds']:10,.0f}{memory}", flush=True)
            unit = {name: f"{name}_mb" for name in MEMORY}
            figures |= {f"sessions_{size}_{phase}_{unit.get(name, name)}": value for name, value in found.items()}
    if own.json:
        settings = {"sizes": own.sizes, "items": ITEMS, "clicks": [MIN_CLICKS, MAX_CLICKS]}
        own.json.write_text(json.dumps({"figures": figures, "settings": settings}, indent=1) + "\n")


def measure(n: int, storage: Path) -> dict[str, dict[str, float]]:
    """Seconds and peaks of each phase."""
    with tempfile.TemporaryDirectory(prefix="inference-scale-", dir=storage) as folder:
        perspectives = Perspectives(views=(SHORT_TERM,), splits=("train",))
        run = Run(RunConfig(name="scale", storage=folder, data=DataConfig(source="demo"), perspectives=perspectives))
        connect(run.config.cluster)
        config, data = run.config.perspectives, run.below("data")
        write_samples(n, run)
        model = run.path("tokenizer")
        _train_tokenizer(shown_titles(data, config), config).save_pretrained(model)
        engine.processor = stand_in
        stage = Stage("perspectives", run, run.below("out"))
        work = stage.store.below("work")
        prompts, asked, answers, done = (work.below(name) for name in ("prompts", "asked", "answers", "done"))
        work.write_table(STORED_SCHEMA.empty_table(), "known", "part-00000.parquet")
        work.write_json(0, "known.json")

        def ask() -> None:
            name = "round-0"
            engine.ask(asked.below(name), answers.below(name), done.below(name), model, data.uri(), config)

        def collect() -> None:
            answers.write_json(True, "round-0.json")
            facts = _collect(stage, work)
            assert facts["rows"] == n

        steps: dict[str, Callable[[], object]] = {
            "render": lambda: render(data, prompts, "none", config),
            "distinct": lambda: unique_prompts(prompts, asked.below("round-0"), config.engine.write_rows),
            "ask": ask,
            "resume": ask,
            "collect": collect,
        }
        found = {}
        for phase in PHASES:
            began = time.perf_counter()
            with sampled() as peaks:
                steps[phase]()
            found[phase] = {"seconds": round(time.perf_counter() - began, 2), **peaks}
        ray.shutdown()
        return found


def write_samples(n: int, run: Run) -> None:
    """The catalogue of a demo shop, and n samples of one session each, a file at a time."""
    data = run.below("data")
    _, items = generate(DemoShop(sessions=50, items=ITEMS))
    numbered = items.select(["title", "attributes"]).append_column("item_idx", pa.array(range(ITEMS), pa.int32()))
    data.write_table(numbered, "items.parquet")
    rng = np.random.default_rng(0)
    for start in range(0, n, FILE_ROWS):
        rows = min(FILE_ROWS, n - start)
        lengths = rng.integers(MIN_CLICKS, MAX_CLICKS + 1, rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        clicks = pa.array(rng.integers(0, ITEMS, lengths.sum()), pa.int32())
        sessions = [f"s{number:09d}" for number in range(start, start + rows)]
        columns = {
            "sample_key": [f"{name}:{length}" for name, length in zip(sessions, lengths, strict=True)],
            "session_id": sessions,
            "items": pa.ListArray.from_arrays(offsets, clicks),
            "target": pa.array(rng.integers(0, ITEMS, rows), pa.int32()),
            "is_last": [True] * rows,
        }
        data.write_table(pa.table(columns, SAMPLES), "train", f"part-{start // FILE_ROWS:05d}.parquet")


def stand_in(_: str, config: Perspectives) -> Callable[[ray.data.Dataset], ray.data.Dataset]:
    """In place of the vLLM stage: as many actors, batches of the same size, the same columns."""
    return lambda prompts: prompts.map_batches(
        Answer,
        batch_format="pyarrow",
        batch_size=config.engine.batch_size,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=1),
    )


class Answer:
    """Ray Data actor: every prompt gets the same answer."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        n = len(batch)
        tokens = batch["tokenized_prompt"]
        added = {
            "prompt": pa.array([""] * n),
            "prompt_token_ids": tokens,
            "num_input_tokens": pa.compute.list_value_length(tokens),
            "generated_tokens": pa.array([[1, 2, 3]] * n),
            "generated_text": pa.array(["Oku Studio Mono Floor Lamp, Fog"] * n),
            "num_generated_tokens": pa.array([3] * n),
            "time_taken_llm": pa.array([0.1] * n),
            "__inference_error__": pa.array([""] * n),
        }
        kept = batch.drop_columns(["tokenized_prompt", "sampling_params"])
        for name, column in added.items():
            kept = kept.append_column(name, column)
        return kept


@contextmanager
def sampled() -> Iterator[dict[str, int]]:
    """Peaks of memory within the context, by the names of `MEMORY`."""
    peaks = dict.fromkeys(MEMORY, 0)
    stop = threading.Event()

    def watch() -> None:
        while True:
            for name, value in memory().items():
                peaks[name] = max(peaks[name], round(value))
            if stop.wait(EVERY_S):
                break

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def memory() -> dict[str, float]:
    """MB of this process, of the largest worker, of all processes that this one started, and of objects."""
    driver, objects = share(os.getpid())
    largest, total = 0.0, driver
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, OSError):  # it may end meanwhile
            own, shared = share(process.pid)
            objects, total = objects + shared, total + own
            if process.cmdline()[0].startswith("ray::"):
                largest = max(largest, own)
    return {"driver": driver, "worker": largest, "processes": total, "objects": objects}


def share(pid: int) -> tuple[float, float]:
    """MB of a process: its proportional share without shared memory objects, and that of those."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return (kib["Pss"] - kib["Pss_Shmem"]) * 1024 / 1e6, kib["Pss_Shmem"] * 1024 / 1e6


if __name__ == "__main__":
    main()
