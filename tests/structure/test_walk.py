"""A walk over acyclic graphs, beside enumeration of all."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from scgim.structure._graph import topological_order
from scgim.structure._walk import GraphWalk, ParentSets, edge_probs_of_walk


def all_sets(d: int, rng: np.random.Generator, scale: float) -> list[ParentSets]:
    """All subsets of the other genes, with random scores."""
    sets = []
    for j in range(d):
        candidates = np.array([i for i in range(d) if i != j])
        chosen = [set(c) for n in range(d) for c in combinations(range(d - 1), n)]
        members = np.array([[i in c for i in range(d - 1)] for c in chosen])
        sets.append(ParentSets(candidates, members, scale * rng.normal(size=len(chosen))))
    return sets


def enumerated(sets: list[ParentSets], bonus: np.ndarray | None = None) -> np.ndarray:
    """Mean over all acyclic graphs, weighted by their probability."""
    d = len(sets)
    total, weight = np.zeros((d, d)), 0.0
    for chosen in product(*(range(len(s.scores)) for s in sets)):
        graph = np.zeros((d, d), dtype=bool)
        for j, (own, k) in enumerate(zip(sets, chosen, strict=True)):
            graph[own.candidates[own.members[k]], j] = True
        try:
            topological_order(graph)
        except ValueError:
            continue
        w = np.exp(sum(own.scores[k] for own, k in zip(sets, chosen, strict=True)))
        w *= 1.0 if bonus is None else np.exp(bonus[graph.sum(1)].sum())
        total, weight = total + w * graph, weight + w
    return total / weight


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_bonus", [False, True])
def test_graphs_are_visited_as_often_as_they_are_probable(seed, with_bonus):
    rng = np.random.default_rng(seed)
    sets = all_sets(4, rng, scale=1.5)
    bonus = np.array([0.0, -2.0, -1.0, 1.0]) if with_bonus else None
    found = edge_probs_of_walk(sets, np.zeros((4, 4), dtype=bool), rng, 1500, bonus)
    np.testing.assert_allclose(found, enumerated(sets, bonus), atol=0.04)


@pytest.mark.parametrize("kind", ["redraw", "reverse"])
def test_each_step_leaves_the_distribution_as_it_is(kind):
    """Graphs drawn by their probability are still so after one kind of step."""
    rng = np.random.default_rng(1)
    sets, bonus = all_sets(3, rng, scale=1.0), np.array([0.0, -1.0, 0.5])
    walk = GraphWalk(sets, np.zeros((3, 3), dtype=bool), rng, bonus)
    after = np.zeros((3, 3))
    for _ in range(4000):
        walk.reverse()
        walk.redraw(int(rng.integers(3)))
        again = GraphWalk(sets, walk.adjacency, rng, bonus)
        if kind == "redraw":
            again.redraw(int(rng.integers(3)))
        else:
            again.reverse()
        after += again.adjacency
    np.testing.assert_allclose(after / 4000, enumerated(sets, bonus), atol=0.04)


def test_an_edge_that_nothing_directs_is_as_often_either_way():
    """Also where one of its ends has many children."""
    one = lambda candidate, score: ParentSets(
        np.array([candidate]), np.array([[False], [True]]), np.array([0.0, score])
    )
    sets = [one(1, 20.0), one(0, 20.0), *(one(0, 20.0) for _ in range(6))]
    start = np.zeros((8, 8), dtype=bool)
    start[0, 1:] = True
    found = edge_probs_of_walk(sets, start, np.random.default_rng(0), 400)
    np.testing.assert_allclose([found[0, 1], found[1, 0]], 0.5, atol=0.1)
    np.testing.assert_allclose(found[0, 2:], 1.0)
