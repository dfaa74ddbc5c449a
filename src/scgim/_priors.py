r"""What is known before the data are seen: of direct effects, and of edges. Search, descent and inference take it from here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Added to the spike in the descent, where effects are parameters without an error of their own and a spike of no width would have no
# density: a standard deviation of 2 % of the mean, less than any screen can tell from none.
MIN_SPIKE_VAR = 4e-4
# Prior log odds of an edge among up to this number of genes. Convention: sparse, 0.12 * 19 or about two parents a gene.
# What other values do is in the tables `sensitivity-*` of docs/benchmarks.md.
EDGE_LOG_ODDS, _EDGE_GENES = -2.0, 20
MAX_TARGET_PROB = 0.3  # of a fitted prior, as many targets as no screen has: convention
CELLS_A_GENE = 12  # cells, or wells, for each gene; fewer say little of a graph: convention


@dataclass(frozen=True)
class ShiftPrior:
    """Spike-and-slab prior of direct effects, in units of a gene's spread in control cells.

    Parameters
    ----------
    target_prob
        Prior probability that a perturbation acts on a gene directly.
    slab_var
        Variance of the direct effect on a target.
    spike_var
        Variance of what is left on other genes: misfit rather than effect.
    known
        Prior log odds of single targets, given beforehand or by drug features, in place of the common `target_prob`; NaN for none,
        shape (U, d).
    misfit
        Standard deviation of what is left on other genes, as a share of what their parents pass on.
    departure_var
        Variance of the departures of slopes between contexts from those within (:mod:`scgim._departures`).
    proportional
        Whether departures are shares of the slopes within contexts.
    level_share
        Variance of the deviations of levels of the effect modifier from the common effect, as a share of the slab
        (:mod:`scgim.interventions._levels`).
    """

    target_prob: float
    slab_var: float = 2.0  # to start from, so of little weight: an effect of some 1.4 spreads; the search fits it
    spike_var: float = 0.0
    known: Tensor | None = None
    misfit: float = 0.0
    departure_var: float = 0.0
    proportional: bool = False
    level_share: float = 0.0

    @property
    def log_odds(self) -> float:
        return math.log(self.target_prob) - math.log1p(-self.target_prob)

    def target_log_odds(self, n_perturbations: int, genes: Tensor) -> Tensor:
        """Log odds that each perturbation acts on each of the genes, shape (U, B)."""
        usual = torch.full((n_perturbations, len(genes)), self.log_odds, dtype=torch.float64)
        if self.known is None:
            return usual
        known = self.known[:n_perturbations, genes]
        return torch.where(known.isnan(), usual, known)

    def of_genes(self, genes: Tensor) -> ShiftPrior:
        """Prior for some of the genes."""
        return self if self.known is None else replace(self, known=self.known[:, genes])

    def is_open(self, target_probs: Tensor) -> Tensor:
        """Where the common `target_prob` holds, 1 or 0, for the shape (U, d)."""
        return (
            torch.ones_like(target_probs)
            if self.known is None
            else self.known[: len(target_probs)].isnan().to(target_probs)
        )


def shift_log_prior(shift: Tensor, group: Tensor, target_prob: Tensor, spike_sd: Tensor, slab_sd: Tensor) -> Tensor:
    """Log prior of the direct effects, the target indicators summed out.

    Parameters
    ----------
    shift
        Direct effect in each context, shape (K, d).
    group
        Perturbation of each context, shape (K,).
    target_prob
        Prior probability that a gene is a target, scalar or shape (U, d).
    spike_sd, slab_sd
        Spread of the effects on other genes and on targets.

    Returns
    -------
    Sum over perturbations and genes of the log of both cases; the doses of a perturbation share their indicator.
    """
    n_groups = int(group.max()) + 1
    off, on = (-0.5 * (shift / sd).square() - sd.log() for sd in (spike_sd, slab_sd))
    off, on = (shift.new_zeros(n_groups, shift.shape[1]).index_add(0, group, value) for value in (off, on))
    return torch.logaddexp(off + torch.log1p(-target_prob), on + target_prob.log()).sum()


def usual_edge_log_odds(n_genes: int) -> float:
    """Prior log odds of an edge of which nothing is known: among 20 genes or more, each has about two parents."""
    return EDGE_LOG_ODDS - math.log(max(1.0, n_genes / _EDGE_GENES))
