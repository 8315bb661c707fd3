"""Stage "evaluate": every trained model on the test samples, both ways, and the report.

python jobs/evaluate.py --config configs/demo.yaml
"""

from __future__ import annotations

import contextlib
import time
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console

from llm4sbr_ray.artifacts import Facts, Run, Stage, Store
from llm4sbr_ray.data.quarantine import count_reasons
from llm4sbr_ray.evaluation.breakdown import RanksOf
from llm4sbr_ray.evaluation.console import print_result
from llm4sbr_ray.evaluation.examples import Names, before_and_after, collect_examples
from llm4sbr_ray.evaluation.metrics import Ranks, metric_means
from llm4sbr_ray.evaluation.predictions import PredictionWriter
from llm4sbr_ray.evaluation.protocol import PROTOCOLS, batch_rows, rank_samples
from llm4sbr_ray.evaluation.report import ReportData, render_report
from llm4sbr_ray.evaluation.results import build_metrics, read_histories
from llm4sbr_ray.evaluation.testset import read_testset, stream
from llm4sbr_ray.evaluation.variants import Variant, variants
from llm4sbr_ray.training.inputs import stages_before
from llm4sbr_ray.training.load import load_model, model_folder


def evaluate(run: Run) -> bool:
    """Run the stage, unless its output is there already, and print its result.

    Writes ``report/metrics.json``, ``report/index.html`` and ``report/predictions/``.

    Returns
    -------
    bool
        False if it was skipped.

    Raises
    ------
    UserError
        A stage before this one has not been run.
    """
    config = run.config
    shown = _variants(run)
    trained = {model_folder(v.model, seed): None for v in shown for seed in v.seeds}
    before = list(dict.fromkeys(stage for v in shown for stage in stages_before(v.model)))
    settings = {
        "evaluate": config.evaluate,
        "variants": [v.name for v in shown],
        "dataset": config.dataset,
        "seed": config.seed,
        "select_by": config.train.select_by,
    }
    fresh = run.stage("evaluate", outputs=["report"], settings=settings, after=[*before, *trained], body=_body)
    print_result(run.read_json("report", "metrics.json"), run.uri("report", "index.html"), Console())
    return fresh


def _variants(run: Run) -> list[Variant]:
    config = run.config
    return variants(config.train.models, config.train.seeds, "test" in config.perspectives.splits)


def _body(stage: Stage) -> Facts:
    run, config = stage.run, stage.run.config
    shown = _variants(run)
    items = run.read_table("data", "items.parquet", columns=["item_id", "title", "train_count"])
    answers = any(v.llm_answers for v in shown)
    folder = "intents/samples/test" if answers else "data/test"  # the same rows in the same order
    test = read_testset(
        stream(run, folder, config.evaluate.batch_size),
        items["train_count"].to_numpy().astype(np.int64),
        config.evaluate.example_sessions,
        config.seed,
    )
    item_ids = cast(pa.StringArray, items["item_id"].combine_chunks())
    ranks: RanksOf = {v.name: {protocol: [] for protocol in PROTOCOLS} for v in shown}
    for variant in shown:
        for seed in variant.seeds:
            found = _rank(run, stage.store, folder, variant, seed, item_ids)
            for protocol, rank_N in found.items():
                ranks[variant.name][protocol].append(rank_N)
    histories = read_histories(run, shown)
    metrics = build_metrics(run, shown, len(items), test, ranks, histories)
    stage.store.write_json(metrics, "report", "metrics.json")
    examples = collect_examples(
        run,
        stage.store,
        test.examples,
        Names(items),
        config.perspectives.views if answers else (),
        before_and_after(shown),
    )
    stages = {name: entry for name, entry in run.manifest()["stages"].items() if entry["status"] == "done"}
    page = render_report(ReportData(metrics, histories, config.train.select_by, count_reasons(run), stages, examples))
    stage.store.write_bytes(page.encode(), "report", "index.html")
    return {"rows": len(test), "models": len(shown)}


def _rank(run: Run, out: Store, folder: str, variant: Variant, seed: int, item_ids: pa.StringArray) -> dict[str, Ranks]:
    """Ranks of all test targets by protocol; the first seed's lists are written as predictions."""
    config, began = run.config, time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first = seed == variant.seeds[0]
    batches = rank_samples(
        load_model(run, variant.model, seed).to(device),
        stream(run, folder, batch_rows(config.evaluate.batch_size, len(item_ids))),
        len(item_ids),
        config.model.max_length,
        len(config.perspectives.views) if variant.llm_answers else 0,
        device,
        with_lists=first,
    )
    kept: dict[str, list[Ranks]] = {protocol: [] for protocol in PROTOCOLS}
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(PredictionWriter(out, variant.name, item_ids)) if first else None
        for batch in batches:
            for protocol, rank_B in batch.rank_B.items():
                kept[protocol].append(rank_B)
            if writer is not None:
                writer.write(batch)
    ranks = {protocol: np.concatenate(parts) for protocol, parts in kept.items()}
    means = metric_means(ranks["test"])
    print(
        f"[evaluate] {variant.name} seed {seed}: recall@20 {means['recall@20']:.4f}, "
        f"mrr@20 {means['mrr@20']:.4f}, {len(ranks['test']) / (time.perf_counter() - began):,.0f} samples/s",
        flush=True,
    )
    return ranks
