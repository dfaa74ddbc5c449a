"""Differences shrunk by their errors, where it is not known whether all differ a little or few a lot."""

from __future__ import annotations

import torch
from torch import Tensor

_THRESHOLDS = (2.0, 3.0, 4.0)  # standard errors, below which nothing is kept: from many differences to few
_TINY = 1e-12  # guard of a quotient


def shrunken(difference: Tensor, noise: Tensor) -> Tensor:
    r"""Differences (K, d), the variance of whose errors is `noise`, shrunk gene by gene in the way that has the least risk.

    Either all alike, by :math:`v / (v + \sigma^2)` with the variance v between contexts, or by :math:`(1 - (t / z)^2)_+` for a difference
    of z standard errors, which leaves large ones as they are. The risk is Stein's unbiased estimate, summed over contexts.
    """
    square = difference.square() / noise.clamp_min(_TINY)
    spread = ((square - 1).sum(0) / (1 / noise.clamp_min(_TINY)).sum(0)).clamp_min(0.0)
    linear = spread / (spread + noise).clamp_min(_TINY)
    ways = [(linear, (1 - linear).square() * square + 2 * linear - 1)]
    for threshold in _THRESHOLDS:
        ratio = threshold**2 / square.clamp_min(_TINY)
        beyond = threshold**2 * ratio + 2 * (1 + ratio) - 1
        ways.append(((1 - ratio).clamp_min(0.0), torch.where(ratio < 1, beyond, square - 1)))
    kept, risk = (torch.stack(part) for part in zip(*ways, strict=True))
    best = (noise * risk).sum(1).argmin(0)  # (d,)
    return difference * kept[best, :, torch.arange(len(best))].T
