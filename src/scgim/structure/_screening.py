"""Which genes could explain what the parents of a gene leave: a score test of all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgim._departures import bends

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scgim._priors import ShiftPrior
    from scgim.structure._score import GeneFit
    from scgim.structure._statistics import ContextStatistics


_MIN_FREE = 1e-6  # of the curvature; a copy of a parent has none of its own
_RIDGE, _TINY = 1e-8, 1e-9  # copies among the parents must be solved for, and nothing divided by zero


def score_test(
    statistics: ContextStatistics, prior: ShiftPrior, fit: GeneFit, pairs: list[tuple[int, tuple[int, ...]]]
) -> NDArray:
    """About how much the evidence of each (gene, parents) pair would gain by each further parent, shape (d, B).

    From slope and curvature in the weight of the new parent where that is zero: of the scatter within contexts and of
    context means. Weights of the present parents and the intercept are free, noise and targets stay as they are. Several functions
    of a parent are added up as if they were unrelated. For hard interventions the scatter of targets is not left out, which is
    near enough.
    """
    s, means = statistics, statistics.means
    on, v0 = _targets(s, fit), _spike(s, prior, fit)
    precision = (1 - on) / v0 + on / (v0 + prior.slab_var)
    curvature = s.gram.diagonal()[:, None] / fit.noise_var + means.square().T @ precision.T  # (P, B)
    gain = torch.zeros_like(curvature)
    for b, (gene, parents) in enumerate(pairs):
        columns, noise_var = s.columns(torch.tensor(parents, dtype=torch.long)), fit.noise_var[b]
        present = torch.cat([means[:, columns], torch.ones_like(means[:, :1])], 1)  # (K, q + 1)
        shared = torch.nn.functional.pad(s.gram[:, columns] / noise_var, (0, 1))
        shared += means.T @ (precision[b][:, None] * present)  # (P, q + 1)
        own = torch.nn.functional.pad(s.gram[columns][:, columns] / noise_var, (0, 1, 0, 1))
        own += present.T @ (precision[b][:, None] * present)
        solved = torch.linalg.solve(own + _RIDGE * torch.eye(len(own), dtype=own.dtype), shared.T)  # (q + 1, P)
        left = s.gram[:, gene] - s.gram[:, columns] @ fit.weights[b, : len(columns)]
        weighted = precision[b] * fit.residuals[b]
        slope = left / noise_var + means.T @ weighted
        slope -= solved.T @ (torch.nn.functional.pad(left[columns] / noise_var, (0, 1)) + present.T @ weighted)
        free = curvature[:, b] - (shared * solved.T).sum(1)
        gain[:, b] = slope.square() / (2 * torch.maximum(free, _MIN_FREE * curvature[:, b]).clamp_min(_TINY))
    return gain.reshape(s.n_basis, s.n_genes, len(pairs)).sum(0).numpy()


def targets_explained(statistics: ContextStatistics, prior: ShiftPrior, fit: GeneFit) -> NDArray:
    """What the targets of each gene cost, by the share of its displacements that each other gene's movements explain, (d, B).

    The score test takes targets as they are, and so does not see a parent that would explain why a gene moves under perturbations that
    are taken to act on it.
    """
    s = statistics
    on, v0 = _targets(s, fit), _spike(s, prior, fit)
    own = s.means[:, : s.n_genes]
    z = torch.linalg.qr(bends((own - own[s.group < 0].mean(0)).T).permute(1, 2, 0))[0]  # (d, K, 3)
    residuals = fit.residuals / fit.residuals.norm(dim=1, keepdim=True).clamp_min(1e-9)
    share = torch.einsum("ikf,bk->ibf", z, residuals).square().sum(2)  # (d, B)
    price = 0.5 * (on * (1 + prior.slab_var / v0).log()).sum(1) - prior.log_odds * fit.target_probs.sum(1)
    return (share * price).numpy()


def _targets(s: ContextStatistics, fit: GeneFit) -> Tensor:
    """Probability that a gene is a target in each context, (B, K)."""
    return torch.nn.functional.pad(fit.target_probs, (0, 1))[:, s.group % (s.n_groups + 1)]


def _spike(s: ContextStatistics, prior: ShiftPrior, fit: GeneFit) -> Tensor:
    """Variance of the displacement of a gene that is none, (B, K)."""
    return fit.noise_var[:, None] / s.n_cells + prior.spike_var + prior.misfit**2 * fit.passed
