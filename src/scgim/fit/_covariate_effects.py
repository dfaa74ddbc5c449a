"""What covariates do to mean counts beside what contexts do: before moments are taken, cells are brought to the same baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_N_STEPS = 20  # of Newton's method at most, which starts from none: convention
_SMALL_STEP = 1e-3  # e-folds, after which nothing that matters moves
_MAX_STEP = 2.0  # e-folds in any cell, where a likelihood of few counts is far from its parabola
_PRIOR_PRECISION = 1.0  # of effects of covariates, as in the model
_PSEUDOCOUNT = 0.1  # so that a context without counts of a gene has a mean above zero: convention


@torch.no_grad()
def covariate_effects(module: GIMModule, loader: BatchLoader) -> Tensor:
    """Effects of covariates on log mean counts, (Q, d): a Poisson regression of each gene that has a free mean in each context."""
    n_contexts, shape = len(module.group), tuple(module.covariate_effect.shape)
    best = torch.zeros(shape, dtype=torch.float64)
    if not shape[0]:
        return best
    largest = torch.stack([batch["covariates"].double().abs().amax(0) for batch in loader]).amax(0)
    trial, least = best, torch.full(shape[1:], -torch.inf, dtype=torch.float64)
    for _ in range(_N_STEPS):
        level, value = _profile(loader, trial, n_contexts)
        worse = value < least
        best, least = torch.where(worse, best, trial), torch.where(worse, least, value)
        step = _newton_step(loader, trial, level)
        step = step * (_MAX_STEP / (largest @ step.abs()).clamp_min(_MAX_STEP))
        if not worse.any() and step.abs().max() < _SMALL_STEP:
            break
        trial = torch.where(worse, (best + trial) / 2, best + step)
    return best


def _profile(loader: BatchLoader, effect: Tensor, n_contexts: int) -> tuple[Tensor, Tensor]:
    """Mean counts of each context in cells of size one and average covariates, (K, d), and the log posterior of each gene at these, (d,)."""
    counts = torch.full((n_contexts, effect.shape[1]), _PSEUDOCOUNT, dtype=torch.float64)
    size, value = torch.full_like(counts, _PSEUDOCOUNT), -0.5 * _PRIOR_PRECISION * effect.square().sum(0)
    for batch in loader:
        x, moved = batch["x"].double(), batch["covariates"].double() @ effect
        counts.index_add_(0, batch["context"], x)
        size.index_add_(0, batch["context"], torch.exp(batch["log_size"].double() + moved))
        value += (x * moved).sum(0)
    return counts / size, value - (counts * size.log()).sum(0)


def _newton_step(loader: BatchLoader, effect: Tensor, level: Tensor) -> Tensor:
    """Step of Newton's method, (Q, d), which the means of contexts `level` (K, d) follow."""
    n, d = effect.shape
    gradient = (-_PRIOR_PRECISION * effect).T.clone()
    information = _PRIOR_PRECISION * torch.eye(n, dtype=torch.float64).repeat(d, 1, 1)
    of_contexts = torch.zeros(len(level), n, d, dtype=torch.float64)
    total = torch.zeros_like(level)
    for batch in loader:
        covariates, context = batch["covariates"].double(), batch["context"]
        mean = level[context] * torch.exp(batch["log_size"].double() + covariates @ effect)
        gradient += (batch["x"].double() - mean).T @ covariates
        information += torch.einsum("bj,bq,br->jqr", mean, covariates, covariates)
        of_contexts.index_add_(0, context, covariates[:, :, None] * mean[:, None])
        total.index_add_(0, context, mean)
    information -= torch.einsum("kqj,krj,kj->jqr", of_contexts, of_contexts, 1 / total.clamp_min(_PSEUDOCOUNT))
    return torch.linalg.solve(information, gradient[..., None])[..., 0].T
