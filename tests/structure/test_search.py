"""The search finds small known graphs, and never leaves the acyclic ones."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scgim._priors import ShiftPrior
from scgim.structure._moves import _Attempts
from scgim.structure._screening import score_test, targets_explained
from scgim.structure._search import StructureSearch, search_structure, usual_budget
from scgim.structure._statistics import ContextStatistics, StatisticsAccumulator

CHAIN = np.array([[0, 1.0, 0], [0, 0, -0.8], [0, 0, 0]])
COLLIDER = np.array([[0, 0, 0.9], [0, 0, 0.9], [0, 0, 0]])
FORK = np.array([[0, 0.9, -0.9], [0, 0, 0], [0, 0, 0]])


def random_weights(d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    W = np.triu(rng.random((d, d)) < 0.35, 1) * rng.uniform(0.5, 1.0, (d, d)) * rng.choice([-1, 1], (d, d))
    order = rng.permutation(d)
    out = np.zeros((d, d))
    out[np.ix_(order, order)] = W
    return out


def is_acyclic(adjacency: np.ndarray) -> bool:
    return nx.is_directed_acyclic_graph(nx.from_numpy_array(adjacency, create_using=nx.DiGraph))


@pytest.mark.parametrize("intervention", ["shift", "hard"])
@pytest.mark.parametrize("W", [CHAIN, COLLIDER, FORK], ids=["chain", "collider", "fork"])
def test_three_genes(simulate, W, intervention):
    screen = simulate(W, np.eye(3), hard=intervention == "hard")
    result = search_structure(screen.statistics, intervention=intervention, n_perturbations=3)
    np.testing.assert_array_equal(result.adjacency, W != 0)


@pytest.mark.parametrize("intervention", ["shift", "hard"])
@pytest.mark.parametrize("seed", [0, 1])
def test_eight_genes(simulate, seed, intervention):
    W = random_weights(8, seed)
    screen = simulate(W, np.eye(8), hard=intervention == "hard", seed=seed)
    result = search_structure(screen.statistics, intervention=intervention, n_perturbations=5)
    np.testing.assert_array_equal(result.adjacency, W != 0)
    assert result.edge_probs[W != 0].min() > 0.9
    assert result.edge_probs[W == 0].max() < 0.5


def test_no_edges_where_there_are_none(simulate):
    result = search_structure(simulate(np.zeros((6, 6)), np.eye(6)).statistics)
    assert not result.adjacency.any()
    assert result.edge_probs.max() < 0.2


def test_one_perturbation_of_each_end_tells_the_direction(simulate):
    """Without interventions the two directions of an edge score the same; one on the cause decides."""
    W = np.array([[0, 1.0], [0, 0]])
    result = search_structure(simulate(W, np.array([[1, 0]])).statistics)
    np.testing.assert_array_equal(result.adjacency, W != 0)
    assert result.edge_probs[0, 1] > 0.9


def test_prior_of_direct_effects_is_fitted_by_moments(simulate):
    W = random_weights(8, 0)
    search = StructureSearch(simulate(W, np.eye(8), effect=3.0).statistics, ShiftPrior(0.05))
    search.adjacency = W != 0
    prior = search.update_prior()
    np.testing.assert_allclose(prior.target_prob, 1 / 8, atol=0.02)
    np.testing.assert_allclose(prior.slab_var, np.mean([3.0**2, 2.1**2]), rtol=0.2)
    assert prior.spike_var < 0.02


def test_same_seed_same_result(simulate):
    statistics = simulate(random_weights(6, 3), np.eye(6)[:4], n_cells=15, n_controls=60).statistics
    a, b = (search_structure(statistics, seed=4) for _ in range(2))
    np.testing.assert_array_equal(a.edge_probs, b.edge_probs)
    assert a.score == b.score
    assert a.trace == b.trace
    assert (np.diff(a.trace) >= 0).all()  # by one prior: no round loses what another has won


def test_larger_moves_only_raise_the_score(simulate):
    search = StructureSearch(simulate(random_weights(8, 1), np.eye(8)[:3]).statistics, ShiftPrior(0.1))
    search.refresh(range(8))
    scores = [search.climb(), *search.escape(5, 10_000)]
    assert (np.diff(scores) >= 0).all()
    assert is_acyclic(search.adjacency)


def test_moves_are_reported_and_limited(simulate):
    statistics = simulate(random_weights(8, 1), np.eye(8)[:3]).statistics
    scores = []
    result = search_structure(statistics, on_move=scores.append)
    assert len(scores) > result.adjacency.sum()
    hasty = search_structure(statistics, max_evaluations=0)
    assert is_acyclic(hasty.adjacency)
    assert hasty.score <= result.score + 1e-6


def test_score_is_that_of_the_graph_scored_alone(simulate):
    statistics = simulate(random_weights(6, 2), np.eye(6)).statistics
    result = search_structure(statistics)
    alone = StructureSearch(statistics, result.prior)
    pairs = [(j, alone.parents(j, result.adjacency)) for j in range(6)]
    np.testing.assert_allclose(sum(alone.scores(pairs)), result.score, rtol=1e-10)


def test_prior_odds_of_an_edge_can_forbid_and_require_it(simulate):
    screen = simulate(CHAIN, np.eye(3))
    odds = np.full((3, 3), -2.0)
    odds[0, 1] = -1e6
    assert not search_structure(screen.statistics, edge_log_odds=odds).adjacency[0, 1]
    odds[0, 1], odds[0, 2] = -2.0, 1e6
    found = search_structure(screen.statistics, edge_log_odds=odds)
    assert found.adjacency[0, 2]
    assert found.edge_probs[0, 2] > 0.999


@pytest.mark.parametrize("intervention", ["shift", "hard"])
def test_of_many_genes_those_are_scored_that_could_be_parents(simulate, intervention, monkeypatch):
    """The graph is the same as if all pairs were scored, at a fraction of the regressions."""
    W = random_weights(12, 0)
    statistics = simulate(W, np.eye(12), hard=intervention == "hard").statistics
    every = search_structure(statistics, intervention=intervention, n_perturbations=3)
    monkeypatch.setattr("scgim.structure._climb._FEW_GENES", 0)
    monkeypatch.setattr("scgim.structure._climb._N_NEAR", 3)
    few = search_structure(statistics, intervention=intervention, n_perturbations=3)
    np.testing.assert_array_equal(few.adjacency, W != 0)
    np.testing.assert_array_equal(every.adjacency, W != 0)
    np.testing.assert_allclose(few.edge_probs[W != 0], every.edge_probs[W != 0], atol=0.02)
    search = StructureSearch(statistics, ShiftPrior(0.1), intervention=intervention)
    search.adjacency = W != 0
    search.refresh(range(12))
    assert search.n_evaluations < 12 * 11 * 0.7


def test_parents_to_score_are_those_that_are_those_required_and_those_that_help(simulate, monkeypatch):
    monkeypatch.setattr("scgim.structure._climb._FEW_GENES", 0)
    monkeypatch.setattr("scgim.structure._climb._N_NEAR", 1)
    W = np.zeros((6, 6))
    W[0, 2] = W[1, 2] = 0.9
    odds = np.full((6, 6), -2.0)
    odds[5, 2] = 1.0
    search = StructureSearch(simulate(W, np.eye(6)).statistics, ShiftPrior(0.1), edge_log_odds=odds)
    search.adjacency[4, 2] = True
    (near,) = search.near([2]).T
    assert near[[4, 5]].all()
    assert near[[0, 1]].sum() == 1
    assert not near[2]


@pytest.mark.parametrize("intervention", ["shift", "hard"])
def test_score_test_is_near_the_gain_of_each_parent(simulate, intervention):
    """Beside parents that there are, one of them nearly a copy of another gene."""
    W = np.zeros((5, 5))
    W[0, 1], W[0, 2], W[1, 2], W[2, 3] = 10.0, 0.7, 0.05, 0.8
    screen = simulate(W, np.eye(5)[[0, 4]], hard=intervention == "hard")
    search = StructureSearch(screen.statistics, ShiftPrior(0.1), intervention=intervention)
    pairs = [(2, (0,)), (3, ()), (3, (1,))]
    told = score_test(screen.statistics, search.prior, search.fit(pairs), pairs)
    for b, (j, parents) in enumerate(pairs):
        for i in {*range(5)} - {j, *parents}:
            before, after = search.scores([(j, parents), (j, tuple(sorted((*parents, i))))])
            gain = after - before + search.edge_cost[i, j]
            np.testing.assert_allclose(told[i, b], gain, rtol=0.4, atol=0.5)  # of large gains, noise falls too


def test_genes_are_tested_alone_as_with_others_where_there_are_states(simulate):
    """The variance that hidden states add is each gene's own."""
    W = np.zeros((5, 5))
    W[0, 1], W[0, 2], W[2, 3] = 1.0, 0.7, 0.8
    screen = simulate(W, np.eye(5)[[0, 4]])
    statistics = replace(screen.statistics, state_var=torch.arange(5).double())
    search = StructureSearch(statistics, ShiftPrior(0.1))
    pairs = [(4, ()), (2, (0,)), (3, ())]
    together = search.fit(pairs)
    told, cost = (
        score_test(statistics, search.prior, together, pairs),
        targets_explained(statistics, search.prior, together, [4, 2, 3]),
    )
    for b, pair in enumerate(pairs):
        alone = search.fit([pair])
        np.testing.assert_allclose(
            score_test(statistics, search.prior, alone, [pair])[:, 0], told[:, b], rtol=1e-5, atol=1e-8
        )
        found = targets_explained(statistics, search.prior, alone, [pair[0]])
        np.testing.assert_allclose(found[:, 0], cost[:, b], rtol=1e-5, atol=1e-8)


def test_score_test_adds_up_the_functions_of_a_parent(simulate):
    """A gene that answers to the second function alone is found by it."""
    h = np.random.default_rng(0).normal(size=(3000, 2))
    h[:, 1] += h[:, 0] ** 2
    context = torch.arange(3) % 3
    accumulator = StatisticsAccumulator(torch.tensor([-1, 0, 1]), 2, 4, 0)
    columns = torch.as_tensor(np.concatenate([h, h**2], 1))
    accumulator.update(columns, context.repeat(1000), torch.zeros(3000, 0).double())
    search = StructureSearch(accumulator.finalise(), ShiftPrior(0.1))
    told = score_test(search.statistics, search.prior, search.fit([(1, ())]), [(1, ())])
    assert told[0, 0] > 500


def test_a_new_prior_is_a_new_search(simulate, monkeypatch):
    monkeypatch.setattr("scgim.structure._climb._FEW_GENES", 0)
    statistics = simulate(random_weights(6, 0), np.eye(6)).statistics
    search = StructureSearch(statistics, ShiftPrior(0.01, 1.0))
    search.refresh(range(6))
    search.climb()
    fresh = StructureSearch(statistics, search.update_prior())
    fresh.adjacency = search.adjacency.copy()
    for s in (search, fresh):
        s.refresh(range(6))
    np.testing.assert_array_equal(search.gain, fresh.gain)


def test_a_gene_with_several_children_taken_for_its_parents_is_turned_round(simulate, monkeypatch):
    """Each edge alone does not pay to turn: the others still explain the gene."""
    W = np.zeros((4, 4))
    W[3, :3] = 1.0
    statistics = simulate(W, np.eye(4)[[3]], effect=3.0).statistics
    search = StructureSearch(statistics, ShiftPrior(0.25, 5.0))
    search.adjacency[:3, 3] = True
    search.refresh(range(4))
    for other in ("reverse_and_reselect", "remove_and_return", "reverse_at_random"):
        monkeypatch.setattr(search, other, lambda *arguments: False)
    before = search.score
    assert search.escape(1, 10_000)[-1] > before
    np.testing.assert_array_equal(search.adjacency, W != 0)
    assert not search.turn_round(3)  # nothing to turn


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    d=st.integers(2, 4),
    n_perturbations=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    hard=st.booleans(),
    edge_log_odds=st.sampled_from([-2.0, 0.0, 30.0]),
)
def test_graph_is_acyclic_whatever_the_data(d, n_perturbations, seed, hard, edge_log_odds):
    rng = np.random.default_rng(seed)
    group = torch.tensor([-1, *range(n_perturbations)])
    mix = rng.normal(size=(len(group), d, d))
    scatter = torch.as_tensor(20 * mix @ mix.transpose(0, 2, 1)) + torch.eye(d).double()
    by_group = scatter[[*range(1, len(group)), 0]]
    statistics = ContextStatistics(
        gram=scatter.sum(0),
        means=torch.as_tensor(2 * rng.normal(size=(len(group), d))),
        n_cells=torch.full((len(group),), 21.0).double(),
        group=group,
        n_genes=d,
        gram_by_group=by_group if hard else None,
    )
    intervention = "hard" if hard else "shift"
    result = search_structure(statistics, intervention=intervention, edge_log_odds=edge_log_odds, n_perturbations=3)
    assert is_acyclic(result.adjacency)
    assert np.isfinite(result.score)
    assert (result.edge_probs >= 0).all()
    assert (result.edge_probs + result.edge_probs.T <= 1 + 1e-9).all()
    empty = StructureSearch(statistics, result.prior, intervention=intervention, edge_log_odds=edge_log_odds)
    assert result.score >= sum(empty.scores([(j, ()) for j in range(d)])) - 1e-6


def test_search_on_squares_finds_a_nonlinear_edge():
    """An even function of the parent leaves no trace in the covariance; squares of the features show it."""
    rng = np.random.default_rng(0)
    context = np.repeat([0, 1, 2], [400, 100, 100])
    x = rng.normal(size=(600, 2))
    x[context == 1, 0] += 2.0
    x[:, 1] += x[:, 0] ** 2
    x[context == 2, 1] += 3.0
    accumulator = StatisticsAccumulator(torch.tensor([-1, 0, 1]), 2, 4)
    accumulator.update(torch.as_tensor(np.hstack([x, x**2])), torch.as_tensor(context))
    result = search_structure(accumulator.finalise())
    np.testing.assert_array_equal(result.adjacency, [[False, True], [False, False]])


def test_remaining_moves_do_not_raise_the_score(simulate):
    """The result is a local optimum: no single edge added, removed or reversed scores higher."""
    statistics = simulate(random_weights(6, 5), np.eye(6)[:3], n_cells=20, n_controls=80).statistics
    result = search_structure(statistics)
    search = StructureSearch(statistics, result.prior)

    def score(adjacency: np.ndarray) -> float:
        return sum(search.scores([(j, search.parents(j, adjacency)) for j in range(6)]))

    best = score(result.adjacency)
    for i in range(6):
        for j in range(6):
            trial = result.adjacency.copy()
            trial[i, j] = not trial[i, j]
            if trial[i, j]:
                trial[j, i] = False
            if is_acyclic(trial):
                assert score(trial) <= best + 1e-6


@pytest.mark.parametrize(
    ("n_cells", "n_genes", "budget"), [(120, 10, 70_000), (60, 10, 8_750), (1e6, 100, 250_000), (1e6, 400, 400_000)]
)
def test_the_usual_budget_grows_with_genes_and_shrinks_with_few_cells(n_cells, n_genes, budget):
    """Fewer than twelve cells a gene: by the cube of their share."""
    nothing = torch.zeros(2, n_genes)
    cells = torch.tensor([0.25, 0.75]).double() * n_cells
    statistics = ContextStatistics(torch.eye(n_genes), nothing, cells, torch.tensor([-1, 0]), n_genes)
    assert usual_budget(statistics) == budget


def test_a_move_that_failed_is_tried_again_where_parents_have_changed():
    attempts, graph = _Attempts(5), np.zeros((5, 5), dtype=bool)
    graph[0, 1] = graph[3, 4] = True
    attempts.note_failure("turn", (1,))
    assert attempts.in_vain("turn", (1,), graph)
    assert not attempts.in_vain("remove", (1,), graph)
    other = graph.copy()
    other[2, 4] = True  # far from gene 1
    attempts.note_change(graph, other)
    assert attempts.in_vain("turn", (1,), other)
    near = other.copy()
    near[2, 0] = True  # the parent of gene 1 has a parent more
    attempts.note_change(other, near)
    assert not attempts.in_vain("turn", (1,), near)
    attempts.note_failure("random", ())
    assert not attempts.in_vain("random", (), near)


def test_an_attempt_that_fails_leaves_gains_as_they_were(simulate):
    search = StructureSearch(simulate(random_weights(8, 1), np.eye(8)).statistics, ShiftPrior(0.1))
    search.refresh(range(8))
    search.climb()
    search.escape(5, 10_000)
    gain, graph, score = search.gain.copy(), search.adjacency.copy(), search.score
    for gene in range(8):
        if not search.remove_and_return(gene):
            np.testing.assert_array_equal(search.gain, gain)
            np.testing.assert_array_equal(search.adjacency, graph)
            assert search.score == score
