"""Directed acyclic graphs as boolean adjacency matrices: A[i, j] is True where i -> j."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def reachability(adjacency: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """R[i, j] is True where a directed path leads from i to j; each gene reaches itself. The graph must be acyclic."""
    adjacency = np.asarray(adjacency, dtype=bool)
    d = len(adjacency)
    children = _children(adjacency)
    reach = [0] * d  # sets of genes as bits of integers: the search asks often
    for i in reversed(_in_order(children)):
        reach[i] = 1 << i
        for j in children[i]:
            reach[i] |= reach[j]
    width = (d + 7) // 8
    rows = np.frombuffer(b"".join(row.to_bytes(width, "little") for row in reach), dtype=np.uint8).reshape(d, width)
    return np.unpackbits(rows, axis=1, count=d, bitorder="little").view(bool)


def _children(adjacency: NDArray[np.bool_]) -> list[list[int]]:
    d = len(adjacency)
    children: list[list[int]] = [[] for _ in range(d)]
    for place in np.flatnonzero(adjacency).tolist():  # some ten times as fast as by row and column
        children[place // d].append(place % d)
    return children


def out_degrees(adjacency: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of children of each gene, (d,), in the time that the edges take: the search asks often."""
    d = len(adjacency)
    return np.bincount(np.flatnonzero(adjacency) // d, minlength=d)


def descendants(adjacency: NDArray[np.bool_], gene: int) -> NDArray[np.bool_]:
    """Genes that a directed path from `gene` leads to, itself among them, boolean (d,)."""
    found = np.zeros(len(adjacency), dtype=bool)
    found[gene] = True
    frontier = np.array([gene])
    while len(frontier):
        reached = adjacency[frontier].any(0) & ~found
        found |= reached
        frontier = np.flatnonzero(reached)
    return found


def topological_order(adjacency: NDArray) -> list[int]:
    """Genes ordered so that parents come before children (Kahn); ValueError if there is a cycle."""
    return _in_order(_children(np.asarray(adjacency, dtype=bool)))


def _in_order(children: list[list[int]]) -> list[int]:
    n_parents = [0] * len(children)
    for own in children:
        for j in own:
            n_parents[j] += 1
    ready = [j for j, n in enumerate(n_parents) if n == 0]
    order: list[int] = []
    while ready:
        i = ready.pop()
        order.append(i)
        for j in children[i]:
            n_parents[j] -= 1
            if n_parents[j] == 0:
                ready.append(j)
    if len(order) < len(children):
        raise ValueError("The graph has a cycle, so its genes have no topological order.")
    return order


def topological_layers(adjacency: NDArray) -> list[list[int]]:
    """Genes in layers such that the parents of a gene lie in earlier layers: what can be sampled at once."""
    adjacency = np.asarray(adjacency, dtype=bool)
    children, depth = _children(adjacency), np.zeros(len(adjacency), dtype=int)
    for i in topological_order(adjacency):
        for j in children[i]:
            depth[j] = max(depth[j], depth[i] + 1)
    return [np.flatnonzero(depth == level).tolist() for level in range(depth.max() + 1)]
