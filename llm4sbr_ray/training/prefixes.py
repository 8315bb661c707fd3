"""Random prefixes: a session of n clicks teaches n - 1 targets, one an epoch, and costs one sample.

Augmentation by prefixes is Tan et al.'s (Improved recurrent neural networks for session-based recommendations, DLRS
2016), who make a sample of each; drawing one anew in every epoch keeps an epoch as short as it is. It is for data with
one sample a session (`data.samples: last-item`), whose models otherwise never see a session as short as it once was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm4sbr_ray.training.batches import Samples


def random_prefixes(samples: Samples, share: float, seed: int) -> Tensor:
    """How many clicks of each sample's prefix are read in an epoch.

    Parameters
    ----------
    samples
        N samples, of n clicks each.
    share
        Of samples that are read up to a random click: any of 1 to n, alike.
    seed
        The same numbers follow from it on every worker, whatever torch's generator has done.

    Returns
    -------
    Tensor
        int64, N, 1 to n; on the device of the samples.
    """
    draw = torch.Generator().manual_seed(seed)
    length_N = samples.offset_N1.diff()
    uniform_2N = torch.rand(2, len(samples), dtype=torch.float64, generator=draw).to(length_N.device)
    drawn_N = (uniform_2N[0] * length_N).long() + 1
    return torch.where(uniform_2N[1] < share, drawn_N, length_N)
