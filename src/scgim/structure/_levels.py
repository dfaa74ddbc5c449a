"""Contexts of different levels of the effect modifier, each against the controls of its own level."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scgim.structure._statistics import ContextStatistics


def control_means(means: Tensor, group: Tensor, level: Tensor | None) -> Tensor:
    """Mean of the controls that each context is compared with, (K, P): those of its level, of all without levels.

    Parameters
    ----------
    means
        Means of contexts, shape (K, P).
    group
        Perturbation of each context, -1 for controls, shape (K,).
    level
        Level of the effect modifier of each context, shape (K,); None without one.
    """
    control = group < 0
    if level is None:
        return means[control].mean(0).expand_as(means)
    own = torch.stack([means[control & (level == k)].mean(0) for k in range(int(level.max()) + 1)])
    return own[level]


def relative_to_controls(means: Tensor, n_cells: Tensor, group: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Means (K, P) as if all levels had the same controls, and the numbers of cells (K,) that they are then worth.

    The controls of a level are a sample as well: what is subtracted has an error that adds to that of the context.
    """
    control = group < 0
    weight = n_cells[control] / n_cells[control].sum()
    own = control_means(means, group, level)
    total = torch.zeros(int(level.max()) + 1, dtype=n_cells.dtype).index_add_(0, level[control], n_cells[control])
    worth = torch.where(control, n_cells, n_cells * total[level] / (n_cells + total[level]))
    return means - own + weight @ means[control], worth


def pooled_over_levels(statistics: ContextStatistics, log_dosage: Tensor) -> ContextStatistics:
    """Statistics in which a drug at a dose is one context, whatever the level; of each, `observed` marks the first.

    Parameters
    ----------
    statistics
        Contexts by level, each against the controls of its level.
    log_dosage
        Log dosage of all contexts, those without cells included.
    """
    s = statistics
    observed = torch.nonzero(s.observed)[:, 0]
    where = torch.stack([s.group.double(), torch.where(s.group < 0, 0.0, log_dosage[observed])], 1)
    _, code = torch.unique(where, dim=0, return_inverse=True)
    n = int(code.max()) + 1
    first = torch.full((n,), len(code)).scatter_reduce(0, code, torch.arange(len(code)), "amin")
    order = torch.argsort(first)  # contexts stay in order
    n_cells = torch.zeros(n, dtype=s.n_cells.dtype).index_add_(0, code, s.n_cells)
    sums = torch.zeros(n, s.means.shape[1], dtype=s.means.dtype).index_add_(0, code, s.n_cells[:, None] * s.means)
    marked = torch.zeros_like(s.observed)
    marked[observed[first]] = True
    return replace(
        s,
        means=(sums / n_cells[:, None])[order],
        n_cells=n_cells[order],
        group=s.group[first[order]],
        observed=marked,
        dof=s.residual_dof,
        is_pooled=True,
    )
