"""The weights of a `MemoryRecommender`, fitted to validation data: its own stage, after that of the network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from llm4sbr_ray.artifacts import Facts, Stage
from llm4sbr_ray.config import MemoryConfig
from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.build import is_llm4sbr, without_memory
from llm4sbr_ray.models.memory import HELD, LATELY, NETWORK, POPULAR, MemoryRecommender
from llm4sbr_ray.models.ranking import Seen, metric_sums
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.counts import train_sessions
from llm4sbr_ray.training.inputs import parquet_files, read_samples, require_samples, source
from llm4sbr_ray.training.load import load_model, new_model, save_model

K = 20
BEST_OF_EACH = 50  # items that the network and each count model propose: a target is weighed against all of them
MAX_SCORES = 2**24  # of one batch
PENALTY = 1e-4  # of the weights' squares
MAX_STEPS = 200
EITHER_SIGN = (HELD, POPULAR, LATELY)  # all others speak for an item, or say nothing


class Choices(NamedTuple):
    """What N validation sessions had to choose among: X proposed items a session, some of them void."""

    feature_CNX: Tensor
    target_CN: Tensor
    void_NX: Tensor  # proposed twice, the target itself, or left out of the ranking
    proposed_N: Tensor  # whether the target is among the items that were proposed
    longness_N: Tensor  # 0 for one click to 1 for the longest sessions

    def take(self, kept_N: Tensor) -> Choices:
        return Choices(*(part[:, kept_N] for part in self[:2]), *(part[kept_N] for part in self[2:]))


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
    choices = choices_of(model, ways, config.memory, config.train.rank_seen)
    model.weight_2C.copy_(fit_weights(choices, model.components))
    score = measure(choices, model.weight_2C, config.train.select_by)
    seconds = time.perf_counter() - began
    weights = {
        part: [round(end, 4) for end in ends]
        for part, ends in zip(model.components, model.weight_2C.T.tolist(), strict=True)
    }
    rate = round(len(valid) / seconds, 1)
    record = {"epoch": 1, "seconds": round(seconds, 3), "samples_per_second": rate, "weights": weights}
    record[f"valid_{config.train.select_by}"] = score
    save_model(stage.store, config, name, seed, model.n_items, model.state_dict(), [record], best_epoch=1)
    shown = ", ".join(f"{part} {short:g}..{long:g}" for part, (short, long) in weights.items())
    print(f"[{stage.name}] weights of 1..{model.max_length} clicks: {shown}", flush=True)
    return {"rows": len(valid), "weights": weights, "valid_score": score}


def fit_weights(choices: Choices, components: Sequence[str]) -> Tensor:
    """The conditional logit of the targets among what was proposed, by L-BFGS-B: convex, so there is one answer.

    A session whose target nothing proposed can't be won by weights, and is left out. Where all are, the network
    keeps all the weight.

    Parameters
    ----------
    choices
        Of validation sessions.
    components
        Names, in the order of the features.

    Returns
    -------
    weight_2C
        float32, of a session of one click and of the longest.
    """
    start_C = np.array([float(part == NETWORK) for part in components])
    start_2C = np.stack([start_C, start_C])
    told = choices.take(choices.proposed_N)
    if not len(told.proposed_N):
        return torch.from_numpy(start_2C).float()

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight_2C = torch.from_numpy(weights.reshape(2, -1)).float()
        value, gradient_2C = negative_log_likelihood(told, weight_2C)
        gradient = gradient_2C.double().numpy().ravel() + 2 * PENALTY * weights
        return value + PENALTY * float((weights**2).sum()), gradient

    bounds = [(None if part in EITHER_SIGN else 0, None) for part in components] * 2
    found = minimize(loss, start_2C.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": MAX_STEPS})
    return torch.from_numpy(found.x.reshape(2, -1)).float()


def negative_log_likelihood(choices: Choices, weight_2C: Tensor) -> tuple[float, Tensor]:
    """Of the targets, the mean over sessions, and its gradient in the weights, 2 x C."""
    score_NX, target_N = _scores(choices, weight_2C)
    total_N = torch.logaddexp(score_NX.logsumexp(1), target_N)
    p_NX, p_N = (score_NX - total_N[:, None]).exp(), (target_N - total_N).exp()
    expected_CN = torch.stack([torch.linalg.vecdot(p_NX, part_NX) for part_NX in choices.feature_CNX])
    gradient_CN = (expected_CN + (p_N - 1) * choices.target_CN) / len(target_N)
    ends_N2 = torch.stack([1 - choices.longness_N, choices.longness_N], dim=1)
    return float((total_N - target_N).mean()), (gradient_CN @ ends_N2).T


def measure(choices: Choices, weight_2C: Tensor, metric: str) -> float:
    """The metric of the rankings that these weights make of what is proposed; a target that isn't is a miss."""
    score_NX, target_N = _scores(choices, weight_2C)
    rank_N = 1 + (score_NX >= target_N[:, None]).sum(dim=1)
    return float(metric_sums(rank_N.masked_fill(~choices.proposed_N, K + 1), (K,))[metric] / len(rank_N))


def _scores(choices: Choices, weight_2C: Tensor) -> tuple[Tensor, Tensor]:
    weight_CN = torch.lerp(weight_2C[0, :, None], weight_2C[1, :, None], choices.longness_N)
    score_NX = torch.zeros_like(choices.feature_CNX[0])
    for weight_N, part_NX in zip(weight_CN, choices.feature_CNX, strict=True):
        score_NX.addcmul_(weight_N[:, None], part_NX)
    return score_NX.masked_fill_(choices.void_NX, -torch.inf), (weight_CN * choices.target_CN).sum(0)


@torch.inference_mode()
def choices_of(model: MemoryRecommender, ways: Sequence[Samples], config: MemoryConfig, rank_seen: bool) -> Choices:
    """What each component says of the items that some component thinks best, and of the target.

    Parameters
    ----------
    model
        With fitted counts, in eval mode.
    ways
        The same validation samples with the LLM's answers and without: weights are fitted to all.
    config
        `max_samples` of each way, drawn from a fixed seed.
    rank_seen
        Whether a session's own items are ranked too. Without them a target that is one can't be won.
    """
    size = max(1, MAX_SCORES // model.n_items)
    parts = []
    for samples in ways:
        n = min(len(samples), config.max_samples)
        chosen_N = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:n].sort().values
        for rows_B in chosen_N.split(size):
            batch, target_B = samples.batch(rows_B)
            parts.append(_choices(model, batch, target_B, None if rank_seen else samples.seen(rows_B)))
    feature, target, *others = zip(*parts, strict=True)
    return Choices(torch.cat(feature, 1), torch.cat(target, 1), *map(torch.cat, others))


def _choices(model: MemoryRecommender, batch: SessionBatch, target_B: Tensor, seen: Seen | None) -> Choices:
    parts = list(model.features(batch))
    proposing = [parts[0], parts[0].masked_fill(parts[1] > 0, -torch.inf), *parts[2 : 2 + len(model.counts)]]
    k = min(BEST_OF_EACH, model.n_items)
    item_BX = torch.cat([part_BV.topk(k, dim=1).indices for part_BV in proposing], dim=1).sort(dim=1).values
    is_target_BX = item_BX == target_B[:, None]
    void_BX, proposed_B = is_target_BX.clone(), is_target_BX.any(dim=1)
    void_BX[:, 1:] |= item_BX[:, 1:] == item_BX[:, :-1]
    if seen is not None:
        left_out_BV = torch.zeros_like(parts[0], dtype=torch.bool)
        left_out_BV[seen] = True
        void_BX |= left_out_BV.gather(1, item_BX)
        proposed_B &= ~left_out_BV.gather(1, target_B[:, None])[:, 0]
    feature_CBX = torch.stack([part_BV.gather(1, item_BX) for part_BV in parts])
    target_CB = torch.stack([part_BV.gather(1, target_B[:, None])[:, 0] for part_BV in parts])
    return Choices(feature_CBX, target_CB, void_BX, proposed_B, model.longness(batch.length_B))
