"""Feedback that an acyclic graph cannot show: edges that the data ask for and that would close a circle.

The search may not try an edge back to a gene that comes before. Here such edges are scored with the determinant that circles bring
(:mod:`scgim.structure._cyclic`), the best is taken, edges of the circle that it makes needless are left out, and so on. Which are worth scoring is
seen from what the acyclic graph leaves of a gene's means: perturbations that act on a gene below should leave it where it is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import networkx as nx
import numpy as np

from scgim._departures import MIN_GAIN
from scgim._priors import CELLS_A_GENE
from scgim.structure._climb import fit_graph
from scgim.structure._cyclic import CyclicScore, Part
from scgim.structure._graph import reachability
from scgim.structure._search import StructureResult, cells_a_gene
from scgim.structure._watch import SearchWatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgim._priors import ShiftPrior
    from scgim.structure._statistics import ContextStatistics

_N_CANDIDATES = 50  # edges back that are scored, those of which direct effects tell most: for time; convention
_MAX_GENES = 8  # of a circle and all that lies on it: for time; convention
_N_STARTS = 3  # edges back to begin with: for time; convention
_MIN_STEP = 0.5  # nats, as in the search a little more than rounding


class Loop(NamedTuple):
    """A circle of genes, and the edge that closes it, from the last to the first.

    Parameters
    ----------
    genes
        The genes, each a parent of the next.
    weight, evidence
        Slope of the edge back and its log evidence, that of the perturbation that says most left out.
    forward_weight, forward_evidence
        Product of the slopes of the other edges and the least of their log evidences.
    """

    genes: tuple[int, ...]
    weight: float
    evidence: float
    forward_weight: float
    forward_evidence: float

    @property
    def certainty(self) -> float:
        """Log evidence of the less certain direction."""
        return min(self.evidence, self.forward_evidence)


def with_loops(
    statistics: ContextStatistics,
    result: StructureResult,
    *,
    intervention: str = "shift",
    edge_log_odds: float | NDArray,
    regulators: NDArray[np.bool_] | None = None,
    watch: SearchWatch | None = None,
    n_cells_a_gene: float | None = None,
    **_: Any,
) -> StructureResult:
    """The result of a search with loops that its graph leaves out, and with their edges among the probabilities; options are those of the search.

    Not looked for, so that `loops` is None: under hard interventions, which cut the parents that a loop goes through; where a plate has few wells a
    gene, of which `n_cells_a_gene` tells if the statistics are taken to be less sure; and where the search was ended early, or is now.
    """
    watch = SearchWatch() if watch is None else watch
    n = cells_a_gene(statistics) if n_cells_a_gene is None else n_cells_a_gene
    if intervention != "shift" or n < CELLS_A_GENE or watch.is_stopped:
        return result
    d = statistics.n_genes
    cost = 0.5 * math.log(float(statistics.n_cells.sum())) - np.broadcast_to(np.asarray(edge_log_odds, float), (d, d))
    loops = None
    with watch.may_end_early():
        loops = Feedback(statistics, result.adjacency, result.prior, cost, regulators, watch).find()
    return replace(result, loops=loops, edge_probs=_probs_with(result.edge_probs, loops or []))


def _probs_with(probs: NDArray[np.float64], loops: list[Loop]) -> NDArray[np.float64]:
    """Probabilities of edges (d, d), with those of clear loops: graphs that were drawn have one direction or the other."""
    probs = probs.copy()
    for loop in loops:
        if loop.certainty > MIN_GAIN:
            sources, targets = list(loop.genes), [*loop.genes[1:], loop.genes[0]]
            probs[sources, targets] = np.maximum(probs[sources, targets], 1 / (1 + math.exp(-loop.certainty)))
    return probs


class Feedback:
    """Edges back in a fitted graph.

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
    regulators
        Genes that may be parents of others, boolean (d,); None for all.
    watch
        May end it early.
    """

    def __init__(
        self,
        statistics: ContextStatistics,
        adjacency: NDArray[np.bool_],
        prior: ShiftPrior,
        edge_cost: NDArray[np.float64],
        regulators: NDArray[np.bool_] | None = None,
        watch: SearchWatch | None = None,
    ):
        self.watch = watch or SearchWatch()
        self.adjacency = np.asarray(adjacency, dtype=bool).copy()
        self.score = CyclicScore(statistics, prior, edge_cost)
        hints = hints_of_feedback(statistics, self.adjacency, prior)
        possible = reachability(self.adjacency).T & ~np.eye(len(adjacency), dtype=bool) & np.isfinite(edge_cost)
        if regulators is not None:
            possible &= np.asarray(regulators, dtype=bool)[:, None]
        likely = np.argsort(-np.where(possible, hints, -np.inf), axis=None, kind="stable")[: possible.sum()]
        rows, columns = np.unravel_index(likely[:_N_CANDIDATES], possible.shape)
        self.candidates = list(zip(rows.tolist(), columns.tolist(), strict=True))
        self.n_perturbations = statistics.n_groups
        self.back: list[tuple[int, int]] = []

    def find(self) -> list[Loop]:
        """All loops that the data ask for, those of most evidence first."""
        self._climb()
        loops = []
        for j, i in self.back:
            if self.adjacency[j, i] and j in circle_of(self.adjacency, i):
                loops.append(self._loop(j, i))
                self.watch.check()
        # one perturbation with a likeness of effects on two genes is not enough
        loops = [loop for loop in loops if loop.certainty > 0]
        unique = {_turned(loop.genes): loop for loop in sorted(loops, key=lambda loop: loop.evidence)}
        return sorted(unique.values(), key=lambda loop: -loop.evidence)

    def _climb(self) -> None:
        """Take edges back, the best first, as long as the score rises; where this ends depends on the first, of which some are tried."""
        start, best = self.adjacency, (0.0, self.adjacency, self.back)
        for first in self._gains([])[:_N_STARTS]:
            self.adjacency, self.back, total, steps = start.copy(), [], 0.0, [first]
            while steps:
                total += self._take(*steps[0])
                self.watch.check()
                steps = self._gains(self.back)
            best = max(best, (total, self.adjacency, self.back), key=lambda end: end[0])
        _, self.adjacency, self.back = best

    def _gains(self, taken: list[tuple[int, int]]) -> list[tuple[float, tuple[int, int], tuple[int, ...]]]:
        """What each edge back adds to the score, the edge and its circle, for those that add anything, the best first."""
        trials = [
            (edge, part)
            for edge in self.candidates
            if edge not in taken and not self.adjacency[edge] and (part := self._with_edge(*edge)) is not None
        ]
        before = self.score.scores([Part.of(self.adjacency, part.genes) for _, part in trials])
        after = self.score.scores([part for _, part in trials])
        gains = [(new - old, edge, part.genes) for (edge, part), old, new in zip(trials, before, after, strict=True)]
        return sorted((gain for gain in gains if gain[0] > _MIN_STEP), key=lambda gain: -gain[0])

    def _take(self, gain: float, edge: tuple[int, int], genes: tuple[int, ...]) -> float:
        """Take an edge back, and leave out what it makes needless; returns by how much the score rises."""
        self.adjacency[edge] = True
        self.back = [*self.back, edge]
        return gain + self._leave_out_needless(genes)

    def _leave_out_needless(self, genes: tuple[int, ...]) -> float:
        """Leave out edges into the genes of a circle, one after the other, as long as the score rises; returns by how much it does."""
        total = 0.0
        while edges := [(int(p), j) for j in genes for p in np.flatnonzero(self.adjacency[:, j])]:
            gain = -self._evidence(genes, edges)
            k = int(gain.argmax())
            if gain[k] <= _MIN_STEP:
                break
            self.adjacency[edges[k]] = False
            total += float(gain[k])
        return total

    def _evidence(
        self, genes: tuple[int, ...], edges: list[tuple[int, int]], left_out: int = -1
    ) -> NDArray[np.float64]:
        """Log evidence of edges into some genes, each given all others."""
        parts = [Part.of(self._without(edge), genes, left_out) for edge in edges]
        return self.score.score(Part.of(self.adjacency, genes, left_out)) - np.array(self.score.scores(parts))

    def _without(self, edge: tuple[int, int]) -> NDArray[np.bool_]:
        out = self.adjacency.copy()
        out[edge] = False
        return out

    def _with_edge(self, j: int, i: int) -> Part | None:
        """The circle that an edge from j to i closes; None if it closes none, or one of too many genes."""
        trial = self.adjacency.copy()
        trial[j, i] = True
        genes = circle_of(trial, i)
        return Part.of(trial, genes) if j in genes and len(genes) <= _MAX_GENES else None

    def _loop(self, j: int, i: int) -> Loop:
        """The shortest circle that an edge back from j to i closes."""
        genes = circle_of(self.adjacency, i)
        path = nx.shortest_path(nx.DiGraph(self.adjacency), i, j)
        forward = list(zip(path[:-1], path[1:], strict=True))
        # all at once: one batch
        choices = range(self.n_perturbations)
        self.score.scores([Part.of(a, genes, u) for u in choices for a in (self.adjacency, self._without((j, i)))])
        least = min(float(self._evidence(genes, [(j, i)], u)[0]) for u in choices)
        part = Part.of(self.adjacency, genes)
        slopes = [self.score.slope(part, *edge) for edge in forward]
        return Loop(
            tuple(int(g) for g in path),
            self.score.slope(part, j, i),
            least,
            float(np.prod(slopes)),
            float(self._evidence(genes, forward).min()),
        )


def _turned(genes: tuple[int, ...]) -> tuple[int, ...]:
    """The same circle from its first gene on."""
    k = genes.index(min(genes))
    return genes[k:] + genes[:k]


def circle_of(adjacency: NDArray[np.bool_], gene: int) -> tuple[int, ...]:
    """Genes that a gene leads to and that lead to it, itself among them, in order."""
    graph = nx.DiGraph(adjacency)
    return tuple(sorted((nx.descendants(graph, gene) & nx.ancestors(graph, gene)) | {gene}))


def hints_of_feedback(
    statistics: ContextStatistics, adjacency: NDArray[np.bool_], prior: ShiftPrior
) -> NDArray[np.float64]:
    """What direct effects on each gene tell of the residuals of each other, in nats, (d, d) from rows to columns.

    Residuals count by their variance over whether the gene is a target itself, as in an acyclic graph a gene of a circle will be called one.
    """
    fit = fit_graph(statistics, prior, adjacency)
    treated = statistics.group >= 0
    on = fit.target_probs[:, statistics.group[treated]]  # (d, K)
    residuals = fit.residuals[:, treated]
    error = statistics.variance_of_means(fit.noise_var)[:, treated] + prior.spike_var
    precision = 1 / (error + prior.misfit**2 * fit.passed[:, treated] + on * prior.slab_var)
    direct = on * residuals
    square = direct.square() @ precision.T + 1
    return (0.5 * (direct @ (precision * residuals).T).square() / square).numpy()
