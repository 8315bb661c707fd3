"""The weights of a memory: chosen on validation data, never worse than the network there; stages and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted_run import planted_config, planted_run

from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.models.ranking import metric_sums, target_ranks, unseen_ranks
from llm4sbr_ray.training import memory
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.load import load_model
from llm4sbr_ray.training.memory import choose_weights
from llm4sbr_ray.training.trainer import train


def test_counts_are_mixed_in_where_the_network_has_not_learnt(tmp_path: Path) -> None:
    """The planted rule (f(j) follows j) is known to the counts; one epoch at a tiny rate teaches a network nothing."""
    models = ("srgnn+memory", "srgnn+llm4sbr+memory")
    run = planted_run(planted_config(str(tmp_path), models=models, epochs=1, learning_rate=1e-6))
    train(run)
    stages = run.manifest()["stages"]
    for name in models:
        assert all(group["rules"] > 0 for group in stages[f"train/{name}/seed-0"]["weights"].values())
        model = load_model(run, name, 0)
        assert isinstance(model, MemoryRecommender)
        assert model.weight_GC.sum(1).tolist() == pytest.approx([1] * 4)
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
    chosen_GC, score = choose_weights(model, [valid], run.config.memory, rank_seen)
    torch.testing.assert_close(chosen_GC, model.weight_GC)
    valid.target_N[::5] = valid.items_C[valid.offset_N1[:-1:5]].long()  # repeats
    chosen_GC, score = choose_weights(model, [valid], run.config.memory, rank_seen)
    model.weight_GC.copy_(chosen_GC)
    rows_N = torch.arange(len(valid))
    batch, target_B = valid.batch(rows_N)
    with torch.inference_mode():
        scores_BV, seen = model.score(batch), valid.seen(rows_N)
        rank_B = target_ranks(scores_BV, target_B) if rank_seen else unseen_ranks(scores_BV, target_B, seen)
    # 100 items of each component are proposed: here, all 60.
    assert score == pytest.approx(float(metric_sums(rank_B, (20,))["ndcg@20"]) / len(valid), rel=1e-4)


def test_each_group_of_lengths_has_the_weights_that_are_best_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In group 0 the network knows the target, in group 1 the counts; group 2 is too small for a choice of its own."""
    monkeypatch.setattr(memory, "MIN_SAMPLES", 20)
    group_N = torch.tensor([0] * 60 + [1] * 40 + [2] * 5)
    knows_network = group_N != 1
    found_CNX = torch.rand(2, 105, 30, generator=torch.Generator().manual_seed(0))
    target_CN = torch.stack([knows_network * 1.01, ~knows_network * 1.01])
    weight_GC, score = memory.weights_of_groups(memory.Proposals(found_CNX, target_CN, group_N), 3, "mrr@20")
    assert weight_GC[0].tolist() == [1, 0]
    assert weight_GC[1, 1] > 0.9
    assert weight_GC.sum(1).tolist() == pytest.approx([1, 1, 1])
    overall_GC, overall = memory.weights_of_groups(
        memory.Proposals(found_CNX, target_CN, torch.zeros_like(group_N)), 1, "mrr@20"
    )
    torch.testing.assert_close(weight_GC[2], overall_GC[0])
    assert score > overall + 0.1


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
