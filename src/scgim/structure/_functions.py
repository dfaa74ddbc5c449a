"""Search for a graph whose genes are functions of any form of their parents.

The first search adds up functions of single parents, which is cheap, but a gene that responds to two parents together then looks
as if more genes acted on it. Here a gene is a smooth function of all its parents: linear terms, steps of single parents and random
tanh units of all of them, with normal priors whose widths are fitted, integrated out. Counts are judged by their own likelihood.
Each regression goes through a sample of the cells, so only edges that the first search found or nearly found are looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scgim.structure._count_fit import CountFit
from scgim.structure._moves import StructureSearch
from scgim.structure._score import GeneFit, fit_genes
from scgim.structure._search import StructureResult
from scgim.structure._statistics import ContextStatistics, StatisticsAccumulator
from scgim.structure._watch import LARGER_MOVES, SearchWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgim._priors import ShiftPrior
    from scgim.structure._climb import Parents

# Functions that a regression may use, of parents in standard deviations. Their number and form are conventions:
# they need only span smooth functions, since the widths of their priors are fitted. Other choices are in the tables
# `sensitivity-gnw` and `-nonlinear` of docs/benchmarks.md.
_N_UNITS = 64
_STEPS = ((1.0, 0.0), (1.0, 1.5), (1.0, -1.5), (2.0, 0.75), (2.0, -0.75))  # slope and place of functions of one parent
_SHARPNESS = (0.33, 2.0)  # from nearly linear to nearly a step within the usual range of two standard deviations
_BIAS_SD = 1.5  # so that units bend anywhere in that range
# Of expectation-maximisation, more than elsewhere since the widths are fitted too: convention, for time.
_N_ITERATIONS = 10
# Each regression takes long: candidate parents of a gene beside those of the first graphs, random moves a round, and
# regressions a gene that the larger moves may cost. Conventions, for time.
_N_NEAR = 5
_N_PERTURBATIONS = 2
_MAX_EVALUATIONS = 20
_MIN_VARIANCE = 1e-6  # as the least noise of a regression


@dataclass(frozen=True)
class SampledCells:
    """Cells that regressions go through.

    Parameters
    ----------
    h
        Parent features, standardised on controls, shape (n, d).
    x
        Values, shape (n, d).
    context
        Context of each cell, shape (n,).
    covariates
        Covariate design, shape (n, Q).
    log_size
        Log size factors, shape (n,).
    group
        Perturbation of each context, -1 for controls, shape (K,).
    likelihood
        "nb", "poisson" or "normal".
    """

    h: Tensor
    x: Tensor
    context: Tensor
    covariates: Tensor
    log_size: Tensor
    group: Tensor
    likelihood: str


class RandomUnits:
    """Functions of a set of parents. The unit weights of a gene are the same in every set that it is in, so that scores compare."""

    def __init__(self, n_genes: int):
        rng = torch.Generator().manual_seed(0)
        low, high = (math.log(s) for s in _SHARPNESS)
        self.weight = torch.randn(n_genes, _N_UNITS, generator=rng)
        self.weight *= torch.exp(low + (high - low) * torch.rand(_N_UNITS, generator=rng))
        self.bias = _BIAS_SD * torch.randn(_N_UNITS, generator=rng)

    def __call__(self, h: Tensor, parents: Parents) -> tuple[Tensor, Tensor]:
        """Values of the functions (n, q) and the family of each: linear 0, of one parent 1, of all parents 2."""
        own, p = h[:, list(parents)].float(), len(parents)
        if not p:
            return own.double(), torch.zeros(0, dtype=torch.long)
        steps = [torch.tanh(slope * (own - place)) for slope, place in _STEPS]
        units = torch.tanh(own @ self.weight[list(parents)] / math.sqrt(p) + self.bias)
        family = torch.tensor([0] * p + [1] * (p * len(_STEPS)) + [2] * _N_UNITS)
        return torch.cat([own, *steps, units], 1).double(), family


class FunctionSearch(StructureSearch):
    """Hill climbing over graphs whose genes are smooth functions of their parents.

    Parameters
    ----------
    cells
        Cells that regressions go through.
    candidates
        Edges to score, boolean (d, d): each regression takes long.
    prior, intervention, edge_log_odds, regulators, seed, on_move
        As for :class:`~scgim.structure._search.StructureSearch`.
    """

    def __init__(
        self,
        cells: SampledCells,
        candidates: NDArray[np.bool_],
        prior: ShiftPrior,
        *,
        intervention: str = "shift",
        **kwargs,
    ):
        self.cells, self.units, self.intervention = cells, RandomUnits(cells.h.shape[1]), intervention
        super().__init__(self._statistics(cells.h), prior, intervention=intervention, **kwargs)
        self.candidates = (candidates | self.required) & self.allowed
        # the evidence pays for its parameters; what is left of the cost are the prior odds
        self.edge_cost = self.edge_cost - 0.5 * math.log(len(cells.h))
        self._counts_of = lru_cache(None)(
            lambda gene: CountFit(cells.x[:, gene], cells.log_size, cells.covariates, cells.likelihood)
        )

    def near(self, genes: list[int]) -> NDArray[np.bool_]:
        """Parents to score for each of the genes, boolean (d, B); those that there are must be among them, to be removed."""
        return self.candidates[:, genes] | self.adjacency[:, genes]

    def _statistics(self, columns: Tensor) -> ContextStatistics:
        cells, width = self.cells, columns.shape[1]
        hard = self.intervention == "hard"
        accumulator = StatisticsAccumulator(cells.group, width, width, cells.covariates.shape[1], by_group=hard)
        accumulator.update(columns, cells.context, cells.covariates)
        return accumulator.finalise()

    def fit(
        self, pairs: list[tuple[int, Parents]], n_iterations: int | None = None, *, determined: bool = True
    ) -> GeneFit:
        """Fit the given (gene, parents) pairs; of the weights only the intercepts are kept."""
        fits = [self._fit_one(gene, parents, n_iterations or _N_ITERATIONS, determined) for gene, parents in pairs]
        return GeneFit(*(torch.cat([getattr(fit, name) for fit in fits]) for name in GeneFit.__dataclass_fields__))

    def _fit_one(self, gene: int, parents: Parents, n_iterations: int, determined: bool) -> GeneFit:
        cells, (features, families) = self.cells, self.units(self.cells.h, parents)
        q, y = features.shape[1], cells.h[:, gene]
        statistics = self._statistics(torch.cat([features, y[:, None]], 1))
        known = self.prior.known
        prior = self.prior if known is None else replace(self.prior, known=known[:, [gene]].expand(-1, q + 1))
        columns = torch.arange(q)[None]
        fit = fit_genes(
            statistics,
            torch.tensor([q]),
            columns,
            torch.ones_like(columns, dtype=torch.float64),
            prior,
            intervention=self.intervention,
            n_iterations=n_iterations,
            families=families,
            determined=determined,
        )
        evidence = fit.log_evidence
        if cells.likelihood != "normal":
            evidence = evidence + self._by_counts(gene, features, fit, statistics)
        return replace(fit, log_evidence=evidence, weights=fit.weights[:, -1:])

    def _by_counts(self, gene: int, features: Tensor, fit: GeneFit, statistics: ContextStatistics) -> Tensor:
        """Log-likelihood of the counts at the fit less that of their log1p."""
        cells, group = self.cells, self.cells.group % (statistics.n_groups + 1)
        y, noise = cells.h[:, gene], fit.noise_var[0]
        on = torch.nn.functional.pad(fit.target_probs[0], (0, 1))[group]  # (K,)
        v0 = noise / statistics.n_cells + self.prior.spike_var
        moved = on * self.prior.slab_var / (v0 + self.prior.slab_var) * fit.residuals[0]
        fitted = features @ fit.weights[0, :-1] + (moved + fit.weights[0, -1])[cells.context]
        variance = noise.expand_as(y)
        if self.intervention == "hard":
            is_target = (on > 0.5)[cells.context]
            fitted = torch.where(is_target, statistics.means[:, -1][cells.context], fitted)
            own = (y - fitted).square()
            total = torch.zeros(statistics.n_groups + 1, dtype=y.dtype).index_add_(0, group[cells.context], own)
            count = torch.bincount(group[cells.context], minlength=len(total)).clamp_min(1)
            variance = torch.where(is_target, (total / count).clamp_min(_MIN_VARIANCE)[group[cells.context]], variance)
        residual = y - fitted
        if cells.covariates.shape[1]:
            c = cells.covariates
            residual = residual - c @ torch.linalg.lstsq(c, residual[:, None]).solution[:, 0]
        normal = -0.5 * (residual.square() / variance + variance.log()).sum()
        return self._counts_of(gene).log_likelihood(fitted) - normal


def refine_structure(
    cells: SampledCells,
    statistics: ContextStatistics,
    starts: Sequence[StructureResult],
    *,
    intervention: str,
    edge_log_odds: float | NDArray,
    regulators: NDArray[np.bool_] | None = None,
    seed: int = 0,
    watch: SearchWatch | None = None,
) -> StructureResult:
    """Climb from the best of several graphs by the score of smooth functions, and escape local optima.

    Parameters
    ----------
    cells
        Cells that regressions go through.
    statistics
        Statistics of functions that add up, which say what edges are worth a look.
    starts
        Graphs to start from.
    intervention, edge_log_odds, regulators, seed, watch
        As for :func:`~scgim.structure._search.search_structure`.
    """
    watch = SearchWatch() if watch is None else watch
    options: dict[str, Any] = {
        "intervention": intervention,
        "edge_log_odds": edge_log_odds,
        "regulators": regulators,
        "seed": seed,
        "on_move": watch.moved,
    }
    search = FunctionSearch(cells, worth_a_look(statistics, starts, **options), starts[0].prior, **options)
    d = search.n_genes
    total = [sum(search.scores([(j, search.parents(j, s.adjacency)) for j in range(d)])) for s in starts]
    start = starts[int(np.argmax(total))]
    search.adjacency = start.adjacency.copy()
    search.update_prior()
    search.refresh(range(d))
    trace = [search.score]
    with watch.may_end_early():
        trace.append(search.climb())
        told = partial(watch.progress, LARGER_MOVES)
        trace += search.escape(_N_PERTURBATIONS, _MAX_EVALUATIONS * d, told)
    if watch.is_stopped:
        search.refresh(range(d))
    probs, score, adjacency = search.edge_probs(), search.score, search.adjacency.copy()
    return StructureResult(adjacency, probs, score, search.update_prior(), trace)


def worth_a_look(statistics: ContextStatistics, starts: Sequence[StructureResult], **options) -> NDArray[np.bool_]:
    """Edges of the graphs, in both directions, and those that would help each gene most, boolean (d, d)."""
    found = np.any([s.adjacency for s in starts], 0)
    found |= found.T
    first = StructureSearch(statistics, starts[0].prior, **options)
    for start in starts:
        first.adjacency = start.adjacency.copy()
        first.refresh(range(first.n_genes))
        gain = np.where(start.adjacency, -np.inf, first.gain)
        near = np.zeros_like(found)
        np.put_along_axis(near, np.argsort(-gain, axis=0)[:_N_NEAR], True, axis=0)
        found |= near & np.isfinite(gain)
    return found
