"""Planted signals: each model learns what it can know, and only that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llm4sbr_ray.config import ModelConfig, Neighbours
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import Intents, Recommender, SessionBatch
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.llm4sbr import LLM4SBR

V, E, L, B = 24, 16, 4, 128
Task = Callable[[], tuple[SessionBatch, Tensor]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def sessions() -> SessionBatch:
    length_B = torch.randint(1, L + 1, (B,))
    items_BL = torch.randint(0, V, (B, L))
    items_BL[torch.arange(L) >= length_B[:, None]] = V
    return SessionBatch(items_BL, length_B)


def last_item(batch: SessionBatch) -> Tensor:
    return batch.items_BL[torch.arange(B), batch.length_B - 1]


def intents_for(item_B: Tensor) -> Intents:
    """Both perspectives name the item, each answer localised to this one item alone."""
    return Intents(item_B[:, None, None].expand(B, 2, 1), torch.ones(B, 2, 1), torch.ones(B, 2, dtype=torch.bool))


def trained(name: str, task: Task, steps: int, fusion: str = "residual") -> Recommender:
    config = ModelConfig(width=24, dropout=0.0, fusion=fusion)  # type: ignore[arg-type]
    text_VE = F.normalize(torch.randn(V, E), dim=1)
    model = build_model(name, V, config, Neighbours(), ("global", "local"), text_VE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch, target_B = task()
        optimizer.zero_grad()
        model.loss(batch, target_B)["total"].backward()  # type: ignore[operator]
        optimizer.step()
    return model.eval()


@torch.no_grad()
def hit_rate(model: Recommender, task: Task, llm_free: bool = False) -> float:
    hits = []
    for _ in range(4):
        batch, target_B = task()
        if llm_free:
            batch.intents = None
        hits.append((model.score(batch).argmax(1) == target_B).float().mean())
    return float(torch.stack(hits).mean())


def rule() -> tuple[SessionBatch, Tensor]:
    """The next item follows from the last one."""
    batch = sessions()
    return batch, (last_item(batch) * 5 + 1) % V


def only_text_tells() -> tuple[SessionBatch, Tensor]:
    """Clicks say nothing; the LLM's answer names the next item."""
    batch, target_B = sessions(), torch.randint(0, V, (B,))
    batch.intents = intents_for(target_B)
    return batch, target_B


def text_says_which() -> tuple[SessionBatch, Tensor]:
    """Sessions of two items; the text says whether the next one follows from the first or the last click."""
    items_BL = torch.stack([torch.randint(0, V // 2, (B,)), torch.randint(V // 2, V, (B,))], dim=1)
    batch = SessionBatch(items_BL, torch.full((B,), 2))
    choice_B = torch.randint(0, 2, (B,))
    batch.intents = intents_for(choice_B)
    return batch, torch.where(choice_B == 0, (items_BL[:, 0] + 1) % V, (items_BL[:, 1] + 3) % V)


def text_follows_from_the_last_click() -> tuple[SessionBatch, Tensor]:
    batch, target_B = rule()
    batch.intents = intents_for(target_B)
    return batch, target_B


# S2-DHCN ranks items by products with a sum of the clicked items' own vectors: what follows what is not in it.
@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "dhcn"])
def test_every_backbone_learns_a_rule(name: str) -> None:
    assert hit_rate(trained(name, rule, steps=150), rule) > 0.95


@pytest.mark.parametrize("fusion", ["average", "residual"])
def test_informative_intents_are_used(fusion: str) -> None:
    model = trained("srgnn+llm4sbr", only_text_tells, steps=200, fusion=fusion)
    assert hit_rate(model, only_text_tells) > 0.9
    assert hit_rate(model, only_text_tells, llm_free=True) < 0.3  # there is nothing to know without the answer


def test_gates_turn_to_the_vector_that_the_text_points_to() -> None:
    plain = hit_rate(trained("srgnn", text_says_which, steps=250), text_says_which)
    gated = hit_rate(trained("srgnn+llm4sbr", text_says_which, steps=250, fusion="gate"), text_says_which)
    assert plain < 0.65  # it can but guess
    assert gated > plain + 0.2


def test_predicted_intents_replace_those_of_the_llm() -> None:
    model = trained("srgnn+llm4sbr", text_follows_from_the_last_click, steps=250, fusion="average")
    assert isinstance(model, LLM4SBR)
    batch, _ = text_follows_from_the_last_click()
    assert batch.intents is not None
    with torch.no_grad():
        predicted_BPD = model.predict(model.encode(batch.items_BL, batch.length_B))
        z_BPD = model.text_intents(batch.intents)
    assert F.cosine_similarity(predicted_BPD, z_BPD, dim=2).mean() > 0.9
    assert (predicted_BPD.norm(dim=2) / z_BPD.norm(dim=2)).mean() == pytest.approx(1, abs=0.15)
    assert hit_rate(model, text_follows_from_the_last_click, llm_free=True) > 0.95
