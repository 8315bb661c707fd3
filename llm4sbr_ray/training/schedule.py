"""The learning rate of each update: a function of its number alone, so a resumed training needs no state for it."""

from __future__ import annotations

import math

from llm4sbr_ray.config import TrainConfig


def learning_rate(config: TrainConfig, update: int, updates: int) -> float:
    """The rate of an update.

    It climbs in a line to `config.learning_rate` during the first `config.warm_up` of all updates; then it stays
    ("constant"), or falls towards 0 in a line ("linear") or along half a cosine ("cosine").

    Parameters
    ----------
    config
        Settings.
    update
        From 0.
    updates
        Of all `config.epochs`, whether or not the training stops before.
    """
    warm = round(config.warm_up * updates)
    if update < warm:
        return config.learning_rate * (update + 1) / (warm + 1)
    done = (update - warm) / max(1, updates - warm)  # 0 to just below 1
    match config.schedule:
        case "linear":
            return config.learning_rate * (1 - done)
        case "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate
