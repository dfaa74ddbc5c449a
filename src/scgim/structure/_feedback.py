r"""Feedback that an acyclic graph cannot show: genes that answer to their own descendants.

Where the graph has a path from gene i to gene j, the search may not try the edge j -> i. Perturbations that act on j, or on genes between the
two, tell of it: what they do to j without i is no doing of i, and so should leave i where its parents put it. The residual of i is therefore
regressed on

.. math:: \zeta_j = \psi_j + \sum_{p} f_{pj}(\zeta_p), \qquad \zeta_i = 0,

the movement of j that does not come from i: its direct effects and what other genes pass on to it. i may still be a target itself, with
the indicator summed out, as in :mod:`scgim.structure._score`. As nothing of :math:`\zeta_j` comes from i, the regression is not biased by the loop,
which a regression on all movements of j would be; and one perturbation with a likeness of effects on both genes is not enough: the
evidence is that without the perturbation that says most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scgim._departures import bends
from scgim.structure._climb import fit_graph
from scgim.structure._graph import descendants, topological_order
from scgim.structure._levels import control_means

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scgim._priors import ShiftPrior
    from scgim.structure._score import GeneFit
    from scgim.structure._statistics import ContextStatistics

_SLOPE_VAR = 1.0  # prior variance of a slope between standardised genes, as of departures at most
_N_ITERATIONS = 20  # of expectation-maximisation in a regression: convention
_MIN_MOVEMENT = 1e-9
_MIN_PERTURBATIONS = 2  # that move a gene: one with a likeness of effects on both genes tells nothing of a loop


class Loop(NamedTuple):
    """An edge back from a gene to one that comes before it in the graph.

    `back` and `forward` are log evidence of the edge back and of the path forward, each without the perturbation that says most and less the cost of an
    edge; `slope_back` and `slope_forward` are in control standard deviations. Genes are given by number.
    """

    upstream: int
    downstream: int
    back: float
    forward: float
    slope_back: float
    slope_forward: float


class Movements:
    """What moves genes in the treated contexts of a fitted graph.

    Parameters
    ----------
    statistics, adjacency, fit
        Statistics of the cells, the graph (d, d), and the regressions of all genes on their parents in it.
    prior
        Prior of the direct effects.
    """

    def __init__(self, statistics: ContextStatistics, adjacency: NDArray[np.bool_], fit: GeneFit, prior: ShiftPrior):
        treated = statistics.group >= 0
        own = statistics.first_basis()
        moved = own.means - control_means(own.means, own.group, None)
        self.group, self.moved = own.group[treated], moved[treated].T  # (K,), (d, K)
        self.largest = self.moved.abs().amax(1)
        self.adjacency, self.order = adjacency, topological_order(adjacency)
        self.parents = [torch.nonzero(torch.as_tensor(column))[:, 0] for column in adjacency.T]
        self.fit, self.n_basis = fit, statistics.n_basis
        on = fit.target_probs[:, self.group]
        self.direct = on * fit.residuals[:, treated]
        self.residuals = fit.residuals[:, treated]
        error = statistics.variance_of_means(fit.noise_var)[:, treated]
        self.variance = error + prior.spike_var + prior.misfit**2 * fit.passed[:, treated]

    def passed(self, gene: int, movements: Tensor) -> Tensor:
        """What the parents of a gene would pass on if genes had moved like this (d, K), shape (K,)."""
        parents = self.parents[gene]
        z = movements[parents]  # (p, K)
        slopes = self.fit.departures[gene, :, : len(parents)].clone()
        slopes[0] += self.fit.weights[gene, : len(parents) * self.n_basis : self.n_basis]
        return (slopes[:, :, None] * bends(z, self.largest[parents])).sum((0, 1))

    def without(self, gene: int) -> Tensor:
        """Movements of all genes that do not come from one of them, (d, K); of genes that are none of its descendants, all."""
        below = descendants(self.adjacency, gene)
        out = self.moved.clone()
        out[gene] = 0.0
        for t in self.order:
            if t != gene and below[t]:
                passed = self.passed(t, out)
                carried = self.passed(t, self.moved) - passed
                # what looks like a direct effect may be an error of what is passed on by the gene, in proportion to that
                share = self.direct[t].square() / (self.direct[t].square() + carried.square()).clamp_min(_MIN_MOVEMENT)
                out[t] = passed + share * self.direct[t]
        return out


def regress(
    residuals: Tensor,
    movements: Tensor,
    variance: Tensor,
    group: Tensor,
    log_odds: Tensor,
    slab_var: float,
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Regressions of genes' residuals on one movement each, where each perturbation may act on the genes as well.

    Parameters
    ----------
    residuals, movements, variance
        Residuals in treated contexts, what they are regressed on, and the variance of the residuals if the gene is no target, (B, K).
    group
        Perturbation of each context, shape (K,).
    log_odds
        Prior log odds that each perturbation acts on the gene, shape (B, U).
    slab_var
        Variance of the direct effect on a target.
    counted
        Contexts that count, 1 or 0, shape (B, K); None for all.

    Returns
    -------
    Log marginal likelihood over that without a slope, and slope at its mode, both (B,).
    """
    counted = torch.ones_like(residuals) if counted is None else counted

    def by_perturbation(values: Tensor) -> Tensor:
        return torch.zeros_like(log_odds).index_add_(1, group, values * counted)

    def log_densities(slopes: Tensor) -> tuple[Tensor, Tensor]:
        left = residuals - slopes[:, None] * movements
        off, on = (by_perturbation(-0.5 * (left.square() / v + v.log())) for v in (variance, variance + slab_var))
        return off, on + log_odds

    nothing = torch.zeros_like(residuals[:, 0])
    without = torch.logaddexp(*log_densities(nothing)).sum(1)
    found = []
    for probs in (_target_probs(*log_densities(nothing)), torch.sigmoid(log_odds)):  # as without a slope, and as beforehand
        for _ in range(_N_ITERATIONS):
            on = probs[:, group]
            precision = counted * ((1 - on) / variance + on / (variance + slab_var))
            a = (movements.square() * precision).sum(1) + 1 / _SLOPE_VAR
            slopes = (movements * precision * residuals).sum(1) / a
            probs = _target_probs(*log_densities(slopes))
        gain = torch.logaddexp(*log_densities(slopes)).sum(1) - without
        found.append((gain - 0.5 * ((_SLOPE_VAR * a).log() + slopes.square() / _SLOPE_VAR), slopes))
    (first, first_slopes), (second, second_slopes) = found
    return torch.maximum(first, second), torch.where(first >= second, first_slopes, second_slopes)


def _target_probs(off: Tensor, on: Tensor) -> Tensor:
    return torch.sigmoid(on - off)


def find_loops(
    statistics: ContextStatistics,
    adjacency: NDArray[np.bool_],
    prior: ShiftPrior,
    edge_cost: NDArray[np.float64],
    intervention: str = "shift",
) -> list[Loop]:
    """Edges that the data ask for and that would close a cycle, those of most evidence first.

    Parameters
    ----------
    statistics
        Statistics of the cells.
    adjacency
        The graph, acyclic, boolean (d, d).
    prior
        Prior of the direct effects.
    edge_cost
        Log evidence that each edge must bring, shape (d, d).
    intervention
        "shift" or "hard".
    """
    fit = fit_graph(statistics, prior, adjacency, intervention)
    network = Movements(statistics, adjacency, fit, prior)
    odds = prior.target_log_odds(statistics.n_groups, torch.arange(statistics.n_genes)).T
    loops = [loop for i in range(statistics.n_genes) for loop in _loops_of(network, i, odds, prior.slab_var, edge_cost)]
    return sorted(loops, key=lambda loop: -loop.back)


def _loops_of(
    network: Movements, i: int, odds: Tensor, slab_var: float, edge_cost: NDArray[np.float64]
) -> list[Loop]:
    """Edges back to gene i, one after the other as long as the data ask for more."""
    below = descendants(network.adjacency, i)
    below[i] = False
    exogenous = network.without(i)
    candidates = [int(j) for j in below.nonzero()[0] if _n_moving(exogenous[j], network.group) >= _MIN_PERTURBATIONS]
    residuals, loops = network.residuals[i], []
    while candidates:
        movements = exogenous[candidates]
        same = (network.variance[i].expand_as(movements), network.group, odds[i].expand(len(candidates), -1), slab_var)
        gain, slopes = regress(residuals.expand_as(movements), movements, *same)
        gain = gain - torch.as_tensor(edge_cost[candidates, i])
        k = int(gain.argmax())
        if gain[k] <= 0:
            break
        j, slope = candidates.pop(k), float(slopes[k])
        back = _without_strongest(residuals, exogenous[j], network.variance[i], network.group, odds[i], slab_var)
        if back <= edge_cost[j, i]:
            break
        loops.append(_loop(network, i, j, back - float(edge_cost[j, i]), slope, exogenous[j], odds, slab_var, edge_cost))
        residuals = residuals - slope * exogenous[j]
    return loops


def _loop(network, i, j, back, slope, exogenous, odds, slab_var, edge_cost) -> Loop:
    """The loop of an edge back from j to i, whose evidence and slope are known."""
    own, carried = network.moved[i], network.moved[j] - exogenous
    total = float((own * carried).sum() / own.square().sum().clamp_min(_MIN_MOVEMENT))
    not_from_j = own - slope * exogenous
    forward = _without_strongest(carried, not_from_j, network.variance[j], network.group, odds[j], slab_var)
    # what the loop passes round again is part of the slope on movements that do not come from i
    return Loop(i, j, back, forward - float(edge_cost[i, j]), slope / (1 + slope * total), total)


def _without_strongest(residuals, movements, variance, group, log_odds, slab_var: float) -> float:
    """Log evidence of a regression without the perturbation that says most."""
    n = len(log_odds)
    counted = (group != torch.arange(n)[:, None]).to(residuals.dtype)  # (U, K)
    rows = [value.expand(n, -1) for value in (residuals, movements, variance)]
    return float(regress(*rows, group, log_odds.expand(n, -1), slab_var, counted)[0].min())


def _n_moving(movements: Tensor, group: Tensor) -> int:
    return len(group[movements.abs() > _MIN_MOVEMENT].unique())
