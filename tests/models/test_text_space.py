"""Where LLM4SBR starts from: items and perspectives in one text space."""

import numpy as np
import pytest
import torch
from torch import nn

from llm4sbr_ray.models.text_space import principal_components, start_from_text


def texts(n: int = 60, width: int = 8) -> torch.Tensor:
    spread = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.2])[:width]
    text_VE = torch.randn(n, width, generator=torch.Generator().manual_seed(3)) * spread + 0.5
    text_VE[[4, 11]] = 0  # items without text
    return text_VE


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    text_VE = texts()
    basis_DE, centre_E = principal_components(text_VE, 5)
    rows = np.array([row for row in text_VE.double().numpy() if np.any(row)])
    np.testing.assert_allclose(centre_E, rows.mean(axis=0), atol=1e-6)
    expected = np.linalg.svd(rows - rows.mean(axis=0)).Vh[:5]
    for found, wanted in zip(basis_DE.numpy(), expected, strict=True):
        np.testing.assert_allclose(found, wanted * np.sign(wanted[np.abs(wanted).argmax()]), atol=1e-5)


def test_components_beyond_the_texts_width_are_zero() -> None:
    basis_DE, _ = principal_components(texts(), 12)
    assert basis_DE.shape == (12, 8)
    assert not basis_DE[8:].any()


def test_an_item_and_a_perspective_about_it_begin_close() -> None:
    torch.manual_seed(0)
    text_VE = texts()
    embedding, projection = nn.Embedding(61, 8, padding_idx=60), nn.Linear(8, 8)
    before_VD, spread = embedding.weight.detach().clone(), float(embedding.weight[:-1].std())
    start_from_text(embedding, projection, text_VE)
    assert torch.equal(embedding.weight[[4, 11, 60]], before_VD[[4, 11, 60]])  # no text, and the padding
    assert float(embedding.weight[:-1].std()) == pytest.approx(spread, rel=0.1)
    z_VD, item_VD = projection(text_VE), embedding.weight[:-1]
    told = [j for j in range(60) if j not in (4, 11)]
    cosine_V = torch.cosine_similarity(z_VD, item_VD, dim=1)[told]
    assert float(cosine_V.min()) > 0.9


@pytest.mark.parametrize("told", [0, 1, 4])
def test_texts_that_do_not_differ_change_nothing(told: int) -> None:
    text_VE = torch.zeros(4, 6)
    text_VE[:told] = torch.nn.functional.normalize(torch.arange(1.0, 7.0), dim=0)
    embedding, projection = nn.Embedding(5, 3, padding_idx=4), nn.Linear(6, 3)
    before = embedding.weight.detach().clone(), projection.weight.detach().clone()
    start_from_text(embedding, projection, text_VE)
    assert torch.equal(embedding.weight, before[0])
    assert torch.equal(projection.weight, before[1])
