"""The weights of a `MemoryRecommender`, chosen on validation data: its own stage, after that of the network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor

from llm4sbr_ray.artifacts import Facts, Stage
from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.build import is_llm4sbr, without_memory
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.models.ranking import metric_sums
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.counts import train_sessions
from llm4sbr_ray.training.inputs import parquet_files, read_samples, require_samples, source
from llm4sbr_ray.training.load import load_model, new_model, save_model

K = 20
BEST_OF_EACH = 100  # items that each component proposes: a target is ranked among all that are proposed
MAX_SCORES = 2**24  # of one batch
STEPS = (0.2, 0.1, 0.05)  # of the weights


def fit_memory_model(stage: Stage, name: str, seed: int) -> Facts:
    """Body of the stage of a "+memory" model."""
    run, config = stage.run, stage.run.config
    began = time.perf_counter()
    model = new_model(run, config, name)
    assert isinstance(model, MemoryRecommender)
    model.network.load_state_dict(load_model(run, without_memory(name), seed).state_dict())
    tables = (run.read_table(file, columns=["items", "target", "is_last"]) for file in parquet_files(run, "data/train"))
    model.fit_counts(*train_sessions([table.filter(table["is_last"]) for table in tables]))
    model.eval()
    valid = read_samples(run, source(run, name, "valid"))
    require_samples(config, max(1, config.train.workers), len(valid))
    ways = [valid]
    if is_llm4sbr(name) and valid.intents is not None:  # good with the LLM's answers and without them
        ways.append(replace(valid, intents=None))
    weight_C, score = choose_weights(model, ways, config.memory.select_by, config.memory.max_samples)
    model.weight_C.copy_(weight_C)
    seconds = time.perf_counter() - began
    weights = {part: round(float(w), 4) for part, w in zip(model.components, weight_C, strict=True)}
    rate = round(len(valid) / seconds, 1)
    record = {"epoch": 1, "seconds": round(seconds, 3), "samples_per_second": rate, "weights": weights}
    record[f"valid_{config.memory.select_by}"] = score
    save_model(stage.store, config, name, seed, model.n_items, model.state_dict(), [record], best_epoch=1)
    print(f"[{stage.name}] {', '.join(f'{part} {w:g}' for part, w in weights.items())}", flush=True)
    return {"rows": len(valid), "weights": weights, "valid_score": score}


def choose_weights(
    model: MemoryRecommender, ways: Sequence[Samples], metric: str, max_samples: int
) -> tuple[Tensor, float]:
    """Move weight between components as long as a validation metric grows, in ever smaller steps.

    The search is deterministic; it begins with all the weight at the network, so that the mixture is never worse there
    than the network alone.

    Parameters
    ----------
    model
        With fitted counts, in eval mode.
    ways
        The same validation samples with the LLM's answers and without: the metric is the mean over all.
    metric
        "recall@20", "mrr@20" or "ndcg@20".
    max_samples
        Of each way, drawn from a fixed seed.

    Returns
    -------
    weight_C, score
        Weights that sum to 1, and the metric they reach among the proposed items.
    """
    parts = [propose(model, samples, max_samples) for samples in ways]
    found_CNX, target_CN = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))

    def measure(weight_C: Tensor) -> float:
        mixed_NX = torch.einsum("c,cnx->nx", weight_C, found_CNX)
        rank_N = 1 + (mixed_NX >= (weight_C @ target_CN)[:, None]).sum(dim=1)
        return float(metric_sums(rank_N, (K,))[metric] / len(rank_N))

    weight_C = model.weight_C.new_zeros(len(model.components))
    weight_C[0] = 1
    best = measure(weight_C)
    for step in STEPS:
        while True:
            moves = [_moved(weight_C, i, j, step) for i, j in permutations(range(len(weight_C)), 2) if weight_C[i] > 0]
            scores = [measure(move) for move in moves]
            if max(scores) <= best:
                break
            best, weight_C = max(scores), moves[scores.index(max(scores))]
    return weight_C, best


def _moved(weight_C: Tensor, source: int, target: int, step: float) -> Tensor:
    moved_C = weight_C.clone()
    amount = min(step, float(moved_C[source]))
    moved_C[source] -= amount
    moved_C[target] += amount
    return moved_C


@torch.inference_mode()
def propose(model: MemoryRecommender, samples: Samples, max_samples: int) -> tuple[Tensor, Tensor]:
    """What each component says of the best items of all components, and of the target.

    Returns
    -------
    found_CNX, target_CN
        Probabilities of N samples; X proposed items a sample, with -1 for the target and for repeated ones: they never
        rank before the target.
    """
    n = min(len(samples), max_samples)
    chosen_N = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:n].sort().values
    size = max(1, MAX_SCORES // model.n_items)
    found, targets = [], []
    for rows_B in chosen_N.split(size):
        batch, target_B = samples.batch(rows_B)
        found_CBX, target_CB = _propose(model, batch, target_B)
        found.append(found_CBX)
        targets.append(target_CB)
    return torch.cat(found, dim=1), torch.cat(targets, dim=1)


def _propose(model: MemoryRecommender, batch: SessionBatch, target_B: Tensor) -> tuple[Tensor, Tensor]:
    parts = list(model.distributions(batch))
    k = min(BEST_OF_EACH, model.n_items)
    item_BX = torch.cat([part_BV.topk(k, dim=1).indices for part_BV in parts], dim=1).sort(dim=1).values
    repeated_BX = torch.zeros_like(item_BX, dtype=torch.bool)
    repeated_BX[:, 1:] = item_BX[:, 1:] == item_BX[:, :-1]
    never_BX = repeated_BX | (item_BX == target_B[:, None])
    found_CBX = torch.stack([part_BV.gather(1, item_BX).masked_fill(never_BX, -1) for part_BV in parts])
    return found_CBX, torch.stack([part_BV.gather(1, target_B[:, None])[:, 0] for part_BV in parts])
