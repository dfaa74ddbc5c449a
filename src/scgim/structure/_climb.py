"""Hill climbing over directed acyclic graphs: add, remove or reverse the edge that raises the score most.

The score is a sum over genes (:mod:`scgim.structure._score`), so a move costs no more than the genes whose parents it changes. Where
genes are many, most of them cannot be parents of a given one: a score test of all at once says which could
(:mod:`scgim.structure._screening`), and these alone are scored.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from scgim._departures import MIN_GAIN, N_BENDS, first_departures
from scgim._priors import EDGE_LOG_ODDS
from scgim.structure._graph import descendants, out_degrees, reachability
from scgim.structure._out_degree import OutDegreePrior
from scgim.structure._score import GeneFit, empirical_prior, fit_genes
from scgim.structure._screening import score_test, targets_explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from scgim._priors import ShiftPrior
    from scgim.structure._statistics import ContextStatistics

TOLERANCE = 1e-6  # nats; what rounding may feign, so that moves do not go round in circles
# Numbers in the design and the normal equations of a batch of regressions, 1 MB, so that it stays in a core's cache: for time alone
_BATCH_ELEMENTS = 2**17
# Up to this number of genes all are scored as parents of each. With more, these many further parents are; others have
# edge probability 0. Conventions, for time; what they do to results is in the tables `sensitivity-kinetic` and
# `-nonlinear` of docs/benchmarks.md.
_FEW_GENES = 41
_N_NEAR = 10
_MIN_HELP = -7.0  # an edge that falls shorter has a probability of about 0.001 at most: exp(-7)
_N_ITERATIONS = 6  # of expectation-maximisation in a regression: convention, for time
_PRIOR_ROUNDS = 4  # of fits and priors, in which both hardly change any more: convention, for time
# Genes that are scored at once, up to which fits of the best toggles are kept, and of how many: a fit by itself takes as long as
# some twenty at once. For time.
_FEW_AT_ONCE, _N_LIKELY = 8, 3
_EDGES_AT_ONCE = 64  # asked whether they may be reversed: for time
MANY_GENES = 20  # with fewer the numbers of their edges say too little of how many regulate

Parents = tuple[int, ...]


class HillClimb:
    """Hill climbing over directed acyclic graphs.

    Parameters
    ----------
    statistics
        Statistics of the cells.
    prior
        Prior of the direct effects.
    intervention
        "shift" or "hard".
    edge_log_odds
        Log prior odds of an edge, shape (d, d) or one number; added to the Bayesian information criterion.
    regulators
        Genes that may be parents of others, boolean (d,); None for all.
    seed
        Seed of the random moves.
    on_move
        Called with the score after each move.
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
        on_move: Callable[[float], None] | None = None,
    ):
        self.on_move = on_move or (lambda score: None)
        self.statistics, self.prior, self.intervention = statistics, prior, intervention
        d = self.n_genes = statistics.n_genes
        cost = 0.5 * math.log(float(statistics.n_cells.sum())) * statistics.n_basis
        log_odds = np.broadcast_to(np.asarray(edge_log_odds, dtype=float), (d, d))
        self.edge_cost = cost - log_odds
        self.usual_log_odds = float(np.median(log_odds))
        self.regulators = np.ones(d, dtype=bool) if regulators is None else np.asarray(regulators, dtype=bool)
        self.allowed = self.regulators[:, None] & ~np.eye(d, dtype=bool)
        self.required = (log_odds >= 0) & self.allowed
        self.candidates = self.required.copy()  # parents that were scored at one time or another
        self.random = np.random.default_rng(seed)
        self.n_evaluations = 0
        self.n_iterations = _N_ITERATIONS
        self.adjacency = np.zeros((d, d), dtype=bool)
        self.bonus = np.zeros(d)  # of the prior of out-degrees over independent edges, by number of edges
        self._reset()

    def _reset(self) -> None:
        self._cache: dict[tuple[int, Parents], float] = {}
        self._ranked: dict[tuple[int, Parents], NDArray[np.int32]] = {}
        self._likely: dict[int, dict[tuple[int, Parents], GeneFit]] = {}  # fits of parents that each gene may have next
        self.gain = np.full((self.n_genes, self.n_genes), -np.inf)
        self.score_by_gene = np.zeros(self.n_genes)
        self._options = [np.zeros(0, dtype=np.int64)] * self.n_genes  # parents of each gene whose toggle was scored
        self._replaced: dict[int, tuple] | None = None  # what `refresh` has overwritten, where an attempt may be undone

    @property
    def score(self) -> float:
        return float(self.score_by_gene.sum()) + self.degree_score(self.adjacency)

    def degree_score(self, adjacency: NDArray[np.bool_]) -> float:
        """What the prior of out-degrees adds to the score of a graph."""
        return float(self.bonus[out_degrees(adjacency)].sum())

    def degree_steps(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What it adds if each gene had one edge more, and one edge less, both (d,)."""
        n_edges = out_degrees(self.adjacency)
        steps = np.diff(self.bonus, append=-np.inf)
        return steps[n_edges], -steps[n_edges - 1]

    def parents(self, gene: int, adjacency: NDArray | None = None) -> Parents:
        adjacency = self.adjacency if adjacency is None else adjacency
        return tuple(np.flatnonzero(adjacency[:, gene]).tolist())

    def fit(
        self, pairs: list[tuple[int, Parents]], n_iterations: int | None = None, *, determined: bool = True
    ) -> GeneFit:
        """Fit the given (gene, parents) pairs; arguments are those of :func:`scgim.structure._score.fit_genes`."""
        n_iterations = n_iterations or self.n_iterations
        return fit_pairs(self.statistics, self.prior, pairs, self.intervention, n_iterations, determined=determined)

    def scores(self, pairs: list[tuple[int, Parents]]) -> list[float]:
        """Score of each pair, from the cache where it is known."""
        for _ in self.fits([q for q in dict.fromkeys(pairs) if q not in self._cache]):
            pass
        return [self._cache[q] for q in pairs]

    def fits(self, pairs: list[tuple[int, Parents]]) -> Iterator[tuple[list[tuple[int, Parents]], GeneFit]]:
        """Fits in batches, those of few parents first; their scores are kept."""
        in_order = sorted(pairs, key=lambda pair: len(pair[1]))
        for batch in batches(self.statistics, in_order, bool(self.prior.departure_var)):
            fit = self.fit(batch, determined=False)
            self.n_evaluations += len(batch)
            for (gene, parents), evidence in zip(batch, fit.log_evidence.tolist(), strict=True):
                self._cache[gene, parents] = evidence - float(self.edge_cost[list(parents), gene].sum())
            yield batch, fit

    def refresh(self, genes: Iterable[int]) -> None:
        """Score each toggle of one parent of the given genes, of those that are worth it."""
        genes = [int(j) for j in genes]
        near = self.near(genes)
        self.candidates[:, genes] |= near
        own = [(j, self.parents(j)) for j in genes]
        toggled = [(j, toggle(p, int(i))) for b, (j, p) in enumerate(own) for i in np.flatnonzero(near[:, b])]
        new = [q for q in dict.fromkeys(own + toggled) if q not in self._cache]
        are_few = len(genes) <= _FEW_AT_ONCE
        fits = [fit for fit in self.fits(new) if are_few]  # those of many genes would take too much memory
        for b, (j, parents) in enumerate(own):
            options = np.flatnonzero(near[:, b])
            if self._replaced is not None and j not in self._replaced:
                self._replaced[j] = self.score_by_gene[j], self._options[j], self.gain[self._options[j], j]
            self.gain[self._options[j], j] = -np.inf
            self.score_by_gene[j], self._options[j] = self._cache[j, parents], options
            with_toggle = [self._cache[j, toggle(parents, i)] for i in options.tolist()]
            self.gain[options, j] = np.array(with_toggle) - self._cache[j, parents]
        if are_few:
            self._keep_likely(own, fits)

    def _keep_likely(
        self, pairs: list[tuple[int, Parents]], fits: list[tuple[list[tuple[int, Parents]], GeneFit]]
    ) -> None:
        """Keep the fits of the best toggles of each gene, as one of them will be its parents soon."""
        place = {pair: (fit, k) for batch, fit in fits for k, pair in enumerate(batch)}
        for j, parents in pairs:
            options = self._options[j]
            best = options[np.argsort(-self.gain[options, j], kind="stable")[:_N_LIKELY]].tolist()
            likely = [(j, toggle(parents, i)) for i in best if self.gain[i, j] > TOLERANCE]
            self._likely[j] = {pair: place[pair][0].row(place[pair][1]) for pair in likely if pair in place}

    def undo(self, replaced: dict[int, tuple]) -> None:
        """Put back what `refresh` has overwritten."""
        for j, (score, options, gain) in replaced.items():
            self.gain[self._options[j], j] = -np.inf
            self.score_by_gene[j], self._options[j] = score, options
            self.gain[options, j] = gain

    def near(self, genes: list[int]) -> NDArray[np.bool_]:
        """Parents to score for each of the genes, boolean (d, B): all where genes are few, or those that there are and could be.

        Of the latter the best are taken twice: of all genes, and of those that may be parents as the graph is.
        """
        if self.regulators.sum() <= _FEW_GENES:
            return self.allowed[:, genes]
        self._rank_parents(genes)
        near = self.adjacency[:, genes] | self.required[:, genes]
        for b, j in enumerate(genes):
            ranked = self._ranked[j, self.parents(j)]
            free = ranked[~descendants(self.adjacency, j)[ranked]]
            near[np.concatenate([ranked[:_N_NEAR], free[:_N_NEAR], ranked[self.adjacency[j, ranked]]]), b] = True
        return near

    def _rank_parents(self, genes: list[int]) -> None:
        """Note which further parents could help each of the genes, the best first."""
        new = [(j, self.parents(j)) for j in genes if (j, self.parents(j)) not in self._ranked]
        kept = [([pair], self._likely[pair[0]][pair]) for pair in new if pair in self._likely.get(pair[0], ())]
        known = {batch[0] for batch, _ in kept}
        for batch, fit in [*kept, *self.fits([pair for pair in new if pair not in known])]:
            own = [j for j, _ in batch]
            help_ = score_test(self.statistics, self.prior, fit, batch)
            if self.prior.departure_var:  # a parent may show between contexts alone
                help_ = np.maximum(help_, targets_explained(self.statistics, self.prior, fit, own))
            help_ -= self.edge_cost[:, own]
            help_[~self.allowed[:, own]] = -np.inf
            for b, (j, parents) in enumerate(batch):
                help_[list(parents), b] = -np.inf
                order = np.argsort(-help_[:, b], kind="stable")
                self._ranked[j, parents] = order[help_[order, b] > _MIN_HELP].astype(np.int32)

    def climb(self) -> float:
        """Make the best single move until none raises the score; returns the score."""
        reach = reachability(self.adjacency)
        while True:
            kind, i, j, gain = self._best_move(reach)
            if not gain > TOLERANCE:
                return self.score
            self.on_move(self.score)
            if kind == "add":
                self.adjacency[i, j] = True
                reach[np.flatnonzero(reach[:, i])] |= reach[j]
                self.refresh([j])
                continue
            self.adjacency[i, j] = False
            if kind == "reverse":
                self.adjacency[j, i] = True
            reach = reachability(self.adjacency)
            self.refresh([j] if kind == "remove" else [i, j])

    def _best_move(self, reach: NDArray[np.bool_]) -> tuple[str, int, int, float]:
        more, less = self.degree_steps()
        rows = np.concatenate(self._options)  # hardly any pair of many genes is worth it
        columns = np.repeat(np.arange(self.n_genes), [len(options) for options in self._options])
        best = ("none", 0, 0, -math.inf)
        if not len(rows):
            return best
        gain, present = self.gain[rows, columns], self.adjacency[rows, columns]
        add = np.where(present | reach[columns, rows], -np.inf, gain + more[rows])
        k = int(add.argmax())
        best = ("add", int(rows[k]), int(columns[k]), float(add[k]))
        rows, columns, gain = rows[present], columns[present], gain[present]
        if not len(rows):
            return best
        remove = gain + less[rows]
        k = int(remove.argmax())
        if remove[k] > best[3]:
            best = ("remove", int(rows[k]), int(columns[k]), float(remove[k]))
        reverse = remove + self.gain[columns, rows] + more[columns]
        promising = np.flatnonzero(reverse > max(best[3], TOLERANCE))
        promising = promising[np.argsort(-reverse[promising], kind="stable")]
        for some in np.split(promising, range(_EDGES_AT_ONCE, len(promising), _EDGES_AT_ONCE)):
            free = some[~_other_paths(self.adjacency, reach, rows[some], columns[some])]
            if len(free):
                k = int(free[0])
                return ("reverse", int(rows[k]), int(columns[k]), float(reverse[k]))
        return best

    def update_prior(self) -> ShiftPrior:
        """Fit the prior of the direct effects to the current graph (empirical Bayes)."""
        fit = self.fit([(j, self.parents(j)) for j in range(self.n_genes)])
        self.prior = empirical_prior(self.statistics, fit, self.prior)
        self.update_bonus()
        self._reset()
        return self.prior

    def update_bonus(self) -> None:
        """Fit the prior of out-degrees to the current graph; where regulators are told, independent edges are what is left to say."""
        n = self.n_genes - 1
        if self.n_genes >= MANY_GENES and self.regulators.all():
            degree_prior = OutDegreePrior.fitted(self.adjacency.sum(1), n)
            self.bonus = degree_prior.bonus(n, self.usual_log_odds)

    def edge_probs(self) -> NDArray[np.float64]:
        """Probability of each edge, given the rest of the graph: present, reversed or absent, by their scores."""
        d, reach = self.n_genes, reachability(self.adjacency)
        more, less = self.degree_steps()
        probs = np.zeros((d, d))
        rows, columns = np.nonzero(self.adjacency)
        for k in np.split(np.arange(len(rows)), range(_EDGES_AT_ONCE, len(rows), _EDGES_AT_ONCE)):
            i, j = rows[k], columns[k]
            absent = self.gain[i, j] + less[i]
            turned = np.where(_other_paths(self.adjacency, reach, i, j), -np.inf, absent + self.gain[j, i] + more[j])
            log = np.stack([np.zeros(len(k)), absent, turned])
            weight = np.exp(log - log.max(0))
            probs[i, j], probs[j, i] = weight[0] / weight.sum(0), weight[2] / weight.sum(0)
        free = ~self.adjacency & ~self.adjacency.T & ~np.eye(d, dtype=bool)
        forward = np.where(free & ~reach.T, np.exp(np.minimum(self.gain + more[:, None], 0.0)), 0.0)
        return np.where(free, forward / (1.0 + forward + forward.T), probs)


def fit_pairs(
    statistics: ContextStatistics,
    prior: ShiftPrior,
    pairs: list[tuple[int, Parents]],
    intervention: str = "shift",
    n_iterations: int = _N_ITERATIONS,
    *,
    determined: bool = True,
) -> GeneFit:
    """Fit genes on parents, one (gene, parents) pair each, all at once."""
    width = max([1, *(len(p) for _, p in pairs)])
    index = np.zeros((len(pairs), width), dtype=np.int64)
    mask = np.zeros((len(pairs), width))
    for b, (_, parents) in enumerate(pairs):
        index[b, : len(parents)] = parents
        mask[b, : len(parents)] = 1.0
    genes = torch.tensor([gene for gene, _ in pairs])
    return fit_genes(
        statistics,
        genes,
        torch.from_numpy(index),
        torch.from_numpy(mask).to(statistics.means.dtype),
        prior,
        intervention=intervention,
        n_iterations=n_iterations,
        determined=determined,
    )


def fit_graph(
    statistics: ContextStatistics,
    prior: ShiftPrior,
    adjacency: NDArray[np.bool_],
    intervention: str = "shift",
    n_iterations: int = _N_ITERATIONS,
) -> GeneFit:
    """Fit all genes on their parents in a graph, boolean (d, d)."""
    pairs = [(j, tuple(np.flatnonzero(column).tolist())) for j, column in enumerate(np.asarray(adjacency, bool).T)]
    departures = bool(prior.departure_var)
    fits = [fit_pairs(statistics, prior, b, intervention, n_iterations) for b in batches(statistics, pairs, departures)]
    return GeneFit.joined(fits, statistics.n_basis)


def batches(
    statistics: ContextStatistics, pairs: list[tuple[int, Parents]], departures: bool
) -> Iterator[list[tuple[int, Parents]]]:
    """Pairs in batches whose regressions fit into little memory; those of a batch are padded to the most parents among them."""
    n_contexts, n_basis = statistics.n_contexts, statistics.n_basis

    def elements(n_parents: int) -> int:
        n_columns = 1 + n_parents * n_basis + departures * min(N_BENDS * n_parents, n_contexts)
        return n_columns * (n_columns + n_contexts)

    start, widest, each = 0, 0, elements(0)
    for k, (_, parents) in enumerate(pairs):
        if len(parents) > widest:
            widest, each = len(parents), elements(len(parents))
        if k > start and (k + 1 - start) * each > _BATCH_ELEMENTS:
            yield pairs[start:k]
            start, widest, each = k, len(parents), elements(len(parents))
    if pairs:
        yield pairs[start:]


def evidence_for_misfit(
    statistics: ContextStatistics, prior: ShiftPrior, adjacency: NDArray[np.bool_], intervention: str = "shift"
) -> bool:
    """Whether the evidence of a graph is clearly for mechanisms that are wrong between contexts, in either way."""
    return fitted_prior(statistics, prior, adjacency, intervention)[1]


def fitted_prior(
    statistics: ContextStatistics, prior: ShiftPrior, adjacency: NDArray[np.bool_], intervention: str = "shift"
) -> tuple[ShiftPrior, bool]:
    """Prior of the direct effects fitted to a graph, and whether the evidence is clearly for mechanisms that are wrong between contexts."""
    found = []
    for trial in (prior, *(first_departures(prior, proportional=kind) for kind in (False, True))):
        for _ in range(_PRIOR_ROUNDS):
            trial = empirical_prior(statistics, fit_graph(statistics, trial, adjacency, intervention), trial)
        evidence = float(fit_graph(statistics, trial, adjacency, intervention).log_evidence.sum())
        found.append((evidence, trial))
    held, departing = found[0], max(found[1:], key=lambda one: one[0])
    fails = departing[0] > held[0] + MIN_GAIN
    return (departing if fails else held)[1], fails


def toggle(parents: Parents, gene: int) -> Parents:
    return tuple(sorted(set(parents) ^ {gene}))


def _other_paths(adjacency: NDArray, reach: NDArray, i: NDArray, j: NDArray) -> NDArray[np.bool_]:
    """Whether a path of two or more edges leads from each i to its child j, so that reversing i -> j would close a cycle."""
    return (adjacency[i] & reach[:, j].T).sum(1) > 1
