"""The prior of out-degrees is what it says, and the search keeps to it and to the regulators that it is told."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scgim._priors import ShiftPrior
from scgim.structure import _moves, _out_degree
from scgim.structure._climb import HillClimb
from scgim.structure._graph import topological_order
from scgim.structure._out_degree import OutDegreePrior
from scgim.structure._search import StructureSearch, search_structure

PRIOR = ShiftPrior(target_prob=0.3)
PAIRS = [(i, j) for i in range(3) for j in range(3) if i != j]


def graphs():
    """All directed acyclic graphs of three genes."""
    for edges in product([False, True], repeat=len(PAIRS)):
        adjacency = np.zeros((3, 3), dtype=bool)
        for (i, j), there in zip(PAIRS, edges, strict=True):
            adjacency[i, j] = there
        try:
            topological_order(adjacency)
        except ValueError:
            continue
        yield adjacency


@pytest.fixture
def chain(simulate):
    weights = np.zeros((3, 3))
    weights[0, 1], weights[1, 2] = 0.5, -0.4
    return simulate(weights, np.eye(3), n_cells=8, n_controls=40, effect=1.0)


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_sets_of_children_have_probabilities_that_add_up_to_one(share):
    prior = OutDegreePrior(share, mean=1.3)
    probability = np.exp(prior.log_probability(5))
    number_of_sets = np.array([1, 5, 10, 10, 5, 1])
    assert (probability * number_of_sets).sum() == pytest.approx(1.0)
    expected = share * 1.3
    assert (probability * number_of_sets * np.arange(6)).sum() == pytest.approx(expected)


def test_the_first_edge_costs_most():
    steps = np.diff(OutDegreePrior(0.1, 15.0).bonus(99, -3.6))
    assert steps[0] < -8 < steps[1] < 0 < steps[14]
    assert (np.diff(steps[:20]) > 0).all()


def test_few_regulators_are_found_and_where_all_regulate_nothing_is_asked():
    few = OutDegreePrior.fitted(np.array([15] * 10 + [0] * 90), 99)
    assert few.share == pytest.approx(0.1, abs=0.02)
    assert few.mean == pytest.approx(15, rel=0.2)
    every = OutDegreePrior.fitted(np.random.default_rng(0).binomial(19, 0.3, 20), 19)
    assert every.share > 0.95
    plain = every.log_probability(19) - every.log_probability(19)[0] + 2.0 * np.arange(20)
    np.testing.assert_allclose(every.bonus(19, -2.0), plain, atol=_out_degree._MISFIT * 0.05 + 1e-9)


def total(search: HillClimb, adjacency: np.ndarray, prior: OutDegreePrior) -> float:
    """Score of a graph from the start: evidence, cost of edges, and the probability of its edges out of every gene."""
    evidence = sum(search.scores([(j, search.parents(j, adjacency)) for j in range(3)]))
    log = prior.log_probability(2)
    n = adjacency.sum(1)
    misfit = _out_degree._MISFIT * (1 - prior.share) * (n > 0).sum()
    return evidence + float((log[n] - log[0]).sum()) - search.usual_log_odds * n.sum() - misfit


def test_gains_of_all_moves_from_all_graphs_are_differences_of_the_total_score(chain):
    prior = OutDegreePrior(0.4, 1.2)
    search = HillClimb(chain.statistics, PRIOR, edge_log_odds=-1.0)
    search.bonus = prior.bonus(2, -1.0)
    for adjacency in graphs():
        search.adjacency = adjacency.copy()
        search.refresh(range(3))
        now = total(search, adjacency, prior)
        assert search.score == pytest.approx(now)
        more, less = search.degree_steps()
        for i, j in PAIRS:
            other = adjacency.copy()
            other[i, j] = not other[i, j]
            step = less[i] if adjacency[i, j] else more[i]
            assert search.gain[i, j] + step == pytest.approx(total(search, other, prior) - now)


def test_climbing_ends_where_no_single_move_raises_the_total_score(chain):
    prior = OutDegreePrior(0.4, 1.2)
    search = HillClimb(chain.statistics, PRIOR, edge_log_odds=-1.0)
    search.bonus = prior.bonus(2, -1.0)
    search.refresh(range(3))
    best = search.climb()
    assert best == pytest.approx(total(search, search.adjacency, prior))
    for adjacency in graphs():
        changed = adjacency != search.adjacency
        if (changed | changed.T).sum() == 2:  # one pair: an edge added, removed or reversed
            assert total(search, adjacency, prior) <= best + 1e-6


def hub(n_children: int) -> np.ndarray:
    """Weights of a network in which gene 0 regulates all others."""
    weights = np.zeros((n_children + 1,) * 2)
    weights[0, 1:] = 0.5
    return weights


def test_children_of_a_gene_that_stands_in_for_a_regulator_are_handed_over(simulate, monkeypatch):
    """Where a regulator costs much more than an edge does, no single move leads from one regulator to the other."""
    d = 8
    statistics = simulate(hub(d - 1), np.eye(d), n_cells=10, n_controls=60, effect=1.0).statistics
    search = StructureSearch(statistics, PRIOR)
    search.bonus = np.concatenate([[0.0], np.full(d - 1, -40.0)])  # a price of each gene that regulates
    search.adjacency[1, [0, *range(2, d)]] = True
    search.refresh(range(d))
    search.climb()
    assert search.adjacency[1].sum() > 2
    assert not search.adjacency[0].any()
    before = search.score
    assert search.successors(1)[0] == 0
    assert search.hand_over(1, 0)
    assert search.score > before
    np.testing.assert_array_equal(search.adjacency, hub(d - 1) != 0)
    assert not search.hand_over(0, 1)  # back again is worse, and the graph stays as it is
    np.testing.assert_array_equal(search.adjacency, hub(d - 1) != 0)
    assert not search.hand_over(2, 0)  # has no children
    search.adjacency[:] = False
    search.adjacency[1, [0, *range(2, d)]] = True
    search.refresh(range(d))
    for other in ("turn_round", "reverse_and_reselect", "remove_and_return", "reverse_at_random"):
        monkeypatch.setattr(search, other, lambda *arguments: False)
    search.escape(1, 10_000)
    np.testing.assert_array_equal(search.adjacency, hub(d - 1) != 0)


def test_children_are_not_handed_over_where_too_much_is_lost(simulate, monkeypatch):
    d, n_cells = 6, 2000
    screen = simulate(hub(d - 1), np.eye(d), n_cells=n_cells, n_controls=n_cells)
    search = StructureSearch(screen.statistics, PRIOR)
    search.adjacency = hub(d - 1) != 0
    search.refresh(range(d))
    score, starts = search.score, []
    monkeypatch.setattr(search, "climb", lambda: starts.append(search.score) or search.score)
    monkeypatch.setattr(_moves, "_MIN_MAX_LOSS", 1.0)
    n = n_cells * (1 + 2 * d)
    edges = 2 * (d - 1)  # children of one are those of another but for itself, and the one is its child
    for a_cell, is_tried in ((1e-3, False), (1.0, True)):
        monkeypatch.setattr(_moves, "_MAX_LOSS_A_CELL", a_cell)
        assert not search.hand_over(0, 1)
        assert bool(starts) is is_tried
        assert search.score == score
        np.testing.assert_array_equal(search.adjacency, hub(d - 1) != 0)
    assert -1.0 < (starts[0] - score) / n / edges < -1e-3
    # other moves lose as much in graphs that are wrong altogether, and are tried
    monkeypatch.setattr(_moves, "_MAX_LOSS_A_CELL", 1e-3)
    starts.clear()
    assert not search.remove_and_return(0)
    assert (starts[0] - score) / n / (d - 1) < -1e-3


def test_handing_over_closes_no_cycle(simulate):
    weights = np.zeros((4, 4))
    weights[0, 1] = weights[0, 2] = weights[1, 3] = weights[2, 3] = 0.5
    search = StructureSearch(simulate(weights, np.eye(4), n_cells=10).statistics, PRIOR)
    search.bonus = np.array([0.0, -5.0, -5.0, -5.0])
    search.adjacency = weights != 0
    search.refresh(range(4))
    score = search.score
    for gene, successor in product(range(4), range(4)):
        if gene != successor:
            search.hand_over(gene, successor)
            topological_order(search.adjacency)
            assert search.score >= score
            score = search.score


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 50), few=st.booleans(), odds=st.sampled_from([-2.0, 1.0]))
def test_every_move_keeps_to_the_regulators(simulate, seed, few, odds):
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.normal(0, 0.6, (7, 7)) * (rng.random((7, 7)) < 0.5), 1)
    regulators = rng.random(7) < 0.5
    regulators[:2] = True
    with pytest.MonkeyPatch.context() as patch:
        if few:  # genes are screened first where they are many
            patch.setattr("scgim.structure._climb._FEW_GENES", 1)
            patch.setattr("scgim.structure._climb._N_NEAR", 2)
        seen = []
        refresh = HillClimb.refresh

        def watched(self, genes):
            seen.append(self.adjacency[~self.regulators].any())
            refresh(self, genes)

        patch.setattr(HillClimb, "refresh", watched)
        screen = simulate(weights, np.eye(7), n_cells=6, n_controls=40, seed=seed)
        result = search_structure(screen.statistics, edge_log_odds=odds, regulators=regulators, n_perturbations=6)
    assert seen
    assert not any(seen)
    assert (result.edge_probs[~regulators] == 0).all()
    assert not result.adjacency[~regulators].any()


def test_a_told_regulator_costs_fewer_regressions(simulate):
    rng = np.random.default_rng(0)
    weights = np.zeros((20, 20))
    weights[:3, 3:] = rng.normal(0, 1, (3, 17)) * (rng.random((3, 17)) < 0.5)
    screen = simulate(weights, np.eye(20)[:6], n_cells=20)
    counts = []
    for regulators in (None, np.arange(20) < 3):
        search = StructureSearch(screen.statistics, PRIOR, regulators=regulators)
        search.refresh(range(20))
        search.climb()
        search.escape(2, 100_000)
        counts.append(search.n_evaluations)
    assert counts[1] < 0.2 * counts[0]
