r"""Hidden states: what acts on many genes of a cell and is not measured, such as the cell cycle.

Genes that share a hidden state follow each other within contexts, and a network without states has to explain that by edges. Between contexts it
cannot: drugs that move one of these genes leave the others where they are. With loadings :math:`\Lambda` of the states, the noise of genes given
their parents has the covariance :math:`D + \Lambda \Lambda^T` within contexts and the means of contexts follow the network alone, which tells the
two apart. Graph and states are found in turn (structural expectation-maximisation; Friedman, 1998, UAI), beginning with a graph that rests on means
for the most part, as that of all cells has edges in the place of states. A state need not act on every gene: loadings are rotated to be few
(varimax; Kaiser, 1958, Psychometrika), and only those that the data pay for are counted and kept.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scgim._priors import CELLS_A_GENE
from scgim.structure._search import (
    StructureResult,
    cells_a_gene,
    regressions,
    search_structure,
    usual_budget,
    weights_of,
)

if TYPE_CHECKING:
    from scgim.structure._statistics import ContextStatistics

logger = logging.getLogger(__name__)

MAX_STATES = 4  # that are looked for, for time
_AT_LEAST = 3  # numbers that are tried in any case: evidence is no smooth function of them
_IN_VAIN = 2  # numbers in a row that bring nothing, after which no more are tried
_MAX_GENES = 60  # with more, searches under each number of states take too long
# Shares of the cells whose scatter counts, from one search to the next: the less, the more the means of contexts say. Conventions.
_FIRST_SHARE, _SHARES = 0.003, (0.01, 0.03, 0.1)
# Nats for each gene that any states must bring over none: mechanisms of another form leave a little that states can explain. Convention.
_MIN_EVIDENCE_A_GENE = 2.0
_N_LAST = 2  # searches with all cells from no edges, and as many that go on from these by larger moves: convention
_SHARE_TO_GO_ON = 16  # part of the usual budget, 1 / this, that these may take: convention, for time
_N_PRUNED = 2  # times that loadings are left out and the others fitted: convention
_FEWEST_GENES = 3  # of a state: what two genes share is no more than an edge tells
_N_FACTOR_STEPS, _N_STEPS = 100, 60  # of expectation-maximisation of factors, and of a descent: convention
_MIN_NOISE = 1e-3  # share of its variance that each gene keeps to itself
_MAX_LOG_NOISE = 12.0  # e-folds of the variance in controls: no gene's noise is as small or as large
_FIRST_LOADING = 0.05  # least variance of a factor to start from, so that it can grow


@dataclass(frozen=True)
class HiddenStates:
    """A linear network with hidden states.

    Parameters
    ----------
    weights
        Of the network, shape (d, d), from rows to columns.
    loadings
        What states add to each gene given its parents, for states of variance 1, shape (d, q).
    noise_var
        Variance of each gene given parents and states, shape (d,).
    """

    weights: Tensor
    loadings: Tensor
    noise_var: Tensor

    @property
    def n_states(self) -> int:
        """Number of states q."""
        return self.loadings.shape[1]

    def score_weights(self) -> Tensor:
        """Weights of a cell's deviations from the mean of its context in the posterior means of its states, shape (d, q)."""
        own = _eye(self.weights) - self.weights
        return own @ (self.loadings / self.noise_var[:, None]) @ torch.linalg.inv(self._precision())

    def without_own(self) -> tuple[Tensor, Tensor]:
        """What states add to each gene as the noise of all other genes tells of them.

        Returns
        -------
        Weights of a cell's deviations from the mean of its context, from rows to columns, shape (d, d); and the variance of what
        they leave open, shape (d,).
        """
        told = self.loadings / self.noise_var[:, None]
        left = self._precision() - told[:, :, None] * self.loadings[:, None, :]  # without each gene, (d, q, q)
        covariance = torch.linalg.inv(left)
        by_gene = torch.einsum("ip,jpq,jq->ij", told, covariance, self.loadings)
        by_gene.fill_diagonal_(0.0)
        open_var = torch.einsum("jp,jpq,jq->j", self.loadings, covariance, self.loadings)
        return (_eye(self.weights) - self.weights) @ by_gene, open_var

    def taken_out(self, statistics: ContextStatistics) -> ContextStatistics:
        """Statistics of the cells as they are expected to be without the states; means of contexts keep the states' noise."""
        dof = statistics.residual_dof
        scatter = statistics.gram / dof
        weights = self.score_weights()
        shared = scatter @ weights
        variance = weights.T @ shared + torch.linalg.inv(self._precision())
        gram = statistics.gram - dof * shared @ torch.linalg.solve(variance, shared.T)
        return replace(statistics, gram=gram, dof=dof, state_var=self.loadings.square().sum(1))

    def _precision(self) -> Tensor:
        """Posterior precision of the states of a cell, shape (q, q)."""
        return _precision(self.loadings, self.noise_var)


def search_with_states(
    statistics: ContextStatistics, result: StructureResult, **options: Any
) -> tuple[StructureResult, HiddenStates | None]:
    """Look for hidden states where a network alone does not hold between contexts as it does within.

    Parameters
    ----------
    statistics
        Statistics of the cells.
    result
        Result of a search without states. If its slopes between contexts are those within, there is nothing to be found, and none are
        looked for; nor are they among more than 60 genes.
    **options
        Of :func:`~scgim.structure._search.search_structure`.

    Returns
    -------
    The result under the number of states that has most evidence, and the states; None for no states.
    """
    few_cells = cells_a_gene(statistics) < CELLS_A_GENE
    if few_cells or not result.prior.departure_var or statistics.n_genes > _MAX_GENES:
        return result, None
    found, states, evidence = result, None, result.score
    least = _MIN_EVIDENCE_A_GENE * statistics.n_genes
    first = search_structure(fewer_cells(statistics, _FIRST_SHARE), max_evaluations=0, **options)
    in_vain = 0  # numbers in a row
    for n_states in range(1, MAX_STATES + 1):
        if in_vain >= _IN_VAIN and n_states > _AT_LEAST:
            break
        own, trial, with_states = _search_with(n_states, statistics, first, options)
        logger.info("Log evidence of %d hidden states: %.1f; of the best so far: %.1f.", n_states, own, evidence)
        if own > evidence + (least if states is None else 0.0):
            found, states, evidence, in_vain = trial, with_states, own, 0
        else:
            in_vain += 1
    if states is None:
        return result, None
    known = options.pop("known_targets", None)
    found = search_structure(states.taken_out(statistics), known_targets=known, start=found, **options)
    states = _fit(statistics, found, states)
    return found, states


def _search_with(
    n_states: int, statistics: ContextStatistics, first: StructureResult, options: dict[str, Any]
) -> tuple[float, StructureResult, HiddenStates]:
    """Graph and states in turn, from means of contexts alone to all that cells say; the best of the last, by its evidence.

    Of states that cannot be told apart, as of many among few genes, the evidence is minus infinity.
    """
    states = _start(statistics, statistics, first, n_states, _FIRST_SHARE)
    found, result = [(-math.inf, first, states)], first
    for share in _SHARES:
        own = states.taken_out(statistics)
        if not own.gram.isfinite().all():
            return found[0]
        result = search_structure(fewer_cells(own, share), max_evaluations=0, **options)
        states = _start(statistics, own, result, n_states, share)
    budget = usual_budget(statistics) // _SHARE_TO_GO_ON
    for step in range(2 * _N_LAST):
        own = states.taken_out(statistics)
        if not own.gram.isfinite().all():
            break
        how = {"max_evaluations": 0} if step < _N_LAST else {"start": result, "max_evaluations": budget}
        result = search_structure(own, **how, **options)
        found.append((_evidence(statistics, result, states), result, states))
        if step >= _N_LAST:
            found.append(_pruned(statistics, result, states, options))
        states = _fit(statistics, result, states)
    return max(found, key=lambda one: one[0])


def _pruned(
    statistics: ContextStatistics, result: StructureResult, states: HiddenStates, options: dict[str, Any]
) -> tuple[float, StructureResult, HiddenStates]:
    """States that act on few genes each, and what the graph is beside them; evidence of minus infinity if none are left."""
    from statsmodels.multivariate.factor_rotation import rotate_factors  # half a second, for few fits

    noise_sd = states.noise_var.sqrt()[:, None]
    loadings = states.loadings / noise_sd
    if states.n_states > 1:
        loadings = torch.as_tensor(rotate_factors(loadings.numpy(), "varimax")[0])
    fewer, dof = replace(states, loadings=loadings * noise_sd), statistics.residual_dof
    for _ in range(_N_PRUNED):
        pays = dof * torch.log1p(fewer.loadings.square() / fewer.noise_var[:, None]) > math.log(dof)
        loadings = (fewer.loadings * pays)[:, pays.sum(0) >= _FEWEST_GENES]
        if not loadings.numel():
            return -math.inf, result, states
        fewer = _fit(statistics, result, replace(fewer, loadings=loadings))
    own = fewer.taken_out(statistics)
    if not own.gram.isfinite().all():
        return -math.inf, result, states
    result = search_structure(own, start=result, max_evaluations=0, **options)
    return _evidence(statistics, result, fewer), result, fewer


def _loaded(statistics: ContextStatistics, states: HiddenStates, noise_var: Tensor) -> Tensor:
    """Whether states explain more of each gene than a parameter costs, (d,)."""
    dof = statistics.residual_dof
    return dof * torch.log1p(states.loadings.square().sum(1) / noise_var) > math.log(dof)


def _start(
    statistics: ContextStatistics, own: ContextStatistics, result: StructureResult, n_states: int, share: float
) -> HiddenStates:
    """States of what a graph leaves, whose weights are those of means of contexts; `own` are the statistics that it was found on."""
    weights = weights_of(result, regressions(fewer_cells(own, _FIRST_SHARE), result))
    states = HiddenStates(weights, *_factors(_noise_covariance(statistics, weights), n_states))
    return _fit(statistics, result, states, share)


def fewer_cells(statistics: ContextStatistics, share: float) -> ContextStatistics:
    """Statistics whose scatter counts for a share of the cells."""
    return replace(statistics, gram=share * statistics.gram, dof=share * statistics.residual_dof)


def _noise_covariance(statistics: ContextStatistics, weights: Tensor) -> Tensor:
    """Covariance, within contexts, of what parents leave of each gene."""
    own = _eye(weights) - weights
    return own.T @ statistics.gram @ own / statistics.residual_dof


def _factors(covariance: Tensor, n_states: int) -> tuple[Tensor, Tensor]:
    """Loadings and noise of a factor analysis by expectation-maximisation, (d, q) and (d,)."""
    total = covariance.diagonal()
    spread = total.sqrt()
    values, vectors = torch.linalg.eigh(covariance / torch.outer(spread, spread))
    size = (values[-n_states:] - 1).clamp_min(_FIRST_LOADING).sqrt()
    loadings = vectors[:, -n_states:] * size * spread[:, None]
    noise_var = (total - loadings.square().sum(1)).clamp_min(_MIN_NOISE * total)
    for _ in range(_N_FACTOR_STEPS):
        posterior = torch.linalg.inv(_precision(loadings, noise_var))
        weights = loadings / noise_var[:, None] @ posterior
        shared = covariance @ weights
        loadings = torch.linalg.solve(weights.T @ shared + posterior, shared.T).T
        noise_var = (total - (loadings * shared).sum(1)).clamp_min(_MIN_NOISE * total)
    return loadings, noise_var


def _fit(
    statistics: ContextStatistics, result: StructureResult, states: HiddenStates, share: float = 1.0
) -> HiddenStates:
    """Weights, loadings and noise of a graph together, by descent on the likelihood; scatter counts for a share of the cells.

    Loadings of zero stay so.
    """
    precision = _precision_of_means(fewer_cells(states.taken_out(statistics), share), result)
    edges, means = torch.as_tensor(result.adjacency).double(), statistics.means
    acts = (states.loadings != 0).double()
    dof = share * statistics.residual_dof
    parameters = [t.clone().requires_grad_() for t in (states.weights, states.loadings, states.noise_var.log())]
    optimiser = torch.optim.LBFGS(parameters, max_iter=_N_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        # the search along a line may try noise of any size, with which no matrix can be inverted
        log_noise = parameters[2].clamp(-_MAX_LOG_NOISE, _MAX_LOG_NOISE)
        weights, loadings = parameters[0] * edges, parameters[1] * acts
        within = _minus_log_density(_noise_covariance(statistics, weights), loadings, log_noise.exp())
        left = means - means @ weights
        left = left - (precision * left).sum(0) / precision.sum(0)
        value = within + (precision * left.square()).sum() / (2 * dof)
        value.backward()
        return value

    try:
        with torch.enable_grad():
            optimiser.step(loss)
    except torch.linalg.LinAlgError:
        return states
    weights, loadings, log_noise = (t.detach() for t in parameters)
    log_noise = log_noise.clamp(-_MAX_LOG_NOISE, _MAX_LOG_NOISE)
    if not all(t.isfinite().all() for t in (weights, loadings, log_noise)):
        return states
    return HiddenStates(weights * edges, loadings * acts, log_noise.exp())


def _precision_of_means(statistics: ContextStatistics, result: StructureResult) -> Tensor:
    """Precision of the displacement of the mean of each context, effects of drugs summed out, shape (K, d)."""
    fit = regressions(statistics, result)
    target = torch.nn.functional.pad(fit.target_probs, (0, 1))[:, statistics.group % (statistics.n_groups + 1)]
    prior = result.prior
    spike = statistics.variance_of_means(fit.noise_var) + prior.spike_var + prior.misfit**2 * fit.passed
    return ((1 - target) / spike + target / (spike + prior.slab_var)).T


def _minus_log_density(covariance: Tensor, loadings: Tensor, noise_var: Tensor) -> Tensor:
    """Minus the log density of a cell's noise of a given covariance, on average and less a constant."""
    scaled = loadings / noise_var[:, None]
    precision = _precision(loadings, noise_var)
    explained = (torch.linalg.solve(precision, scaled.T).T * (covariance @ scaled)).sum()
    return 0.5 * (
        noise_var.log().sum() + torch.logdet(precision) + (covariance.diagonal() / noise_var).sum() - explained
    )


def _evidence(statistics: ContextStatistics, result: StructureResult, states: HiddenStates) -> float:
    """Log evidence of graph and states, comparable with the score of a graph without (Bayesian information criterion)."""
    taken_out, dof = states.taken_out(statistics), statistics.residual_dof
    fit = regressions(taken_out, result)
    weights, noise_var = weights_of(result, fit), fit.noise_var
    covariance = _noise_covariance(statistics, weights)
    seen = _minus_log_density(covariance, states.loadings, noise_var)
    completed = 0.5 * (noise_var.log() + _noise_covariance(taken_out, weights).diagonal() / noise_var).sum()
    score = result.score + dof * float(completed - seen)
    q, loaded = states.n_states, int(_loaded(statistics, states, noise_var).sum())
    n_loadings = min(q * loaded - q * (q - 1) / 2, int(states.loadings.count_nonzero()))
    return score - 0.5 * math.log(dof) * n_loadings


def _precision(loadings: Tensor, noise_var: Tensor) -> Tensor:
    """Posterior precision of states, shape (q, q)."""
    return torch.eye(loadings.shape[1], dtype=loadings.dtype) + loadings.T @ (loadings / noise_var[:, None])


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype)
