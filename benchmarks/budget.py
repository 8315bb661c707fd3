"""Recall@20 against calls of the LLM: how few answers keep the gain, and whose prompts should be asked first.

    python benchmarks/budget.py --config configs/demo.yaml [--backbone srgnn] [--json FILE] [--train.seeds 0,1,2]

It reads the samples and intents of a run whose perspectives are done with every prompt asked (jobs/infer.py), and takes
away what `perspectives.budget` would not have asked, by the stage's own choice of prompts: nothing is asked again. Each
budget is then trained in this process with the run's settings, beside the plain backbone and the one that starts from
the item texts. Figures are of validation, at the epoch that each would keep: test isn't touched. Stopped, it goes on
after the last row that stands in FILE, if backbone and settings are the same.

    kept        (score - plain) / (score with all answers - plain)
    answered    samples that have the answers of all perspectives: a prompt that many samples share is one call
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from duckdb import DuckDBPyRelation
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.config import Budget, RunConfig, load_config
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import Intents
from llm4sbr_ray.models.build import LLM4SBR_SUFFIX, TEXT_SUFFIX
from llm4sbr_ray.perspectives import relational
from llm4sbr_ray.perspectives.budget import choose
from llm4sbr_ray.perspectives.render import PROMPT_SCHEMA
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.loop import train_model
from llm4sbr_ray.training.start import starting_model

METRIC = "valid_recall@20"
POLICIES = ("all", "uncertain", "one_per_session")
Keep = Callable[[list[dict[str, Any]]], None]
Chosen = dict[str, pa.Array]  # perspective -> keys of the samples that keep their answer


@dataclass(frozen=True)
class Row:
    """One budget; None keeps what is there (a model without perspectives has no answers to lose)."""

    name: str
    model: str
    budget: Budget | None = None


def write_prompts(run: Run, prompts: Store) -> int:
    """What the stage rendered, from its answers and the samples; returns the number of distinct prompts."""
    config = run.config.perspectives
    database = relational.connect()
    answers = [
        database.from_arrow(relational.dataset(run, "perspectives", view.name)).project(
            f"position, split, sample_key, prompt_key, '{view.name}' AS view"
        )
        for view in config.views
    ]
    samples = [
        database.from_arrow(relational.dataset(run, "data", split)).project("sample_key, items")
        for split in config.splits
    ]
    whole = reduce(DuckDBPyRelation.union, answers).join(reduce(DuckDBPyRelation.union, samples), "sample_key")
    names = "position, split, sample_key, view, prompt_key"
    rows = whole.project(f"{names}, items[-{config.max_items}:] AS items, NULL AS candidates")
    relational.copy_to(rows, prompts, "", PROMPT_SCHEMA)
    ((distinct,),) = rows.aggregate("count(DISTINCT prompt_key)").fetchall()
    return int(distinct)


def kept_samples(run: Run, prompts: Store, budget: Budget) -> tuple[Chosen, int, float]:
    """The samples with an answer, the calls, and the share of samples that have all answers."""
    config = run.config.perspectives.model_copy(update={"budget": budget})
    with tempfile.TemporaryDirectory() as folder:
        choose(prompts, Store(folder), run.below("data"), config)
        rows = relational.dataset(Store(folder)).to_table(columns=["view", "sample_key", "prompt_key"])
    chosen = {v.name: rows.filter(pc.field("view") == v.name)["sample_key"].combine_chunks() for v in config.views}
    everything = relational.dataset(prompts).to_table(columns=["sample_key"])["sample_key"]
    of_a_sample = pc.value_counts(rows["sample_key"]).field("counts")
    whole = pc.sum(pc.equal(of_a_sample, len(config.views))).as_py() or 0
    calls = pc.count_distinct(rows["prompt_key"]).as_py()
    return chosen, calls, whole / pc.count_distinct(everything).as_py()


def without_others(samples: Samples, run: Run, chosen: Chosen) -> Samples:
    """As the stages after a bounded LLM stage hold them: no answer, no items."""
    assert samples.intents is not None
    names = [view.name for view in run.config.perspectives.views]
    has = [pc.is_in(samples.keys_N, value_set=chosen[name]).to_numpy() for name in names]
    has_NP = torch.stack([torch.from_numpy(column) for column in has], dim=1)
    kept = Intents(
        samples.intents.item_BPR,
        samples.intents.weight_BPR * has_NP[:, :, None],
        samples.intents.grounded_BP & has_NP,
    )
    return dataclasses.replace(samples, intents=kept)


def train_row(run: Run, model: str, seed: int, chosen: Chosen | None) -> float:
    """The metric on validation at the best epoch."""
    torch.manual_seed(seed)
    network = starting_model(run, model)
    parts = [read_samples(run, source(run, model, split)) for split in ("train", "valid")]  # type: ignore[arg-type]
    if chosen is not None:
        parts = [without_others(samples, run, chosen) for samples in parts]
    counters = train_model(network, *parts, run.config.train, seed).counters
    return float(counters.history[counters.best_epoch - 1][METRIC])


def rows_of(config: RunConfig, backbone: str, prompts: int, shares: list[float], policies: list[str]) -> list[Row]:
    ours = backbone + LLM4SBR_SUFFIX
    rows = [Row("plain", backbone), Row("text start", backbone + TEXT_SUFFIX), Row("all answers", ours)]
    for policy in policies:
        if policy == "one_per_session":
            rows.append(Row("one_per_session", ours, Budget(policy="one_per_session")))
            continue
        for share in shares:
            calls = max(1, round(share * prompts))
            rows.append(Row(f"{policy} {share:.0%}", ours, Budget(policy=policy, calls=calls)))  # type: ignore[arg-type]
    return rows


def measure(
    run: Run, backbone: str, shares: list[float], policies: list[str], done: Mapping[str, Any], keep: Keep
) -> list[dict[str, Any]]:
    """The rows; those that are `done` (name -> row) are not trained again, and `keep` is told of each new one."""
    config = run.config.perspectives
    if not config.budget.asks_all() or any(view.level == "item" for view in config.views):
        raise UserError("perspectives: the run has to have asked every prompt, all of level session")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        prompts = Store(folder)
        rows = rows_of(run.config, backbone, write_prompts(run, prompts), shares, policies)
        task = progress.add_task("budgets", total=len(rows) * len(run.config.train.seeds))
        for row in rows:
            if row.name in done:
                found.append(done[row.name])
                progress.advance(task, len(run.config.train.seeds))
                continue
            chosen, calls, answered = kept_samples(run, prompts, row.budget or Budget())
            scores = []
            for seed in run.config.train.seeds:
                progress.update(task, description=f"{row.name}, seed {seed}")
                scores.append(train_row(run, row.model, seed, chosen if row.budget else None))
                progress.advance(task)
            if not row.model.endswith(LLM4SBR_SUFFIX):
                calls, answered = 0, 0.0
            found.append({"budget": row.name, "calls": calls, "answered": round(answered, 4), "per_seed": scores})
            keep(found)
            print(f"[budget] {row.name}: {calls} calls, {METRIC} {scores}", file=sys.stderr, flush=True)
    plain, everything = (statistics.mean(found[i]["per_seed"]) for i in (0, 2))
    for each in found:
        each[METRIC] = round(statistics.mean(each["per_seed"]), 4)
        each["kept"] = round((statistics.mean(each["per_seed"]) - plain) / (everything - plain), 3)
    return found


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("budget", "calls", "answered", METRIC, "kept"):
        table.add_column(name, justify="left" if name == "budget" else "right")
    for row in rows:
        spread = f" ± {statistics.stdev(row['per_seed']):.4f}" if len(row["per_seed"]) > 1 else ""
        score = f"{row[METRIC]:.4f}{spread}"
        table.add_row(row["budget"], f"{row['calls']:,}", f"{row['answered']:.1%}", score, f"{row['kept']:.0%}")
    Console(width=120).print(table)


def benchmark(own: argparse.Namespace, run: Run) -> None:
    settings = {"backbone": own.backbone, "config": run.config.model_dump(mode="json")}
    earlier = json.loads(own.json.read_text()) if own.json and own.json.exists() else {}
    same = {name: earlier.get(name) for name in settings} == settings
    done = {row["budget"]: row for row in earlier["rows"]} if same else {}

    def keep(rows: list[dict[str, Any]], figures: Mapping[str, Any] | None = None) -> None:
        if own.json:
            content = {"figures": figures or {}, "rows": rows, **settings}
            own.json.write_text(json.dumps(content, indent=1) + "\n")

    rows = measure(run, own.backbone, own.shares, own.policies, done, keep)
    name = run.config.dataset or run.config.name
    show(rows, f"{own.backbone}+llm4sbr on {name}, validation, seeds {list(run.config.train.seeds)}")
    kept = ("calls", "answered", METRIC, "kept")
    keep(rows, {f"budget_{row['budget'].replace(' ', '_')}_{key}": row[key] for row in rows for key in kept})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--backbone", default="srgnn")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--json", type=Path)
    own, settings = parser.parse_known_args()
    try:
        benchmark(own, Run(load_config(settings)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
