"""One space for texts and items: where LLM4SBR starts from (ours).

The projection T of the perspectives starts as the principal components of the item texts, and the item embeddings
start as T e_j plus a little noise. So z_p . v_j begins as the similarity of what the LLM said to item j, and two items
with like texts begin as neighbours; training goes on from there. It costs nothing in a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NOISE = 0.1  # of an item embedding's own start, beside its text
SAME = 1e-6  # texts of unit length whose components spread less differ by rounding


def principal_components(item_text_VE: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The D directions in which texts differ most, and their centre.

    Parameters
    ----------
    item_text_VE
        Text embeddings; rows of zeros (items without text) do not count.
    width
        D; components beyond E are zero.

    Returns
    -------
    basis_DE, centre_E
        float32. Orthonormal rows, the largest variance first; each row's largest entry is positive, so that the
        result does not depend on the solver's choice of signs.
    """
    text_NE = item_text_VE[item_text_VE.any(dim=1)].double()
    centre_E = text_NE.mean(dim=0)
    covariance_EE = (text_NE.T @ text_NE) / len(text_NE) - torch.outer(centre_E, centre_E)
    basis_KE = torch.linalg.eigh(covariance_EE).eigenvectors.flip(1).T[:width]  # eigh sorts ascending
    largest_K1 = basis_KE.gather(1, basis_KE.abs().argmax(dim=1, keepdim=True))
    basis_DE = torch.zeros(width, item_text_VE.shape[1], dtype=torch.float64, device=item_text_VE.device)
    basis_DE[: len(basis_KE)] = basis_KE * largest_K1.sign()
    return basis_DE.float(), centre_E.float()


@torch.no_grad()
def start_from_text(
    item_embedding: nn.Embedding, text_projection: nn.Linear, item_text_VE: Tensor, spread: float = 1.0
) -> None:
    """Set the start of both in place; an item without text keeps its own, and all do where no two texts differ.

    Parameters
    ----------
    item_embedding
        (V + 1) x D, freshly initialised.
    text_projection
        E -> D.
    item_text_VE
        The catalogue's text embeddings.
    spread
        Standard deviation of the text components, in units of that of the embedding as it comes.
    """
    has_text_V = item_text_VE.any(dim=1)
    if not has_text_V.any():
        return
    own_VD = item_embedding.weight[:-1]
    basis_DE, centre_E = principal_components(item_text_VE, own_VD.shape[1])
    text_VD = (item_text_VE - centre_E) @ basis_DE.T
    between_texts = text_VD[has_text_V].std()
    if between_texts < SAME:
        return
    scale = spread * own_VD.std() / between_texts
    text_projection.weight.copy_(scale * basis_DE)
    text_projection.bias.copy_(-scale * (basis_DE @ centre_E))
    own_VD[has_text_V] = scale * text_VD[has_text_V] + NOISE * own_VD[has_text_V]
