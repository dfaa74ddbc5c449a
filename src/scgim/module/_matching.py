"""What contexts need beside, so that cells drawn for them have given means: found gene by gene down the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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


class CellsToDraw(NamedTuple):
    """Covariates (B, Q) and log size factors (B, 1) of cells, their effects and targets, both (B, d)."""

    covariates: Tensor
    log_size: Tensor
    shift: Tensor
    targets: Tensor


def down_the_network(
    module: GIMModule,
    cells: CellsToDraw,
    offset: Callable[[Tensor], Tensor],
    move: Callable[[int, Tensor, Tensor, Tensor], bool],
    n_rounds: int = N_ROUNDS,
) -> None:
    """Draw genes, parents first, and go on with what they act on once their means are as they should be.

    Parameters
    ----------
    module
        The module.
    cells
        The cells to be drawn, B in number.
    offset
        From genes (g,), what their predictors have beside, broadcastable to (B, g).
    move
        From the number of the round, genes (g,), their means given the parents and their parent features, not standardised (both B, g):
        changes offsets, and says whether to draw these genes again.
    n_rounds
        Rounds at most.
    """
    rng = torch.Generator(module.device).manual_seed(0)
    base = module.intercept + cells.covariates @ module.covariate_effect + cells.shift
    if module.states.n:
        base = base + module.states.draw(len(base), rng)
    h = torch.zeros_like(cells.shift)
    for layer in module.layers():
        genes = torch.tensor(layer, device=module.device)
        for k in range(n_rounds):
            own = base[:, genes] + offset(genes).to(base)
            values, mean, hidden = module.draw_genes(genes, own, h, cells.targets, cells.log_size, rng)
            features = parent_features(values, cells.log_size, module.likelihood)
            acting = hidden if module.measurement == "latent" else features
            h[:, genes] = (acting - module.centre[genes]) / module.spread[genes]
            if not move(k, genes, mean, features):
                break


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
    drift = torch.zeros(len(depth), shift.shape[1], dtype=torch.float64)
    log_mean = torch.full_like(drift, torch.nan)

    def offset(genes: Tensor) -> Tensor:
        return module.baseline_offset[genes] + drift[:, genes.cpu()].to(shift)[context]

    def move(k: int, at: Tensor, expected: Tensor, features: Tensor) -> bool:
        genes = at.cpu()
        drawn = torch.log(means_of(expected, context) / depth + enough)
        if not k:
            log_mean[:, genes] = wanted(drawn, genes, features)
        step = log_mean[:, genes] - drawn
        if step.abs().max() < _NEAR:
            return False
        share = 1 / max(1, k + 2 - _N_FULL)
        drift[:, genes] = (drift[:, genes] + share * step.clamp(-MAX_STEP, MAX_STEP)).clamp(-_MAX_DRIFT, _MAX_DRIFT)
        return True

    down_the_network(module, CellsToDraw(cells["covariates"], log_size, shift, targets), offset, move)
    return drift, log_mean
