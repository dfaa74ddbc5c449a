from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest

from scgim.pl._layout import NODE_ROOM, _count_crossings, _order_layers, _with_waypoints, layered_layout


def _random_dag(n: int, seed: int) -> nx.DiGraph:
    rng = np.random.default_rng(seed)
    return nx.DiGraph([(i, j) for i, j in itertools.combinations(range(n), 2) if rng.random() < 2 / n])


@pytest.mark.parametrize("seed", range(3))
def test_edges_lead_to_the_right_and_nodes_keep_their_distance(seed):
    graph = _random_dag(40, seed)
    places, ways = layered_layout(graph)
    assert set(places) == set(graph)
    for source, target in graph.edges:
        way = ways[source, target]
        np.testing.assert_array_equal(way[0], places[source])
        np.testing.assert_array_equal(way[-1], places[target])
        np.testing.assert_allclose(np.diff(way[:, 0]), 1)  # one layer a step
    for a, b in itertools.combinations(graph, 2):
        if places[a][0] == places[b][0]:
            assert abs(places[a][1] - places[b][1]) >= NODE_ROOM - 1e-9


def test_sweeps_untangle_a_graph_that_can_be_drawn_without_crossings():
    graph = nx.balanced_tree(2, 4, create_using=nx.DiGraph)
    shuffled = nx.DiGraph()
    shuffled.add_nodes_from(np.random.default_rng(0).permutation(list(graph)).tolist())
    shuffled.add_edges_from(sorted(graph.edges, key=lambda edge: hash(edge)))
    layer = {node: x for x, nodes in enumerate(nx.topological_generations(shuffled)) for node in nodes}
    proper, _ = _with_waypoints(shuffled, layer)
    assert _count_crossings(proper, _order_layers(proper, layer, 24)) == 0


def test_crossings_are_counted_as_by_brute_force():
    rng = np.random.default_rng(1)
    left, right = [f"l{i}" for i in range(7)], [f"r{i}" for i in range(6)]
    edges = [(i, j) for i in range(7) for j in range(6) if rng.random() < 0.4]
    graph = nx.DiGraph([(left[i], right[j]) for i, j in edges])
    graph.add_nodes_from([*left, *right])
    expected = sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in itertools.combinations(edges, 2))
    assert _count_crossings(graph, [left, right]) == expected > 0


def test_sources_stand_beside_their_first_child():
    graph = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "d"), ("late", "d")])
    places, _ = layered_layout(graph)
    assert places["late"][0] == places["d"][0] - 1
