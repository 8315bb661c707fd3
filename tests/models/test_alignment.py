"""Alignment and uniformity against double loops in plain Python floats."""

from __future__ import annotations

import math

import pytest
import torch

from llm4sbr_ray.models import alignment as module
from llm4sbr_ray.models.alignment import alignment, uniformity


def unit(rows: torch.Tensor) -> list[list[float]]:
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows.tolist()]


def square(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(9, 5, dtype=torch.float64, generator=generator) * 3 for _ in range(2))
    return x, y, torch.tensor([True, False, True, True, True, False, True, True, True])


def test_alignment(vectors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, y, counts = vectors
    squares = [square(a, b) for a, b, c in zip(unit(x), unit(y), counts.tolist(), strict=True) if c]
    assert float(alignment(x, y, counts)) == pytest.approx(sum(squares) / len(squares), rel=1e-12)
    assert float(alignment(x, 7 * x, counts)) == pytest.approx(0, abs=1e-12)  # direction alone
    assert float(alignment(x, -x, counts)) == pytest.approx(4)


def test_uniformity(vectors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, _, counts = vectors
    rows = [a for a, c in zip(unit(x), counts.tolist(), strict=True) if c]
    terms = [math.exp(-2 * square(rows[i], rows[j])) for i in range(len(rows)) for j in range(i + 1, len(rows))]
    assert float(uniformity(x, counts)) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-12)
    same = x[:1].expand(4, 5)
    assert float(uniformity(same, torch.ones(4, dtype=torch.bool))) == pytest.approx(0, abs=1e-9)  # the worst


def test_uniformity_pairs_a_bounded_number_of_rows(
    vectors: tuple[torch.Tensor, torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _, counts = vectors
    whole = float(uniformity(x, counts))
    monkeypatch.setattr(module, "UNIFORMITY_ROWS", 4)
    assert float(uniformity(x, counts)) == pytest.approx(float(uniformity(x[:4], counts[:4])))
    assert float(uniformity(x, counts)) != pytest.approx(whole)


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_compare_is_zero_with_finite_gradients(
    rows: int, vectors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    x, y, _ = vectors
    x.requires_grad_()
    counts = torch.arange(9) < rows
    assert float(uniformity(x, counts).detach()) == 0
    if rows == 0:
        assert float(alignment(x, y, counts).detach()) == 0
    (uniformity(x, counts) + alignment(x, y, counts)).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_dimensions_before_the_rows_are_kept(vectors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, y, counts = vectors
    few = counts & (torch.arange(9) < 5)
    x_2PBD = torch.stack([torch.stack([x, y]), torch.stack([y, 2 + x])])
    counts_PB = torch.stack([counts, few])
    for modality in (0, 1):
        for p in (0, 1):
            one = x_2PBD[modality, p], counts_PB[p]
            torch.testing.assert_close(uniformity(x_2PBD, counts_PB)[modality, p], uniformity(*one))
            torch.testing.assert_close(
                alignment(x_2PBD[0], x_2PBD[1], counts_PB)[p], alignment(x_2PBD[0, p], x_2PBD[1, p], counts_PB[p])
            )
