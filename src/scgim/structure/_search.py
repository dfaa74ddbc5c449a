"""Search for the directed acyclic graph with the best score.

Greedy moves (:mod:`scgim.structure._climb`) end in a local optimum, often with a few edges reversed. Four kinds of larger moves
lead out of it: turning all edges into a gene round, reversing an edge and choosing the parents of all genes concerned anew,
taking a gene out of the graph and letting it back in, and reversing a few edges at random. Each is kept only if the score rises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from scgim._departures import FIRST_DEPARTURE_VAR, FIRST_MISFIT
from scgim._priors import EDGE_LOG_ODDS, ShiftPrior
from scgim.structure._climb import TOLERANCE, HillClimb, Parents, toggle
from scgim.structure._graph import descendants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from scgim.structure._statistics import ContextStatistics

_MAX_OPTIONS = 10  # further parents tried where those of a gene are chosen anew: convention, for time
# Of expectation-maximisation, in the climbs that the prior is fitted on: few, as these are crude; convention, for time.
_FIRST_ITERATIONS = (3, 6)
# Prior probability of a target in the first climb, after which it is fitted: this, or so many targets a drug where that
# is less. Convention: few targets. What other values do is in the tables `sensitivity-*` of docs/benchmarks.md.
_FIRST_TARGET_PROB, _FIRST_TARGETS = 0.08, 1.5
_SHARE_OF_DEPARTURES = (
    4  # of the budget is left to a search with departures, whose regressions have four times the columns
)
CELLS_A_GENE = 12  # with fewer the budget of the search is less: convention
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
        Score after each round.
    """

    adjacency: NDArray[np.bool_]
    edge_probs: NDArray[np.float64]
    score: float
    prior: ShiftPrior
    trace: list[float]


class StructureSearch(HillClimb):
    """Hill climbing with larger moves that lead out of local optima.

    Parameters
    ----------
    statistics, prior, intervention, edge_log_odds, regulators, seed, on_move
        As for :class:`~scgim.structure._climb.HillClimb`.
    """

    def select_parents(
        self,
        gene: int,
        allowed: NDArray[np.bool_],
        start: Parents,
        extra: Iterable[int] = (),
        bonus: NDArray[np.float64] | None = None,
    ) -> Parents:
        """Forward-backward selection of the parents of a gene among those allowed.

        `extra` are tried if ever they were worth it; `bonus` (d,) is what the prior of out-degrees adds for each parent.
        """
        bonus = np.zeros(self.n_genes) if bonus is None else bonus
        allowed = allowed & self.candidates[:, gene]
        parents = tuple(p for p in start if allowed[p])
        # of the genes not yet parents, those that help most as things stand
        likely = np.argsort(-np.where(allowed, self.gain[:, gene] + bonus, -np.inf))[:_MAX_OPTIONS]
        options = [int(i) for i in {*likely.tolist(), *parents, *extra} if allowed[i]]
        score = self.scores([(gene, parents)])[0] + bonus[list(parents)].sum()
        while options:
            trials = [toggle(parents, i) for i in options]
            scores = np.array(self.scores([(gene, t) for t in trials])) + [bonus[list(t)].sum() for t in trials]
            best = int(np.argmax(scores))
            if scores[best] <= score + TOLERANCE:
                break
            parents, score = trials[best], scores[best]
        return parents

    def reverse_and_reselect(self, i: int, j: int) -> bool:
        """Put gene i after gene j in the order and choose the parents of all genes concerned anew."""
        if not self.regulators[j]:
            return False
        on_paths = descendants(self.adjacency, i) & descendants(self.adjacency.T, j)
        between = [int(t) for t in np.flatnonzero(on_paths) if t != i]
        trial = self.adjacency.copy()
        children = [t for t in between if trial[i, t]]
        trial[i, between] = False
        steps = np.diff(self.bonus, append=-np.inf)
        for gene in [*children, i]:
            allowed = ~descendants(trial, gene)
            start = self.parents(gene, trial)
            if gene == i:
                start = tuple(sorted({*start, j}))
            else:
                allowed[i] = False
            trial[:, gene] = False
            parents = self.select_parents(gene, allowed, start, between, steps[trial.sum(1)])
            trial[list(parents), gene] = True
        changed = [*children, i]
        scores = self.scores([(gene, self.parents(gene, trial)) for gene in changed])
        gain = sum(scores) - self.score_by_gene[changed].sum()
        gain += self.degree_score(trial) - self.degree_score(self.adjacency)
        if gain <= TOLERANCE:
            return False
        self.adjacency = trial
        self.refresh(changed)
        self.climb()
        return True

    def _attempt(self, change: Callable[[NDArray[np.bool_]], None]) -> bool:
        """Change the graph, climb, and keep the result if it is better."""
        before, score, gain, by_gene = self.adjacency, self.score, self.gain.copy(), self.score_by_gene.copy()
        self.adjacency = before.copy()
        change(self.adjacency)
        self.refresh(np.flatnonzero((self.adjacency != before).any(0)))
        if self.climb() > score + TOLERANCE:
            return True
        self.adjacency, self.gain, self.score_by_gene = before, gain, by_gene
        return False

    def turn_round(self, gene: int) -> bool:
        """Make all parents of a gene its children and climb from there: one edge at a time, each would leave the others to explain it."""

        def turn(adjacency: NDArray[np.bool_]) -> None:
            adjacency[gene] |= adjacency[:, gene]  # the gene is a source then, so that no cycle is closed
            adjacency[:, gene] = False

        return bool(self.regulators[gene] and self.adjacency[:, gene].any()) and self._attempt(turn)

    def remove_and_return(self, gene: int) -> bool:
        """Take a gene out of the graph and climb from there."""

        def isolate(adjacency: NDArray[np.bool_]) -> None:
            adjacency[gene] = False
            adjacency[:, gene] = False

        return self._attempt(isolate)

    def reverse_at_random(self, n_edges: int) -> bool:
        """Reverse a few edges that lie together and climb from there."""
        edges = np.argwhere(self.adjacency)
        if not len(edges):
            return False
        centre = edges[self.random.integers(len(edges))]
        near = edges[np.isin(edges, centre).any(1)]
        pool = near if len(near) >= n_edges else edges
        chosen = pool[self.random.permutation(len(pool))[:n_edges]]

        def reverse(adjacency: NDArray[np.bool_]) -> None:
            for i, j in chosen:
                adjacency[i, j] = False
                if not descendants(adjacency, i)[j] and self.candidates[j, i]:
                    adjacency[j, i] = True

        return self._attempt(reverse)

    def escape(self, n_perturbations: int, max_evaluations: int) -> list[float]:
        """Try the larger moves until none of them helps; returns the score after each round."""
        improved, trace = True, []
        budget = self.n_evaluations + max_evaluations
        while improved and self.n_evaluations < budget:
            improved = False
            for move in self._larger_moves(n_perturbations):
                improved |= move()
                if self.n_evaluations >= budget:
                    break
            # what may be a parent, and so is worth scoring, depends on the whole graph
            self.refresh(range(self.n_genes))
            trace.append(self.climb())
        return trace

    def settle(self) -> list[float]:
        """Climb and fit the prior in turn; returns the score after each climb."""
        trace = []
        for n_iterations in _FIRST_ITERATIONS:
            self.n_iterations = n_iterations
            self._reset()
            self.refresh(range(self.n_genes))
            trace.append(self.climb())
            self.update_prior()
        return trace

    def _larger_moves(self, n_perturbations: int) -> Iterator[Callable[[], bool]]:
        """Moves of one round. The order is random, so that a budget too small for all of them favours no gene."""
        for gene in self.random.permutation(self.n_genes):
            yield partial(self.turn_round, int(gene))
        edges = np.argwhere(self.adjacency)
        for i, j in edges[self.random.permutation(len(edges))]:
            if self.adjacency[i, j]:
                yield partial(self.reverse_and_reselect, int(i), int(j))
        for gene in self.random.permutation(self.n_genes):
            yield partial(self.remove_and_return, int(gene))
        for k in range(n_perturbations):
            yield partial(self.reverse_at_random, 2 + 2 * (k % 2))  # two edges or four


def cells_a_gene(statistics: ContextStatistics) -> float:
    """Cells, or wells, for each gene."""
    return float(statistics.n_cells.sum()) / statistics.n_genes


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
    start
        Result of a search of the same cells under another prior of targets, to go on from.
    departures
        Whether mechanisms may be wrong between contexts, if the evidence is for it.
    """
    if max_evaluations is None:
        max_evaluations = usual_budget(statistics) // (1 if start is None else _SHARE_TO_GO_ON)
    prior = ShiftPrior(target_prob=min(_FIRST_TARGET_PROB, _FIRST_TARGETS / statistics.n_genes), known=known_targets)
    search = StructureSearch(
        statistics,
        prior,
        intervention=intervention,
        edge_log_odds=edge_log_odds,
        regulators=regulators,
        seed=seed,
        on_move=on_move,
    )
    trace: list[float] = []
    if start is not None:
        search.adjacency, search.prior = start.adjacency.copy(), replace(start.prior, known=known_targets)
        search.candidates |= start.edge_probs > 0
    if start is None:
        trace += search.settle()
        # few wells say too little of mechanisms to tell in what they fail
        if departures and cells_a_gene(statistics) >= CELLS_A_GENE and search.mechanisms_fail():
            # from the beginning: a graph that was found for mechanisms that hold leads nowhere
            search.adjacency[:], search.bonus[:] = False, 0.0
            search.prior = replace(prior, misfit=FIRST_MISFIT, departure_var=FIRST_DEPARTURE_VAR)
            trace += search.settle()
    if search.prior.departure_var:  # a regression takes several times as long with departures
        max_evaluations //= _SHARE_OF_DEPARTURES
    search.refresh(range(search.n_genes))
    trace.append(search.climb())
    trace += search.escape(n_perturbations, max_evaluations)
    return StructureResult(search.adjacency.copy(), search.edge_probs(), search.score, search.prior, trace)
