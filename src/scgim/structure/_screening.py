"""Which genes could explain what the parents of a gene leave: a score test of all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scgim._priors import ShiftPrior
    from scgim.structure._score import GeneFit
    from scgim.structure._statistics import ContextStatistics


_MIN_FREE = 1e-6  # of the curvature; a copy of a parent has none of its own
_BLOCK_VALUES = 2**21  # 16 MB at a time: for memory
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
    on, v0 = _targets(s, fit), _spike(s, prior, fit, [gene for gene, _ in pairs])
    precision = (1 - on) / v0 + on / (v0 + prior.slab_var)
    curvature = s.gram.diagonal()[:, None] / fit.noise_var + means.square().T @ precision.T  # (P, B)
    gain = torch.zeros_like(curvature)
    width = max(len(parents) for _, parents in pairs)
    for own in torch.arange(len(pairs)).split(max(1, _BLOCK_VALUES // (len(curvature) * (width * s.n_basis + 1)))):
        gain[:, own] = _gain_beside_parents(s, fit, pairs, own, precision[own], curvature[:, own])
    return gain.reshape(s.n_basis, s.n_genes, len(pairs)).sum(0).numpy()


def _gain_beside_parents(
    s: ContextStatistics, fit: GeneFit, pairs: list, own: Tensor, precision: Tensor, curvature: Tensor
) -> Tensor:
    """Gain of each further column, weights of the present parents free, for some of the pairs, (P, b)."""
    chosen = [pairs[b] for b in own.tolist()]
    width = max(len(parents) for _, parents in chosen)
    index = torch.tensor([[*parents, *[0] * (width - len(parents))] for _, parents in chosen], dtype=torch.long)
    mask = torch.tensor([[1.0] * len(p) + [0.0] * (width - len(p)) for _, p in chosen], dtype=torch.float64)
    columns, mask = s.columns(index), mask.repeat_interleave(s.n_basis, 1)  # (b, q)
    genes = torch.tensor([gene for gene, _ in chosen])
    noise_var, slopes = fit.noise_var[own], fit.weights[own][:, : columns.shape[1]] * mask
    one = torch.ones(len(chosen), 1, s.n_contexts, dtype=mask.dtype)
    present = torch.cat([s.by_column[columns] * mask[..., None], one], 1)  # (b, q + 1, K)
    weighted = precision[:, None] * present
    scatter = s.gram[columns] * mask[..., None]  # (b, q, P)
    shared = weighted @ s.means  # (b, q + 1, P)
    shared[:, :-1] += scatter / noise_var[:, None, None]
    within = weighted @ present.mT
    within[:, :-1, :-1] += (
        scatter.gather(2, columns[:, None].expand(-1, columns.shape[1], -1))
        * mask[:, None]
        / (noise_var[:, None, None])
    )
    empty = torch.nn.functional.pad(1 - mask, (0, 1))
    within += torch.diag_embed(empty + _RIDGE)
    solved = torch.linalg.solve(within, shared)
    left = s.gram[genes] - (slopes[:, None] @ scatter)[:, 0]  # (b, P)
    moved = precision * fit.residuals[own]
    slope = left / noise_var[:, None] + moved @ s.means
    known = torch.nn.functional.pad(left.gather(1, columns) * mask / noise_var[:, None], (0, 1))
    known = known + (present @ moved[..., None])[..., 0]
    slope = slope - (known[:, None] @ solved)[:, 0]
    free = curvature - (shared * solved).sum(1).T
    return slope.T.square() / (2 * torch.maximum(free, _MIN_FREE * curvature).clamp_min(_TINY))


def targets_explained(statistics: ContextStatistics, prior: ShiftPrior, fit: GeneFit, genes: list[int]) -> NDArray:
    """What the targets of each of the genes that were fitted cost, by the share of its displacements that each other gene's movements explain, (d, B).

    The score test takes targets as they are, and so does not see a parent that would explain why a gene moves under perturbations that
    are taken to act on it.
    """
    s = statistics
    on, v0 = _targets(s, fit), _spike(s, prior, fit, genes)
    residuals = fit.residuals / fit.residuals.norm(dim=1, keepdim=True).clamp_min(1e-9)
    share = torch.einsum("ikf,bk->ibf", s.movements, residuals).square().sum(2)  # (d, B)
    price = 0.5 * (on * (1 + prior.slab_var / v0).log()).sum(1) - prior.log_odds * fit.target_probs.sum(1)
    return (share * price).numpy()


def _targets(s: ContextStatistics, fit: GeneFit) -> Tensor:
    """Probability that a gene is a target in each context, (B, K)."""
    return torch.nn.functional.pad(fit.target_probs, (0, 1))[:, s.group % (s.n_groups + 1)]


def _spike(s: ContextStatistics, prior: ShiftPrior, fit: GeneFit, genes: list[int]) -> Tensor:
    """Variance of the displacement of a gene that is none, (B, K); `genes` are those that were fitted."""
    own = s.variance_of_means(fit.noise_var, torch.tensor(genes, dtype=torch.long))
    return own + prior.spike_var + prior.misfit**2 * fit.passed
