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

_BURN_IN = 5  # a fifth of the rounds is left out: convention


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

    def weights(
        self, forbidden: NDArray[np.bool_], steps: NDArray[np.float64], needed: int | None = None
    ) -> tuple[NDArray[np.float64], float]:
        """Probability of each set given the rest of the graph, and the log of the sum before they were made to add up to 1.

        Parameters
        ----------
        forbidden
            Genes that would close a cycle, boolean (d,).
        steps
            What the prior of out-degrees adds for each parent, shape (d,).
        needed
            A gene that must be in the set; None for none.
        """
        out = self.members[:, forbidden[self.candidates]].any(1)
        if needed is not None:
            out |= ~self.members[:, self.candidates == needed].any(1)
        scores = np.where(out, -np.inf, self.scores + self.members @ steps[self.candidates])
        top = scores.max()
        if top == -np.inf:
            return np.zeros(len(scores)), -np.inf
        weight = np.exp(scores - top)
        total = weight.sum()
        return weight / total, float(top + np.log(total))


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
    bonus
        What the prior of out-degrees adds to the score of a gene by its number of edges, shape (d,); None for nothing.
    """

    def __init__(
        self,
        sets: Sequence[ParentSets],
        adjacency: NDArray[np.bool_],
        rng: np.random.Generator,
        bonus: NDArray[np.float64] | None = None,
    ):
        self.sets, self.rng, self.adjacency = sets, rng, np.array(adjacency, dtype=bool)
        self.steps = np.zeros(len(sets)) if bonus is None else np.diff(bonus, append=0.0)

    def redraw(self, gene: int) -> NDArray[np.float64]:
        """Draw the parents of a gene from all its sets that close no cycle; probabilities of its candidates to be among them."""
        self.adjacency[:, gene] = False
        weight = self._draw(self.adjacency, gene)[0]
        return weight @ self.sets[gene].members

    def reverse(self) -> None:
        """Reverse an edge, draw the parents of both genes anew, and accept or not."""
        edges = np.argwhere(self.adjacency)
        if not len(edges):
            return
        i, j = (int(gene) for gene in edges[self.rng.integers(len(edges))])
        without = self.adjacency.copy()
        without[:, [i, j]] = False
        trial, back = without.copy(), without.copy()
        forward = self._draw(trial, i, j)[1]  # with j among the parents of i
        if forward == -np.inf:
            return
        forward += self._draw(trial, j)[1]
        backward = self._weights(back, j, i)[1]
        back[:, j] = self.adjacency[:, j]
        backward += self._weights(back, i)[1]
        ratio = forward - backward + np.log(len(edges)) - np.log(trial.sum())
        if np.log(self.rng.random()) < ratio:
            self.adjacency = trial

    def _weights(self, adjacency: NDArray[np.bool_], gene: int, needed: int | None = None) -> tuple[NDArray, float]:
        """Weights of the sets of a gene that has no parents in the graph."""
        steps = self.steps[adjacency.sum(1)] if self.steps.any() else self.steps
        return self.sets[gene].weights(descendants(adjacency, gene), steps, needed)

    def _draw(self, adjacency: NDArray[np.bool_], gene: int, needed: int | None = None) -> tuple[NDArray, float]:
        """Draw the parents of a gene that has none, and write them to the graph; weights and log sum that they were drawn from."""
        weight, log_sum = self._weights(adjacency, gene, needed)
        if log_sum > -np.inf:
            own, cumulated = self.sets[gene], np.cumsum(weight)
            chosen = own.members[np.searchsorted(cumulated, self.rng.random() * cumulated[-1])]
            adjacency[own.candidates[chosen], gene] = True
        return weight, log_sum


def edge_probs_of_walk(
    sets: Sequence[ParentSets],
    adjacency: NDArray[np.bool_],
    rng: np.random.Generator,
    n_rounds: int,
    bonus: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Probability of each edge, shape (d, d), by a walk from a graph in which the parents of all genes are drawn `n_rounds` times.

    An edge counts by its probability given the rest of the graph, whenever the parents of its target are drawn. Before each draw an edge
    is reversed, or is not. The first fifth of the rounds is left out.
    """
    walk, d = GraphWalk(sets, adjacency, rng, bonus), len(sets)
    total, first = np.zeros((d, d)), n_rounds // _BURN_IN
    for k in range(n_rounds):
        for gene in rng.permutation(d):
            walk.reverse()
            probs = walk.redraw(int(gene))
            if k >= first:
                total[sets[gene].candidates, gene] += probs
    return total / (n_rounds - first)
