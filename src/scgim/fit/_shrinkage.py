"""Differences shrunk by their errors, where it is not known whether all differ a little or few a lot."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_THRESHOLDS = (2.0, 3.0, 4.0)  # standard errors, below which nothing is kept: from many differences to few
_TINY = 1e-12  # guard of a quotient


def shrunken(difference: Tensor, noise: Tensor) -> Tensor:
    r"""Differences (K, d), the variance of whose errors is `noise`, shrunk gene by gene in the way that has the least risk.

    Either all alike, by :math:`v / (v + \sigma^2)` with the variance v between contexts, or by :math:`(1 - (t / z)^2)_+` for a difference
    of z standard errors, which leaves large ones as they are. The risk is Stein's unbiased estimate, summed over contexts.
    """
    kept, _ = _least_risk(difference, noise)
    return difference * kept


class Between(NamedTuple):
    """What lies between values y shrunk to two centres, a + kept (y - a) + back (b - a), and the variance of its error, each (K, d)."""

    kept: Tensor
    back: Tensor
    error_var: Tensor


def drawn_between(values: Tensor, first: Tensor, second: Tensor, noise: Tensor) -> Between:
    r"""How values (K, d), the variance of whose errors is `noise`, are shrunk to two centres, and what lies between the results.

    .. math:: w\, f_1(y) + (1 - w)\, f_2(y)

    Where:
        - :math:`f_1, f_2`: values shrunk to the first and to the second centre (:func:`shrunken`), which err in different ways
        - :math:`w`: the share, between 0 and 1, of the least risk by Stein's estimate, in units of the noise, over all values

    The variance of the error is that by Tweedie's formula, the noise times how fast the result grows with y.
    """
    noise = noise.clamp_min(_TINY)
    (kept, slope), (kept_too, slope_too) = (_least_risk(values - centre, noise) for centre in (first, second))
    away = (1 - kept_too) * (values - second)  # of the values, from what they are shrunk to
    apart = away - (1 - kept) * (values - first)
    risk = (away * apart / noise - (slope - slope_too)).sum() / (apart.square() / noise).sum().clamp_min(_TINY)
    share = float(risk.clamp(0.0, 1.0))
    growth = share * slope + (1 - share) * slope_too
    return Between(share * kept + (1 - share) * kept_too, (1 - share) * (1 - kept_too), noise * growth.clamp(0.0, 1.0))


def _least_risk(difference: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What is kept of differences in the way that has the least risk, and how fast they are then shrunk values grow, both (K, d)."""
    square = difference.square() / noise.clamp_min(_TINY)
    spread = ((square - 1).sum(0) / (1 / noise.clamp_min(_TINY)).sum(0)).clamp_min(0.0)
    linear = spread / (spread + noise).clamp_min(_TINY)
    ways = [(linear, linear, (1 - linear).square() * square + 2 * linear - 1)]
    for threshold in _THRESHOLDS:
        ratio = threshold**2 / square.clamp_min(_TINY)
        beyond = threshold**2 * ratio + 2 * (1 + ratio) - 1
        kept, slope = (1 - ratio).clamp_min(0.0), torch.where(ratio < 1, 1 + ratio, 0.0)
        ways.append((kept, slope, torch.where(ratio < 1, beyond, square - 1)))
    kept, slope, risk = (torch.stack(part) for part in zip(*ways, strict=True))
    best, every = (noise * risk).sum(1).argmin(0), torch.arange(difference.shape[1])  # (d,)
    return kept[best, :, every].T, slope[best, :, every].T
