"""What every backbone keeps to, whatever its equations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llm4sbr_ray.config import ModelConfig, Neighbours
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import Backbone, Intents, SessionBatch, SessionVectors, pad_sessions
from llm4sbr_ray.models.build import LLM4SBR_SUFFIX, build_model
from llm4sbr_ray.models.llm4sbr import LLM4SBR

V, D = 7, 12
SESSIONS = [[1, 2, 3, 2, 1, 4], [5], [0, 0, 6], [2, 3, 2, 3, 2], [6, 5, 4, 3]]
BATCH = pad_sessions(SESSIONS, V, 50)

LAST_CLICK_ONLY = {"stamp"}  # all that these know of the order of clicks

every_backbone = pytest.mark.parametrize("name", BACKBONES)


def backbone(name: str, dropout: float = 0.0) -> Backbone:
    torch.manual_seed(3)
    return BACKBONES[name](V, ModelConfig(width=D, dropout=dropout))


def vectors_of(model: Backbone, batch: SessionBatch, padding: int = 0) -> Tensor:
    """All vectors of all sessions, B x 3D."""
    found: SessionVectors = model(F.pad(batch.items_BL, (0, padding), value=V), batch.length_B)
    return torch.cat([found.global_BD, found.local_BD, found.session_BD], dim=1)


@every_backbone
def test_a_session_has_the_same_vectors_alone_in_any_batch_and_with_any_padding(name: str) -> None:
    model = backbone(name).double().eval()
    together = vectors_of(model, pad_sessions([*SESSIONS, list(range(V)) * 3], V, 50))
    for row, session in enumerate(SESSIONS):
        alone = pad_sessions([session], V, 50)
        torch.testing.assert_close(vectors_of(model, alone)[0], together[row])
        torch.testing.assert_close(vectors_of(model, alone, padding=4)[0], together[row])


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in LAST_CLICK_ONLY])
def test_order_of_clicks_matters(name: str) -> None:
    vectors = vectors_of(backbone(name).eval(), pad_sessions([[1, 2, 3], [3, 2, 1], [2, 1, 3]], V, 50))
    session_BD = vectors[:, -D:]
    assert (session_BD[0] - session_BD[1]).abs().max() > 1e-4
    assert (session_BD[0] - session_BD[2]).abs().max() > 1e-4


@every_backbone
def test_gradients_are_finite_and_reach_every_item_but_not_the_padding(name: str) -> None:
    model = backbone(name)
    (vectors_of(model, BATCH, padding=2) * torch.randn(len(SESSIONS), 3 * D)).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    gradient = model.item_embedding.weight.grad
    assert gradient is not None
    assert gradient[:V].any(dim=1).all()  # every item occurs in SESSIONS
    assert not gradient[V].any()
    assert not model.item_embedding.weight[V].any()
    assert model.item_vectors().shape == (V, D)


@every_backbone
def test_dropout_acts_in_training_alone(name: str) -> None:
    model = backbone(name, dropout=0.5)
    assert not torch.equal(vectors_of(model, BATCH), vectors_of(model, BATCH))
    model.eval()
    assert torch.equal(vectors_of(model, BATCH), vectors_of(model, BATCH))


@every_backbone
def test_llm4sbr_wraps_it_by_name(name: str) -> None:
    torch.manual_seed(5)
    text_VE = F.normalize(torch.randn(V, 8), dim=1)
    config = ModelConfig(width=D, dropout=0.0)
    model = build_model(name + LLM4SBR_SUFFIX, V, config, Neighbours(), ("global", "local"), text_VE)
    assert isinstance(model, LLM4SBR)
    B = len(SESSIONS)
    intents = Intents(torch.randint(0, V, (B, 2, 3)), torch.full((B, 2, 3), 1 / 3), torch.ones(B, 2, dtype=torch.bool))
    losses = model.loss(SessionBatch(BATCH.items_BL, BATCH.length_B, intents), torch.tensor([1, 2, 3, 4, 5]))
    losses["total"].backward()
    assert {"cross_entropy", "alignment", "uniformity", "predictor"} < losses.keys()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
