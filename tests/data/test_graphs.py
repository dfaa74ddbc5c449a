from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from scgim.data._graphs import feedback_edges, random_dag, topological_order


@pytest.mark.parametrize("graph", ["er", "sf"])
@pytest.mark.parametrize("n_genes", [1, 2, 3, 20, 60])
def test_random_graphs_are_acyclic(graph, n_genes):
    for seed in range(5):
        A = random_dag(n_genes, 2, graph, np.random.default_rng(seed))
        assert A.shape == (n_genes, n_genes)
        assert nx.is_directed_acyclic_graph(nx.from_numpy_array(A, create_using=nx.DiGraph))


def test_erdos_renyi_has_the_expected_number_of_edges():
    n_edges = [random_dag(20, 2, "er", np.random.default_rng(seed)).sum() for seed in range(200)]
    # Binomial with 190 pairs and mean 40: standard deviation 5.6, of the mean 0.4.
    assert np.mean(n_edges) == pytest.approx(40, abs=1.6)
    assert np.std(n_edges) == pytest.approx(5.6, abs=1.0)


def test_scale_free_graph_has_fixed_parents_and_hubs():
    A = random_dag(100, 2, "sf", np.random.default_rng(0))
    assert A.sum() == 2 * (100 - 2)
    assert A.sum(0).max() == 2
    assert A.sum(1).max() > 10


def test_no_edges_and_all_edges():
    rng = np.random.default_rng(0)
    assert random_dag(8, 0, "er", rng).sum() == 0
    assert random_dag(8, 0, "sf", rng).sum() == 0
    assert random_dag(8, 100, "er", rng).sum() == 8 * 7 / 2


def test_topological_order_puts_parents_first():
    A = random_dag(30, 3, "er", np.random.default_rng(1))
    position = np.argsort(topological_order(A))
    parents, children = np.nonzero(A)
    assert (position[parents] < position[children]).all()


def test_every_feedback_edge_closes_a_cycle():
    A = random_dag(15, 2, "er", np.random.default_rng(2))
    feedback = feedback_edges(A, 3, np.random.default_rng(3))
    assert feedback.sum() == 3
    for source, target in np.argwhere(feedback):
        assert nx.has_path(nx.from_numpy_array(A, create_using=nx.DiGraph), target, source)
