"""Clicks to behaviour vectors: the first half of the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llm4sbr_ray.models.base import pad_sessions
from llm4sbr_ray.models.llm4sbr import LLM4SBR


class SessionEncoder:
    """Runs the backbone.

    Parameters
    ----------
    model
        In eval mode.
    n_items
        V.
    """

    def __init__(self, model: LLM4SBR, n_items: int) -> None:
        self._model, self._n_items = model, n_items

    @torch.inference_mode()
    def encode(self, sessions: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Behaviour vectors of some sessions, each 3 x D float32: global, local, the backbone's own mix.

        Sessions hold item indices in click order, at least one; the model sees the last `max_length` of them.
        """
        batch = pad_sessions([list(s) for s in sessions], self._n_items, self._model.config.max_length)
        vectors = self._model.encode(batch.items_BL, batch.length_B)
        stacked_B3D = torch.stack([vectors.global_BD, vectors.local_BD, vectors.session_BD], dim=1)
        return list(stacked_B3D.numpy())

    def check(self) -> None:
        """Encode a probe.

        Raises
        ------
        RuntimeError
            The vectors are not finite: the weights are broken.
        """
        if not np.isfinite(self.encode([[0]])[0]).all():
            raise RuntimeError("behaviour encoder: vectors are not finite")
