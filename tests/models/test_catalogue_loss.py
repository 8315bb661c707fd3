"""Losses over a catalogue and over samples of it: against naive loops, and against each other where they must agree."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import Backbone
from llm4sbr_ray.models.catalogue_loss import GBCE, CatalogueLoss, FullSoftmax, SampledSoftmax, TextSmoothing
from llm4sbr_ray.models.gbce import gbce
from llm4sbr_ray.models.negatives import Negatives, NegativeSampler
from llm4sbr_ray.models.sampled_softmax import sampled_softmax
from llm4sbr_ray.models.text_neighbours import TextNeighbours

V, D, B = 12, 6, 5
CPU = torch.device("cpu")
WEIGHT_V = torch.arange(1.0, V + 1) ** 2
TARGETS = torch.tensor([0, 3, 3, 11, 7])
weights = pytest.mark.parametrize("weight_V", [None, WEIGHT_V], ids=["uniform", "weighted"])


class Table(Backbone):
    """Item vectors alone."""

    def __init__(self, items: int = V) -> None:
        super().__init__()
        value = torch.randn(items + 1, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        self.item_embedding = torch.nn.Embedding(items + 1, D, padding_idx=items, _weight=value)


def sessions() -> Tensor:
    return torch.randn(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(loss: CatalogueLoss, items: int = V) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and its gradients for sessions and for items."""
    table, session_BD = Table(items), (sessions() * (V / items) ** 0.5).requires_grad_()
    value = loss(session_BD, table, TARGETS)
    value.backward()
    assert session_BD.grad is not None
    assert table.item_embedding.weight.grad is not None
    return value.detach(), session_BD.grad, table.item_embedding.weight.grad


@weights
@pytest.mark.parametrize("draws", [3, 30])
def test_an_item_is_drawn_as_often_as_its_inclusion_says(weight_V: Tensor | None, draws: int) -> None:
    torch.manual_seed(0)
    items = 40
    sampler = NegativeSampler(items, draws, None if weight_V is None else torch.arange(1.0, items + 1) ** 2)
    share = [1 / items] * items if weight_V is None else [(j + 1) ** 2 / 22140 for j in range(items)]
    times, seen = 3000, torch.zeros(items)
    for _ in range(times):
        drawn = sampler(CPU)
        assert len(drawn.item_N.unique()) == len(drawn.item_N) <= draws
        seen[drawn.item_N] += 1
        expected = [math.log(1 - (1 - share[j]) ** draws) for j in drawn.item_N.tolist()]
        assert drawn.log_inclusion_N.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for j in range(items):
        p = 1 - (1 - share[j]) ** draws
        assert abs(seen[j] / times - p) < 5 * math.sqrt(p * (1 - p) / times) + 1e-9, j


def test_a_small_catalogue_is_taken_whole() -> None:
    drawn = NegativeSampler(V, V, WEIGHT_V)(CPU)
    assert drawn.item_N.tolist() == list(range(V))
    assert drawn.log_inclusion_N.tolist() == [0] * V


def smoothing(share: float) -> TextSmoothing:
    """Items j + 1 and j + 3 are like item j, the first more so; item 7 has no text."""
    item_V = torch.arange(V)
    weight_VK = torch.tensor([[0.75, 0.25]]).repeat(V, 1)
    weight_VK[7] = 0
    return TextSmoothing(share, TextNeighbours(torch.stack([item_V + 1, item_V + 3], 1) % V, weight_VK))


@pytest.mark.parametrize("evenly", [0.0, 0.1])
def test_text_smoothing_is_a_cross_entropy_with_soft_labels(evenly: float) -> None:
    session_BD, item_VD = sessions().requires_grad_(), Table().item_embedding.weight.detach()[:-1].requires_grad_()
    label_BV = torch.full((B, V), evenly / V, dtype=torch.float64)
    for b, j in enumerate(TARGETS.tolist()):
        like = {} if j == 7 else {(j + 1) % V: 0.75, (j + 3) % V: 0.25}
        label_BV[b, j] += 1 - evenly - (0.2 if like else 0)
        for other, weight in like.items():
            label_BV[b, other] += 0.2 * weight
    wanted = -((session_BD @ item_VD.T).log_softmax(1) * label_BV).sum(1).mean()
    wanted.backward()
    value, session_grad, item_grad = gradients(FullSoftmax(evenly, smoothing(0.2)))
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(session_grad, session_BD.grad)
    torch.testing.assert_close(item_grad[:-1], item_VD.grad)


def test_text_smoothing_is_the_same_over_a_sample_of_all_items() -> None:
    full = gradients(FullSoftmax(text_smoothing=smoothing(0.3)))
    sampled = gradients(SampledSoftmax(NegativeSampler(V, V), smoothing(0.3)))
    for ours, theirs in zip(sampled, full, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_softmax_over_a_sample_of_all_items_is_the_full_one() -> None:
    full, sampled = gradients(FullSoftmax()), gradients(SampledSoftmax(NegativeSampler(V, V)))
    for ours, theirs in zip(sampled, full, strict=True):
        torch.testing.assert_close(ours, theirs)


def negatives() -> Negatives:
    """Two of them are targets of the batch."""
    return Negatives(torch.tensor([1, 3, 7, 8]), torch.tensor([0.9, 0.3, 0.5, 0.2]).log())


def dot(x: Tensor, y: Tensor) -> float:
    return sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))


def test_sampled_softmax_is_its_definition() -> None:
    session_BD, item_VD, drawn = sessions(), Table().item_vectors().detach(), negatives()
    total = 0.0
    for session, target in zip(session_BD, TARGETS.tolist(), strict=True):
        positive = dot(session, item_VD[target])
        estimate = math.exp(positive)
        for item, log_inclusion in zip(drawn.item_N.tolist(), drawn.log_inclusion_N.tolist(), strict=True):
            if item != target:
                estimate += math.exp(dot(session, item_VD[item])) / math.exp(log_inclusion)
        total += math.log(estimate) - positive
    found = sampled_softmax(session_BD, item_VD[TARGETS], item_VD[drawn.item_N], TARGETS, drawn)
    assert found.item() == pytest.approx(total / B, rel=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.75, 1.0])
def test_gbce_is_its_definition(t: float) -> None:
    session_BD, item_VD = sessions(), Table().item_vectors().detach()
    alpha = 0.4
    drawn = Negatives(torch.tensor([1, 3, 7, 8]), torch.full((4,), alpha, dtype=torch.float64).log())
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    total = 0.0
    for session, target in zip(session_BD, TARGETS.tolist(), strict=True):
        total -= beta * math.log(1 / (1 + math.exp(-dot(session, item_VD[target]))))
        for item in drawn.item_N.tolist():
            if item != target:
                total -= math.log(1 - 1 / (1 + math.exp(-dot(session, item_VD[item]))))
    found = gbce(session_BD, item_VD[TARGETS], item_VD[drawn.item_N], TARGETS, drawn, t)
    assert found.item() == pytest.approx(total / B, rel=1e-9)


def mean_gradients(loss: CatalogueLoss, times: int, items: int = V) -> list[Tensor]:
    torch.manual_seed(0)
    total = [torch.zeros(B, D, dtype=torch.float64), torch.zeros(items + 1, D, dtype=torch.float64)]
    for _ in range(times):
        for sum_, gradient in zip(total, gradients(loss, items)[1:], strict=True):
            sum_ += gradient / times
    return total


def error(found: list[Tensor], wanted: tuple[Tensor, ...]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


class Uncorrected(NegativeSampler):
    def forward(self, device: torch.device) -> Negatives:
        drawn = super().forward(device)
        return Negatives(drawn.item_N, torch.zeros_like(drawn.log_inclusion_N))


def test_the_gradient_of_sampled_softmax_is_that_of_the_full_one_on_average() -> None:
    items, draws = 200, 150
    weight_V = torch.arange(1.0, items + 1)
    wanted = gradients(FullSoftmax(), items)[1:]
    for weight in (None, weight_V):
        found = mean_gradients(SampledSoftmax(NegativeSampler(items, draws, weight)), 800, items)
        assert error(found, wanted) < 0.02  # what the logarithm of an estimate leaves, and the draws
    assert error(mean_gradients(SampledSoftmax(Uncorrected(items, draws, weight_V)), 500, items), wanted) > 0.03


@weights
def test_the_sum_over_the_catalogue_is_estimated_without_bias(weight_V: Tensor | None) -> None:
    torch.manual_seed(0)
    item_VD, session_BD = Table().item_vectors().detach(), sessions()
    scores_BV = session_BD @ item_VD.T
    wanted = (scores_BV.logsumexp(1) - scores_BV[torch.arange(B), TARGETS]).exp()
    sampler, estimates = NegativeSampler(V, 5, weight_V), []
    for _ in range(1500):
        drawn = sampler(CPU)
        rows = [
            sampled_softmax(s, item_VD[t], item_VD[drawn.item_N], t, drawn)
            for s, t in zip(session_BD.split(1), TARGETS.split(1), strict=True)
        ]
        estimates.append(torch.stack(rows).exp())
    found = torch.stack(estimates)
    standard_error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - wanted).abs() < 4.5 * standard_error).all()


def test_calibrated_gbce_has_the_gradient_of_all_negatives_on_average() -> None:
    table, session_BD = Table(), sessions().requires_grad_()
    goal_BV = F.one_hot(TARGETS, V).double()
    scores_BV = session_BD @ table.item_vectors().T
    (F.binary_cross_entropy_with_logits(scores_BV, goal_BV, reduction="sum") / B).backward()
    draws = 6
    alpha = 1 - (1 - 1 / V) ** draws
    assert session_BD.grad is not None
    assert table.item_embedding.weight.grad is not None
    wanted = tuple(alpha * gradient for gradient in (session_BD.grad, table.item_embedding.weight.grad))
    assert error(mean_gradients(GBCE(NegativeSampler(V, draws), t=1.0), 1500), wanted) < 0.06
    assert error(mean_gradients(GBCE(NegativeSampler(V, draws), t=0.0), 300), wanted) > 0.2


def test_label_smoothing_is_that_of_torch() -> None:
    table, session_BD = Table(), sessions().requires_grad_()
    wanted = F.cross_entropy(session_BD @ table.item_vectors().T, TARGETS, label_smoothing=0.2)
    wanted.backward()
    value, *found = gradients(FullSoftmax(0.2))
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(found[0], session_BD.grad)
    torch.testing.assert_close(found[1], table.item_embedding.weight.grad)


@pytest.mark.parametrize("name", BACKBONES)
def test_rows_of_every_backbone_are_its_item_vectors(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name](V, ModelConfig(width=D, attention_heads=1))
    if hasattr(backbone, "fit_graph"):
        backbone.fit_graph(torch.tensor([1, 2, 3, 2, 5]), torch.tensor([0, 3, 5]))
    rows = torch.tensor([3, 2, 2, 11])
    assert torch.equal(backbone.item_rows(rows), backbone.item_vectors()[rows])
