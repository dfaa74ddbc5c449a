"""Search for the directed acyclic graph with the best score.

Greedy moves (:mod:`scgim.structure._climb`) end in a local optimum, out of which larger ones lead (:mod:`scgim.structure._moves`). Where it is
known which genes may regulate, these are searched by both, and the parents of the others are chosen for each alone (:mod:`scgim.structure._leaves`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from scgim._departures import first_departures
from scgim._priors import CELLS_A_GENE, EDGE_LOG_ODDS, ShiftPrior
from scgim.structure._climb import evidence_for_misfit, fit_graph
from scgim.structure._leaves import Leaves, has_workers, odds_among
from scgim.structure._moves import StructureSearch
from scgim.structure._score import empirical_prior
from scgim.structure._watch import FIRST_GRAPH, LARGER_MOVES, SearchWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from scgim.structure._feedback import Loop
    from scgim.structure._score import GeneFit
    from scgim.structure._statistics import ContextStatistics

# Of expectation-maximisation, in the climbs that the prior is fitted on: few, as these are crude; convention, for time.
_FIRST_ITERATIONS = (3, 6)
# Prior probability of a target in the first climb, after which it is fitted: this, or so many targets a drug where that
# is less. Convention: few targets. What other values do is in the tables `sensitivity-*` of docs/benchmarks.md.
_FIRST_TARGET_PROB, _FIRST_TARGETS = 0.08, 1.5
_SHARE_OF_DEPARTURES = (
    4  # of the budget is left to a search with departures, whose regressions have four times the columns
)
# Regressions that larger moves may cost, beside those for each gene, and at most: conventions, for time.
_BUDGET, _BUDGET_A_GENE, _MAX_BUDGET = 50_000, 2_000, 400_000
_N_PERTURBATIONS = 20  # random moves a round: convention, for time
_SHARE_TO_GO_ON = 4  # part of the budget, 1 / this, for a search that goes on from another: little is left to be done


@dataclass(frozen=True)
class StructureResult:
    """What the search found.

    Parameters
    ----------
    adjacency
        Edges of the graph, boolean, shape (d, d).
    edge_probs
        Probability of each edge from the scores of the graphs one move away, shape (d, d).
    score
        Log posterior of the graph, up to a constant.
    prior
        Prior of the direct effects, fitted to the data.
    trace
        Score after each round by the prior that was settled on; by earlier ones, scores are not comparable.
    loops
        Feedback that the graph leaves out (:mod:`scgim.structure._feedback`); None if it was not looked for.
    """

    adjacency: NDArray[np.bool_]
    edge_probs: NDArray[np.float64]
    score: float
    prior: ShiftPrior
    trace: list[float]
    loops: list[Loop] | None = None


def regressions(statistics: ContextStatistics, result: StructureResult, intervention: str = "shift") -> GeneFit:
    """Regressions of all genes on their parents in the graph that was found."""
    return fit_graph(statistics, result.prior, result.adjacency, intervention)


def weights_of(result: StructureResult, fit: GeneFit) -> Tensor:
    """Weights of all genes on each other by their regressions, (d, d), from rows to columns."""
    weights = torch.zeros(result.adjacency.shape, dtype=torch.float64)
    for j, own in enumerate(result.adjacency.T):
        weights[np.flatnonzero(own), j] = fit.weights[j, : int(own.sum())]
    return weights


class _Settled(NamedTuple):
    """A graph that the search has settled on, with the prior and the bonus of out-degrees that were fitted to it, and its score by them."""

    score: float
    adjacency: NDArray[np.bool_]
    prior: ShiftPrior
    bonus: NDArray[np.float64]


class GraphSearch:
    """Search for a whole graph: among the genes that may regulate, and for the parents of the others.

    Parameters
    ----------
    statistics, prior, intervention, edge_log_odds, regulators, seed
        As for :class:`~scgim.structure._climb.HillClimb`.
    watch
        Told how far the search is; may end it early.
    """

    def __init__(
        self,
        statistics: ContextStatistics,
        prior: ShiftPrior,
        *,
        intervention: str = "shift",
        edge_log_odds: float | NDArray = EDGE_LOG_ODDS,
        regulators: NDArray[np.bool_] | None = None,
        seed: int = 0,
        watch: SearchWatch | None = None,
    ):
        self.watch = watch or SearchWatch()
        self.statistics, self.intervention = statistics, intervention
        may_regulate = np.ones(statistics.n_genes, bool) if regulators is None else np.asarray(regulators, bool)
        told, self.sources = not may_regulate.all(), np.flatnonzero(may_regulate)
        columns = torch.as_tensor(self.sources)
        self.network = StructureSearch(
            statistics.of_genes(columns) if told else statistics,
            prior,
            intervention=intervention,
            edge_log_odds=odds_among(edge_log_odds, self.sources),
            seed=seed,
            on_move=self.watch.moved,
        )
        self.leaves = None
        if told:
            self.leaves = Leaves(
                statistics,
                may_regulate,
                intervention=intervention,
                edge_log_odds=edge_log_odds,
                # processes whose time is over at different leaves would wait for each other
                share=self.watch.deadline is None,
            )
        self.prior = prior

    @property
    def prior(self) -> ShiftPrior:
        return self._prior

    @prior.setter
    def prior(self, prior: ShiftPrior) -> None:
        self._prior = prior
        self.network.prior = prior.of_genes(torch.as_tensor(self.sources)) if self.leaves else prior
        self.network._reset()

    @property
    def adjacency(self) -> NDArray[np.bool_]:
        """The graph as it stands, (d, d)."""
        if self.leaves is None:
            return self.network.adjacency.copy()
        return self.put_together(self.network.adjacency, self.leaves.parents)

    @adjacency.setter
    def adjacency(self, adjacency: NDArray[np.bool_]) -> None:
        self.network.adjacency = adjacency[np.ix_(self.sources, self.sources)]
        if self.leaves:
            self.leaves.parents = adjacency[np.ix_(self.sources, self.leaves.genes)]
            self.leaves.scores[:] = np.nan  # to be searched from there

    def put_together(self, network: NDArray, parents: NDArray) -> NDArray:
        """What there is of pairs of regulators and of regulators and leaves, (d, d)."""
        whole = np.zeros((self.statistics.n_genes,) * 2, dtype=network.dtype)
        whole[np.ix_(self.sources, self.sources)] = network
        if self.leaves:
            whole[np.ix_(self.sources, self.leaves.genes)] = parents
        return whole

    @property
    def score(self) -> float:
        return self.network.score + (float(np.nansum(self.leaves.scores)) if self.leaves else 0.0)

    def climb(self, *, thorough: bool = False, larger_moves: Callable[[], None] | None = None) -> float:
        """Climb from the graph as it stands; returns the score.

        Workers choose the parents of leaves while this process climbs among regulators, and makes `larger_moves` there if they are given.
        """

        def among_regulators() -> None:
            self.network.refresh(range(self.network.n_genes))
            self.network.climb()
            if larger_moves:
                larger_moves()

        if self.leaves is None:
            among_regulators()
            return self.score
        told = None if larger_moves else partial(self.watch.progress, FIRST_GRAPH)
        n = self.network.n_iterations
        self.leaves.climb(self.prior, n, thorough=thorough, on_progress=told, meanwhile=among_regulators)
        return self.score

    def settle(self) -> None:
        """Climb and fit the prior in turn."""
        for n_iterations in _FIRST_ITERATIONS:
            self.network.n_iterations = n_iterations
            self.network._reset()
            self.climb()
            self.update_prior()

    def update_prior(self) -> None:
        """Fit the prior of the direct effects to the graph as it stands (empirical Bayes)."""
        n = self.network.n_iterations
        fit = fit_graph(self.statistics, self.prior, self.adjacency, self.intervention, n)
        self.prior = empirical_prior(self.statistics, fit, self.prior)
        if self.leaves is None:  # where regulators are told, independent edges are what is left to say
            self.network.update_bonus()

    def settle_with_departures(self, first: ShiftPrior) -> None:
        """Settle on mechanisms that are wrong between contexts, in either way, and keep the graph of the higher score.

        Both begin without edges, as a graph that was found for mechanisms that hold leads nowhere.
        """
        found: list[_Settled] = []
        try:
            for proportional in (False, True):
                self.adjacency = np.zeros_like(self.adjacency)
                self.network.bonus[:] = 0.0
                self.prior = first_departures(first, proportional=proportional)
                self.settle()
                found.append(_Settled(self.climb(), self.adjacency, self.prior, self.network.bonus.copy()))
        finally:  # ended early, what is at hand may be half a graph
            if found:
                best = max(found, key=lambda settled: settled.score)
                self.adjacency, self.network.bonus[:], self.prior = best.adjacency, best.bonus, best.prior

    def mechanisms_fail(self) -> bool:
        """Whether the evidence of the graph is clearly for mechanisms that are wrong between contexts."""
        return evidence_for_misfit(self.statistics, self.prior, self.adjacency, self.intervention)

    def put_in_order(self) -> None:
        """Score the graph as it stands where the search has ended early, after parents of leaves that have not had their turn."""
        self.network.n_iterations = _FIRST_ITERATIONS[-1]
        self.update_prior()
        self.network.refresh(range(self.network.n_genes))
        if self.leaves:
            self.leaves.climb(self.prior, self.network.n_iterations, only_new=True)

    def edge_probs(self) -> NDArray[np.float64]:
        """Probability of each edge given the rest of the graph, (d, d)."""
        if self.leaves is None:
            return self.network.edge_probs()
        of_leaves = self.leaves.edge_probs(self.prior, self.network.n_iterations)
        return self.put_together(self.network.edge_probs(), of_leaves)


def cells_a_gene(statistics: ContextStatistics) -> float:
    """Cells, or wells, for each gene."""
    return float(statistics.n_cells.sum()) / statistics.n_genes


def first_prior(statistics: ContextStatistics, known_targets: Tensor | None = None) -> ShiftPrior:
    """Prior of the direct effects that a search begins with."""
    return ShiftPrior(target_prob=min(_FIRST_TARGET_PROB, _FIRST_TARGETS / statistics.n_genes), known=known_targets)


def usual_budget(statistics: ContextStatistics) -> int:
    """Regressions that larger moves may cost: 50,000 and 2,000 a gene, at most 400,000; fewer where a plate has few wells a gene.

    Few wells say little of a graph, and a better score little of the graph.
    """
    share = min(1.0, cells_a_gene(statistics) / CELLS_A_GENE)
    return int(share**3 * min(_BUDGET + _BUDGET_A_GENE * statistics.n_genes, _MAX_BUDGET))


def search_structure(
    statistics: ContextStatistics,
    *,
    intervention: str = "shift",
    edge_log_odds: float | NDArray = EDGE_LOG_ODDS,
    regulators: NDArray[np.bool_] | None = None,
    known_targets: Tensor | None = None,
    n_perturbations: int = _N_PERTURBATIONS,
    max_evaluations: int | None = None,
    seed: int = 0,
    on_move: Callable[[float], None] | None = None,
    watch: SearchWatch | None = None,
    start: StructureResult | None = None,
    departures: bool = True,
) -> StructureResult:
    """Find the graph: climb, fit the prior of the direct effects, climb again and escape local optima.

    Parameters
    ----------
    statistics
        Statistics of the cells.
    intervention
        "shift" or "hard".
    edge_log_odds
        Log prior odds of an edge, one number or shape (d, d).
    regulators
        Genes that may be parents of others, boolean (d,); None for all.
    known_targets
        Log prior odds of single targets, NaN for those of which nothing is known, shape (U, d).
    n_perturbations
        Random moves tried in each round.
    max_evaluations
        Regressions that the larger moves may cost; None for :func:`usual_budget`, or a quarter of it to go on from `start`.
    seed
        Seed of the random moves.
    on_move
        Called with the score after each move.
    watch
        Told how far the search is; may end it early, and the best graph so far is the result. None for one that knows `on_move` alone.
    start
        Result of a search of the same cells under another prior of targets, to go on from.
    departures
        Whether mechanisms may be wrong between contexts, if the evidence is for it.
    """
    if max_evaluations is None:
        max_evaluations = usual_budget(statistics) // (1 if start is None else _SHARE_TO_GO_ON)
    prior = first_prior(statistics, known_targets)
    watch = SearchWatch(on_move=on_move) if watch is None else watch
    search = GraphSearch(
        statistics,
        prior,
        intervention=intervention,
        edge_log_odds=edge_log_odds,
        regulators=regulators,
        seed=seed,
        watch=watch,
    )
    trace: list[float] = []
    with watch.may_end_early():
        _search(search, trace, start, n_perturbations, max_evaluations, departures=departures)
    if watch.is_stopped:
        search.put_in_order()
        trace[:] = [search.score]  # by a prior of its own
    return StructureResult(search.adjacency, search.edge_probs(), search.score, search.prior, trace)


def _search(
    search: GraphSearch,
    trace: list[float],
    start: StructureResult | None,
    n_perturbations: int,
    max_evaluations: int,
    *,
    departures: bool,
) -> None:
    """Search, and add to the trace the score after each round by the prior that is settled on: by another one, scores are not comparable."""
    network, first = search.network, search.prior
    if start is not None:
        search.adjacency, search.prior = start.adjacency, replace(start.prior, known=first.known)
        network.candidates |= start.edge_probs[np.ix_(search.sources, search.sources)] > 0
    else:
        search.settle()
        # few wells say too little of mechanisms to tell in what they fail
        if departures and cells_a_gene(search.statistics) >= CELLS_A_GENE and search.mechanisms_fail():
            search.settle_with_departures(first)
    if search.prior.departure_var:  # a regression takes several times as long with departures
        max_evaluations //= _SHARE_OF_DEPARTURES
    scores: list[float] = []

    def larger_moves() -> None:
        told = partial(search.watch.progress, LARGER_MOVES)
        scores.append(network.score)
        with search.watch.may_end_early():  # what workers have found for leaves is still to be taken
            scores.extend(network.escape(n_perturbations, max_evaluations, told))

    # moves among regulators do not ask what the parents of leaves are; where time is short, leaves come first
    if search.leaves and has_workers() and search.watch.deadline is None:
        search.climb(thorough=True, larger_moves=larger_moves)
    else:
        search.climb(thorough=True)
        larger_moves()
    of_leaves = search.score - network.score
    trace += [score + of_leaves for score in scores]
