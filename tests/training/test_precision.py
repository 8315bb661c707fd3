"""bfloat16 products: the same model to learn, float32 where it counts, and float32 training left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from planted_run import planted_config, planted_run
from torch import Tensor, nn

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import Backbone
from llm4sbr_ray.models.catalogue_loss import FullSoftmax
from llm4sbr_ray.training.checkpoint import Checkpoint
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.loop import train_model
from llm4sbr_ray.training.precision import set_precision
from llm4sbr_ray.training.start import starting_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return planted_run(planted_config(str(tmp_path_factory.mktemp("runs")), epochs=4))


def trained(run: Run, name: str, **settings: Any) -> Checkpoint:
    torch.manual_seed(0)
    train, valid = (read_samples(run, source(run, name, split)) for split in ("train", "valid"))
    return train_model(starting_model(run, name), train, valid, run.config.train.model_copy(update=settings), seed=0)


@pytest.mark.parametrize("name", [*BACKBONES, "srgnn+llm4sbr"])
def test_the_rule_is_learned_as_well(run: Run, name: str) -> None:
    exact, mixed = trained(run, name), trained(run, name, precision="bfloat16")
    assert mixed.counters.best_score == pytest.approx(exact.counters.best_score, abs=0.05)
    # Products are rounded, so it is another training; weights and moments are float32 nevertheless.
    assert mixed.counters.history[0]["loss"] != exact.counters.history[0]["loss"]
    assert mixed.counters.history[0]["loss"] == pytest.approx(exact.counters.history[0]["loss"], rel=0.02)
    assert {value.dtype for value in mixed.last.values() if value.is_floating_point()} == {torch.float32}
    assert {value.dtype for value in mixed.optimizer.values() if value.is_floating_point()} == {torch.float32}


class Seen(FullSoftmax):
    dtypes: set[torch.dtype]

    def forward(self, session_BD: Tensor, backbone: Backbone, target_B: Tensor) -> Tensor:
        self.dtypes = {session_BD.dtype, (session_BD @ backbone.item_vectors().T).dtype}
        return super().forward(session_BD, backbone, target_B)


@pytest.mark.parametrize("name", ["srgnn", "srgnn+llm4sbr"])
def test_scores_and_losses_are_float32_and_products_are_not(run: Run, name: str) -> None:
    model = starting_model(run, name)
    set_precision(model, "bfloat16")
    model.ranking_loss = seen = Seen()
    products: list[torch.dtype] = []
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(lambda module, inputs, output: products.append(output.dtype))
    batch, target_B = read_samples(run, source(run, name, "train")).batch(torch.arange(8))
    losses = model.train().loss(batch, target_B)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert seen.dtypes == {torch.float32}
    assert torch.bfloat16 in products
    products.clear()
    with torch.inference_mode():
        ours = model.eval().score(batch)
    assert set(products) == {torch.float32}
    fresh = starting_model(run, name).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.score(batch), ours)


def test_float32_leaves_a_model_as_it_is(run: Run, tmp_path: Path) -> None:
    model = starting_model(run, "srgnn+llm4sbr")
    set_precision(model, "float32")
    assert not any("forward" in vars(part) for part in model.modules())
