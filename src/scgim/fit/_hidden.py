"""Fit of a network that acts on hidden expression: everything follows from moments, without gradient descent."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import settings
from threadpoolctl import threadpool_limits

from scgim.fit._covariate_effects import covariate_effects
from scgim.fit._inference import HiddenEffects, write_effects
from scgim.fit._search import inform, search_options
from scgim.structure._climb import MANY_GENES, fit_graph, fitted_prior
from scgim.structure._covariance_search import CovarianceSettings
from scgim.structure._feedback import with_loops
from scgim.structure._moments import HiddenExpression, MomentAccumulator
from scgim.structure._out_degree import OutDegreePrior
from scgim.structure._over_graphs import with_probs_of_graph, with_probs_over_graphs
from scgim.structure._search import cells_a_gene, first_prior, search_structure
from scgim.structure._watch import SearchWatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from scgim._priors import ShiftPrior
    from scgim.module import GIMModule
    from scgim.structure._score import GeneFit
    from scgim.structure._search import StructureResult
    from scgim.structure._statistics import ContextStatistics
    from scgim.train import BatchLoader

# In cells without counting noise; the kinetic world at half a count a gene is worth 8, and its targets and most of its network are found.
_MIN_CELLS_WORTH = 5
# The same, for a search by the whole covariance: with less, it leaves a graph that means of contexts know better. In the kinetic world it finds twice as
# much as without from one count a gene on, which is worth 12, and less than half at half a count.
_MIN_CELLS_WORTH_WHOLE = 10
LESS_SURE = 0.5  # of means in the search: mechanisms saturate, and where they are taken for linear means miss by as much as by chance
_N_ITERATIONS = 30  # of expectation-maximisation in the last fit, which nothing comes after: convention
_USUAL_CELLS = 2.9  # standard deviations, beyond which are two in a thousand at either end, as for counts
_FEW_REGULATE = 0.5  # share of the genes, below which others may stand in for them: convention
_N_TURNS = 4  # graphs by the whole covariance, each from what means say to the last; with two, one kinetic world of three is found less well: for time
_MAX_GENES = 200  # with which the whole covariance is searched; it takes time in the third power: convention


def gather_moments(module: GIMModule, loader: BatchLoader) -> HiddenExpression:
    """Moments of the hidden expression, in two passes over the training cells that are brought to the same baselines."""
    effect = covariate_effects(module, loader)
    accumulator = MomentAccumulator(module.group, len(module.centre))
    for add in (accumulator.add_means, accumulator.add_products):
        for batch in loader:
            add(batch["x"], batch["log_size"] + (batch["covariates"].double() @ effect), batch["context"])
    hidden = accumulator.finalise()
    if hidden.statistics.residual_dof < _MIN_CELLS_WORTH:
        raise ValueError(
            "`measurement='latent'` works from the moments of pairs of genes, and the cells are too few or too shallow for "
            f"them: they are worth {hidden.statistics.residual_dof:.2g} cells without counting noise, and {_MIN_CELLS_WORTH} "
            "are needed. Leave out genes of few counts, or use `measurement='direct'`."
        )
    return hidden


@torch.no_grad()
def fit_hidden(
    module: GIMModule,
    loader: BatchLoader,
    seed: int,
    watch: SearchWatch | None = None,
    features: Tensor | None = None,
) -> StructureResult:
    """Find the graph of hidden expression and write weights, noise, targets and effects to the module."""
    module.knowledge.note_informed(None)
    hidden = gather_moments(module, loader)
    result, statistics = _search(module, hidden, seed, watch)
    hidden, spread = replace(hidden, statistics=statistics), hidden.spread
    module.mechanism.set_graph(result.adjacency)
    fit = fit_graph(statistics, result.prior, result.adjacency, n_iterations=_N_ITERATIONS)
    weight, weight_sd = _weights(statistics, result, fit, spread)
    module.mechanism.weight.copy_(module.mechanism.of_sources(weight.to(module.device)))
    module.knowledge.weight_sd.copy_(weight_sd)
    module.centre.copy_(hidden.centre)
    module.spread.copy_(spread)
    module.intercept.copy_(hidden.centre)
    module.log_scale.copy_(-(fit.noise_var * spread.square()).log())
    module.knowledge.edge_probs.copy_(torch.as_tensor(result.edge_probs))
    module.knowledge.reach.copy_(_reach(statistics, weight))
    effects = _effects(module, hidden, fit, weight, weight_sd, result.prior)
    write_effects(module, effects, features)
    module.shift[effects.seen.to(module.device)] = effects.shift[effects.seen].to(module.shift)
    return result


def _weights(
    statistics: ContextStatistics, result: StructureResult, fit: GeneFit, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Slopes of log expression on parents in units of their spread, and their standard errors, both (d, d)."""
    weight, weight_sd = (torch.zeros(len(spread), len(spread), dtype=torch.float64) for _ in range(2))
    for j in range(len(spread)):
        parents = list(_parents(result, j))
        weight[parents, j] = fit.weights[j, : len(parents)] * spread[j]
        precision = statistics.gram[parents][:, parents] / fit.noise_var[j]
        weight_sd[parents, j] = torch.linalg.inv(precision).diagonal().sqrt() * spread[j]
    return weight, weight_sd


@torch.no_grad()
def search_hidden_graph(
    module: GIMModule,
    statistics: ContextStatistics,
    loader: BatchLoader,
    *,
    seed: int,
    watch: SearchWatch | None = None,
    features: Tensor | None = None,
) -> tuple[StructureResult, HiddenEffects]:
    """Graph of hidden expression, on which parents act by their counts; the prior of direct effects is fitted to `statistics` of these.

    Also what moments say of direct effects, on that graph.

    Counts of a regulator are noisy, and those of the genes that it regulates tell of it as well. Regressions on counts, which predict best with
    all of them, make parents of these.
    """
    hidden = gather_moments(module, loader)
    module.knowledge.note_informed(None)
    found = _search(module, hidden, seed, watch)
    result = _with_prior(module, statistics, found[0])
    is_stopped = watch is not None and watch.is_stopped
    if features is not None and not is_stopped and inform(module, statistics, result, features):
        found = _search(module, hidden, seed, watch, found)
        result = _with_prior(module, statistics, found[0])
    of_moments, own = found
    fit = fit_graph(own, of_moments.prior, of_moments.adjacency, n_iterations=_N_ITERATIONS)
    weights = _weights(own, of_moments, fit, hidden.spread)
    return result, _effects(module, replace(hidden, statistics=own), fit, *weights, of_moments.prior)


def _with_prior(module: GIMModule, statistics: ContextStatistics, found: StructureResult) -> StructureResult:
    """The graph that was found, with the prior of direct effects of other statistics."""
    first = first_prior(statistics, module.knowledge.known_targets())
    return replace(found, prior=fitted_prior(statistics, first, found.adjacency)[0])


def _search(
    module: GIMModule,
    hidden: HiddenExpression,
    seed: int,
    watch: SearchWatch | None,
    before: tuple[StructureResult, ContextStatistics] | None = None,
) -> tuple[StructureResult, ContextStatistics]:
    """Graph of hidden expression, with probabilities of edges and feedback, and the statistics that it was found by.

    `before` is what was found when less was known of targets.
    """
    watch = SearchWatch() if watch is None else watch
    options = {**search_options(module, seed, watch), "known_targets": module.knowledge.known_targets()}
    statistics = hidden.statistics
    if before and before[1] is not statistics:  # the graph is by the whole covariance, which targets tell nothing of
        result, statistics = before
        result = replace(result, prior=replace(result.prior, known=options["known_targets"]))
    else:
        result = _search_by_means(statistics, **options)
        may_stand_in = module.mechanism.is_linear and not watch.is_stopped and _may_stand_in(result)
        why_not = _why_not_whole(statistics)
        if may_stand_in and why_not and before is None and options["regulators"] is None and result.adjacency.any():
            _warn_of_stand_ins(why_not)
        if may_stand_in and not why_not:
            # matrices of a few hundred rows take longer with several threads
            with watch.may_end_early(), threadpool_limits(1, user_api="blas"):
                for found in _by_whole_covariance(hidden, result, options):
                    result, statistics = found  # as far as the search comes
    del options["known_targets"]
    if statistics is not hidden.statistics:
        result = with_probs_of_graph(_less_sure(statistics), result, **options)
    result = with_probs_over_graphs(_less_sure(statistics), result, **options)
    n_cells_a_gene = cells_a_gene(statistics)
    return with_loops(_less_sure(statistics), result, n_cells_a_gene=n_cells_a_gene, **options), statistics


def _search_by_means(statistics: ContextStatistics, **options: Any) -> StructureResult:
    """Search by regressions, whose mechanisms hold between contexts as within: errors of counting would look like departures."""
    return search_structure(_less_sure(statistics), departures=False, **options)


def _may_stand_in(result: StructureResult) -> bool:
    """Whether few genes regulate, so that others, or others of those that are told to, may stand in for them."""
    return len(result.adjacency) >= MANY_GENES and _few_regulate(result.adjacency)


def _allowed(d: int, regulators: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Which edges there may be, (d, d)."""
    return ~np.eye(d, dtype=bool) & (True if regulators is None else regulators[:, None])


def _why_not_whole(statistics: ContextStatistics) -> str:
    """Why a search by the whole covariance would not help, if it would not."""
    if statistics.n_genes > _MAX_GENES:
        return f"{statistics.n_genes} genes are too many for a search by the whole covariance of cells ({_MAX_GENES} at most)"
    if statistics.residual_dof < _MIN_CELLS_WORTH_WHOLE:
        return "counts are too few for a search by the whole covariance of cells"
    return ""


def _warn_of_stand_ins(why: str) -> None:
    """Say that edges may lead from genes that only follow regulators, and what to do."""
    warnings.warn(
        f"Few genes seem to regulate, and which ones is uncertain, as {why}: genes of more counts that follow a regulator may stand in for it. Many edges "
        "may lead from such genes, with probabilities near 1; targets and predictions depend on them less. Tell which genes may regulate "
        "(`scgim.pp.mark_regulators`, `setup_anndata(regulator_key=...)`).",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )


def _few_regulate(adjacency: NDArray[np.bool_]) -> bool:
    return OutDegreePrior.fitted(adjacency.sum(1), len(adjacency) - 1).share < _FEW_REGULATE


def _less_sure(statistics: ContextStatistics) -> ContextStatistics:
    return replace(statistics, n_cells=LESS_SURE * statistics.n_cells)


def _by_whole_covariance(
    hidden: HiddenExpression, result: StructureResult, options: dict[str, Any]
) -> Iterator[tuple[StructureResult, ContextStatistics]]:
    """Go on from a graph by the whole covariance within contexts and by the means of contexts, in turn; each graph is better than the last.

    Noise of measurement is no longer in the covariance that the first of them finds, and by it the second tells which graphs the means are for. Where
    the covariance asks for many regulators, genes share more than few regulators make them, and the graph by means stays.
    """
    statistics, watch, d = hidden.statistics, options["watch"], hidden.statistics.n_genes
    network = CovarianceSettings(
        hidden.measured,
        np.broadcast_to(np.asarray(options["edge_log_odds"], dtype=float), (d, d)),
        _allowed(d, options["regulators"]),
    )
    first = network.start(result.adjacency, np.zeros((0, d)))
    if not _few_regulate(first.adjacency):
        return
    search, tried = network.settle(result.adjacency, first, watch.moved), set[tuple]()
    for n_more in reversed(range(_N_TURNS)):
        correlation, dof = search.hidden_scatter()
        statistics = replace(statistics, gram=torch.as_tensor(correlation) * dof, dof=dof)
        result = replace(result, adjacency=search.adjacency.copy())
        yield result, statistics
        if not n_more:
            return
        by_means = _search_by_means(statistics, start=result, **options).adjacency
        if watch.is_stopped:
            return
        further = network.start(by_means, search.loadings, tried)
        further.larger_moves(watch.moved)
        if further.score <= search.score:  # means of few counts are noisy, and well measured genes stand in by them
            return
        search = further


def _parents(result: StructureResult, gene: int) -> tuple[int, ...]:
    return tuple(np.flatnonzero(result.adjacency[:, gene]).tolist())


def _reach(statistics: ContextStatistics, weight: Tensor) -> Tensor:
    """Least and most that parents did in cells, but for odd ones, if hidden expression is normal, (2, d)."""
    of_contexts = statistics.means @ weight
    spread = (weight * (statistics.gram @ weight)).sum(0).div(statistics.residual_dof).sqrt()
    return torch.stack([of_contexts.amin(0) - _USUAL_CELLS * spread, of_contexts.amax(0) + _USUAL_CELLS * spread])


def _effects(
    module: GIMModule, hidden: HiddenExpression, fit: GeneFit, weight: Tensor, weight_sd: Tensor, prior: ShiftPrior
) -> HiddenEffects:
    """What the network leaves of the means of contexts."""
    statistics = hidden.statistics
    treated = statistics.group >= 0
    scale = hidden.spread[:, None]
    # of the mechanism within contexts; how slopes depart from it between them is found with the targets
    residuals = fit.residuals + fit.transported
    shift = ((residuals - residuals[:, ~treated].mean(1, keepdim=True)) * scale)[:, treated].T
    variance = hidden.variance_of_means(fit.noise_var * hidden.spread.square())[treated]
    # where parents move, an error of their weights looks like a direct effect
    moved = statistics.means[treated] - statistics.means[~treated]
    variance = variance + moved.square() @ weight_sd.square()
    seen = torch.zeros(len(module.group), dtype=torch.bool)
    seen[torch.nonzero(statistics.observed)[:, 0][treated]] = True
    return HiddenEffects(
        seen=seen,
        shift=_of_all(seen, shift),
        precision=_of_all(seen, 1 / variance),
        moved=_of_all(seen, moved),
        weight=weight,
        target_prob=prior.target_prob,
        slab_var=prior.slab_var * float(hidden.spread.square().median()),
    )


def _of_all(seen: Tensor, values: Tensor) -> Tensor:
    """Values of the contexts that were seen (k, d) among all, zero where nothing is known, (K, d)."""
    every = values.new_zeros(len(seen), values.shape[1])
    every[seen] = values
    return every
