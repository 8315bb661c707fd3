"""What a memory is made of: its parts taken away, and the sum of probabilities it could be instead, out of sample.

    python benchmarks/memory.py --config configs/beauty.yaml --model sasrec+llm4sbr+memory [--json FILE]

Reads a run whose "+memory" model is trained, that of the first seed. Its validation samples (test isn't touched) fall
into four folds: what a fold is ranked with is fitted to the three others. LLM-free, without the sessions' own items,
over what network and counts propose; a target that nothing proposes is a miss.

"sum of probabilities": p(j) = sum_c w_c p_c(j), the network's over the proposed items, with weights that climb
NDCG@20 from those of the network alone and from even ones, w >= 0 and adding up to 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import load_config
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.build import COUNT_MODELS
from llm4sbr_ray.models.memory import EPSILON, LATELY, NETWORK, POPULAR, TEXTS, MemoryRecommender
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.load import load_model
from llm4sbr_ray.training.memory import Choices, choices_of, fit_weights, measure
from llm4sbr_ray.training.tuned import run_for_model

FOLDS = 4
METRICS = ("recall@20", "mrr@20", "ndcg@20")
STEPS = (0.2, 0.1, 0.05)
Fit = Callable[[Choices], Tensor]  # choices -> weight_2C


def without(components: Sequence[str], *parts: str) -> Fit:
    """The pool with some components at zero."""
    kept = [place for place, part in enumerate(components) if part not in parts]

    def fit(choices: Choices) -> Tensor:
        weight_2C = torch.zeros(2, len(components))
        fewer = choices._replace(feature_CNX=choices.feature_CNX[kept], target_CN=choices.target_CN[kept])
        weight_2C[:, kept] = fit_weights(fewer, [components[place] for place in kept])
        return weight_2C

    return fit


def of_one_length(fit: Fit) -> Fit:
    """The same weights for all sessions."""

    def alike(choices: Choices) -> Tensor:
        half_2C = fit(choices._replace(longness_N=torch.full_like(choices.longness_N, 0.5)))
        return half_2C.mean(0, keepdim=True).repeat(2, 1)

    return alike


def probabilities(choices: Choices, components: Sequence[str]) -> Choices:
    """Network and counts as probabilities, all other components away."""
    score_NX = choices.feature_CNX[0].masked_fill(choices.void_NX, -torch.inf)
    total_N = torch.logaddexp(score_NX.logsumexp(1), choices.target_CN[0])
    counts = [place for place, part in enumerate(components) if part in COUNT_MODELS]
    feature_CNX = torch.cat([(score_NX - total_N[:, None]).exp()[None], choices.feature_CNX[counts].expm1() * EPSILON])
    target_CN = torch.cat([(choices.target_CN[0] - total_N).exp()[None], choices.target_CN[counts].expm1() * EPSILON])
    return choices._replace(feature_CNX=feature_CNX, target_CN=target_CN)


def climbed(choices: Choices) -> Tensor:
    """Weights that move between components as long as NDCG@20 grows, in ever smaller steps."""
    C = len(choices.feature_CNX)

    def score(weight_C: Tensor) -> float:
        return measure(choices, weight_C.repeat(2, 1), "ndcg@20")

    def climb(weight_C: Tensor) -> Tensor:
        best = score(weight_C)
        for step in STEPS:
            while True:
                moves = []
                for a, b in permutations(range(C), 2):
                    moved_C, amount = weight_C.clone(), min(step, float(weight_C[a]))
                    moved_C[a] -= amount
                    moved_C[b] += amount
                    moves.append(moved_C)
                scores = [score(move) for move in moves]
                if max(scores) <= best:
                    break
                best, weight_C = max(scores), moves[scores.index(max(scores))]
        return weight_C

    return max(map(climb, (torch.eye(C)[0], torch.full((C,), 1 / C))), key=score).repeat(2, 1)


def out_of_sample(choices: Choices, fit: Fit) -> dict[str, float]:
    """Means over all sessions, each ranked with what the other folds gave."""
    N = len(choices.proposed_N)
    folds = torch.randperm(N, generator=torch.Generator().manual_seed(1)).chunk(FOLDS)
    total = dict.fromkeys(METRICS, 0.0)
    for fold in folds:
        others = torch.ones(N, dtype=torch.bool).index_fill_(0, fold, False)
        weight_2C = fit(choices.take(others))
        for metric in METRICS:
            total[metric] += len(fold) / N * measure(choices.take(fold), weight_2C, metric)
    return total


def rows(model: MemoryRecommender, choices: Choices) -> dict[str, tuple[Choices, Fit]]:
    parts = model.components
    counts = [part for part in parts if part in COUNT_MODELS]
    alone = torch.eye(len(parts))[[0, 0]]
    found: dict[str, tuple[Choices, Fit]] = {
        NETWORK: (choices, lambda _: alone),
        "sum of probabilities": (probabilities(choices, parts), climbed),
        "pool of network and counts, one length": (choices, of_one_length(without(parts, POPULAR, LATELY, TEXTS))),
        "pool of network and counts": (choices, without(parts, POPULAR, LATELY, TEXTS)),
        "without popularity": (choices, without(parts, POPULAR, LATELY)),
        "without counts": (choices, without(parts, *counts)),
        "one length": (choices, of_one_length(without(parts))),
        "all": (choices, without(parts)),
    }
    found |= {f"without {part}": (choices, without(parts, part)) for part in counts}
    if TEXTS in parts:
        found["without texts"] = (choices, without(parts, TEXTS))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--json", type=Path)
    own, others = parser.parse_known_args()
    try:
        run = run_for_model(Run(load_config(others)), own.model)
        model = load_model(run, own.model, run.config.train.seeds[0])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if not isinstance(model, MemoryRecommender):
        raise SystemExit(f"error: --model: {own.model!r} has no memory: name one that ends in +memory")
    valid = dataclasses.replace(read_samples(run, source(run, own.model, "valid")), intents=None)
    choices = choices_of(model, [valid], run.config.memory, rank_seen=False)
    figures = {}
    print(f"{len(choices.proposed_N):,} sessions, {float(choices.proposed_N.float().mean()):.1%} of targets proposed")
    print(f"{own.model:42}{''.join(f'{metric:>12}' for metric in METRICS)}")
    for name, (told, fit) in rows(model, choices).items():
        found = out_of_sample(told, fit)
        print(f"{name:42}{''.join(f'{found[metric]:12.4f}' for metric in METRICS)}", flush=True)
        figures |= {f"memory_{name}_{metric}": round(value, 4) for metric, value in found.items()}
    if own.json:
        own.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
