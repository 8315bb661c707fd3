"""The weights of a memory: chosen on validation data, never worse than the network there; stages and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted_run import planted_config, planted_run

from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.models.ranking import metric_sums, target_ranks
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
        assert stages[f"train/{name}/seed-0"]["weights"]["rules"] > 0
        model = load_model(run, name, 0)
        assert isinstance(model, MemoryRecommender)
        assert float(model.weight_C.sum()) == pytest.approx(1)
        valid = read_samples(run, source(run, name, "valid"))
        batch, target_B = valid.batch(torch.arange(len(valid)))
        with torch.inference_mode():
            ranks = [target_ranks(m.score(batch), target_B) for m in (model, model.network)]
        mixed, alone = (float(metric_sums(rank_B, (20,))["mrr@20"]) / len(valid) for rank_B in ranks)
        assert mixed > 0.8 > alone


def test_the_score_of_a_choice_is_that_of_the_whole_ranking(tmp_path: Path) -> None:
    run = planted_run(planted_config(str(tmp_path), models=("srgnn+memory",), epochs=1))
    train(run)
    model = load_model(run, "srgnn+memory", 0)
    assert isinstance(model, MemoryRecommender)
    valid = read_samples(run, source(run, "srgnn+memory", "valid"))
    chosen_C, score = choose_weights(model, [valid], "ndcg@20", 10_000)
    torch.testing.assert_close(chosen_C, model.weight_C)
    batch, target_B = valid.batch(torch.arange(len(valid)))
    with torch.inference_mode():
        rank_B = target_ranks(model.score(batch), target_B)
    # 100 items of each component are proposed: here, all 60.
    assert score == pytest.approx(float(metric_sums(rank_B, (20,))["ndcg@20"]) / len(valid), rel=1e-4)


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
