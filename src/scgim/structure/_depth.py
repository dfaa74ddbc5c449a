r"""How deeply each cell was sequenced, where nobody says: a factor that all genes of a cell share, found together with a network.

Genes follow each other because the network links them and because depth :math:`s_n` scales all of them alike,

.. math:: x_{nj} \sim \mathrm{NB}(s_n \exp(b_j + W_j^T h_{n, \mathrm{pa}(j)} + \psi_{kj}), r_j), \qquad \log s_n \sim N(m_k, \sigma^2),

with parent features h of :math:`x_n / s_n`. Totals over few genes are no measure of it, as they rest on the genes of most counts. Here depth, graph
and parameters are found in turn by expectation-maximisation: the posterior of each cell's depth is a normal one about its mode, and a cell
enters the rest as two half cells, one standard deviation to either side of it, so that what is not known of its depth is not taken for expression.
Direct effects are shrunk by the probability that they are none, and so the mean depth :math:`m_k` of a context is told from what its genes have in common.
A graph of all cells would have edges in the place of depth; the first ones rest on the means of contexts, as with hidden states.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scgim.structure._search import regressions, search_structure, weights_of
from scgim.structure._states import fewer_cells
from scgim.structure._statistics import ContextStatistics, StatisticsAccumulator, of_half_cells
from scgim.structure._watch import SearchWatch

if TYPE_CHECKING:
    from scgim.structure._search import StructureResult

logger = logging.getLogger(__name__)

MIN_DEPTH_VAR = 0.01  # of log depth, a spread of 10 %, below which cells are taken to have the same: convention
# Shares of the cells whose scatter counts, from one graph to the next; half-way down again, as edges that stand for depth stay once they are
# in. Convention.
_FIRST_SHARE, _SHARES = 0.003, (0.003, 0.01, 0.03, 0.1, 0.03, 0.01, 0.03, 0.1, 0.3)
_N_ROUNDS = 3  # of parameters and depth, on each graph: convention
_N_PARAMETER_STEPS, _N_DEPTH_STEPS, _N_FIRST_DEPTH_STEPS = 3, 3, 12  # of Newton's method: conventions
_MAX_STEP, _MAX_SHIFT_STEP = 1.0, 2.0  # e-folds, where a likelihood is far from its parabola
_MAX_LOG_MEAN = 12.0  # e-folds, so that means stay finite
_SPIKE_VAR, _SLAB_VAR = 1e-3, 1.0  # of effects that are none, and of those that are some: 3 % and a factor of three
_CONTROL_VAR = 1e-6  # controls have no effects
_FIRST_INVERSE_DISPERSION, _LOG_RANGE = 8.0, (-3.0, 8.0)  # and the logarithms that it may have: conventions
_MIN_MEAN, _MIN_SPREAD, _TINY = 0.1, 1e-3, 1e-6  # guards of quotients
_HALF_A_COUNT = 0.5  # so that a context without counts has a log mean


class DepthCells(NamedTuple):
    """Counts (N, d), context codes (N,) and covariates (N, Q) of cells."""

    x: Tensor
    context: Tensor
    covariates: Tensor


@dataclass(frozen=True)
class DepthModel:
    """A linear network of counts, from which depth is read.

    Parameters
    ----------
    weights
        Of parent features on log means, shape (d, d), from rows to columns.
    base
        Log mean of each gene without parents, shape (d,).
    shift
        Direct effects in each context, shape (K, d).
    covariate_effect
        Effects of covariates, shape (Q, d).
    inverse_dispersion
        Of each gene, shape (d,).
    centre, spread
        Of log1p of counts over depth in control cells, shape (d,).
    depth
        Mean log depth of each context, shape (K,).
    variance
        Variance of log depth within contexts, a scalar.
    """

    weights: Tensor
    base: Tensor
    shift: Tensor
    covariate_effect: Tensor
    inverse_dispersion: Tensor
    centre: Tensor
    spread: Tensor
    depth: Tensor
    variance: Tensor

    def features(self, x: Tensor, log_depth: Tensor) -> Tensor:
        """Parent features of cells (B, d) with log depths (B, 1)."""
        return (torch.log1p(x * torch.exp(-log_depth)) - self.centre) / self.spread

    def posterior(
        self, cells: DepthCells, log_depth: Tensor | None = None, n_steps: int = _N_FIRST_DEPTH_STEPS
    ) -> tuple[Tensor, Tensor]:
        """Mode and standard deviation of the log depth of each cell, both (N, 1); a context of -1 is taken for one without effects."""
        context = cells.context.clamp_min(0)
        is_known = (cells.context >= 0)[:, None]
        known = self.base + cells.covariates @ self.covariate_effect + torch.where(is_known, self.shift[context], 0.0)
        usual = torch.where(is_known, self.depth[context][:, None], 0.0)
        log_depth = usual if log_depth is None else log_depth
        for _ in range(n_steps):
            h = self.features(cells.x, log_depth)
            mean = torch.exp((known + h @ self.weights + log_depth).clamp(-_MAX_LOG_MEAN, _MAX_LOG_MEAN))
            per_size = cells.x * torch.exp(-log_depth)
            change = 1 - (per_size / (1 + per_size) / self.spread) @ self.weights  # of the log mean with log depth
            share = 1 / (1 + mean / self.inverse_dispersion)
            precision = (change.square() * mean * share).sum(1, keepdim=True) + 1 / self.variance
            slope = (change * (cells.x - mean) * share).sum(1, keepdim=True)
            slope = slope - (log_depth - usual) / self.variance
            log_depth = log_depth + (slope / precision).clamp(-_MAX_STEP, _MAX_STEP)
        return log_depth, precision.rsqrt()


class _Depths(NamedTuple):
    """Mode and standard deviation of log depths, both (N, 1)."""

    mode: Tensor
    sd: Tensor

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Log depths of the two half cells."""
        return self.mode - self.sd, self.mode + self.sd


def find_depth(
    cells: DepthCells, group: Tensor, first_variance: float, watch: SearchWatch | None = None, **options: Any
) -> DepthModel | None:
    """Model of the depth of cells; None where it does not differ.

    Parameters
    ----------
    cells
        The cells.
    group
        Perturbation of each context, -1 for controls, shape (K,).
    first_variance
        Of log depth, to start from.
    watch
        May end it early, with what was found by then.
    **options
        Of :func:`~scgim.structure._search.search_structure`.
    """
    watch = SearchWatch() if watch is None else watch
    options["watch"] = watch
    model = _start(cells, group, first_variance, options)
    depths = _Depths(*model.posterior(cells))
    for share in _SHARES:
        if watch.is_stopped:
            break
        model = _rescaled(model, cells, group, depths)
        statistics = fewer_cells(_statistics(cells, group, model, depths), share)
        result = search_structure(statistics, max_evaluations=0, **options)
        precision = _precision_of_shifts(statistics, result, group)
        for _ in range(_N_ROUNDS):
            model = _fit(model, cells, depths, result, precision)
            mode, sd = model.posterior(cells, depths.mode, _N_DEPTH_STEPS)
            depths = _Depths(mode - mode.mean(), sd)
            model = _with_prior_of(model, cells, depths)
        logger.info("Depth: variance %.4f, of which %.4f is open.", model.variance, depths.sd.square().mean())
        if model.variance < MIN_DEPTH_VAR:
            return None
    return model


def _start(cells: DepthCells, group: Tensor, first_variance: float, options: dict[str, Any]) -> DepthModel:
    """Model of a graph of the means of contexts, which depth hardly moves."""
    d, n_covariates = cells.x.shape[1], cells.covariates.shape[1]
    zero = torch.zeros(d, dtype=torch.float64)
    model = DepthModel(
        weights=torch.zeros(d, d, dtype=torch.float64),
        base=zero,
        shift=torch.zeros(len(group), d, dtype=torch.float64),
        covariate_effect=torch.zeros(n_covariates, d, dtype=torch.float64),
        inverse_dispersion=zero + _FIRST_INVERSE_DISPERSION,
        centre=zero,
        spread=zero + 1,
        depth=torch.zeros(len(group), dtype=torch.float64),
        variance=torch.tensor(first_variance, dtype=torch.float64),
    )
    none = torch.zeros_like(cells.x[:, :1])
    model = _rescaled(model, cells, group, _Depths(none, none))
    statistics = fewer_cells(_statistics(cells, group, model, _Depths(none, none)), _FIRST_SHARE)
    result = search_structure(statistics, max_evaluations=0, **options)
    mean = cells.x.mean(0)
    stretch = model.spread * (1 + mean) / mean.clamp_min(_MIN_MEAN)  # log1p moves by less than the log mean does
    weights = weights_of(result, regressions(statistics, result)) * stretch
    expected = torch.exp((model.features(cells.x, none) @ weights).clamp(-_MAX_LOG_MEAN, _MAX_LOG_MEAN))
    logs = _log_ratio(cells.x, expected, cells.context, len(group))
    base = _log_ratio(cells.x, expected, torch.where(group < 0, 0, 1)[cells.context], 2)[0]
    shift = torch.where(group[:, None] < 0, 0.0, logs - base)
    depth = shift.median(1).values  # what most genes do
    return replace(model, weights=weights, base=base, shift=shift - depth[:, None], depth=depth)


def _with_prior_of(model: DepthModel, cells: DepthCells, depths: _Depths) -> DepthModel:
    """The model with the mean and variance that depths have within contexts."""
    n_cells = torch.bincount(cells.context, minlength=len(model.depth))
    total = torch.zeros_like(model.depth).index_add_(0, cells.context, depths.mode[:, 0])
    depth = total / n_cells.clamp_min(1)
    return replace(
        model,
        depth=depth,
        variance=((depths.mode[:, 0] - depth[cells.context]).square() + depths.sd[:, 0].square()).mean(),
    )


def _log_ratio(x: Tensor, expected: Tensor, code: Tensor, n: int) -> Tensor:
    """Log of counts over what was expected, in groups of cells, (n, d)."""
    counts, total = (
        torch.zeros(n, x.shape[1], dtype=torch.float64).index_add_(0, code, part) for part in (x, expected)
    )
    little = _HALF_A_COUNT
    return ((counts + little) / (total + little)).log()


def _rescaled(model: DepthModel, cells: DepthCells, group: Tensor, depths: _Depths) -> DepthModel:
    """The same model with the scale that parent features have in control cells of these depths."""
    control = group[cells.context] < 0
    h = torch.cat([torch.log1p(cells.x[control] * torch.exp(-end[control])) for end in depths.ends])
    spread = h.std(0, correction=0)
    spread, centre = torch.where(spread > _MIN_SPREAD, spread, torch.ones_like(spread)), h.mean(0)
    weights = model.weights * (spread / model.spread)[:, None]
    base = model.base + ((centre - model.centre) / model.spread) @ model.weights
    return replace(model, weights=weights, base=base, centre=centre, spread=spread)


def _statistics(cells: DepthCells, group: Tensor, model: DepthModel, depths: _Depths) -> ContextStatistics:
    """Statistics of the two halves of each cell."""
    d = cells.x.shape[1]
    accumulator = StatisticsAccumulator(group, d, d, cells.covariates.shape[1])
    for end in depths.ends:
        accumulator.update(model.features(cells.x, end), cells.context, cells.covariates)
    return of_half_cells(accumulator.finalise())


def _precision_of_shifts(statistics: ContextStatistics, result: StructureResult, group: Tensor) -> Tensor:
    """Prior precision of direct effects, (K, d): those of targets are free, those of other genes next to none."""
    fit = regressions(statistics, result)
    target = fit.target_probs[:, statistics.group.clamp_min(0)].T
    precision = torch.full((len(group), fit.target_probs.shape[0]), 1 / _SPIKE_VAR, dtype=torch.float64)
    precision[statistics.observed] = (1 - target) / _SPIKE_VAR + target / _SLAB_VAR
    precision[group < 0] = 1 / _CONTROL_VAR
    return precision


def _fit(
    model: DepthModel, cells: DepthCells, depths: _Depths, result: StructureResult, precision: Tensor
) -> DepthModel:
    """Parameters on a graph at given depths, by Newton's method, gene by gene."""
    log_depth = torch.cat(depths.ends)[:, 0]
    x, context = cells.x.repeat(2, 1), cells.context.repeat(2)
    covariates = torch.nn.functional.pad(cells.covariates, (0, 1), value=1.0).repeat(2, 1)
    h = model.features(x, log_depth[:, None])
    found = replace(
        model,
        weights=torch.zeros_like(model.weights),
        base=model.base.clone(),
        shift=model.shift.clone(),
        covariate_effect=model.covariate_effect.clone(),
        inverse_dispersion=model.inverse_dispersion.clone(),
    )
    for j, own in enumerate(result.adjacency.T):
        parents = np.flatnonzero(own)
        n = len(parents)
        gene = _Gene(
            torch.cat([h[:, parents], covariates], 1),
            torch.cat([model.weights[parents, j], model.covariate_effect[:, j], model.base[j : j + 1]]),
            model.shift[:, j],
            model.inverse_dispersion[j],
        )
        gene = gene.fitted(x[:, j], log_depth, context, 2 * precision[:, j])  # of half cells
        found.weights[parents, j], found.base[j] = gene.weights[:n], gene.weights[-1]
        found.covariate_effect[:, j] = gene.weights[n:-1]
        found.shift[:, j], found.inverse_dispersion[j] = gene.shift, gene.inverse_dispersion
    return found


class _Gene(NamedTuple):
    """Regression of one gene: design (N, q) with the intercept last, weights (q,), shifts (K,) and inverse dispersion."""

    design: Tensor
    weights: Tensor
    shift: Tensor
    inverse_dispersion: Tensor

    def fitted(self, x: Tensor, log_depth: Tensor, context: Tensor, precision: Tensor) -> _Gene:
        """The regression after some steps of Newton's method; shifts, of which each cell has one, are solved for first."""
        z, weights, shift, r = self
        prior = torch.ones_like(weights)  # of standardised features, and a little of the intercept
        prior[-1] = _TINY
        add = lambda values: torch.zeros(len(shift), *values.shape[1:], dtype=z.dtype).index_add_(0, context, values)
        for _ in range(_N_PARAMETER_STEPS):
            mean = torch.exp((shift[context] + z @ weights + log_depth).clamp(-_MAX_LOG_MEAN, _MAX_LOG_MEAN))
            share = 1 / (1 + mean / r)
            score, information = (x - mean) * share, mean * share
            weighted = information[:, None] * z
            of_shift, between = add(information) + precision, add(weighted)
            slope = add(score) - precision * shift
            a = z.T @ weighted + torch.diag(prior) - between.T @ (between / of_shift[:, None])
            step = torch.linalg.solve(a, z.T @ score - prior * weights - between.T @ (slope / of_shift))
            moved = (slope - between @ step) / of_shift
            weights = weights + step.clamp(-_MAX_STEP, _MAX_STEP)
            shift = shift + moved.clamp(-_MAX_SHIFT_STEP, _MAX_SHIFT_STEP)
            r = _better_inverse_dispersion(r, (x - mean).square(), mean)
        return _Gene(z, weights, shift, r)


def _better_inverse_dispersion(r: Tensor, squares: Tensor, mean: Tensor) -> Tensor:
    """Inverse dispersion at which squares are as large as the variance, on average, after some steps of Newton's method."""
    log_r = r.log()
    for _ in range(_N_PARAMETER_STEPS):
        excess = mean * torch.exp(-log_r)
        ratio = squares / (mean * (1 + excess))
        slope = (ratio * excess / (1 + excess)).sum().clamp_min(_TINY)
        log_r = (log_r - ((ratio - 1).sum() / slope).clamp(-_MAX_STEP, _MAX_STEP)).clamp(*_LOG_RANGE)
    return log_r.exp()
