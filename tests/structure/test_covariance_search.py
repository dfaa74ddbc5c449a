"""Search by the whole covariance: regulators of few counts are found, and what stands in for them gives way."""

import numpy as np
import pytest

from scgim.structure._covariance_model import MeasuredCovariance
from scgim.structure._covariance_search import CovarianceSettings, in_place, shared

N_CELLS, N_GENES = 5000.0, 24
LOG_ODDS = -3.0


def covariance(adjacency, noise, *, weight=0.9, variance=0.2, seed=0, loadings=None):
    """Covariance of what is measured of cells that follow a graph."""
    weights, rng = np.zeros(adjacency.shape), np.random.default_rng(seed)
    weights[adjacency] = weight * rng.choice([-1.0, 1.0], adjacency.sum())
    carried = np.linalg.inv(np.eye(len(weights)) - weights)
    own = np.diag(np.full(len(weights), variance))
    if loadings is not None:
        own = own + loadings.T @ loadings
    return MeasuredCovariance(carried.T @ own @ carried + np.diag(noise), noise, N_CELLS)


def settings(measured):
    d = len(measured.noise)
    return CovarianceSettings(measured, np.full((d, d), LOG_ODDS), ~np.eye(d, dtype=bool))


@pytest.fixture
def star():
    """Regulator 0, of which little is measured, acts on genes 1 to 10; 11 acts on 12 to 19, and 0 on 11."""
    graph = np.zeros((N_GENES, N_GENES), dtype=bool)
    graph[0, 1:12], graph[11, 12:20] = True, True
    noise = np.full(N_GENES, 0.1)
    noise[0] = 3.0
    return graph, noise


def stand_in(graph):
    """Gene 1 in place of the regulator 0."""
    graph = graph.copy()
    graph[1], graph[0] = graph[0], False
    graph[1, 1], graph[1, 0], graph[0, 1] = False, True, False
    return graph


def test_a_regulator_of_few_counts_takes_the_place_of_its_child(star):
    graph, noise = star
    search = settings(covariance(graph, noise)).start(stand_in(graph), np.zeros((0, N_GENES)))
    assert not search.adjacency[0].any()
    search.larger_moves(lambda score: None)
    np.testing.assert_array_equal(search.adjacency, graph)


def test_regressions_of_one_gene_at_a_time_take_the_child(star):
    graph, noise = star
    total = covariance(graph, noise).total
    by_regulator, by_child = (total[i, 2] ** 2 / total[i, i] for i in (0, 1))
    assert by_child > by_regulator


def test_the_truth_is_left_as_it_is(star):
    graph, noise = star
    search = settings(covariance(graph, noise)).start(graph, np.zeros((0, N_GENES)))
    score = search.score
    assert not search.larger_moves(lambda score: None)
    np.testing.assert_array_equal(search.adjacency, graph)
    assert search.score == score


def test_children_of_two_regulators_are_parted(star):
    graph, noise = star
    merged = graph.copy()
    merged[0, 12:20] = True
    merged[11] = False
    search = settings(covariance(graph, noise)).start(merged, np.zeros((0, N_GENES)))
    search.larger_moves(lambda score: None)
    np.testing.assert_array_equal(search.adjacency, graph)


def test_nothing_is_found_in_genes_that_have_nothing_in_common():
    values = np.random.default_rng(2).normal(size=(int(N_CELLS), N_GENES))
    measured = MeasuredCovariance(np.cov(values.T), np.full(N_GENES, 0.4), N_CELLS)
    given = np.zeros((N_GENES, N_GENES), dtype=bool)
    given[0, 1:6] = True
    search = settings(measured).start(given, np.zeros((0, N_GENES)))
    assert not search.adjacency.any()
    correlation, cells = search.hidden_scatter()
    np.testing.assert_allclose(correlation, np.eye(N_GENES), atol=1e-12)
    assert cells == N_CELLS


def test_cells_are_worth_themselves_where_nothing_is_noise(star):
    graph, _ = star
    search = settings(covariance(graph, np.full(N_GENES, 1e-9))).start(graph, np.zeros((0, N_GENES)))
    assert search.hidden_scatter()[1] == pytest.approx(N_CELLS, rel=0.02)


def test_cells_are_worth_less_with_noise(star):
    graph, noise = star
    search = settings(covariance(graph, noise)).start(graph, np.zeros((0, N_GENES)))
    assert search.hidden_scatter()[1] < 0.7 * N_CELLS


def test_a_factor_is_not_taken_for_edges(star):
    graph, noise = star
    options = settings(covariance(graph, noise, loadings=np.full((1, N_GENES), 0.25)))
    alone = options.start(graph, np.zeros((0, N_GENES)))
    assert alone.adjacency.sum() > graph.sum() + 5
    found = options.settle(graph, alone, lambda score: None)
    assert found.loadings.shape == (1, N_GENES)
    np.testing.assert_array_equal(found.adjacency, graph)


def test_no_factor_is_found_where_there_is_none(star):
    graph, noise = star
    options = settings(covariance(graph, noise))
    first = options.start(stand_in(graph), np.zeros((0, N_GENES)))
    found = options.settle(stand_in(graph), first, lambda score: None)
    assert not len(found.loadings)
    np.testing.assert_array_equal(found.adjacency, graph)


def test_only_genes_that_may_regulate_do(star):
    graph, noise = star
    options = settings(covariance(graph, noise))
    allowed = options.allowed.copy()
    allowed[0] = False
    search = options._replace(allowed=allowed).start(stand_in(graph), np.zeros((0, N_GENES)))
    search.larger_moves(lambda score: None)
    assert not search.adjacency[0].any()


def test_larger_moves_make_no_circles(star):
    graph, noise = star
    search = settings(covariance(graph, noise)).start(graph, np.zeros((0, N_GENES)))
    assert in_place(search, 11, 0, with_parents=False).graph[0, 12:20].all()
    moved = in_place(search, 0, 11, with_parents=True).graph
    assert moved[11, 0]
    assert moved[11, 1:11].all()
    assert not moved[0].any()
    assert shared(search, 0, 11, np.ones_like(graph)).graph[11, 1:11].all()
    assert shared(search, 0, 11, np.zeros_like(graph)) is None
