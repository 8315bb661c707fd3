"""How close the LLM stage comes to plain vLLM, and what the order of the prompts is worth.

    python benchmarks/inference.py [--json FILE] [--config configs/demo.yaml] [--prompts 20000] [--turns 3] [settings]

Both sides answer the same distinct prompts of a run with the same engine settings, in turns that each begin with
another one:

    plain       `vllm.LLM.generate` over ready token ids, in one call
    text        `vllm.LLM.generate` over the same prompts as text, which it tokenises itself, as the stage does
    stage       `perspectives.engine.ask`: Parquet in, tokenised, a Ray Data pipeline around the engine, Parquet out
    shuffled    as plain, with the prompts in random order: what the layout gains

The engine's start is left out on both sides: plain is timed within its process, the stage from the first prompt that
its engine takes to the last file that it writes. Plain runs as a Ray actor, so that it has the environment and the CPU
threads of the stage's engine. Prefix caches are empty at the start of every pass. A side counts with its fastest turn:
others on the machine only slow one. Hit rates come from one more pass of each side, not timed: there vLLM's own
counters are on (cached tokens over prompt tokens), of the stage as Ray exports them.

The samples and, without `perspectives.model`, the pocket LM come from a run named benchmark-inference, made if need be.
Perspectives whose answers are held to candidates are left out. The figures go into docs/results.md by

    python benchmarks/inference.py --json FILE
    python docs/results.py --add inference FILE --dataset demo --command 'python benchmarks/inference.py'
    python docs/results.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

os.environ.setdefault("RAY_metrics_report_interval_ms", "2000")  # read when Ray starts: hit rates of a short pass

import ray

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.cli import main as run_main
from llm4sbr_ray.config import Candidates, Perspectives
from llm4sbr_ray.data.ingest import ingest
from llm4sbr_ray.perspectives import engine, relational
from llm4sbr_ray.perspectives.infer import language_model
from llm4sbr_ray.perspectives.render import render

SIDES = ("plain", "text", "stage", "shuffled")
SETTLE_S = 10.0  # until the processes of the stage's engine are gone
QUERIES, HITS = "prefix_cache_queries", "prefix_cache_hits"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=3)
    own, settings = parser.parse_known_args()
    return run_main(partial(benchmark, own), ["--config", own.config, "--name", "benchmark-inference", *settings])


def benchmark(own: argparse.Namespace, run: Run) -> None:
    """Measure, print the table, write the JSON."""
    config = run.config.perspectives
    views = tuple(view for view in config.views if not isinstance(view.output, Candidates))
    config = config.model_copy(update={"views": views})
    ingest(run)
    model, identity, _ = language_model(run)
    aside = run.below(".benchmark")
    aside.delete("")
    render(run.below("data"), aside.below("prompts"), identity, config)
    prompts, questions, distinct = choose_prompts(aside, own.prompts)
    print(f"{questions:,} questions, {distinct:,} distinct prompts; {len(prompts):,} are asked of {model}", flush=True)
    catalogue = run.below("data").uri()
    plain = start_plain(model, catalogue, config)
    rows = {"plain": prompts, "text": prompts, "shuffled": shuffle(prompts)}
    passes: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    answers: dict[str, dict[str, str]] = {}
    for turn in range(own.turns):
        for place in range(len(SIDES)):
            side = SIDES[(place + turn) % len(SIDES)]
            if side == "stage":
                figures, answers[side] = stage_pass(aside, prompts, model, catalogue, config)
                time.sleep(SETTLE_S)
            else:
                figures, answers[side] = ray.get(plain.generate.remote(rows[side], side == "text"))
            passes[side].append(figures)
            print(f"turn {turn + 1}: {side}: {figures['rows_per_second']:,.1f} rows/s", flush=True)
    ray.kill(plain)
    time.sleep(SETTLE_S)
    counting = config.engine.engine_kwargs | {"disable_log_stats": False}
    counted = config.model_copy(update={"engine": config.engine.model_copy(update={"engine_kwargs": counting})})
    with Counters() as counters:
        stage_pass(aside, prompts, model, catalogue, counted)
    time.sleep(SETTLE_S)
    plain = start_plain(model, catalogue, counted)
    hit_rates = {"stage": counters.hit_rate()}
    for side in ("plain", "shuffled"):
        hit_rates[side] = ray.get(plain.hit_rate.remote(rows[side]))
    report(own, config, passes, hit_rates, answers, questions, distinct)
    aside.delete("")


def start_plain(model: str, catalogue: str, config: Perspectives) -> Any:
    """An actor with the environment and the settings of the stage's engine."""
    settings = engine.processor_config(model, config)
    engine_kwargs = {name: value for name, value in settings.engine_kwargs.items() if name != "task_type"}  # Ray's own
    return Plain.options(  # type: ignore[attr-defined]  # a Ray actor
        num_cpus=config.engine.cpus_per_actor,
        num_gpus=int(engine.uses_gpu(config.engine)),
        # In one process, which on a few cores is its fastest way: of two, one computes and the other spins.
        runtime_env={"env_vars": settings.runtime_env["env_vars"] | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}},
    ).remote(model, engine_kwargs, catalogue, config)


def choose_prompts(aside: Store, n: int) -> tuple[pa.Table, int, int]:
    """n distinct prompts of the first samples, which keeps the prefixes of a session together, in the stage's order."""
    database = relational.connect()
    database.register("prompts", relational.dataset(aside, "prompts"))
    ((questions, distinct),) = database.sql("SELECT count(*), count(DISTINCT prompt_key) FROM prompts").fetchall()
    query = database.sql(
        "SELECT * FROM (SELECT prompt_key, any_value(view) AS view, any_value(items) AS items, "
        "any_value(candidates) AS candidates FROM prompts "
        "GROUP BY prompt_key ORDER BY min(position), view LIMIT $n) ORDER BY view, items",
        params={"n": n},
    )
    return query.to_arrow_table(), questions, distinct


def shuffle(prompts: pa.Table) -> pa.Table:
    return prompts.take(pa.array(np.random.default_rng(0).permutation(len(prompts))))


@ray.remote
class Plain:
    """`vllm.LLM` and nothing around it."""

    def __init__(self, model: str, engine_kwargs: dict[str, Any], catalogue: str, config: Perspectives) -> None:
        from vllm import LLM, SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        self.tokenise = engine.Tokenise(model, catalogue, config)
        self.params = {}
        for view, params in self.tokenise.params.items():
            structured = params["structured_outputs"] and StructuredOutputsParams(**params["structured_outputs"])
            self.params[view] = SamplingParams(**params | {"structured_outputs": structured})
        self.llm = LLM(model=model, **engine_kwargs)

    def generate(self, prompts: pa.Table, as_text: bool = False) -> tuple[dict[str, float], dict[str, str]]:
        views: list[Any] = prompts["view"].to_pylist()
        items: list[Any] = prompts["items"].to_pylist()
        tokens = [self.tokenise.tokens(view, shown)[0] for view, shown in zip(views, items, strict=True)]
        asked: list[Any] = [{"prompt_token_ids": ids} for ids in tokens]
        if as_text:
            asked = self.tokenise.tokenizer.batch_decode(tokens)
        params = [self.params[view] for view in views]
        self.llm.reset_prefix_cache()
        began = time.perf_counter()
        outputs = self.llm.generate(asked, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        keys: list[Any] = prompts["prompt_key"].to_pylist()
        answers = {key: " ".join(out.outputs[0].text.split()) for key, out in zip(keys, outputs, strict=True)}
        return {"rows_per_second": len(prompts) / seconds, "seconds": seconds}, answers

    def hit_rate(self, prompts: pa.Table) -> float:
        before = self.counters()
        self.generate(prompts)
        after = self.counters()
        return (after[HITS] - before[HITS]) / (after[QUERIES] - before[QUERIES])

    def counters(self) -> dict[str, float]:
        """vLLM's counters of prompt tokens looked up in the prefix cache, and found there."""
        found = {metric.name.removeprefix("vllm:"): metric for metric in self.llm.get_metrics()}
        return {name: float(found[name].value) for name in (QUERIES, HITS)}  # type: ignore[attr-defined]


def stage_pass(
    aside: Store, prompts: pa.Table, model: str, catalogue: str, config: Perspectives
) -> tuple[dict[str, float], dict[str, str]]:
    """The product's own path, from prompts in Parquet to answers in Parquet."""
    asked, answers, done = (aside.below(name) for name in ("asked", "answers", "done"))
    for store in (asked, answers, done):
        store.delete("")
    rows = config.engine.write_rows
    for number, start in enumerate(range(0, len(prompts), rows)):
        asked.write_table(prompts.slice(start, rows), f"part-{number:05d}.parquet")
    engine.ask(asked, answers, done, model, catalogue, config)
    written = [info.mtime.timestamp() for info in answers.fs.get_file_info(answers.files(suffix=".parquet"))]
    table = answers.read_table("", columns=["prompt_key", "answer", "error", "answered_at", "engine_seconds"])
    if table["error"].null_count < len(table):
        raise SystemExit(f"errors in the stage: {table['error'].drop_null()[0]}")
    began = pc.min(pc.subtract(table["answered_at"], table["engine_seconds"])).as_py()
    seconds = max(written) - began
    figures = {"rows_per_second": len(table) / seconds, "seconds": seconds}
    return figures, dict(zip(table["prompt_key"].to_pylist(), table["answer"].to_pylist(), strict=True))  # type: ignore[arg-type]


class Counters:
    """The prefix-cache counters of engines that start within the context, read from the nodes' metrics pages."""

    def __init__(self) -> None:
        self.first = self.scrape()
        self.last: dict[str, float] = dict(self.first)  # metrics of an actor go with it, so the last seen is kept
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Counters:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def hit_rate(self) -> float:
        new = {name: value - self.first.get(name, 0.0) for name, value in self.last.items()}
        total = {kind: sum(value for name, value in new.items() if f"_{kind}" in name) for kind in (QUERIES, HITS)}
        return total[HITS] / total[QUERIES] if total[QUERIES] else float("nan")

    def scrape(self) -> dict[str, float]:
        found = {}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with opener.open(url, timeout=10) as page:
                for line in page.read().decode().splitlines():
                    if line.startswith("ray_vllm") and (QUERIES in line or HITS in line):
                        name, value = line.rsplit(" ", 1)
                        found[name] = float(value)
        return found

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.last |= self.scrape()


def report(
    own: argparse.Namespace,
    config: Perspectives,
    passes: dict[str, list[dict[str, float]]],
    hit_rates: dict[str, float],
    answers: dict[str, dict[str, str]],
    questions: int,
    distinct: int,
) -> None:
    best = {side: max(turns, key=lambda turn: turn["rows_per_second"]) for side, turns in passes.items()}
    print(f"\n{'side':10}{'rows/s':>10}{'of plain':>10}{'hit rate':>10}   rows/s of each turn")
    for side, figures in best.items():
        ratio = figures["rows_per_second"] / best["plain"]["rows_per_second"]
        turns = " ".join(f"{turn['rows_per_second']:.1f}" for turn in passes[side])
        hit_rate = f"{hit_rates[side]:.1%}" if side in hit_rates else ""
        print(f"{side:10}{figures['rows_per_second']:10.1f}{ratio:10.3f}{hit_rate:>10}   {turns}")
    same = sum(answers["stage"][key] == answer for key, answer in answers["plain"].items()) / len(answers["plain"])
    rates = {side: figures["rows_per_second"] for side, figures in best.items()}
    figures = {
        "ratio_to_plain_vllm": round(rates["stage"] / rates["plain"], 3),
        "ratio_to_plain_vllm_of_text": round(rates["stage"] / rates["text"], 3),
        "layout_gain": round(rates["plain"] / rates["shuffled"] - 1, 3),
        **{f"hit_rate_{side}": round(rate, 4) for side, rate in hit_rates.items()},
        **{f"rows_per_second_{side}": round(rate, 1) for side, rate in rates.items()},
        "same_answers": round(same, 4),
        "prompts": len(answers["plain"]),
        "calls_saved": questions - distinct,
        "questions": questions,
    }
    print(f"same answers as plain: {same:.1%}; identical prompts save {questions - distinct:,} of {questions:,} calls")
    if own.json:
        settings = {"config": own.config, "turns": own.turns, "engine": config.engine.model_dump(mode="json")}
        own.json.write_text(json.dumps({"figures": figures, "settings": settings, "passes": passes}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
