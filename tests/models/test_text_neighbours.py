"""Items with like texts, and the share of a target's probability that goes to them."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from llm4sbr_ray.models import text_neighbours as module
from llm4sbr_ray.models.text_neighbours import TEMPERATURE, TextNeighbours, text_neighbours


def texts(n: int = 40, width: int = 6) -> torch.Tensor:
    text_VE = F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(5)), dim=1)
    text_VE[[3, 17]] = 0
    return text_VE


def naive(text_VE: torch.Tensor, k: int) -> dict[int, dict[int, float]]:
    """Neighbours and weights of every item that has a text, one item at a time."""
    found = {}
    for j, text in enumerate(text_VE.double()):
        if not text.any():
            continue
        cosine = {i: float(text @ other) for i, other in enumerate(text_VE.double()) if i != j and other.any()}
        nearest = sorted(cosine, key=lambda i: -cosine[i])[:k]
        share = torch.tensor([cosine[i] / TEMPERATURE for i in nearest]).softmax(0)
        found[j] = dict(zip(nearest, share.tolist(), strict=True))
    return found


def found_in(text_VE: torch.Tensor, k: int) -> TextNeighbours:
    neighbours = text_neighbours(text_VE, k)
    assert neighbours is not None
    return neighbours


def as_dicts(neighbours: TextNeighbours) -> dict[int, dict[int, float]]:
    rows = zip(neighbours.item_VK.tolist(), neighbours.weight_VK.tolist(), strict=True)
    return {j: dict(zip(items, weights, strict=True)) for j, (items, weights) in enumerate(rows) if any(weights)}


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_are_the_nearest_others(k: int) -> None:
    found, wanted = as_dicts(found_in(texts(), k)), naive(texts(), k)
    assert found.keys() == wanted.keys()
    for j, shares in wanted.items():
        assert found[j] == pytest.approx(shares, abs=1e-4)


def test_equal_texts_are_neighbours_and_no_item_is_its_own() -> None:
    text_VE = F.normalize(torch.ones(30, 4), dim=1)
    neighbours = found_in(text_VE, 20)
    assert not (neighbours.item_VK == torch.arange(30)[:, None]).any()
    torch.testing.assert_close(neighbours.weight_VK, torch.full((30, 20), 1 / 20))


@pytest.mark.parametrize("told", [0, 1])
def test_too_few_texts_have_no_neighbours(told: int) -> None:
    text_VE = torch.zeros(5, 3)
    text_VE[:told, 0] = 1
    assert text_neighbours(text_VE) is None


def test_clusters_find_nearly_all_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(6)
    centre = torch.randn(12, 16, generator=generator)
    noise = 0.3 * torch.randn(3000, 16, generator=generator)
    text_VE = F.normalize(centre[torch.arange(3000) % 12] + noise, dim=1)
    exact = found_in(text_VE, 10).item_VK
    monkeypatch.setattr(module, "EXACT_ITEMS", 100)
    monkeypatch.setattr(module, "CLUSTERS", 64)
    found = found_in(text_VE, 10)
    assert not (found.item_VK == torch.arange(3000)[:, None]).any()
    torch.testing.assert_close(found.weight_VK.sum(1), torch.ones(3000))
    shared = (found.item_VK[:, :, None] == exact[:, None]).any(2).float().mean()
    assert float(shared) > 0.95
