"""A layered drawing of an acyclic graph: causes to the left of their effects, few crossings, edges around nodes.

The steps are Sugiyama's: layers, waypoints where an edge passes a layer, an order in each layer with few crossings,
and heights that keep edges straight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
from scipy.optimize import isotonic_regression

if TYPE_CHECKING:
    from collections.abc import Hashable

# room between two neighbours of a layer: a waypoint needs less than a node
NODE_ROOM, WAYPOINT_ROOM = 1.0, 0.35


def layered_layout(
    graph: nx.DiGraph, *, n_sweeps: int = 24
) -> tuple[dict[Hashable, np.ndarray], dict[tuple[Hashable, Hashable], np.ndarray]]:
    """Positions of the nodes of an acyclic `graph`, and the way of each edge.

    Parameters
    ----------
    graph
        Directed acyclic graph.
    n_sweeps
        Number of passes over the layers when they are put in order.

    Returns
    -------
    Position (x, y) of each node, where x is the layer (the number of edges on the longest way there) and neighbours
    in a layer are at least 1 apart; and for each edge its points from source to target, points x 2.
    """
    layer = {node: x for x, nodes in enumerate(nx.topological_generations(graph)) for node in nodes}
    # a source need not stand in the first layer: beside its first child its edges are shorter
    layer |= {
        node: min(layer[child] for child in graph.succ[node]) - 1
        for node in graph
        if not graph.pred[node] and graph.succ[node]
    }
    proper, chains = _with_waypoints(graph, layer)
    order = _order_layers(proper, layer, n_sweeps)
    heights = _assign_heights(proper, order)
    point = {node: np.array([layer[node], heights[node]], dtype=float) for node in proper}
    ways = {edge: np.stack([point[node] for node in chain]) for edge, chain in chains.items()}
    return {node: point[node] for node in graph}, ways


def _with_waypoints(
    graph: nx.DiGraph, layer: dict[Any, int]
) -> tuple[nx.DiGraph, dict[tuple[Hashable, Hashable], list[Any]]]:
    """`graph` with a waypoint in each layer that an edge passes; `layer` is extended by them."""
    proper: nx.DiGraph = nx.DiGraph()
    proper.add_nodes_from(graph, room=NODE_ROOM)
    chains = {}
    for source, target in graph.edges:
        # a tuple cannot be mistaken for a gene
        between = [("waypoint", source, target, x) for x in range(layer[source] + 1, layer[target])]
        layer.update({waypoint: waypoint[3] for waypoint in between})
        proper.add_nodes_from(between, room=WAYPOINT_ROOM)
        chains[source, target] = [source, *between, target]
        nx.add_path(proper, chains[source, target])
    return proper, chains


def _order_layers(proper: nx.DiGraph, layer: dict[Any, int], n_sweeps: int) -> list[list[Any]]:
    """Nodes of each layer in the order with the fewest crossings that sweeps to and fro come by."""
    order: list[list[Any]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node in nx.dfs_preorder_nodes(proper.to_undirected()):
        order[layer[node]].append(node)
    best, fewest = [list(nodes) for nodes in order], _count_crossings(proper, order)
    for sweep in range(n_sweeps):
        forward = sweep % 2 == 0
        neighbours = proper.pred if forward else proper.succ
        for x in range(1, len(order)) if forward else range(len(order) - 2, -1, -1):
            rank = {node: i for i, node in enumerate(order[x - 1 if forward else x + 1])}
            own = {node: i for i, node in enumerate(order[x])}
            scale = len(rank) / len(own)
            centre = {
                node: np.mean([rank[other] for other in neighbours[node]]) if neighbours[node] else own[node] * scale
                for node in order[x]
            }
            order[x].sort(key=centre.__getitem__)
        crossings = _count_crossings(proper, order)
        if crossings < fewest:
            best, fewest = [list(nodes) for nodes in order], crossings
    return best


def _count_crossings(proper: nx.DiGraph, order: list[list[Any]]) -> int:
    """Number of pairs of edges between neighbouring layers that cross."""
    total = 0
    for left, right in zip(order, order[1:], strict=False):
        rank = {node: i for i, node in enumerate(right)}
        ends = np.array([end for node in left for end in sorted(rank[other] for other in proper.succ[node])])
        if ends.size:
            # edges come sorted by their start, so each inversion of their ends is a crossing
            total += int(np.triu(ends[:, None] > ends[None, :], 1).sum())
    return total


def _assign_heights(proper: nx.DiGraph, order: list[list[Any]], *, n_sweeps: int = 30) -> dict[Any, float]:
    """Heights near those of the neighbours in the graph, in the given order and with room between them.

    Each layer in turn is solved exactly: least squares under an order constraint is an isotonic regression.
    """
    offsets = []
    height: dict[Any, float] = {}
    for nodes in order:
        room = np.array([proper.nodes[node]["room"] for node in nodes])
        offset = np.concatenate([[0.0], np.cumsum((room[1:] + room[:-1]) / 2)])
        offsets.append(offset)
        height.update(zip(nodes, offset - offset[-1] / 2, strict=True))
    for sweep in range(n_sweeps):
        for x in range(len(order)) if sweep % 2 == 0 else range(len(order) - 1, -1, -1):
            nodes = order[x]
            wanted, weight = np.empty(len(nodes)), np.empty(len(nodes))
            for i, node in enumerate(nodes):
                near = [height[other] for other in (*proper.pred[node], *proper.succ[node])]
                wanted[i] = np.mean(near) if near else height[node]
                # straight long edges are easier to follow than nodes exactly amid their neighbours
                weight[i] = 2.0 if proper.nodes[node]["room"] < NODE_ROOM else 1.0
            settled = isotonic_regression(wanted - offsets[x], weights=weight).x + offsets[x]
            height.update(zip(nodes, settled.tolist(), strict=True))
    return height
