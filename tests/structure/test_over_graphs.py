"""Probabilities of edges over graphs and choices of perturbations."""

from __future__ import annotations

import numpy as np
import pytest

from scgim._priors import ShiftPrior
from scgim.structure._over_graphs import draw_weights, near_sets, score_sets, with_probs_over_graphs
from scgim.structure._search import StructureSearch, search_structure

CHAIN = np.diag([0.9, -0.8, 0.9, -0.8], 1)  # 0 -> 1 -> ... -> 4


@pytest.mark.parametrize("hard", [False, True])
def test_parts_of_the_score_add_up(simulate, hard):
    statistics = simulate(CHAIN, np.eye(5), hard=hard).statistics
    search = StructureSearch(statistics, ShiftPrior(0.1), intervention="hard" if hard else "shift")
    pairs = [(0, ()), (1, (0,)), (4, (0, 3)), (2, (1, 3, 4))]
    parts = score_sets(search, pairs)
    assert parts.by_perturbation.shape == (4, 5)
    np.testing.assert_allclose(parts.fixed + parts.by_perturbation.sum(1), search.scores(pairs))
    drawn = parts.under(draw_weights(5, 4000, np.random.default_rng(0))).mean(1)
    spread = parts.by_perturbation.std(1) * 5
    assert (np.abs(drawn - search.scores(pairs)) < 0.1 * spread + 1e-6).all()


def test_sets_are_those_near_the_graph(simulate):
    search = StructureSearch(simulate(CHAIN, np.eye(5)).statistics, ShiftPrior(0.1))
    search.adjacency[[0, 1], 2] = True
    search.refresh(range(5))
    sets = near_sets(search, 2)
    assert sets[0] == (0, 1)
    assert {(), (0,), (1,), (0, 1, 3), (0, 1, 4), (0, 1, 3, 4), (1, 3), (3,), (4,)} <= set(sets)
    assert len(set(sets)) == len(sets)
    assert all(2 not in own for own in sets)


def test_an_edge_that_nothing_directs_is_as_likely_either_way(simulate):
    """Perturbations move genes 2 to 4 alone, so that nothing tells the direction between 0 and 1; that of the others is told."""
    weights = np.zeros((5, 5))
    weights[0, 1], weights[2, 3], weights[3, 4] = 0.9, 0.9, -0.8
    targets = np.eye(5)[[2, 3, 4, 2, 3, 4]]
    statistics = simulate(weights, targets, n_cells=60).statistics
    found = search_structure(statistics)
    probs = with_probs_over_graphs(statistics, found).edge_probs
    assert 0.35 < probs[0, 1] < 0.65
    assert probs[0, 1] + probs[1, 0] == pytest.approx(1.0, abs=0.06)  # drawn at times of their own
    assert probs[2, 3] > 0.9
    assert probs[3, 4] > 0.9
    others = (weights == 0) & (weights.T == 0)
    assert probs[others].max() < 0.3


def test_a_graph_that_is_clear_stays_so(simulate):
    statistics = simulate(CHAIN, np.vstack([np.eye(5)] * 3)).statistics
    probs = with_probs_over_graphs(statistics, search_structure(statistics)).edge_probs
    assert probs[CHAIN != 0].min() > 0.95
    assert probs[CHAIN == 0].max() < 0.1
