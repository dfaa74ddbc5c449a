"""What covariates do to mean counts beside what contexts do: before moments are taken, cells are brought to the same baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_N_STEPS = 8  # of Newton's method at most, which starts from none: convention
_SMALL_STEP = 1e-3  # e-folds, after which nothing that matters moves
_MAX_STEP = 2.0  # e-folds, where a likelihood of few counts is far from its parabola
_PRIOR_PRECISION = 1.0  # of effects of covariates, as in the model
_PSEUDOCOUNT = 0.1  # so that a context without counts of a gene has a mean above zero: convention


@torch.no_grad()
def covariate_effects(module: GIMModule, loader: BatchLoader) -> Tensor:
    """Effects of covariates on log mean counts, (Q, d): a Poisson regression of each gene that has a free mean in each context."""
    n_contexts, (n, d) = len(module.group), module.covariate_effect.shape
    effect = torch.zeros(n, d, dtype=torch.float64)
    for _ in range(_N_STEPS if n else 0):
        level = _means_of_contexts(loader, effect, n_contexts)
        gradient, information = (
            (-_PRIOR_PRECISION * effect).T.clone(),
            _PRIOR_PRECISION * torch.eye(n).double().repeat(d, 1, 1),
        )
        of_contexts = torch.zeros(n_contexts, n, d, dtype=torch.float64)
        total = torch.zeros(n_contexts, d, dtype=torch.float64)
        for batch in loader:
            covariates, context = batch["covariates"].double(), batch["context"]
            mean = level[context] * torch.exp(batch["log_size"].double() + covariates @ effect)
            gradient += (batch["x"].double() - mean).T @ covariates
            information += torch.einsum("bj,bq,br->jqr", mean, covariates, covariates)
            of_contexts.index_add_(0, context, covariates[:, :, None] * mean[:, None])
            total.index_add_(0, context, mean)
        # the means of contexts follow
        information -= torch.einsum("kqj,krj,kj->jqr", of_contexts, of_contexts, 1 / total.clamp_min(_PSEUDOCOUNT))
        step = torch.linalg.solve(information, gradient[..., None])[..., 0].T
        effect += step * (_MAX_STEP / step.abs().amax(0).clamp_min(_MAX_STEP))
        if step.abs().max() < _SMALL_STEP:
            break
    return effect


def _means_of_contexts(loader: BatchLoader, effect: Tensor, n_contexts: int) -> Tensor:
    """Mean counts of each context in cells of size one and average covariates, (K, d)."""
    counts = torch.full((n_contexts, effect.shape[1]), _PSEUDOCOUNT, dtype=torch.float64)
    size = torch.full_like(counts, _PSEUDOCOUNT)
    for batch in loader:
        counts.index_add_(0, batch["context"], batch["x"].double())
        own = torch.exp(batch["log_size"].double() + batch["covariates"].double() @ effect)
        size.index_add_(0, batch["context"], own.expand(-1, effect.shape[1]))
    return counts / size
