r"""Probabilities of edges over many graphs: a walk over acyclic graphs whose visits are as frequent as graphs are probable.

One graph says nothing of how well another would do that differs in several edges, as those do in which an edge is reversed and the parents
of both its ends are others. The walk knows the scores of a choice of parent sets of each gene and makes two kinds of steps:

- the parents of a gene are drawn anew, from all sets that close no cycle (a Gibbs step);
- an edge i -> j is reversed and the parents of both genes are drawn anew, those of i among the sets with j, which is accepted by the ratio
  of the sums that were drawn from in both directions (Grzegorczyk and Husmeier, 2008, Machine Learning 71:265).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_NEVER = 1e12  # nats; beyond any score, so that nothing is left of what costs them
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

    @cached_property
    def counts(self) -> NDArray[np.float64]:
        """Members as 0 and 1, as the linear algebra wants them, (n, c)."""
        return self.members.astype(np.float64)

    @cached_property
    def lacking(self) -> dict[int, NDArray[np.float64]]:
        """What sets that do not have a gene are ruled out by, (n,), for each gene that was asked for."""
        return {}

    def without(self, gene: int) -> NDArray[np.float64]:
        """What is added to the score of each set to rule out those that do not have a gene, (n,)."""
        if gene not in self.lacking:
            self.lacking[gene] = (self.counts[:, self.candidates == gene].sum(1) - 1.0) * _NEVER
        return self.lacking[gene]

    def weights(
        self, forbidden: NDArray[np.bool_], steps: NDArray[np.float64] | None = None, needed: int | None = None
    ) -> tuple[NDArray[np.float64], float]:
        """Probability of each set given the rest of the graph, and the log of the sum before they were made to add up to 1.

        Parameters
        ----------
        forbidden
            Candidates that would close a cycle, boolean (c,).
        steps
            What the prior of out-degrees adds for each candidate, shape (c,); None for nothing.
        needed
            A gene that must be in the set; None for none.
        """
        each = forbidden * -_NEVER if steps is None else np.where(forbidden, -_NEVER, steps)
        scores = self.scores + self.counts @ each
        if needed is not None:
            scores = scores + self.without(needed)
        top = scores.max()
        if top < -_NEVER / 2:
            return np.zeros(len(scores)), -np.inf
        weight = np.exp(scores - top)
        total = weight.sum()
        return weight / total, float(top + np.log(total))


class GraphWalk:
    """Metropolis walk over acyclic graphs.

    The graph is kept as the parents and the children of each gene: most genes have few of either, and each step asks for descendants.

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
        self.sets, self.rng = sets, rng
        self.steps = np.zeros(len(sets)) if bonus is None else np.diff(bonus, append=0.0)
        self._has_steps = bool(self.steps.any())
        self._parents: list[tuple[int, ...]] = [()] * len(sets)
        self._children = [0] * len(sets)  # sets of genes as bits of integers
        self._n_parents, self._n_children = np.zeros((2, len(sets)), dtype=np.int64)
        self._n_bytes = (len(sets) + 7) // 8
        for gene, column in enumerate(np.asarray(adjacency, dtype=bool).T):
            self._set_parents(gene, tuple(np.flatnonzero(column).tolist()))

    @property
    def adjacency(self) -> NDArray[np.bool_]:
        """The graph as it stands, (d, d)."""
        adjacency = np.zeros((len(self.sets),) * 2, dtype=bool)
        for gene, parents in enumerate(self._parents):
            adjacency[list(parents), gene] = True
        return adjacency

    def redraw(self, gene: int) -> NDArray[np.float64]:
        """Draw the parents of a gene from all its sets that close no cycle; probabilities of its candidates to be among them."""
        self._set_parents(gene, ())
        weight = self._draw(gene, self._descendants(gene))[0]
        return weight @ self.sets[gene].counts

    def reverse(self) -> None:
        """Reverse an edge, draw the parents of both genes anew, and accept or not."""
        cumulated = self._n_parents.cumsum()
        n_edges = int(cumulated[-1])
        if not n_edges:
            return
        k = int(self.rng.integers(n_edges))
        j = int(cumulated.searchsorted(k, side="right"))
        i = self._parents[j][k - int(cumulated[j])]  # counted from the last
        before = {gene: self._parents[gene] for gene in (i, j)}
        self._set_parents(i, ())
        self._set_parents(j, ())
        of_i, of_j = self._descendants(i), self._descendants(j)
        of_both = of_i | of_j  # of either, while it is a parent of the other
        backward = self._weights(j, of_j, i)[1]
        self._set_parents(j, before[j])
        backward += self._weights(i, of_both)[1]
        self._set_parents(j, ())
        forward = self._draw(i, of_i, j)[1]  # with j among the parents of i
        if forward > -np.inf:
            forward += self._draw(j, of_both)[1]
            ratio = forward - backward + np.log(n_edges) - np.log(self._n_parents.sum())
            if np.log(self.rng.random()) < ratio:
                return
        for gene in (i, j):
            self._set_parents(gene, ())
        for gene, parents in before.items():
            self._set_parents(gene, parents)

    def _set_parents(self, gene: int, parents: tuple[int, ...]) -> None:
        bit = 1 << gene
        for i in self._parents[gene]:
            self._children[i] &= ~bit
            self._n_children[i] -= 1
        for i in parents:
            self._children[i] |= bit
            self._n_children[i] += 1
        self._parents[gene], self._n_parents[gene] = parents, len(parents)

    def _descendants(self, gene: int) -> int:
        """Genes that a directed path from `gene` leads to, itself among them, as bits."""
        found, frontier = 1 << gene, self._children[gene]
        while frontier:
            child = frontier.bit_length() - 1
            found |= 1 << child
            frontier = (frontier | self._children[child]) & ~found
        return found

    def _weights(self, gene: int, downstream: int, needed: int | None = None) -> tuple[NDArray, float]:
        """Weights of the sets of a gene that has no parents in the graph; its descendants as bits."""
        own = self.sets[gene]
        bits = np.frombuffer(downstream.to_bytes(self._n_bytes, "little"), dtype=np.uint8)
        forbidden = np.unpackbits(bits, bitorder="little")[own.candidates].view(bool)
        steps = self.steps[self._n_children[own.candidates]] if self._has_steps else None
        return own.weights(forbidden, steps, needed)

    def _draw(self, gene: int, downstream: int, needed: int | None = None) -> tuple[NDArray, float]:
        """Draw the parents of a gene that has none, and write them to the graph; weights and log sum that they were drawn from."""
        weight, log_sum = self._weights(gene, downstream, needed)
        if log_sum > -np.inf:
            own, cumulated = self.sets[gene], weight.cumsum()
            chosen = own.members[cumulated.searchsorted(self.rng.random() * cumulated[-1])]
            self._set_parents(gene, tuple(own.candidates[chosen].tolist()))
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
