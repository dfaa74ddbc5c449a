r"""Probabilities of edges over many graphs: a walk over acyclic graphs whose visits are as frequent as graphs are probable.

One graph says nothing of how well another would do that differs in several edges, as those do in which an edge is reversed and the parents
of both its ends are others. The walk knows the scores of a choice of parent sets of each gene and makes two kinds of steps:

- the parents of a gene are drawn anew, from all sets that close no cycle (a Gibbs step);
- an edge i -> j is reversed and the parents of both genes are drawn anew, those of i among the sets with j, which is accepted by the ratio
  of the sums that were drawn from in both directions (Grzegorczyk and Husmeier, 2008, Machine Learning 71:265).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scgim.structure._graph import descendants

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_REVERSALS = 0.5  # share of the steps
_BURN_IN = 5  # a fifth of the steps is left out
_TINY = -1e300  # score of a set that closes a cycle; finite, so that sums of nothing are no NaN


@dataclass(frozen=True)
class ParentSets:
    """Sets of parents of one gene.

    Parameters
    ----------
    candidates
        Genes that may be parents, shape (c,).
    members
        Which of them are in each set, boolean (n, c); the empty set must be among them.
    scores
        Score of each set, shape (n,).
    """

    candidates: NDArray[np.int64]
    members: NDArray[np.bool_]
    scores: NDArray[np.float64]

    def allowed(self, forbidden: NDArray[np.bool_], needed: int | None = None) -> NDArray[np.float64]:
        """Scores of the sets without any of the genes `forbidden` (d,) and, if one is given, with the gene `needed`."""
        out = self.members[:, forbidden[self.candidates]].any(1)
        if needed is not None:
            has = self.candidates == needed
            out |= ~self.members[:, has].any(1)
        return np.where(out, _TINY, self.scores)


class GraphWalk:
    """Metropolis walk over acyclic graphs.

    Parameters
    ----------
    sets
        Parent sets of each gene.
    adjacency
        Graph to start from, boolean (d, d).
    rng
        Source of randomness.
    """

    def __init__(self, sets: Sequence[ParentSets], adjacency: NDArray[np.bool_], rng: np.random.Generator):
        self.sets, self.rng, self.adjacency = sets, rng, np.array(adjacency, dtype=bool)

    def step(self) -> None:
        """Draw the parents of a gene anew, or reverse an edge."""
        if self.rng.random() < _REVERSALS:
            self.reverse()
        else:
            self.redraw(int(self.rng.integers(len(self.sets))))

    def redraw(self, gene: int) -> None:
        """Draw the parents of a gene from all its sets that close no cycle."""
        self._draw(self.adjacency, gene, None)

    def reverse(self) -> None:
        """Reverse an edge, draw the parents of both genes anew, and accept or not."""
        edges = np.argwhere(self.adjacency)
        if not len(edges):
            return
        i, j = (int(gene) for gene in edges[self.rng.integers(len(edges))])
        without = self.adjacency.copy()
        without[:, [i, j]] = False
        trial = without.copy()
        forward = self._draw(trial, i, j)  # of i, with j among them
        if forward is None:
            return
        forward += self._draw(trial, j, None)
        back = without.copy()
        backward = self._log_sum(back, j, i)
        back[:, j] = self.adjacency[:, j]
        backward += self._log_sum(back, i, None)
        ratio = forward - backward + np.log(len(edges)) - np.log(trial.sum())
        if np.log(self.rng.random()) < ratio:
            self.adjacency = trial

    def _log_sum(self, adjacency: NDArray[np.bool_], gene: int, needed: int | None) -> float:
        """Log of the summed weights of the sets of a gene that close no cycle."""
        scores = self.sets[gene].allowed(descendants(adjacency, gene), needed)
        top = scores.max()
        return float(top + np.log(np.exp(scores - top).sum()))

    def _draw(self, adjacency: NDArray[np.bool_], gene: int, needed: int | None) -> float:
        """Draw the parents of a gene and write them to the graph; the log sum they were drawn from, None where there is no set."""
        own = self.sets[gene]
        scores = own.allowed(descendants(adjacency, gene), needed)
        top = scores.max()
        if top <= _TINY:
            return None  # type: ignore[return-value]
        weight = np.exp(scores - top)
        total = np.cumsum(weight)
        chosen = own.members[np.searchsorted(total, self.rng.random() * total[-1])]
        adjacency[:, gene] = False
        adjacency[own.candidates[chosen], gene] = True
        return float(top + np.log(total[-1]))


def edge_probs_of_walk(
    sets: Sequence[ParentSets], adjacency: NDArray[np.bool_], rng: np.random.Generator, n_steps: int
) -> NDArray[np.float64]:
    """Share of the graphs visited that have each edge, shape (d, d); the walk starts from a graph, and its first fifth is left out."""
    walk = GraphWalk(sets, adjacency, rng)
    total = np.zeros(adjacency.shape)
    for step in range(n_steps):
        walk.step()
        if step >= n_steps // _BURN_IN:
            total += walk.adjacency
    return total / (n_steps - n_steps // _BURN_IN)
