"""Losses, learning-rate schedules and accumulation as training uses them, on a planted rule."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from planted_run import N_ITEMS, planted_config, planted_run
from pydantic import ValidationError
from torch import Tensor, nn

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import TrainConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.catalogue_loss import FullSoftmax, SampledSoftmax
from llm4sbr_ray.training.checkpoint import Checkpoint, from_bytes, to_bytes
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.loop import train_model
from llm4sbr_ray.training.loss import set_loss
from llm4sbr_ray.training.optimizer import AdamOfBoth
from llm4sbr_ray.training.schedule import learning_rate
from llm4sbr_ray.training.start import starting_model
from llm4sbr_ray.training.trainer import LATER, learning_settings

SAMPLED: dict[str, Any] = {"loss": "sampled", "negatives": 24}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return planted_run(planted_config(str(tmp_path_factory.mktemp("runs"))))


def train_with(run: Run, name: str, seed: int = 0, resume: Checkpoint | None = None, **settings: Any) -> Any:
    """The checkpoint, and those of all epochs as bytes."""
    torch.manual_seed(seed)
    kept: list[bytes] = []
    train, valid = (read_samples(run, source(run, name, split)) for split in ("train", "valid"))
    config = run.config.train.model_copy(update=settings)
    done = train_model(
        starting_model(run, name),
        train,
        valid,
        config,
        seed,
        resume=resume,
        on_epoch=lambda c: kept.append(to_bytes(c)),
    )
    return done, kept


def same_weights(ours: Checkpoint, theirs: Checkpoint) -> bool:
    return all(torch.equal(value, theirs.last[name]) for name, value in ours.last.items())


@pytest.mark.parametrize(
    "settings",
    [
        {**SAMPLED, "epochs": 6},
        {**SAMPLED, "epochs": 6, "negatives_by": "popularity"},
        {"loss": "gbce", "negatives": 24, "epochs": 30, "patience": 30},  # many negatives first push all scores down
        {"label_smoothing": 0.1, "epochs": 6},
        {"schedule": "cosine", "warm_up": 0.1, "epochs": 6},
    ],
    ids=lambda settings: settings.get("negatives_by") or settings.get("loss") or next(iter(settings)),
)
def test_the_rule_is_learned(run: Run, settings: dict[str, Any]) -> None:
    history = train_with(run, "srgnn", **settings)[0].counters.history
    assert max(record["valid_mrr@20"] for record in history) > 0.8 > history[0]["valid_mrr@20"]


@pytest.mark.parametrize("name", ["srgnn+llm4sbr", "dhcn"])  # row-wise gradients, and a backbone without them
def test_other_models_take_sampled_losses(run: Run, name: str) -> None:
    history = train_with(run, name, epochs=5, **SAMPLED)[0].counters.history
    assert history[-1]["valid_mrr@20"] > 1.2 * history[0]["valid_mrr@20"]


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["full", "sampled"])
@pytest.mark.parametrize("told", [0, 1])
def test_a_catalogue_without_texts_to_compare_trains_without_smoothing(
    tmp_path: Path, told: int, settings: dict[str, Any]
) -> None:
    bare = planted_run(planted_config(str(tmp_path), epochs=1))
    table = bare.read_table("text", "items.parquet")
    own = table["embedding"].to_pylist()
    rows = [own[j] if j < told else [0.0] * len(own[j]) for j in range(N_ITEMS)]
    embedding = pa.array(rows, table.schema.field("embedding").type)
    bare.write_table(table.set_column(1, "embedding", embedding), "text", "items.parquet")
    for name in ("srgnn+text", "srgnn+llm4sbr"):
        assert math.isfinite(train_with(bare, name, epochs=1, **settings)[0].counters.history[0]["loss"])


def test_a_resumed_training_with_sampling_and_a_schedule_ends_the_same(run: Run) -> None:
    settings = {**SAMPLED, "schedule": "linear", "warm_up": 0.2, "accumulate": 2}
    unbroken, kept = train_with(run, "srgnn", seed=3, **settings)
    resumed, _ = train_with(run, "srgnn", seed=3, resume=from_bytes(kept[0]), **settings)
    assert same_weights(resumed, unbroken)


@pytest.mark.parametrize("name", ["srgnn", "srgnn+llm4sbr", "gru4rec", "sasrec", "gcegnn"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(run: Run, name: str) -> None:
    assert same_weights(train_with(run, name, epochs=1)[0], train_with(run, name, epochs=1)[0])


def test_a_catalogue_above_the_limit_is_sampled(run: Run) -> None:
    model = starting_model(run, "srgnn")
    target_N = torch.zeros(3, dtype=torch.int64)
    for limit, kind in ((N_ITEMS, FullSoftmax), (N_ITEMS - 1, SampledSoftmax)):
        set_loss(model, TrainConfig(sampled_above=limit), N_ITEMS, target_N)
        assert type(model.ranking_loss) is kind
        assert model.backbone.item_embedding.sparse is (kind is SampledSoftmax)
    with pytest.raises(UserError, match=r"train\.label_smoothing"):
        set_loss(model, TrainConfig(sampled_above=0, label_smoothing=0.1), N_ITEMS, target_N)


@pytest.mark.parametrize("settings", [{"negatives_by": "popularity"}, {"label_smoothing": 0.1}])
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        TrainConfig(loss="gbce", **settings)


def test_settings_of_later_versions_do_not_train_again(tmp_path: Path) -> None:
    def settings(**train: Any) -> dict[str, Any]:
        config = planted_config(str(tmp_path), **train)
        return dict(learning_settings(Run(config), "srgnn", 0)["train"])

    assert not set(settings()) & LATER
    assert settings(schedule="cosine")["schedule"] == "cosine"


def one_update(run: Run, accumulate: int = 1, sparse: bool = False, decay: float = 0.0) -> dict[str, Tensor]:
    """SR-GNN's weights and moments after one update on all samples; its loss is that of all items."""
    torch.manual_seed(0)
    model = starting_model(run, "srgnn").double()
    train = read_samples(run, source(run, "srgnn", "train"))
    model.backbone.dropout = nn.Dropout(0.0)
    config = run.config.train.model_copy(update={"weight_decay": decay, "loss": "sampled", "negatives": N_ITEMS})
    set_loss(model, config, N_ITEMS, train.target_N)
    model.backbone.item_embedding.sparse = sparse
    optimizer = AdamOfBoth(model, config)
    for rows_b in torch.arange(len(train)).chunk(accumulate):
        batch, target_b = train.batch(rows_b)
        (model.loss(batch, target_b)["total"] * len(rows_b) / len(train)).backward()
    optimizer.clip()
    optimizer.step(config.learning_rate)
    return {**model.state_dict(), **optimizer.tensors()}


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_rows_are_updated_as_adam_updates_them(run: Run, decay: float) -> None:
    dense, rows = (one_update(run, sparse=sparse, decay=decay) for sparse in (False, True))
    assert dense.keys() == rows.keys()
    table = "backbone.item_embedding.weight"  # every item is in the loss, so that no row of it is left alone
    for name in dense.keys() - {table, f"{table}.step"}:
        torch.testing.assert_close(rows[name], dense[name], msg=name)
    # SparseAdam's epsilon is larger in the first steps (not corrected for bias): small gradients move entries less.
    moved = dense[f"{table}.exp_avg"].abs() > 1e-4
    assert moved.sum() > 100
    torch.testing.assert_close(rows[table][moved], dense[table][moved], atol=1e-5, rtol=0)


def test_rows_that_a_step_does_not_touch_stay(run: Run) -> None:
    model = starting_model(run, "srgnn")
    config = TrainConfig(loss="sampled", negatives=1)
    set_loss(model, config, N_ITEMS, torch.zeros(1, dtype=torch.int64))
    table = model.backbone.item_embedding.weight
    optimizer = AdamOfBoth(model, config)
    for touched in ([3, 5, 3], [7]):
        before = table.detach().clone()
        optimizer.zero_grad()
        model.backbone.item_rows(torch.tensor(touched)).sum().backward()
        times = torch.tensor(touched).bincount().float()
        assert float(optimizer.clip()) == pytest.approx(float(times.norm()) * 16**0.5)  # 16 wide
        optimizer.step(0.01)
        assert (table.detach() != before).any(dim=1).nonzero()[:, 0].tolist() == sorted(set(touched))


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(run: Run) -> None:
    whole, parts = (one_update(run, accumulate=n) for n in (1, 3))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, msg=name)


def test_accumulation_trains_like_the_whole_batch(run: Run) -> None:
    model_config = run.config.model.model_copy(update={"dropout": 0.0})
    still = Run(run.config.model_copy(update={"model": model_config}))
    losses = [
        [record["loss"] for record in train_with(still, "srgnn", accumulate=n)[0].counters.history] for n in (1, 4)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_schedules() -> None:
    def rates(**settings: Any) -> list[float]:
        config = TrainConfig(learning_rate=2.0, **settings)
        return [learning_rate(config, update, 10) for update in range(10)]

    assert rates() == [2.0] * 10
    assert rates(schedule="linear") == pytest.approx([2 * (10 - i) / 10 for i in range(10)])
    assert rates(schedule="cosine") == pytest.approx([1 + math.cos(math.pi * i / 10) for i in range(10)])
    warm = rates(warm_up=0.4)
    assert warm == pytest.approx([0.4, 0.8, 1.2, 1.6, *[2.0] * 6])
    falling = rates(schedule="cosine", warm_up=0.4)
    assert falling[:5] == pytest.approx(warm[:5])
    assert all(a > b > 0 for a, b in pairwise(falling[4:]))
