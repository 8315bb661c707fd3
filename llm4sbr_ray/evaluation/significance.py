"""Is one model better than another, or is it chance? A paired bootstrap over sessions and seeds.

Both models are judged on the same resampled sessions (paired). The samples of one session stay together, for
prefixes of one session are not independent. The seeds of each model are resampled too, so that a lucky seed
widens the interval instead of passing for a gain; with few seeds that part is coarse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm4sbr_ray.evaluation.metrics import Floats

RESAMPLES = 4000
MAX_GROUPS = 1000  # sessions are hashed into at most so many groups, which bounds the work for any test set


@dataclass(frozen=True)
class Difference:
    """Model a minus model b."""

    difference: float  # of the means over samples and seeds
    ci95: tuple[float, float]  # percentile interval
    p_value: float  # two-sided
    relative: float | None  # difference / b; None where b is 0
    relative_ci95: tuple[float, float] | None


def paired_bootstrap(
    a_SN: Floats, b_TN: Floats, group_N: npt.NDArray[np.int64], seed: int, resamples: int = RESAMPLES
) -> Difference:
    """Compare two models on the same N samples.

    Parameters
    ----------
    a_SN, b_TN
        Value of the metric for each sample, a row for each of the S and T seeds.
    group_N
        Group of each sample, from 0: all samples of a session are in one group.
    seed
        Of the resampling.
    resamples
        The smallest p value is 2 / (resamples + 1).

    Notes
    -----
    The p value inverts the percentile interval: twice the share of resamples on the far side of 0, the
    observed sample counted among them. So it agrees with the interval.
    """
    rng = np.random.default_rng(seed)
    _, group_N = np.unique(group_N, return_inverse=True)
    G = int(group_N.max()) + 1
    sums_GM = np.stack([np.bincount(group_N, row, minlength=G) for row in (*a_SN, *b_TN)], axis=1)
    size_G = np.bincount(group_N, minlength=G)
    drawn_KG = rng.multinomial(G, np.full(G, 1 / G), size=resamples).astype(np.float64)
    mean_KM = (drawn_KG @ sums_GM) / (drawn_KG @ size_G)[:, None]
    S, T = len(a_SN), len(b_TN)
    a_K = _over_drawn_seeds(mean_KM[:, :S], rng)
    b_K = _over_drawn_seeds(mean_KM[:, S:], rng)
    mean_a, mean_b = (
        float(sums_GM[:, :S].sum() / (S * size_G.sum())),
        float(sums_GM[:, S:].sum() / (T * size_G.sum())),
    )
    gain_K = a_K - b_K
    beyond = min(int((gain_K <= 0).sum()), int((gain_K >= 0).sum()))
    return Difference(
        difference=mean_a - mean_b,
        ci95=_interval(gain_K),
        p_value=min(1.0, 2 * (beyond + 1) / (resamples + 1)),
        relative=(mean_a - mean_b) / mean_b if mean_b > 0 else None,
        relative_ci95=_interval(gain_K / b_K) if b_K.min() > 0 else None,
    )


def _over_drawn_seeds(mean_KS: Floats, rng: np.random.Generator) -> Floats:
    """For each resample the mean over as many seeds as there are, drawn with replacement."""
    S = mean_KS.shape[1]
    drawn_KS = rng.multinomial(S, np.full(S, 1 / S), size=len(mean_KS))
    mean_K: Floats = (mean_KS * drawn_KS).sum(axis=1) / S
    return mean_K


def _interval(value_K: Floats) -> tuple[float, float]:
    low, high = np.quantile(value_K, [0.025, 0.975])
    return float(low), float(high)
