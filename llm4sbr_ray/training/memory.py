"""The weights of a `MemoryRecommender`, chosen on validation data: its own stage, after that of the network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from llm4sbr_ray.artifacts import Facts, Stage
from llm4sbr_ray.config import MemoryConfig
from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.build import is_llm4sbr, without_memory
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.models.ranking import Seen, metric_sums
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.counts import train_sessions
from llm4sbr_ray.training.inputs import parquet_files, read_samples, require_samples, source
from llm4sbr_ray.training.load import load_model, new_model, save_model

K = 20
BEST_OF_EACH = 100  # items that each component proposes: a target is ranked among all that are proposed
MAX_SCORES = 2**24  # of one batch
STEPS = (0.2, 0.1, 0.05)  # of the weights
MIN_SAMPLES = 500  # of a group that has weights of its own
BELOW_ALL = -1.0  # below all probabilities: ranks before no target
SEEN = -2.0  # of a session's own items where these are left out: a target among them ranks last


class Proposals(NamedTuple):
    """Probabilities of N samples, X proposed items a sample."""

    found_CNX: Tensor  # BELOW_ALL for the target and for repeated ones
    target_CN: Tensor  # SEEN for one that is left out
    group_N: Tensor  # int64

    def take(self, chosen_N: Tensor) -> Proposals:
        return Proposals(self.found_CNX[:, chosen_N], self.target_CN[:, chosen_N], self.group_N[chosen_N])


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
    require_samples(1, len(valid))
    ways = [valid]
    if is_llm4sbr(name) and valid.intents is not None:  # good with the LLM's answers and without them
        ways.append(replace(valid, intents=None))
    weight_GC, score = choose_weights(model, ways, config.memory, config.train.rank_seen)
    model.weight_GC.copy_(weight_GC)
    seconds = time.perf_counter() - began
    weights = {
        group: {part: round(float(w), 4) for part, w in zip(model.components, weight_C, strict=True)}
        for group, weight_C in zip(_group_names(config.memory.lengths), weight_GC, strict=True)
    }
    rate = round(len(valid) / seconds, 1)
    record = {"epoch": 1, "seconds": round(seconds, 3), "samples_per_second": rate, "weights": weights}
    record[f"valid_{config.memory.select_by}"] = score
    save_model(stage.store, config, name, seed, model.n_items, model.state_dict(), [record], best_epoch=1)
    for group, by_part in weights.items():
        shown = ", ".join(f"{part} {w:g}" for part, w in by_part.items() if w)
        print(f"[{stage.name}] {group}: {shown}", flush=True)
    return {"rows": len(valid), "weights": weights, "valid_score": score}


def _group_names(lengths: Sequence[int]) -> list[str]:
    return [*(f"up to {length} clicks" for length in lengths), "longer" if lengths else "all"]


def choose_weights(
    model: MemoryRecommender, ways: Sequence[Samples], config: MemoryConfig, rank_seen: bool
) -> tuple[Tensor, float]:
    """Move weight between components as long as a validation metric grows, in ever smaller steps.

    The search is deterministic. It begins with all the weight at the network and with even weights, over all samples;
    then each group of session lengths that has `MIN_SAMPLES` goes on by itself, from these and from the best of all. So
    the mixture is never worse there than the network alone.

    Parameters
    ----------
    model
        With fitted counts, in eval mode.
    ways
        The same validation samples with the LLM's answers and without: the metric is the mean over all.
    config
        `select_by`, the metric, and `max_samples` of each way, drawn from a fixed seed.
    rank_seen
        Whether a session's own items are ranked too.

    Returns
    -------
    weight_GC, score
        Rows that sum to 1, and the metric they reach among the proposed items.
    """
    parts = [propose(model, samples, config.max_samples, rank_seen) for samples in ways]
    found, targets, groups = zip(*parts, strict=True)
    proposals = Proposals(torch.cat(found, dim=1), torch.cat(targets, dim=1), torch.cat(groups))
    return weights_of_groups(proposals, len(model.weight_GC), config.select_by)


def weights_of_groups(proposals: Proposals, groups: int, metric: str) -> tuple[Tensor, float]:
    """`choose_weights` on what was proposed."""
    C = len(proposals.target_CN)
    network_C, even_C = torch.eye(C)[0], torch.full((C,), 1 / C)
    all_C, _ = _best_climb(proposals, (network_C, even_C), metric)
    rows, total = [], 0.0
    for group in range(groups):
        own = proposals.take(proposals.group_N == group)
        n = len(own.group_N)
        if n >= MIN_SAMPLES:
            weight_C, score = _best_climb(own, (all_C, network_C, even_C), metric)
        else:
            weight_C, score = all_C, measure(own, all_C, metric)
        rows.append(weight_C)
        total += n * score
    return torch.stack(rows), total / len(proposals.group_N)


def measure(proposals: Proposals, weight_C: Tensor, metric: str) -> float:
    """The metric of the rankings that these weights make of what is proposed; 0 of no samples."""
    if not len(proposals.group_N):
        return 0.0
    mixed_NX = torch.einsum("c,cnx->nx", weight_C, proposals.found_CNX)
    rank_N = 1 + (mixed_NX >= (weight_C @ proposals.target_CN)[:, None]).sum(dim=1)
    return float(metric_sums(rank_N, (K,))[metric] / len(rank_N))


def _best_climb(proposals: Proposals, starts: Sequence[Tensor], metric: str) -> tuple[Tensor, float]:
    """From several starts, as a climb ends where no small step is better; of equals the first."""
    return max((_climb(proposals, start_C, metric) for start_C in starts), key=lambda climbed: climbed[1])


def _climb(proposals: Proposals, weight_C: Tensor, metric: str) -> tuple[Tensor, float]:
    best = measure(proposals, weight_C, metric)
    for step in STEPS:
        while True:
            moves = [_moved(weight_C, i, j, step) for i, j in permutations(range(len(weight_C)), 2) if weight_C[i] > 0]
            scores = [measure(proposals, move, metric) for move in moves]
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
def propose(model: MemoryRecommender, samples: Samples, max_samples: int, rank_seen: bool) -> Proposals:
    """What each component says of the best items of all components, and of the target.

    Without seen items none of them is proposed, and a target that is one ranks after all that are.
    """
    n = min(len(samples), max_samples)
    chosen_N = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:n].sort().values
    size = max(1, MAX_SCORES // model.n_items)
    found, targets, groups = [], [], []
    for rows_B in chosen_N.split(size):
        batch, target_B = samples.batch(rows_B)
        found_CBX, target_CB = _propose(model, batch, target_B, None if rank_seen else samples.seen(rows_B))
        found.append(found_CBX)
        targets.append(target_CB)
        groups.append(model.group_of(batch.length_B))
    return Proposals(torch.cat(found, dim=1), torch.cat(targets, dim=1), torch.cat(groups))


def _propose(
    model: MemoryRecommender, batch: SessionBatch, target_B: Tensor, seen: Seen | None
) -> tuple[Tensor, Tensor]:
    parts = list(model.distributions(batch))
    if seen is not None:
        for part_BV in parts:
            part_BV[seen] = SEEN
    k = min(BEST_OF_EACH, model.n_items)
    item_BX = torch.cat([part_BV.topk(k, dim=1).indices for part_BV in parts], dim=1).sort(dim=1).values
    repeated_BX = torch.zeros_like(item_BX, dtype=torch.bool)
    repeated_BX[:, 1:] = item_BX[:, 1:] == item_BX[:, :-1]
    never_BX = repeated_BX | (item_BX == target_B[:, None])
    found_CBX = torch.stack([part_BV.gather(1, item_BX).masked_fill(never_BX, BELOW_ALL) for part_BV in parts])
    return found_CBX, torch.stack([part_BV.gather(1, target_B[:, None])[:, 0] for part_BV in parts])
