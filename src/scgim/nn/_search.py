"""Search for the directed acyclic graph with the best score.

Greedy moves (add, remove or reverse an edge) end in a local optimum, often with a few edges reversed. Three kinds of
larger moves lead out of it: reversing an edge and choosing the parents of all genes concerned anew, taking a gene out
of the graph and letting it back in, and reversing a few edges at random. Each is kept only if the score rises. The
score is a sum over genes (:mod:`scgim.nn._score`), so a move costs no more than the genes whose parents it changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from scgim.nn._candidates import candidate_parents
from scgim.nn._graph import descendants, reachability
from scgim.nn._score import GeneFit, ShiftPrior, empirical_prior, fit_genes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from scgim.nn._statistics import ContextStatistics

_TOLERANCE = 1e-6
_BATCH_ELEMENTS = 2_000_000
_MAX_OPTIONS = 10
_N_WIDENED, _MAX_WIDENINGS = 5, 3  # candidates that are added to a gene at a time, and times

Parents = tuple[int, ...]


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


class StructureSearch:
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
    max_candidates
        Candidate parents of a gene to start with; there may be more, as candidates are mutual.
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
        edge_log_odds: float | NDArray = -2.0,
        max_candidates: int = 40,
        seed: int = 0,
        on_move: Callable[[float], None] | None = None,
    ):
        self.on_move = on_move or (lambda score: None)
        self.statistics, self.prior, self.intervention = statistics, prior, intervention
        d = self.n_genes = statistics.n_genes
        self.candidates = candidate_parents(statistics, max_candidates)
        cost = 0.5 * math.log(float(statistics.n_cells.sum())) * statistics.n_basis
        log_odds = np.broadcast_to(np.asarray(edge_log_odds, dtype=float), (d, d))
        self.edge_cost = cost - log_odds
        self.candidates |= (log_odds >= 0) & ~np.eye(d, dtype=bool)
        self.random = np.random.default_rng(seed)
        self.n_evaluations = 0
        self.adjacency = np.zeros((d, d), dtype=bool)
        self._reset()

    def _reset(self) -> None:
        self._cache: dict[tuple[int, Parents], float] = {}
        self.gain = np.full((self.n_genes, self.n_genes), -np.inf)
        self.score_by_gene = np.zeros(self.n_genes)

    @property
    def score(self) -> float:
        return float(self.score_by_gene.sum())

    def parents(self, gene: int, adjacency: NDArray | None = None) -> Parents:
        adjacency = self.adjacency if adjacency is None else adjacency
        return tuple(np.flatnonzero(adjacency[:, gene]).tolist())

    def fit(self, pairs: list[tuple[int, Parents]], n_iterations: int = 6) -> GeneFit:
        """Fit the given (gene, parents) pairs."""
        width = max([1, *(len(p) for _, p in pairs)])
        index = torch.zeros(len(pairs), width, dtype=torch.long)
        mask = torch.zeros(len(pairs), width, dtype=self.statistics.means.dtype)
        for b, (_, parents) in enumerate(pairs):
            index[b, : len(parents)] = torch.tensor(parents, dtype=torch.long)
            mask[b, : len(parents)] = 1.0
        genes = torch.tensor([gene for gene, _ in pairs])
        return fit_genes(
            self.statistics,
            genes,
            index,
            mask,
            self.prior,
            intervention=self.intervention,
            n_iterations=n_iterations,
        )

    def scores(self, pairs: list[tuple[int, Parents]]) -> list[float]:
        """Score of each pair, from the cache where it is known."""
        new = sorted((q for q in dict.fromkeys(pairs) if q not in self._cache), key=lambda q: len(q[1]))
        s = self.statistics
        step = max(1, _BATCH_ELEMENTS // (s.n_contexts * (s.n_basis * 4 + 4)))
        for start in range(0, len(new), step):
            batch = new[start : start + step]
            self.n_evaluations += len(batch)
            for pair, evidence in zip(batch, self.fit(batch).log_evidence.tolist(), strict=True):
                gene, parents = pair
                self._cache[pair] = evidence - float(self.edge_cost[list(parents), gene].sum())
        return [self._cache[q] for q in pairs]

    def refresh(self, genes: Iterable[int]) -> None:
        """Score each toggle of one candidate parent of the given genes."""
        pairs: list[tuple[int, Parents]] = []
        cells: list[tuple[int, int]] = []
        genes = [int(j) for j in genes]
        for j in genes:
            parents = self.parents(j)
            pairs.append((j, parents))
            for i in np.flatnonzero(self.candidates[:, j]).tolist():
                pairs.append((j, _toggle(parents, i)))
                cells.append((i, j))
        scores = self.scores(pairs)
        own = {j: score for (j, parents), score in zip(pairs, scores, strict=True) if parents == self.parents(j)}
        for j in genes:
            self.score_by_gene[j] = own[j]
            self.gain[:, j] = -np.inf
        toggled = (s for (j, parents), s in zip(pairs, scores, strict=True) if parents != self.parents(j))
        for (i, j), score in zip(cells, toggled, strict=True):
            self.gain[i, j] = score - own[j]

    def climb(self) -> float:
        """Make the best single move until none raises the score; returns the score."""
        reach = reachability(self.adjacency)
        while True:
            kind, i, j, gain = self._best_move(reach)
            if not gain > _TOLERANCE:
                return self.score
            self.on_move(self.score)
            if kind == "add":
                self.adjacency[i, j] = True
                reach |= np.outer(reach[:, i], reach[j])
                self.refresh([j])
                continue
            self.adjacency[i, j] = False
            if kind == "reverse":
                self.adjacency[j, i] = True
            reach = reachability(self.adjacency)
            self.refresh([j] if kind == "remove" else [i, j])

    def _best_move(self, reach: NDArray[np.bool_]) -> tuple[str, int, int, float]:
        add = np.where(self.adjacency | reach.T, -np.inf, self.gain)
        i, j = np.unravel_index(add.argmax(), add.shape)
        best = ("add", int(i), int(j), float(add[i, j]))
        rows, columns = np.nonzero(self.adjacency)
        if not len(rows):
            return best
        remove = self.gain[rows, columns]
        k = int(remove.argmax())
        if remove[k] > best[3]:
            best = ("remove", int(rows[k]), int(columns[k]), float(remove[k]))
        reverse = remove + self.gain[columns, rows]
        for k in np.argsort(-reverse):
            if reverse[k] <= max(best[3], _TOLERANCE):
                break
            if not _other_path(self.adjacency, reach, rows[k], columns[k]):
                return ("reverse", int(rows[k]), int(columns[k]), float(reverse[k]))
        return best

    def select_parents(
        self, gene: int, allowed: NDArray[np.bool_], start: Parents, extra: Iterable[int] = ()
    ) -> tuple[Parents, float]:
        """Forward-backward selection of the parents of a gene among those allowed; `extra` are tried in any case."""
        allowed = allowed & self.candidates[:, gene]
        parents = tuple(p for p in start if allowed[p])
        # of the genes not yet parents, those that help most as things stand
        likely = np.argsort(-np.where(allowed, self.gain[:, gene], -np.inf))[:_MAX_OPTIONS]
        options = [int(i) for i in {*likely.tolist(), *parents, *extra} if allowed[i]]
        score = self.scores([(gene, parents)])[0]
        while options:
            trials = [_toggle(parents, i) for i in options]
            scores = self.scores([(gene, t) for t in trials])
            best = int(np.argmax(scores))
            if scores[best] <= score + _TOLERANCE:
                break
            parents, score = trials[best], scores[best]
        return parents, score

    def reverse_and_reselect(self, i: int, j: int) -> bool:
        """Put gene i after gene j in the order and choose the parents of all genes concerned anew."""
        on_paths = descendants(self.adjacency, i) & descendants(self.adjacency.T, j)
        between = [int(t) for t in np.flatnonzero(on_paths) if t != i]
        trial = self.adjacency.copy()
        children = [t for t in between if trial[i, t]]
        trial[i, between] = False
        gain = 0.0
        for gene in [*children, i]:
            allowed = ~descendants(trial, gene)
            start = self.parents(gene, trial)
            if gene == i:
                start = tuple(sorted({*start, j}))
            else:
                allowed[i] = False
            parents, score = self.select_parents(gene, allowed, start, between)
            gain += score - self.score_by_gene[gene]
            trial[:, gene] = False
            trial[list(parents), gene] = True
        if gain <= _TOLERANCE:
            return False
        self.adjacency = trial
        self.refresh([*children, i])
        self.climb()
        return True

    def _attempt(self, change: Callable[[NDArray[np.bool_]], None]) -> bool:
        """Change the graph, climb, and keep the result if it is better."""
        before, score, gain, by_gene = self.adjacency, self.score, self.gain.copy(), self.score_by_gene.copy()
        self.adjacency = before.copy()
        change(self.adjacency)
        self.refresh(np.flatnonzero((self.adjacency != before).any(0)))
        if self.climb() > score + _TOLERANCE:
            return True
        self.adjacency, self.gain, self.score_by_gene = before, gain, by_gene
        return False

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
            trace.append(self.score)
        return trace

    def _larger_moves(self, n_perturbations: int) -> Iterator[Callable[[], bool]]:
        """Moves of one round. The order is random, so that a budget too small for all of them favours no gene."""
        edges = np.argwhere(self.adjacency)
        for i, j in edges[self.random.permutation(len(edges))]:
            if self.adjacency[i, j]:
                yield partial(self.reverse_and_reselect, int(i), int(j))
        for gene in self.random.permutation(self.n_genes):
            yield partial(self.remove_and_return, int(gene))
        for k in range(n_perturbations):
            yield partial(self.reverse_at_random, 2 + 2 * (k % 2))

    def widen(self) -> bool:
        """Make candidates of genes that could explain what the parents leave, and climb; returns whether there were any."""
        help_ = np.where(self.candidates, -np.inf, self._score_test() - self.edge_cost)
        np.fill_diagonal(help_, -np.inf)
        best = np.argsort(-help_, axis=0)[:_N_WIDENED]
        new = np.zeros_like(self.candidates)
        np.put_along_axis(new, best, np.take_along_axis(help_, best, axis=0) > 0, axis=0)
        new |= new.T & ~np.eye(self.n_genes, dtype=bool)  # so that edges can turn round
        self.candidates |= new
        self.refresh(np.flatnonzero(new.any(0)))
        self.climb()
        return bool(new.any())

    def _score_test(self) -> NDArray[np.float64]:
        """About how much the evidence of each gene j would gain by each further parent i, all else as it is, shape (d, d).

        From slope and curvature in the weight of the new parent where that is zero: of the scatter within contexts and of
        context means. For hard interventions the scatter of targets is not left out, which is near enough.
        """
        s, d = self.statistics, self.n_genes
        fit = self.fit([(j, self.parents(j)) for j in range(d)])
        weight = torch.zeros(s.means.shape[1], d, dtype=s.means.dtype)
        for j in range(d):
            columns = s.columns(torch.tensor(self.parents(j), dtype=torch.long))
            weight[columns, j] = fit.weights[j, : len(columns)]
        on = torch.nn.functional.pad(fit.target_probs, (0, 1))[:, s.group % (s.n_groups + 1)]  # (d, K)
        v0 = fit.noise_var[:, None] / s.n_cells + self.prior.spike_var
        precision = (1 - on) / v0 + on / (v0 + self.prior.slab_var)
        x = s.means[:, :d] - s.means[:, :d].mean(0)
        slope = (s.gram[:d, :d] - s.gram[:d] @ weight) / fit.noise_var + x.T @ (precision * fit.residuals).T
        curvature = s.gram.diagonal()[:d, None] / fit.noise_var + x.square().T @ precision.T
        return (slope.square() / (2 * curvature.clamp_min(1e-9))).numpy()

    def update_prior(self) -> ShiftPrior:
        """Fit the prior of the direct effects to the current graph (empirical Bayes)."""
        fit = self.fit([(j, self.parents(j)) for j in range(self.n_genes)])
        self.prior = empirical_prior(self.statistics, fit, self.prior)
        self._reset()
        return self.prior

    def edge_probs(self) -> NDArray[np.float64]:
        """Probability of each edge, given the rest of the graph: present, reversed or absent, by their scores."""
        d, reach = self.n_genes, reachability(self.adjacency)
        probs = np.zeros((d, d))
        for i, j in np.argwhere(self.adjacency):
            absent = self.gain[i, j]
            reversed_ = absent + self.gain[j, i] if not _other_path(self.adjacency, reach, i, j) else -np.inf
            log = np.array([0.0, absent, reversed_])
            weight = np.exp(log - log.max())
            probs[i, j], probs[j, i] = weight[0] / weight.sum(), weight[2] / weight.sum()
        free = ~self.adjacency & ~self.adjacency.T & ~np.eye(d, dtype=bool)
        forward = np.where(free & ~reach.T & self.candidates, np.exp(np.minimum(self.gain, 0.0)), 0.0)
        return np.where(free, forward / (1.0 + forward + forward.T), probs)


def _toggle(parents: Parents, gene: int) -> Parents:
    return tuple(sorted(set(parents) ^ {gene}))


def _other_path(adjacency: NDArray, reach: NDArray, i: int, j: int) -> bool:
    """Whether a path of two or more edges leads from i to j, so that reversing i -> j would close a cycle."""
    through = adjacency[i] & reach[:, j]
    return bool(through.sum() > through[j])


def search_structure(
    statistics: ContextStatistics,
    *,
    intervention: str = "shift",
    edge_log_odds: float | NDArray = -2.0,
    known_targets: Tensor | None = None,
    max_candidates: int = 40,
    n_perturbations: int = 20,
    max_evaluations: int | None = None,
    seed: int = 0,
    on_move: Callable[[float], None] | None = None,
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
    known_targets
        Log prior odds of single targets, NaN for those of which nothing is known, shape (U, d).
    max_candidates
        Candidate parents of a gene to start with; what these leave unexplained names further ones.
    n_perturbations
        Random moves tried in each round.
    max_evaluations
        Regressions that the larger moves may cost; None for 15,000 and 400 a gene, at most 200,000.
    seed
        Seed of the random moves.
    on_move
        Called with the score after each move.
    """
    if max_evaluations is None:
        max_evaluations = min(15_000 + 400 * statistics.n_genes, 200_000)
    prior = ShiftPrior(target_prob=min(0.08, 1.5 / statistics.n_genes), known=known_targets)
    search = StructureSearch(
        statistics,
        prior,
        intervention=intervention,
        edge_log_odds=edge_log_odds,
        max_candidates=max_candidates,
        seed=seed,
        on_move=on_move,
    )
    trace: list[float] = []
    for _ in range(2):
        search.refresh(range(search.n_genes))
        trace.append(search.climb())
        search.update_prior()
    search.refresh(range(search.n_genes))
    search.climb()
    for _ in range(_MAX_WIDENINGS):
        if not search.widen():
            break
    trace += search.escape(n_perturbations, max_evaluations)
    score = search.score
    if search.widen() and search.score > score + _TOLERANCE:
        trace += search.escape(n_perturbations, max_evaluations)
    return StructureResult(search.adjacency.copy(), search.edge_probs(), search.score, search.prior, trace)
