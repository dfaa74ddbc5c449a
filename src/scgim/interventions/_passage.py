"""What reaches genes through their parents in each context, as far as mechanisms do not say it (:mod:`scgim._departures`)."""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from scgim._departures import N_BENDS, bends

_BLOCK_VALUES = 2**22


class Departures(NamedTuple):
    """Departures from mechanisms, summed out around their mode.

    `transported` (K, d) is what they add in each context, `passed` (K, d) the square of all that parents pass on, summed over parents.
    `support` (d, d) is the log evidence for each edge by its departures, `growth` the factor by which their prior variance should grow.
    """

    transported: Tensor
    passed: Tensor
    support: Tensor
    log_volume: float
    growth: float


class Passage:
    """What reaches genes through their parents.

    Parameters
    ----------
    moved
        Movement of the means of parent features against the control, shape (K, d).
    slopes
        Slopes of the mechanisms, shape (d, d).
    parents, mask
        Table of parents and its mask, both (d, p).
    """

    def __init__(self, moved: Tensor, slopes: Tensor, parents: Tensor, mask: Tensor):
        self.moved, self.parents, self.mask = moved.T, parents, mask.double()
        own = torch.arange(len(parents))[:, None]
        self.slopes = slopes[parents, own] * self.mask

    def elsewhere(self, moved: Tensor) -> Passage:
        """The same network where the means of parent features have moved otherwise, (K, d)."""
        other = copy(self)
        other.moved = moved.T
        return other

    def reach(self, *, proportional: bool) -> Tensor:
        """Square of the movements of each gene's parents, or of these times slopes, summed, (K, d)."""
        return torch.einsum(
            "jpk,jp->kj", self.moved.square()[self.parents], self.slopes.square() if proportional else self.mask
        )

    def fit(self, left: Tensor, precision: Tensor, departure_var: float, *, proportional: bool = False) -> Departures:
        """Departures, or shares of the slopes, that explain what is `left` (K, d), known to the `precision` (K, d)."""
        n_genes, width = self.parents.shape
        transported, passed = torch.zeros_like(left), torch.zeros_like(left)
        support = left.new_zeros(n_genes, n_genes)
        volume = square = determined = 0.0
        step = max(1, _BLOCK_VALUES // (N_BENDS * width * len(left)))
        for genes in torch.arange(n_genes).split(step):
            moved = self.moved[self.parents[genes]] * self.mask[genes, :, None]  # (g, p, K)
            own = moved * self.slopes[genes, :, None].abs() if proportional else moved
            z = departure_var**0.5 * bends(own).transpose(0, 1).flatten(1, 2)  # (g, 3 p, K)
            weight = precision[:, genes].T
            a = (z * weight[:, None]) @ z.mT + torch.eye(z.shape[1], dtype=z.dtype)
            factor = torch.linalg.cholesky(a)
            mode = torch.cholesky_solve((z @ (weight * left[:, genes].T)[..., None]), factor)  # (g, 3 p, 1)
            covariance = torch.cholesky_inverse(factor)
            added = (mode * z).unflatten(1, (N_BENDS, width)).sum(1)  # (g, p, K)
            transported[:, genes] = added.sum(1).T
            passed[:, genes] = (self.slopes[genes, :, None] * moved + added).square().sum(1).T
            volume += float(-factor.diagonal(dim1=1, dim2=2).log().sum() - 0.5 * mode.square().sum())
            square += float(mode.square().sum())
            determined += float((1 - covariance.diagonal(dim1=1, dim2=2)).sum())
            said = _savage_dickey(mode[..., 0], covariance, width) * self.mask[genes]
            support[:, genes] = support[:, genes].index_put_(
                (self.parents[genes], torch.arange(len(genes))[:, None]), said, accumulate=True
            )
        growth = square / determined if determined > 1e-3 else 0.0
        return Departures(transported, passed, support, volume, growth)


def _savage_dickey(mode: Tensor, covariance: Tensor, width: int) -> Tensor:
    """Log evidence that the departures of each parent are not all zero; mode (g, 3 p), covariance (g, 3 p, 3 p), shape (g, p)."""
    n = torch.arange(width)
    blocks = covariance.unflatten(1, (N_BENDS, width)).unflatten(3, (N_BENDS, width))[:, :, n, :, n]  # (p, g, 3, 3)
    own = mode.unflatten(1, (N_BENDS, width)).permute(2, 0, 1)  # (p, g, 3)
    quadratic = (own * torch.linalg.solve(blocks, own)).sum(-1)
    return 0.5 * (torch.logdet(blocks) + quadratic).T
