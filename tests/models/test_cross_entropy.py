"""Cross-entropy in blocks, against its definition in a loop and against torch's own gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llm4sbr_ray.models.cross_entropy import BLOCK_SCORES, MIN_ROWS, catalogue_cross_entropy


def draw(B: int, V: int, D: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(B + V)
    session_BD = scale * torch.randn(B, D, dtype=dtype, generator=generator)
    item_VD = torch.randn(V, D, dtype=dtype, generator=generator)
    return session_BD.requires_grad_(), item_VD.requires_grad_(), torch.randint(V, (B,), generator=generator)


def test_its_definition() -> None:
    session_BD, item_VD, target_B = draw(7, 11, 3, torch.float64)
    total = 0.0
    for session, target in zip(session_BD.tolist(), target_B.tolist(), strict=True):
        scores = [sum(a * b for a, b in zip(session, item, strict=True)) for item in item_VD.tolist()]
        total -= scores[target] - math.log(sum(map(math.exp, scores)))
    assert catalogue_cross_entropy(session_BD, item_VD, target_B).item() == pytest.approx(total / 7, abs=1e-12)


@pytest.mark.parametrize("rows", [1, MIN_ROWS, 2 * MIN_ROWS + 5])  # below a block, one block, several with a rest
def test_gradient_of_several_blocks(rows: int) -> None:
    V = BLOCK_SCORES // MIN_ROWS
    ours, reference = draw(rows, V, 4, torch.float64), draw(rows, V, 4, torch.float64)
    loss = catalogue_cross_entropy(*ours)
    expected = F.cross_entropy(reference[0] @ reference[1].T, reference[2])
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours[0].grad, reference[0].grad)
    torch.testing.assert_close(ours[1].grad, reference[1].grad)


def test_gradcheck() -> None:
    session_BD, item_VD, target_B = draw(5, 9, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda s, v: catalogue_cross_entropy(s, v, target_B), (session_BD, item_VD))


def test_large_scores_stay_finite() -> None:
    session_BD, item_VD, target_B = draw(6, 50, 4, torch.float32, scale=1e4)
    loss = catalogue_cross_entropy(session_BD, item_VD, target_B)
    loss.backward()
    torch.testing.assert_close(loss, F.cross_entropy(session_BD @ item_VD.T, target_B))
    assert session_BD.grad is not None
    assert bool(torch.isfinite(session_BD.grad).all())


def test_without_gradient() -> None:
    session_BD, item_VD, target_B = draw(6, 50, 4, torch.float32)
    with torch.no_grad():
        loss = catalogue_cross_entropy(session_BD, item_VD, target_B)
    torch.testing.assert_close(loss, F.cross_entropy(session_BD @ item_VD.T, target_B).detach())
