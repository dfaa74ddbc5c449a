r"""Hidden programmes: changes that perturbations share because they act through regulators that were not measured.

What is left of the means of contexts once the network has been taken out, S (contexts x genes), is modelled as

.. math:: S = A B + \text{direct effects} + \text{noise}, \qquad B \sim N(0, I)

with few columns of A. A knock-out of a receptor, say, moves hundreds of genes through proteins whose activity does not
show in counts; without A each of them would pass for a direct target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TINY, _RIDGE = 1e-12, 1e-6  # guards: of a quotient, and of scores that are all zero


def initial_loadings(shift: Tensor, variance: Tensor, n_programmes: int) -> Tensor:
    """Leading patterns over contexts of the displacements (K, d) in units of each gene's noise, shape (K, r)."""
    scale = variance.median(0).values.sqrt()
    left, values, right = torch.linalg.svd(shift / scale, full_matrices=False)
    spread = (right[:n_programmes] * scale).square().mean(1).sqrt()  # so that rows of B have unit variance
    return left[:, :n_programmes] * values[:n_programmes] * spread


def effective_genes(shift: Tensor, noise: Tensor, loadings: Tensor) -> float:
    """Number of genes that share the weakest programme, as a participation ratio of what it explains."""
    scores, _ = _gene_scores(shift, noise, loadings)
    explained = torch.einsum("kq,jq,kj->qj", loadings.square(), scores.square(), 1 / noise)
    return float((explained.sum(1).square() / explained.square().sum(1).clamp_min(_TINY)).min())


def update_loadings(shift: Tensor, noise: Tensor, loadings: Tensor) -> Tensor:
    """One step of expectation-maximisation of A."""
    mean, cov = _gene_scores(shift, noise, loadings)  # (d, r), (d, r, r)
    second = cov + mean[:, :, None] * mean[:, None, :]
    precision = torch.einsum("kj,jqr->kqr", 1 / noise, second)
    precision = precision + _RIDGE * torch.eye(loadings.shape[1], dtype=shift.dtype)
    return torch.linalg.solve(precision, torch.einsum("kj,jq->kq", shift / noise, mean)[..., None])[..., 0]


def programme_of(shift: Tensor, noise: Tensor, loadings: Tensor) -> Tensor:
    """Expected A B, shape (K, d)."""
    return loadings @ _gene_scores(shift, noise, loadings)[0].T


def _gene_scores(shift: Tensor, noise: Tensor, loadings: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean (d, r) and covariance (d, r, r) of each gene's row of B."""
    precision = torch.einsum("kq,kj,kr->jqr", loadings, 1 / noise, loadings)
    cov = torch.linalg.inv(precision + torch.eye(loadings.shape[1], dtype=shift.dtype))
    return torch.einsum("jqr,jr->jq", cov, (shift / noise).T @ loadings), cov


def price(shift: Tensor, noise: Tensor, loadings: Tensor) -> float:
    """Log evidence that programmes cost: scores summed out around their mean, loadings by information criterion."""
    mean, cov = _gene_scores(shift, noise, loadings)
    scores = 0.5 * mean.square().sum() - 0.5 * torch.logdet(cov).sum()
    return float(scores) + 0.5 * loadings.numel() * math.log(shift.shape[1])
