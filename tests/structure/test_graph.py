"""Graph functions against networkx, on every directed graph of three nodes and on random ones."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest

from scgim.nn._mechanism import parent_table
from scgim.structure._graph import descendants, out_degrees, reachability, topological_layers, topological_order

PAIRS = [(i, j) for i in range(3) for j in range(3) if i != j]


def all_graphs() -> list[np.ndarray]:
    """The 64 directed graphs of three nodes without loops."""
    graphs = []
    for edges in itertools.product([False, True], repeat=len(PAIRS)):
        adjacency = np.zeros((3, 3), dtype=bool)
        for (i, j), present in zip(PAIRS, edges, strict=True):
            adjacency[i, j] = present
        graphs.append(adjacency)
    return graphs


def random_dag(d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    order = rng.permutation(d)
    upper = np.triu(rng.random((d, d)) < 0.2, 1)
    adjacency = np.zeros((d, d), dtype=bool)
    adjacency[np.ix_(order, order)] = upper
    return adjacency


def expected_reachability(adjacency: np.ndarray) -> np.ndarray:
    graph = nx.from_numpy_array(adjacency, create_using=nx.DiGraph)
    reach = np.eye(len(adjacency), dtype=bool)
    for i in graph:
        reach[i, list(nx.descendants(graph, i))] = True
    return reach


def test_out_degrees():
    for adjacency in [*all_graphs(), random_dag(30, 0), random_dag(30, 1).T]:
        np.testing.assert_array_equal(out_degrees(adjacency), adjacency.sum(1))


def test_reachability_of_all_acyclic_graphs_of_three_nodes():
    for adjacency in all_graphs():
        if nx.is_directed_acyclic_graph(nx.from_numpy_array(adjacency, create_using=nx.DiGraph)):
            np.testing.assert_array_equal(reachability(adjacency), expected_reachability(adjacency))


def test_descendants_of_all_graphs_of_three_nodes():
    for adjacency in all_graphs():
        reach = expected_reachability(adjacency)
        for i in range(3):
            np.testing.assert_array_equal(descendants(adjacency, i), reach[i])


@pytest.mark.parametrize("seed", range(3))
def test_reachability_of_random_graphs(seed):
    adjacency = random_dag(30, seed)
    np.testing.assert_array_equal(reachability(adjacency), expected_reachability(adjacency))


def test_reachability_of_a_long_chain():
    adjacency = np.eye(70, k=1, dtype=bool)
    np.testing.assert_array_equal(reachability(adjacency), np.triu(np.ones((70, 70), dtype=bool)))


def test_order_and_layers_of_all_graphs_of_three_nodes():
    n_acyclic = 0
    for adjacency in all_graphs():
        graph = nx.from_numpy_array(adjacency, create_using=nx.DiGraph)
        if not nx.is_directed_acyclic_graph(graph):
            with pytest.raises(ValueError, match="has a cycle"):
                topological_order(adjacency)
            with pytest.raises(ValueError, match="has a cycle"):
                topological_layers(adjacency)
            continue
        n_acyclic += 1
        position = np.argsort(topological_order(adjacency))
        assert all(position[i] < position[j] for i, j in graph.edges)
        generations = [sorted(layer) for layer in nx.topological_generations(graph)]
        assert topological_layers(adjacency) == generations
    assert n_acyclic == 25  # labelled acyclic graphs of three nodes


def test_layers_of_random_graphs():
    adjacency = random_dag(25, 1)
    graph = nx.from_numpy_array(adjacency, create_using=nx.DiGraph)
    assert topological_layers(adjacency.astype(float)) == [sorted(g) for g in nx.topological_generations(graph)]


def test_parent_table_is_padded():
    adjacency = np.zeros((4, 4), dtype=bool)
    adjacency[[0, 2, 3], 1] = True
    adjacency[1, 0] = True
    index, mask = parent_table(adjacency)
    np.testing.assert_array_equal(index, [[1, 0, 0], [0, 2, 3], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]])


def test_parent_table_without_edges_has_one_empty_column():
    index, mask = parent_table(np.zeros((3, 3), dtype=bool))
    assert index.shape == mask.shape == (3, 1)
    assert not mask.any()
