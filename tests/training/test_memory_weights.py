"""The weights of a memory: the conditional logit of validation data, against an independent one; stages and files."""

from __future__ import annotations

import copy
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from planted_run import planted_config, planted_run
from torch import Tensor

from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.models.ranking import metric_sums, target_ranks, unseen_ranks
from llm4sbr_ray.training import memory
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.load import load_model
from llm4sbr_ray.training.trainer import train


def test_counts_are_weighed_in_where_the_network_has_not_learnt(tmp_path: Path) -> None:
    """The planted rule (f(j) follows j) is known to the counts; one epoch at a tiny rate teaches a network nothing."""
    models = ("srgnn+memory", "srgnn+llm4sbr+memory")
    run = planted_run(planted_config(str(tmp_path), models=models, epochs=1, learning_rate=1e-6))
    train(run)
    stages = run.manifest()["stages"]
    for name in models:
        assert stages[f"train/{name}/seed-0"]["weights"]["rules"][0] > 0.5
        model = load_model(run, name, 0)
        assert isinstance(model, MemoryRecommender)
        valid = read_samples(run, source(run, name, "valid"))
        batch, target_B = valid.batch(torch.arange(len(valid)))
        with torch.inference_mode():
            ranks = [target_ranks(m.score(batch), target_B) for m in (model, model.network)]
        mixed, alone = (float(metric_sums(rank_B, (20,))["mrr@20"]) / len(valid) for rank_B in ranks)
        assert mixed > 0.8 > alone


@pytest.mark.parametrize("rank_seen", [True, False])
def test_the_score_of_a_choice_is_that_of_the_whole_ranking(tmp_path: Path, rank_seen: bool) -> None:
    run = planted_run(planted_config(str(tmp_path), models=("srgnn+memory",), epochs=1, rank_seen=rank_seen))
    train(run)
    model = load_model(run, "srgnn+memory", 0)
    assert isinstance(model, MemoryRecommender)
    valid = read_samples(run, source(run, "srgnn+memory", "valid"))
    choices = memory.choices_of(model, [valid], run.config.memory, rank_seen)
    torch.testing.assert_close(memory.fit_weights(choices, model.components), model.weight_2C)
    valid.target_N[::5] = valid.items_C[valid.offset_N1[:-1:5]].long()  # repeats
    choices = memory.choices_of(model, [valid], run.config.memory, rank_seen)
    model.weight_2C.copy_(memory.fit_weights(choices, model.components))
    score = memory.measure(choices, model.weight_2C, "ndcg@20")
    rows_N = torch.arange(len(valid))
    batch, target_B = valid.batch(rows_N)
    with torch.inference_mode():
        scores_BV, seen = model.score(batch), valid.seen(rows_N)
        rank_B = target_ranks(scores_BV, target_B) if rank_seen else unseen_ranks(scores_BV, target_B, seen)
    # 50 items of each component are proposed, together here all 60.
    assert score == pytest.approx(float(metric_sums(rank_B, (20,))["ndcg@20"]) / len(valid), rel=1e-4)


def some_choices(N: int = 40, C: int = 4, X: int = 12) -> memory.Choices:
    """Features that say something of the target, some of them void."""
    generator = torch.Generator().manual_seed(0)
    feature_CNX, target_CN = torch.rand(C, N, X, generator=generator), torch.rand(C, N, generator=generator)
    target_CN[:2] += torch.tensor([[0.3], [0.6]])
    void_NX = torch.rand(N, X, generator=generator) < 0.2
    proposed_N = torch.rand(N, generator=generator) < 0.9
    return memory.Choices(feature_CNX, target_CN, void_NX, proposed_N, torch.rand(N, generator=generator))


def naive_loss(choices: memory.Choices, ends: list[list[float]]) -> float:
    """Mean negative log-likelihood in float64, one session after the other."""
    total = 0.0
    for n, along in enumerate(choices.longness_N.tolist()):
        weights = [a * (1 - along) + b * along for a, b in zip(*ends, strict=True)]
        score = [sum(w * float(choices.feature_CNX[c, n, x]) for c, w in enumerate(weights)) for x in range(12)]
        target = sum(w * float(choices.target_CN[c, n]) for c, w in enumerate(weights))
        others = [math.exp(s) for s, void in zip(score, choices.void_NX[n].tolist(), strict=True) if not void]
        total -= target - math.log(math.exp(target) + sum(others))
    return total / len(choices.proposed_N)


def test_likelihood_and_gradient_are_those_of_a_loop() -> None:
    choices, ends = some_choices(), [[0.7, 1.1, 0.0, -0.4], [0.2, 0.9, 0.5, -0.6]]
    loss, gradient_2C = memory.negative_log_likelihood(choices, torch.tensor(ends))
    assert loss == pytest.approx(naive_loss(choices, ends), rel=1e-5)
    for end, c in product(range(2), range(4)):
        up, down = copy.deepcopy(ends), copy.deepcopy(ends)
        up[end][c] += 1e-4
        down[end][c] -= 1e-4
        slope = (naive_loss(choices, up) - naive_loss(choices, down)) / 2e-4
        assert float(gradient_2C[end, c]) == pytest.approx(slope, abs=1e-4)


def test_no_other_weights_are_better_and_counts_never_speak_against() -> None:
    choices = some_choices()
    components = ("network", "held", "rules", "stan")
    weight_2C = memory.fit_weights(choices, components)
    assert (weight_2C[:, [0, 2, 3]] >= 0).all()
    told = choices.take(choices.proposed_N)

    def penalised(ends_2C: Tensor) -> float:
        return naive_loss(told, ends_2C.tolist()) + memory.PENALTY * float((ends_2C**2).sum())

    best = penalised(weight_2C)
    for end, c, step in product(range(2), range(4), (-0.05, 0.05)):
        other_2C = weight_2C.clone()
        other_2C[end, c] += step
        assert penalised(other_2C) > best or (components[c] != "held" and other_2C[end, c] < 0)


def test_where_nothing_proposes_a_target_the_network_keeps_its_word() -> None:
    choices = some_choices()._replace(proposed_N=torch.zeros(40, dtype=torch.bool))
    assert memory.fit_weights(choices, ("network", "held", "rules", "stan")).tolist() == [[1, 0, 0, 0]] * 2
    assert memory.measure(choices, torch.eye(4)[[0, 0]], "recall@20") == 0


def test_a_network_that_is_there_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = planted_run(planted_config(str(tmp_path), models=("srgnn", "srgnn+text"), epochs=1))
    train(run)
    capsys.readouterr()
    more = planted_config(str(tmp_path), models=("srgnn+memory", "srgnn+text"), epochs=1)
    train(type(run)(more))
    shown = capsys.readouterr().out
    assert "epoch 1" not in shown
    assert "[train/srgnn+memory/seed-0]" in shown


@pytest.mark.parametrize("name", ["rules+memory", "+memory", "srgnn+memory+llm4sbr", "srgnn+memory+memory"])
def test_unknown_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no model"):
        train(planted_run(planted_config(str(tmp_path), models=(name,)), sessions=5))
