"""``report/metrics.json``: every figure of an evaluation, as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import harmonic_mean
from typing import Any

import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.evaluation.breakdown import RanksOf, breakdown
from llm4sbr_ray.evaluation.comparisons import compare
from llm4sbr_ray.evaluation.metrics import KS, metric_means, over_seeds
from llm4sbr_ray.evaluation.protocol import PROTOCOLS
from llm4sbr_ray.evaluation.testset import TestSet
from llm4sbr_ray.evaluation.variants import Variant
from llm4sbr_ray.training.load import DESCRIPTION, HISTORY, model_folder

History = list[dict[str, Any]]


def read_histories(run: Run, variants: Sequence[Variant]) -> dict[str, dict[int, History]]:
    """Training history of each trained model, by seed: a record an epoch."""
    return {v.model: {seed: run.read_json(model_folder(v.model, seed), HISTORY) for seed in v.seeds} for v in variants}


def build_metrics(
    run: Run,
    variants: Sequence[Variant],
    n_items: int,
    test: TestSet,
    ranks: RanksOf,
    histories: dict[str, dict[int, History]],
) -> dict[str, Any]:
    """The contents of metrics.json: metrics as fractions, spreads as sample standard deviations over seeds.

    `seconds` is the mean wall time of the training stage of a seed, `train_samples_per_second` the mean over
    seeds of training samples per second of the training loop.
    """
    config = run.config
    train_samples = sum(
        pq.read_metadata(path, filesystem=run.fs).num_rows for path in run.files("data/train", suffix=".parquet")
    )
    seeds = ", ".join(map(str, config.train.seeds))
    return {
        "run": config.name,
        "dataset": config.dataset or config.name,
        "protocol": f"full ranking over {n_items:,} items, ties against the model, a miss counts 0, "
        f"K = {', '.join(map(str, KS))}, samples: {config.data.samples}, seeds {seeds}",
        "counts": {
            "train_samples": train_samples,
            "test_samples": len(test),
            "items": n_items,
            "test_samples_with_repeated_target": test.repeats,
            "test_samples_with_cold_target": int((test.target_count_N == 0).sum()),
        },
        "models": {v.name: _model(run, v, ranks[v.name], histories[v.model]) for v in variants},
        "perspectives": _perspectives(run) if any(v.backbone for v in variants) else {},
        "comparisons": compare(variants, ranks, test.group_N, config.seed),
        "breakdown": breakdown(test, ranks),
    }


def _model(run: Run, variant: Variant, ranks: dict[str, list[Any]], histories: dict[int, History]) -> dict[str, Any]:
    stages = run.manifest()["stages"]
    means = {protocol: [metric_means(rank_N) for rank_N in ranks[protocol]] for protocol in PROTOCOLS}
    # Epochs are of equal size, so this is all their samples by all their seconds.
    rates = [harmonic_mean([epoch["samples_per_second"] for epoch in h]) for h in histories.values()]
    seconds = [stages[model_folder(variant.model, seed)]["seconds"] for seed in variant.seeds]
    descriptions = [run.read_json(model_folder(variant.model, seed), DESCRIPTION) for seed in variant.seeds]
    return {
        "label": variant.label,
        "seeds": list(variant.seeds),
        **{protocol: over_seeds(means[protocol]) for protocol in PROTOCOLS},
        "per_seed": [
            {"seed": seed, **{protocol: means[protocol][n] for protocol in PROTOCOLS}}
            for n, seed in enumerate(variant.seeds)
        ],
        "train_samples_per_second": round(sum(rates) / len(rates), 1),
        "seconds": round(sum(seconds) / len(seconds), 3),
        "epochs": [len(history) for history in histories.values()],
        "best_epochs": [description["best_epoch"] for description in descriptions],
    }


def _perspectives(run: Run) -> dict[str, Any]:
    """Figures that the stages "perspectives" and "intents" left in the manifest."""
    stages = run.manifest()["stages"]
    asked, localised = (stages.get(name, {}).get("perspectives", {}) for name in ("perspectives", "intents"))
    return {
        view.name: localised.get(view.name, {}) | asked.get(view.name, {})
        for view in run.config.perspectives.views
        if view.name in asked or view.name in localised
    }
