"""How far cells within contexts are believed: a covariance that is none of the network's, one that is, and closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgim._priors import ShiftPrior
from scgim.structure._cell_weight import is_dense, search_with_cell_weight, with_weight
from scgim.structure._search import StructureResult, search_structure
from scgim.structure._statistics import ContextStatistics
from scgim.structure._watch import SearchWatch

N_GENES, N_DRUGS, N_CELLS = 8, 24, 300
EDGES = [(0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (6, 7)]
OTHERS = [(7, 0), (5, 0), (3, 2), (5, 2), (4, 1), (7, 1), (2, 6), (1, 6)]  # what cells show for reasons of their own


def weights(edges: list[tuple[int, int]], seed: int) -> np.ndarray:
    rng, found = np.random.default_rng(seed), np.zeros((N_GENES, N_GENES))
    for i, j in edges:
        found[i, j] = rng.choice([-1, 1]) * rng.uniform(0.7, 1.1)
    return found


def covariance(of_edges: np.ndarray) -> np.ndarray:
    total = np.linalg.inv(np.eye(N_GENES) - of_edges)
    return total.T @ total


def statistics(*, own: bool) -> ContextStatistics:
    """Means by a network, and the scatter of cells by the same one, or by another."""
    rng, network = np.random.default_rng(0), weights(EDGES, 0)
    effects = np.zeros((N_DRUGS + 1, N_GENES))
    effects[np.arange(1, N_DRUGS + 1), np.arange(N_DRUGS) % N_GENES] = rng.choice([-1, 1], N_DRUGS) * rng.uniform(
        1, 2, N_DRUGS
    )
    n_cells = np.r_[1000, np.full(N_DRUGS, N_CELLS)]
    noise = rng.normal(size=effects.shape) / np.sqrt(n_cells)[:, None]
    means = (effects + noise) @ np.linalg.inv(np.eye(N_GENES) - network)
    dof = float(n_cells.sum() - len(n_cells))
    of_cells = covariance(network if own else weights(OTHERS, 1))
    return ContextStatistics(
        gram=torch.as_tensor(dof * of_cells),
        means=torch.as_tensor(means),
        n_cells=torch.as_tensor(n_cells).double(),
        group=torch.as_tensor(np.r_[-1, np.arange(N_DRUGS)]),
        n_genes=N_GENES,
        observed=torch.ones(len(n_cells), dtype=torch.bool),
        dof=dof,
    )


def correct(result: StructureResult) -> int:
    return int(result.adjacency[tuple(np.transpose(EDGES))].sum())


@pytest.fixture
def options():
    return {"seed": 0, "watch": SearchWatch()}


def test_a_covariance_that_is_none_of_the_network_weighs_little(options):
    s = statistics(own=False)
    before = search_structure(s, departures=False, **options)
    assert is_dense(before)
    after, used = search_with_cell_weight(s, before, **options)
    assert used.residual_dof < s.residual_dof / 2
    assert correct(before) == 2
    assert correct(after) >= 5


def test_a_covariance_of_the_network_has_its_weight(options):
    s = statistics(own=True)
    before = search_structure(s, **options)
    after, used = search_with_cell_weight(s, before, **options)
    assert used is s
    assert after is before
    assert not is_dense(before)  # so that the search for a graph does not ask
    assert correct(before) == len(EDGES)


def test_nothing_is_tried_with_few_cells(options):
    s = statistics(own=False)
    adjacency = np.zeros((N_GENES, N_GENES), dtype=bool)
    found = StructureResult(adjacency, adjacency.astype(float), 0.0, ShiftPrior(0.3), [0.0])
    few = replace(s, n_cells=s.n_cells / 1000)
    assert search_with_cell_weight(few, found, **options)[0] is found


def test_weighted_statistics_are_those_of_fewer_cells():
    s = statistics(own=True)
    less = with_weight(s, 0.2)
    assert less.residual_dof == pytest.approx(0.2 * s.residual_dof)
    np.testing.assert_allclose(less.gram / less.residual_dof, s.gram / s.residual_dof)
    np.testing.assert_array_equal(less.n_cells, s.n_cells)
