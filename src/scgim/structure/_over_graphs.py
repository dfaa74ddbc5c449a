"""Probabilities of edges over graphs near the one that was found, and over choices of perturbations.

The graph of highest score is one of many, and scores are conditional on mechanisms of one form. Graphs are drawn by their scores
(:mod:`scgim.structure._walk`), each time with perturbations weighted anew by the Bayesian bootstrap (a bagged posterior; Huggins and
Miller, 2023, Bayesian Analysis 18:79): where mechanisms are not quite right, scores are much surer of a direction than another choice of
perturbations would let them be.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scgim._priors import CELLS_A_GENE
from scgim.structure._leaves import LeafClimb
from scgim.structure._search import GraphSearch, StructureResult, cells_a_gene
from scgim.structure._walk import ParentSets, edge_probs_of_walk
from scgim.structure._watch import PROBABILITIES, SearchWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scgim.structure._climb import HillClimb, Parents
    from scgim.structure._leaves import LeafTask
    from scgim.structure._statistics import ContextStatistics

# Further parents that a gene may get, the best first, and how many of these in pairs; parents of which any may be missing, and how
# many at once of more. Conventions, for time: some hundred sets a gene, as many regressions as a few hundred moves of the search.
_N_MORE, _N_PAIRED = 12, 4
_N_ANY, _N_MISSING = 5, 2
# Choices of perturbations, and rounds in which the parents of each gene are drawn in each: for time.
_N_RESAMPLED, _N_ROUNDS = 20, 10


class Resampled(NamedTuple):
    """Scores of sets of parents, so that perturbations can be weighted anew: (n,) of what does not depend on them, and (n, U)."""

    fixed: NDArray[np.float64]
    by_perturbation: NDArray[np.float64]

    def under(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores under weights of the perturbations (U,), or several choices of them (U, m); shape (n,) or (n, m)."""
        scores = self.by_perturbation @ weight
        return scores + self.fixed.reshape(-1, *[1] * (scores.ndim - 1))


def draw_weights(n_perturbations: int, n_choices: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Choices of weights of the perturbations, 1 on average in each, (U, choices)."""
    weights = rng.standard_exponential((n_choices, n_perturbations))
    return (weights / weights.mean(1, keepdims=True)).T


def with_probs_over_graphs(
    statistics: ContextStatistics,
    result: StructureResult,
    *,
    seed: int = 0,
    watch: SearchWatch | None = None,
    **options: Any,
) -> StructureResult:
    """The result of a search with probabilities of edges over many graphs; `options` are those of the search.

    Where a plate has few wells a gene, the probabilities stay those given the rest of the graph: wells say little of it in any case. They
    do as well where the search was ended early, or is now.
    """
    watch = SearchWatch() if watch is None else watch
    if cells_a_gene(statistics) < CELLS_A_GENE or watch.is_stopped:
        return result
    probs = result.edge_probs
    with watch.may_end_early():
        probs = _probs_over_graphs(statistics, result, watch, seed, options)
    return replace(result, edge_probs=probs)


def with_probs_of_graph(
    statistics: ContextStatistics, result: StructureResult, *, seed: int, watch: SearchWatch, **options: Any
) -> StructureResult:
    """The result of a search with probabilities of edges given the rest of its graph, which these statistics need not be the best for."""
    return replace(result, edge_probs=_search_at(statistics, result, watch, seed, options).edge_probs())


def _search_at(
    statistics: ContextStatistics, result: StructureResult, watch: SearchWatch, seed: int, options: dict[str, Any]
) -> GraphSearch:
    """A search that stands at the graph that was found, with what each edge more or less would bring."""
    search = GraphSearch(statistics, result.prior, seed=seed, watch=watch, **options)
    search.adjacency = result.adjacency
    if search.leaves is None:
        search.network.update_bonus()
    search.network.refresh(range(search.network.n_genes))
    return search


def _probs_over_graphs(
    statistics: ContextStatistics, result: StructureResult, watch: SearchWatch, seed: int, options: dict[str, Any]
) -> NDArray[np.float64]:
    search = _search_at(statistics, result, watch, seed, options)
    network, leaves, rng = search.network, search.leaves, np.random.default_rng(seed)
    weights = draw_weights(statistics.n_groups, _N_RESAMPLED, rng)
    told = partial(watch.progress, PROBABILITIES)
    probs = edge_probs_over_graphs(network, weights, rng, told)
    if leaves is None:
        return probs
    of_leaves = leaves.probs(search.prior, network.n_iterations, leaf_probs_over_choices, weights)
    return search.put_together(probs, of_leaves)


def edge_probs_over_graphs(
    search: HillClimb,
    weights: NDArray[np.float64],
    rng: np.random.Generator,
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Probability of each edge over graphs around that of a search and over choices of perturbations (U, choices), shape (d, d).

    Edges that no set has keep the probability that they have given the rest of the graph (:meth:`HillClimb.edge_probs`).
    """
    by_gene = [near_sets(search, j) for j in range(search.n_genes)]
    scores = score_sets(search, [(j, own) for j, sets in enumerate(by_gene) for own in sets])
    ends = np.cumsum([len(sets) for sets in by_gene])[:-1]
    tables = [_table(sets) for sets in by_gene]
    walked = np.zeros((search.n_genes, search.n_genes))
    for k, weight in enumerate(weights.T):
        if on_progress:
            on_progress(k, weights.shape[1])
        drawn = np.split(scores.under(weight), ends)
        sets = [ParentSets(*table, own) for table, own in zip(tables, drawn, strict=True)]
        walked += edge_probs_of_walk(sets, search.adjacency, rng, _N_ROUNDS, search.bonus)
    probs = search.edge_probs()  # of the graph that was found, one draw more
    for j, (candidates, _) in enumerate(tables):
        probs[candidates, j] = (walked[candidates, j] + probs[candidates, j]) / (weights.shape[1] + 1)
    # both ends of an edge are drawn at times of their own, so that of few draws the two directions may add up to more than one
    return probs / np.maximum(1.0, probs + probs.T)


def leaf_probs_over_choices(task: LeafTask, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of each parent of leaves over sets of parents and choices of perturbations (U, choices), (regulators, leaves).

    No cycle goes through a leaf, so that its sets are as probable as their scores say, and no walk is needed.
    """
    search = LeafClimb(task)
    search.refresh(search.leaves)
    by_gene = [near_sets(search, int(j)) for j in search.leaves]
    scores = score_sets(search, [(int(j), own) for j, sets in zip(search.leaves, by_gene, strict=True) for own in sets])
    drawn = np.split(scores.under(weights), np.cumsum([len(sets) for sets in by_gene])[:-1])
    probs = search.edge_probs()
    for j, sets, own in zip(search.leaves, by_gene, drawn, strict=True):
        candidates, members = _table(sets)
        weight = np.exp(own - own.max(0))  # (sets, choices)
        found = members.T @ (weight / weight.sum(0))
        probs[candidates, j] = (found.sum(1) + probs[candidates, j]) / (weights.shape[1] + 1)
    return probs[: search.n_sources, search.n_sources :]


def near_sets(search: HillClimb, gene: int) -> list[Parents]:
    """Sets of parents of a gene near those in the graph, which come first: some of these missing, and one or two more."""
    parents = search.parents(gene)
    gain = np.where(search.allowed[:, gene], search.gain[:, gene], -np.inf)
    gain[list(parents)] = -np.inf
    more = [int(i) for i in np.argsort(-gain, kind="stable")[:_N_MORE] if np.isfinite(gain[i])]
    n_missing = len(parents) if len(parents) <= _N_ANY else _N_MISSING
    kept = [own for n in range(n_missing + 1) for own in combinations(parents, len(parents) - n)]
    if len(parents) > _N_ANY:
        kept += [(), *((i,) for i in parents)]
    sets = [tuple(sorted(own + added)) for own in kept for added in [(), *((i,) for i in more)]]
    sets += [tuple(sorted(parents + pair)) for pair in combinations(more[:_N_PAIRED], 2)]
    return list(dict.fromkeys(sets))


def score_sets(search: HillClimb, pairs: list[tuple[int, Parents]]) -> Resampled:
    """Scores of (gene, parents) pairs, by perturbation."""
    fixed, by = np.empty(len(pairs)), np.empty((len(pairs), search.statistics.n_groups))
    place = {pair: k for k, pair in enumerate(pairs)}
    for batch, fit in search.fits(pairs):
        own = [place[pair] for pair in batch]
        cost = [float(search.edge_cost[list(parents), gene].sum()) for gene, parents in batch]
        by[own] = fit.by_perturbation.numpy()
        fixed[own] = (fit.log_evidence - fit.by_perturbation.sum(1)).numpy() - cost
    return Resampled(fixed, by)


def _table(sets: list[Parents]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Genes that any of the sets has (c,), and which of them are in each, (n, c)."""
    candidates = sorted({i for own in sets for i in own})
    column = {i: c for c, i in enumerate(candidates)}
    members = np.zeros((len(sets), len(candidates)), dtype=bool)
    for row, own in zip(members, sets, strict=True):
        row[[column[i] for i in own]] = True
    return np.array(candidates, dtype=np.int64), members
