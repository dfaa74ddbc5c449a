r"""Genes and perturbations that are off by more than others.

What a context shows of a gene that is no target has a variance: of counting, of what mechanisms are wrong by, and the spike that all genes share. Genes
whose mechanisms are wrong, and perturbations that act on much that was not measured, are off by more, and would pass for targets time and again. The
variance of gene j under perturbation u is therefore

.. math:: \kappa_u \lambda_j (v_{uj} + s),

with multiples that are scaled inverse chi-squared about one. How far these scatter is fitted by moments of the logarithms of mean squares (Smyth, 2004,
Stat Appl Genet Mol Biol 3:3), and none is below one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_FEWEST = 5  # genes, or perturbations, among which some can be told to be off
_LEAST_SQUARE = 1e-3  # mean square that has a logarithm
_MIN_DOF = 2.0  # of the prior: so much is always said by the others
_N_NEWTON, _EXACT = 50, 1e-8


class Multiples(NamedTuple):
    """Multiples of the variance: of genes (d,), of perturbations (U, 1), and their log density less that of ones."""

    of_genes: Tensor
    of_drugs: Tensor
    log_prior: float

    @classmethod
    def ones(cls, n_drugs: int, n_genes: int) -> Multiples:
        """None is off by more than others."""
        return cls(torch.ones(n_genes, dtype=torch.float64), torch.ones(n_drugs, 1, dtype=torch.float64), 0.0)

    def widened(self, variance: Tensor, spike_var: float, group: Tensor) -> Tensor:
        """Variance (K, d) whose sum with the spike is a multiple of what it was, in contexts of the perturbations `group` (K,)."""
        return (variance + spike_var) * (self.of_drugs * self.of_genes)[group] - spike_var

    def updated(self, square: Tensor, off: Tensor) -> Multiples:
        """Multiples that fit mean squares (U, d), in units of the variance, of genes that are no targets with probability `off` (U, d)."""
        of_genes, first = multiples(off * square / self.of_drugs, off, 0)
        of_drugs, second = multiples(off * square / of_genes, off, 1)
        return Multiples(of_genes, of_drugs[:, None], first + second)


def multiples(square: Tensor, off: Tensor, dim: int) -> tuple[Tensor, float]:
    """Multiples along the other dimension, and their log density less that of ones; sums of `square` and `off` are taken over `dim`."""
    number = off.sum(dim).clamp_min(1.0)
    mean_square = square.sum(dim) / number
    dof = prior_dof(mean_square, number)
    if math.isinf(dof):
        return torch.ones_like(mean_square), 0.0
    found = ((dof + number * mean_square) / (dof + number)).clamp_min(1.0)
    return found, -0.5 * dof * float((found.log() + 1 / found - 1).sum())


def prior_dof(mean_square: Tensor, number: Tensor) -> float:
    """Degrees of freedom of the prior of multiples; infinite where mean squares of so many values scatter by no more than by chance."""
    if len(mean_square) < _FEWEST:
        return math.inf
    half = 0.5 * number
    logs = mean_square.clamp_min(_LEAST_SQUARE).log() - torch.digamma(half) + half.log()
    excess = float(logs.var() - torch.polygamma(1, half).mean())
    return max(2 * inverse_trigamma(excess), _MIN_DOF) if excess > 0 else math.inf


def inverse_trigamma(value: float) -> float:
    """The number whose trigamma function is `value`, by Newton's method on one over it, which is convex."""
    x = torch.tensor(0.5 + 1 / value, dtype=torch.float64)
    for _ in range(_N_NEWTON):
        trigamma = torch.polygamma(1, x)
        step = trigamma * (1 - trigamma / value) / torch.polygamma(2, x)
        x = x + step
        if abs(float(step / x)) < _EXACT:
            break
    return float(x)
