"""Contexts of different levels of the effect modifier, each against the controls of its own level."""

from __future__ import annotations

import torch
from torch import Tensor


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
