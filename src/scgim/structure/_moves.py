"""Larger moves that lead out of the local optima of hill climbing (:mod:`scgim.structure._climb`), which often have a few edges reversed.

There are five kinds: turning all edges into a gene round, handing the children of a gene over to another one, reversing an edge and choosing the
parents of all genes concerned anew, taking a gene out of the graph and letting it back in, and reversing a few edges at random. Each is kept only
if the score rises.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from scgim.structure._climb import TOLERANCE, HillClimb, Parents, toggle
from scgim.structure._graph import descendants, out_degrees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

_MAX_OPTIONS = 10  # further parents tried where those of a gene are chosen anew: convention, for time
# Genes tried in place of one that regulates, beside its own neighbours. With eight, graphs of the kinetic world are the same but for an edge.
_N_SUCCESSORS = 3
_FEW_CHILDREN = 1  # of which single moves rid a gene
# Nats of evidence that handing children over may lose for each edge that it changes: so many for each cell, and at least. A gene that stands in for
# another tells nearly as much of its children; who tells much more has them back at once. Of 40 times that it helped, in GeneNetWeaver's worlds,
# kinetic ones and real cells, none lost more than 72. Convention, for time: before other moves, which change graphs that are wrong altogether, up to
# 0.2 nats a cell and edge were lost and won back.
_MAX_LOSS_A_CELL, _MIN_MAX_LOSS = 0.025, 500.0


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
            parents = self.select_parents(gene, allowed, start, between, steps[out_degrees(trial)])
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
        before, score = self.adjacency, self.score
        self.adjacency, self._replaced = before.copy(), {}
        try:
            change(self.adjacency)
            self.refresh(np.flatnonzero((self.adjacency != before).any(0)))
            better = self.climb() > score + TOLERANCE
        except BaseException:  # stopped: the graph is the best so far
            self.adjacency = before
            raise
        finally:
            replaced, self._replaced = self._replaced, None
        if not better:
            self.adjacency = before
            self.undo(replaced)
        return better

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

    def successors(self, gene: int) -> list[int]:
        """Genes that could regulate in place of one: those that would help its children most, its parents, and children that regulate."""
        children = np.flatnonzero(self.adjacency[gene])
        if len(children) <= _FEW_CHILDREN:
            return []
        gain = np.where(self.adjacency[:, children], 0.0, np.maximum(self.gain[:, children], 0.0)).sum(1)
        best = np.argsort(-gain, kind="stable")[:_N_SUCCESSORS]
        others = [
            best[gain[best] > 0],
            np.flatnonzero(self.adjacency[:, gene]),
            children[self.adjacency[children].any(1)],
        ]
        return [p for p in dict.fromkeys(np.concatenate(others).tolist()) if p != gene and self.regulators[p]]

    def hand_over(self, gene: int, successor: int) -> bool:
        """Make the children of a gene those of another one, and the gene one of them, and climb from there.

        A gene that is measured well may stand in for a regulator that is not. Where few regulate, the first edge of the regulator would cost more
        than it brings, as long as the others are not there.
        """

        def hand(adjacency: NDArray[np.bool_]) -> None:
            children = [*np.flatnonzero(adjacency[gene]).tolist(), gene]
            adjacency[gene] = False
            before = descendants(adjacency.T, successor)  # to which it cannot be a parent
            adjacency[successor, [child for child in children if not before[child]]] = True

        if self.adjacency[gene].sum() <= _FEW_CHILDREN:
            return False
        trial = self.adjacency.copy()
        hand(trial)
        return not self._loses_too_much(trial) and self._attempt(hand)

    def _loses_too_much(self, trial: NDArray[np.bool_]) -> bool:
        """Whether evidence falls by so much, for each edge in which a graph differs, that its children are not to be handed over."""
        edges = trial != self.adjacency
        changed = np.flatnonzero(edges.any(0)).tolist()
        own = self.scores([(j, self.parents(j, trial)) for j in changed])
        limit = max(_MIN_MAX_LOSS, _MAX_LOSS_A_CELL * float(self.statistics.n_cells.sum()))
        return sum(own) - self.score_by_gene[changed].sum() < -limit * edges.sum()

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

    def escape(
        self, n_perturbations: int, max_evaluations: int, on_progress: Callable[[int, int], None] | None = None
    ) -> list[float]:
        """Try the larger moves until none of them helps; returns the score after each round.

        `on_progress` is told how many regressions were made, of those that there may be.
        """
        improved, trace = True, []
        budget = self.n_evaluations + max_evaluations
        attempts = _Attempts(self.n_genes)
        while improved and self.n_evaluations < budget:
            improved = False
            for kind, genes, move in self._larger_moves(n_perturbations):
                if attempts.in_vain(kind, genes, self.adjacency):
                    continue
                before = self.adjacency  # which moves that help replace
                if move():
                    improved = True
                    attempts.note_change(before, self.adjacency)
                else:
                    attempts.note_failure(kind, genes)
                if on_progress:
                    on_progress(self.n_evaluations - budget + max_evaluations, max_evaluations)
                if self.n_evaluations >= budget:
                    break
            # what may be a parent, and so is worth scoring, depends on the whole graph
            self.refresh(range(self.n_genes))
            before = self.adjacency.copy()
            trace.append(self.climb())
            attempts.note_change(before, self.adjacency)
        return trace

    def _larger_moves(self, n_perturbations: int) -> Iterator[tuple[str, tuple[int, ...], Callable[[], bool]]]:
        """Moves of one round, their kind and the genes that they begin with. The order is random, so that a budget too small for all of them favours no gene; only children are handed over from genes of few first."""
        for gene in self.random.permutation(self.n_genes):
            yield "turn", (int(gene),), partial(self.turn_round, int(gene))
        if self.bonus.any():  # else edges have prices of their own, and are handed over one by one
            for gene in np.argsort(self.adjacency.sum(1), kind="stable").tolist():
                for successor in self.successors(gene):
                    yield "hand over", (gene, successor), partial(self.hand_over, gene, successor)
        edges = np.argwhere(self.adjacency)
        for i, j in edges[self.random.permutation(len(edges))]:
            if self.adjacency[i, j]:
                yield "reverse", (int(i), int(j)), partial(self.reverse_and_reselect, int(i), int(j))
        for gene in self.random.permutation(self.n_genes):
            yield "remove", (int(gene),), partial(self.remove_and_return, int(gene))
        for k in range(n_perturbations):
            yield "random", (), partial(self.reverse_at_random, 2 + 2 * (k % 2))  # two edges or four


class _Attempts:
    """Which moves were tried in vain, and where the graph has changed since: the same move would be in vain again where it has not."""

    def __init__(self, n_genes: int):
        self.time = 0
        self.changed = np.zeros(n_genes, dtype=np.int64)  # when the parents of each gene last changed
        self.failed: dict[tuple[str, tuple[int, ...]], int] = {}

    def in_vain(self, kind: str, genes: tuple[int, ...], adjacency: NDArray[np.bool_]) -> bool:
        """Whether the move has failed since the parents of its genes, and of their parents and children, last changed."""
        when = self.failed.get((kind, genes))
        if when is None:
            return False
        own = list(genes)
        near: NDArray[np.bool_] = np.asarray(adjacency[own].any(0) | adjacency[:, own].any(1))
        near[own] = True
        return bool(self.changed[near].max() <= when)

    def note_failure(self, kind: str, genes: tuple[int, ...]) -> None:
        if genes:  # those at random are others each time
            self.failed[kind, genes] = self.time

    def note_change(self, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> None:
        self.time += 1
        self.changed[(before != after).any(0)] = self.time
