"""Intent localisation: an answer's embedding becomes a weighted sum of real catalogue items (tensors alone).

Source: LLM4SBR, intent localisation; the thresholds and figures are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass
class Localised:
    """For N answers and the R items nearest to each."""

    item_NR: npt.NDArray[np.int32]  # best first; of the chosen, equal cosines by lower item_idx
    weight_NR: FloatArray  # cosines normalised to sum 1; zeros where ungrounded
    vector_NE: FloatArray  # h: the weighted sum of the items' embeddings
    cosine_N: FloatArray  # of the best item
    grounded_N: npt.NDArray[np.bool_]


def localise(
    answer_NE: FloatArray,
    item_VE: FloatArray,
    r: int,
    min_cosine: float,
    chunk: int = 1024,
    exact_N: npt.NDArray[np.int32] | None = None,
) -> Localised:
    """Tie each answer to its `r` nearest items.

    Parameters
    ----------
    answer_NE, item_VE
        Embeddings, L2-normalised; an item without text is a row of zeros and is never chosen before one with text.
    r
        How many items; at most V.
    min_cosine
        An answer whose best cosine is below is ungrounded: weights 0.
    chunk
        Answers per score matrix, which bounds memory at chunk x V x 4 bytes.
    exact_N
        The item that an answer names exactly, -1 where there is none. That item then has the whole weight and stands
        first, whatever its cosine; `item_NR` lists the nearest others after it.

    Notes
    -----
    Negative cosines among the r best get weight 0, so that weights stay a convex combination.
    """
    n, r = len(answer_NE), min(r, len(item_VE))
    out = Localised(
        np.zeros((n, r), np.int32),
        np.zeros((n, r), np.float32),
        np.zeros(answer_NE.shape, np.float32),
        np.zeros(n, np.float32),
        np.zeros(n, np.bool_),
    )
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        cosine_CV = answer_NE[rows] @ item_VE.T
        named_C = np.full(len(cosine_CV), -1, np.int32) if exact_N is None else exact_N[rows]
        (is_named,) = np.nonzero(named_C >= 0)
        of_named = cosine_CV[is_named, named_C[is_named]]
        cosine_CV[is_named, named_C[is_named]] = np.inf  # first of all
        # argpartition finds the set in O(V); a stable sort of the r then puts it in order.
        best_CR = np.sort(np.argpartition(-cosine_CV, r - 1, axis=1)[:, :r], axis=1)
        cosine_CR = np.take_along_axis(cosine_CV, best_CR, axis=1)
        order_CR = np.argsort(-cosine_CR, axis=1, kind="stable")
        best_CR = np.take_along_axis(best_CR, order_CR, axis=1)
        cosine_CR = np.take_along_axis(cosine_CR, order_CR, axis=1)
        cosine_CR[is_named] = 0.0
        cosine_CR[is_named, 0] = 1.0
        grounded_C = cosine_CR[:, 0] >= min_cosine
        positive_CR = np.where(grounded_C[:, None], np.maximum(cosine_CR, 0.0), 0.0)
        total_C = positive_CR.sum(axis=1, keepdims=True)
        grounded_C &= total_C[:, 0] > 0
        weight_CR = positive_CR / np.where(total_C > 0, total_C, 1.0)
        out.item_NR[rows] = best_CR
        out.weight_NR[rows] = weight_CR
        out.vector_NE[rows] = np.einsum("cr,cre->ce", weight_CR, item_VE[best_CR])
        cosine_CR[is_named, 0] = of_named
        out.cosine_N[rows] = cosine_CR[:, 0]
        out.grounded_N[rows] = grounded_C
    return out
