"""What contexts need beside, so that cells drawn for them have given means: found gene by gene down the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgim.nn._likelihood import parent_features

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scgim.module._gim import GIMModule

# Of correction a layer: steps of half bridge a factor of twenty, and then means over the last rounds, which are drawn anew, are less noisy
N_ROUNDS, MAX_STEP = 6, 0.5
_N_FULL = 3
_NEAR = 0.02  # in log means, which ends it: convention
_MAX_DRIFT = 5.0  # e-folds; what would need more is no drift


def means_of(values: Tensor, context: Tensor) -> Tensor:
    """Means over the cells of each context, (G, ...), on the CPU."""
    n = torch.bincount(context).double()[:, None]
    return n.new_zeros(len(n), values.shape[1]).index_add_(0, context, values.double().cpu()) / n


def log_typical(mean: Tensor, enough: Tensor | float) -> Tensor:
    """Log of the value whose log1p is the mean of log1p."""
    return (mean.expm1() + enough).log()


def match_means(
    module: GIMModule,
    cells: dict[str, Tensor],
    context: Tensor,
    effects: tuple[Tensor, Tensor],
    wanted: Callable[[Tensor, Tensor, Tensor], Tensor],
    enough: Tensor,
) -> tuple[Tensor, Tensor]:
    """Change of the log means of contexts by which drawn cells get the means that are wanted, and those means, both (G, d).

    Parameters
    ----------
    module
        The module.
    cells
        Covariates and size factors of the cells to be drawn, B in number.
    context
        Which of G contexts each cell is of, (B,).
    effects
        Effects and targets of each cell, both (B, d).
    wanted
        From the log means of the cells first drawn, (G, g), their genes (g,) and parent features (B, g), not standardised, the log means
        that are wanted.
    enough
        What is added to means, (G, 1), so that those of no counts have a logarithm.
    """
    log_size = cells["log_size"]
    shift, targets = (part.to(module.device) for part in effects)
    depth = means_of(log_size.exp(), context)
    rng = torch.Generator(module.device).manual_seed(0)
    base = module.intercept + cells["covariates"] @ module.covariate_effect + module.baseline_offset + shift
    base = base + module.states.draw(len(base), rng)
    drift = torch.zeros(len(depth), shift.shape[1], dtype=torch.float64)
    log_mean, h = torch.zeros_like(drift), torch.zeros_like(shift)
    for layer in module.layers():
        genes, goal = torch.tensor(layer), None
        for k in range(N_ROUNDS):
            own = base[:, genes] + drift[:, genes].to(base)[context]
            values, expected, _ = module.draw_genes(genes.to(module.device), own, h, targets, log_size, rng)
            features = parent_features(values, log_size, module.likelihood)
            h[:, genes] = (features - module.centre[genes]) / module.spread[genes]
            drawn = torch.log(means_of(expected, context) / depth + enough)
            goal = wanted(drawn, genes, features) if goal is None else goal
            step = goal - drawn
            if step.abs().max() < _NEAR:
                break
            share = 1 / max(1, k + 2 - _N_FULL)
            drift[:, genes] = (drift[:, genes] + share * step.clamp(-MAX_STEP, MAX_STEP)).clamp(-_MAX_DRIFT, _MAX_DRIFT)
        log_mean[:, genes] = goal
    return drift, log_mean
