"""What contexts of continuous values need beside, where drugs were given together, so that their means are those that were observed.

Effects are shrunk gene by gene given the parents, and small errors of one sign add up down the network, and once more over the members of a
combination. Where mechanisms are linear, means are effects summed along it, so that all is in closed form (:mod:`scgim.fit._contexts`
does the same for counts, by drawing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from scgim._priors import ShiftPrior
from scgim.fit._inference import Observed, over_contexts, split_combinations
from scgim.fit._shrinkage import drawn_between
from scgim.structure._levels import control_means

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_DENSE = 0.5  # share of the genes whose means a drug changes, directly or not: convention
_MIN_SLAB, _TINY = 0.1, 1e-9  # least variance of these changes, in units of that of cells, and of an error


def sums_to_means(module: GIMModule) -> bool:
    """Whether means are effects summed along the network, and over the drugs of combinations."""
    return module.likelihood == "normal" and module.mechanism.is_linear and len(module.knowledge.members) > 0


@torch.no_grad()
def match_continuous(module: GIMModule, loader: BatchLoader) -> Tensor:
    """Change of the effects of each treated context by which its means are the observed ones, shrunk by their errors, (K, d).

    Observed changes are shrunk towards what effects and network say and towards none (:func:`~scgim.fit._shrinkage.drawn_between`).
    Those of a drug are estimated from combinations that hold it as well.
    """
    known, carry = module.knowledge, module.carry()
    group, log_dosage = known.group.cpu(), known.context_log_dosage().cpu()
    moved = _movements(module, loader, carry)
    observed = Observed((moved.n_cells > 0) & (group >= 0), moved.mean, 1 / moved.error.clamp_min(_TINY), None)
    observed = observed._replace(shift=moved.mean[observed.seen], precision=observed.precision[observed.seen])
    slab = max(float((observed.shift.square() - 1 / observed.precision).mean()), _MIN_SLAB)
    alone, _ = split_combinations(known, observed, ShiftPrior(_DENSE, slab))
    seen = observed.seen | alone.seen
    shift, precision = (values[seen] for values in over_contexts(alone, observed))
    fitted = known.interventions().rows(group[seen]).mean(log_dosage[seen]) @ carry
    between = drawn_between(shift, fitted, torch.zeros_like(fitted), 1 / precision)
    added = torch.zeros_like(moved.mean)
    added[seen] = torch.linalg.solve(carry.T, (between.kept * (shift - fitted) - between.back * fitted).T).T
    return added


class _Movements(NamedTuple):
    """Means of contexts against controls, the variance of their errors (both K, d), and their cells (K,)."""

    mean: Tensor
    error: Tensor
    n_cells: Tensor


def _movements(module: GIMModule, loader: BatchLoader, carry: Tensor) -> _Movements:
    """Movements in standard deviations, what covariates do left out; one pass through the cells."""
    known, shape = module.knowledge, (len(module.group), len(module.centre))
    sums, square = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[1], dtype=torch.float64)
    n = torch.zeros(shape[0], dtype=torch.float64)
    of_covariates = module.covariate_effect.detach().double().cpu() @ carry
    for batch in loader:
        x = (batch["x"].cpu() - module.centre.cpu()) / module.spread.cpu()
        h = x.double() - batch["covariates"].cpu().double() @ of_covariates
        context = batch["context"].cpu()
        sums.index_add_(0, context, h)
        n += torch.bincount(context, minlength=shape[0])
        square += h.square().sum(0)
    mean = sums / n.clamp_min(1.0)[:, None]
    within = (square - (n[:, None] * mean.square()).sum(0)) / (n.sum() - (n > 0).sum()).clamp_min(1.0)
    control = (known.group.cpu() < 0) & (n > 0)
    error = within * (1 / n.clamp_min(1.0) + 1 / n[control].sum())[:, None]
    return _Movements(mean - control_means(mean, known.group.cpu(), None), error, n)
