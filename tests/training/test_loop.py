"""The loop on a planted rule, alone in this process."""

from __future__ import annotations

import pytest
import torch
from planted_run import planted_config, planted_run
from torch import Tensor

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.checkpoint import Checkpoint, from_bytes, to_bytes
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.load import new_model
from llm4sbr_ray.training.loop import NonFiniteLossError, train_model
from llm4sbr_ray.training.validation import validate

BOTH = pytest.mark.parametrize("name", ["srgnn", "srgnn+llm4sbr"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return planted_run(planted_config(str(tmp_path_factory.mktemp("runs"))))


def parts(run: Run, name: str) -> tuple[LLM4SBR | PlainRecommender, Samples, Samples]:
    torch.manual_seed(0)
    model = new_model(run, run.config, name)
    assert isinstance(model, LLM4SBR | PlainRecommender)
    return model, *(read_samples(run, source(run, name, split)) for split in ("train", "valid"))  # type: ignore[return-value]


@BOTH
def test_learns_the_rule_and_keeps_the_best_epoch(run: Run, name: str) -> None:
    model, train, valid = parts(run, name)
    done = train_model(model, train, valid, run.config.train, seed=0)
    history = done.counters.history
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["valid_recall@20"] > 0.9
    assert all(record["samples"] == len(train) for record in history)
    best = max(history, key=lambda record: record["valid_score"])
    assert (done.counters.best_epoch, done.counters.best_score) == (best["epoch"], best["valid_score"])
    model.load_state_dict(done.best)
    for metric, value in validate(model, valid, 64, rank_seen=True).items():  # whatever the batch size
        assert value == pytest.approx(best[metric]), metric


def test_llm4sbr_is_selected_by_the_mean_of_both_ways(run: Run) -> None:
    model, train, valid = parts(run, "srgnn+llm4sbr")
    record = train_model(model, train, valid, run.config.train, seed=0).counters.history[0]
    assert record["valid_score"] == (record["valid_mrr@20"] + record["valid_llm_free_mrr@20"]) / 2


@pytest.mark.parametrize("rank_seen", [True, False])
def test_validation_equals_a_loop_over_scores(run: Run, rank_seen: bool) -> None:
    model, _, valid = parts(run, "srgnn")
    model.eval()
    hits = reciprocal = 0.0
    valid.target_N[3] = valid.items_C[valid.offset_N1[3]]  # a repeated target
    for row in range(len(valid)):
        batch, target = valid.batch(torch.tensor([row]))
        scores = model.score(batch)[0].tolist()
        clicks = set(valid.items_C[valid.offset_N1[row] : valid.offset_N1[row + 1]].tolist())
        left_out = set() if rank_seen else clicks
        ranked = [score for item, score in enumerate(scores) if item not in left_out]
        rank = 999 if int(target) in left_out else sum(score >= scores[int(target)] for score in ranked)
        hits, reciprocal = hits + (rank <= 20), reciprocal + (1 / rank if rank <= 20 else 0)
    metrics = validate(model, valid, 7, rank_seen)
    assert metrics["valid_recall@20"] == pytest.approx(hits / len(valid))
    assert metrics["valid_mrr@20"] == pytest.approx(reciprocal / len(valid), rel=1e-4)


@BOTH
def test_a_resumed_training_ends_with_the_same_weights(run: Run, name: str) -> None:
    kept: list[bytes] = []

    def keep(checkpoint: Checkpoint) -> None:
        kept.append(to_bytes(checkpoint))

    model, train, valid = parts(run, name)
    unbroken = train_model(model, train, valid, run.config.train, seed=5, on_epoch=keep)
    model, train, valid = parts(run, name)
    resumed = train_model(model, train, valid, run.config.train, seed=5, resume=from_bytes(kept[0]))
    assert resumed.counters.best_epoch == unbroken.counters.best_epoch
    for name, value in unbroken.last.items():
        assert torch.equal(resumed.last[name], value), name
    for name, value in unbroken.best.items():
        assert torch.equal(resumed.best[name], value), name


def test_another_seed_gives_another_order(run: Run) -> None:
    losses = set()
    for seed in (0, 1):
        model, train, valid = parts(run, "srgnn")
        losses.add(train_model(model, train, valid, run.config.train, seed).counters.history[0]["loss"])
    assert len(losses) == 2


def test_stops_when_validation_stops_getting_better(run: Run) -> None:
    config = run.config.train.model_copy(update={"learning_rate": 1e-12, "epochs": 9, "patience": 2})
    model, train, valid = parts(run, "srgnn")
    counters = train_model(model, train, valid, config, seed=0).counters
    assert counters.epoch == counters.best_epoch + 2 < 9


class Diverges(PlainRecommender):
    """NaN in the third epoch."""

    calls = 0

    def loss(self, batch: SessionBatch, target_B: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        losses = super().loss(batch, target_B)
        return {"total": losses["total"] * float("nan")} if self.calls > 2 else losses


def test_a_loss_that_is_not_finite_names_epoch_and_samples(run: Run) -> None:
    model, train, valid = parts(run, "srgnn")
    assert isinstance(model, PlainRecommender)
    diverges = Diverges(model.backbone)
    config = run.config.train.model_copy(update={"batch_size": len(train)})
    with pytest.raises(NonFiniteLossError, match=r"epoch 3: .*begins with samples train\d+:\d+, .*learning_rate"):
        train_model(diverges, train, valid, config, seed=0)
