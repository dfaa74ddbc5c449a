"""Random directed acyclic graphs. An adjacency A is boolean, genes x genes, A[i, j] true for the edge i -> j."""

from __future__ import annotations

from typing import Literal

import networkx as nx
import numpy as np

GraphFamily = Literal["er", "sf"]


def _erdos_renyi(n_genes: int, edges_per_gene: float, rng: np.random.Generator) -> np.ndarray:
    n_pairs = n_genes * (n_genes - 1) / 2
    prob = min(1.0, edges_per_gene * n_genes / n_pairs) if n_pairs else 0.0
    return np.triu(rng.random((n_genes, n_genes)) < prob, 1)


def _scale_free(n_genes: int, edges_per_gene: float, rng: np.random.Generator) -> np.ndarray:
    n_parents = min(int(edges_per_gene), n_genes - 1)
    if n_parents == 0:
        return np.zeros((n_genes, n_genes), dtype=bool)
    graph = nx.barabasi_albert_graph(n_genes, n_parents, seed=rng)
    # Nodes are numbered by age, so the upper triangle points from old to new: hubs are regulators.
    return np.triu(nx.to_numpy_array(graph, nodelist=range(n_genes)) > 0, 1)


def random_dag(n_genes: int, edges_per_gene: float, graph: GraphFamily, rng: np.random.Generator) -> np.ndarray:
    """Adjacency of a random directed acyclic graph, genes x genes, with the genes in random order.

    `"er"` (Erdos-Renyi) has each possible edge with one probability, `edges_per_gene * n_genes` edges in expectation.
    `"sf"` (scale-free) grows by preferential attachment: each new gene takes `edges_per_gene` parents, hubs first.
    """
    draw = {"er": _erdos_renyi, "sf": _scale_free}[graph]
    order = rng.permutation(n_genes)
    return draw(n_genes, edges_per_gene, rng)[np.ix_(order, order)]


def topological_order(adjacency: np.ndarray) -> np.ndarray:
    """Genes in an order in which every parent precedes its children."""
    graph = nx.from_numpy_array(adjacency, create_using=nx.DiGraph)
    return np.fromiter(nx.lexicographical_topological_sort(graph), dtype=int, count=len(adjacency))


def feedback_edges(adjacency: np.ndarray, n_edges: int, rng: np.random.Generator) -> np.ndarray:
    """Adjacency of `n_edges` edges (fewer if the graph has no room) that close cycles: each runs from a gene to one of its ancestors."""
    if n_edges == 0:
        return np.zeros_like(adjacency)
    graph = nx.from_numpy_array(adjacency, create_using=nx.DiGraph)
    ancestors = nx.to_numpy_array(nx.transitive_closure_dag(graph), nodelist=range(len(adjacency))) > 0
    candidates = np.argwhere(ancestors.T & ~adjacency.T)
    chosen = candidates[rng.permutation(len(candidates))[:n_edges]]
    feedback = np.zeros_like(adjacency)
    feedback[chosen[:, 0], chosen[:, 1]] = True
    return feedback
