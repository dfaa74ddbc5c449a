"""Hidden states: closed forms under a known model, and recovery of graph and states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgim._priors import ShiftPrior
from scgim.structure import _states
from scgim.structure._screening import score_test
from scgim.structure._search import StructureSearch, search_structure
from scgim.structure._states import HiddenStates, search_with_states
from scgim.structure._statistics import ContextStatistics

N_GENES, N_DRUGS, N_CELLS = 10, 40, 200
EDGES = [(0, 1), (1, 2), (0, 3), (3, 4), (2, 5), (4, 6), (6, 7), (5, 8), (7, 9)]


@pytest.fixture(autouse=True)
def _few_states(monkeypatch):
    monkeypatch.setattr(_states, "MAX_STATES", 2)  # for time


def model(n_states: int, strength: float = 0.8) -> HiddenStates:
    """A network of ten genes; each state acts on six."""
    rng = np.random.default_rng(n_states)
    weights, loadings = torch.zeros(N_GENES, N_GENES).double(), torch.zeros(N_GENES, n_states).double()
    for i, j in EDGES:
        weights[i, j] = rng.choice([-1, 1]) * rng.uniform(0.5, 0.8)
    for q in range(n_states):
        loadings[rng.permutation(N_GENES)[:6], q] = strength * torch.as_tensor(rng.choice([-1.0, 1.0], 6))
    return HiddenStates(weights, loadings, torch.full((N_GENES,), 0.5).double())


def total(truth: HiddenStates) -> torch.Tensor:
    """What the noise of one gene does to another, from rows to columns."""
    return torch.linalg.inv(torch.eye(N_GENES).double() - truth.weights)


def covariance(truth: HiddenStates) -> torch.Tensor:
    noise = torch.diag(truth.noise_var) + truth.loadings @ truth.loadings.T
    return total(truth).T @ noise @ total(truth)


def statistics(truth: HiddenStates, seed: int = 0) -> ContextStatistics:
    """Of drugs of one or two targets each: the expected scatter, and means of contexts with their noise."""
    rng = np.random.default_rng(seed)
    effects = np.zeros((N_DRUGS + 1, N_GENES))
    for k in range(N_DRUGS):
        genes = rng.permutation(N_GENES)[: 1 + k % 2]
        effects[k + 1, genes] = rng.choice([-1, 1], len(genes)) * rng.uniform(1, 2, len(genes))
    n_cells = np.r_[1000, np.full(N_DRUGS, N_CELLS)]
    own = (
        rng.multivariate_normal(np.zeros(N_GENES), covariance(truth).numpy(), len(effects)) / np.sqrt(n_cells)[:, None]
    )
    dof = float(n_cells.sum() - len(n_cells))
    return ContextStatistics(
        gram=covariance(truth) * dof,
        means=torch.as_tensor(effects) @ total(truth) + torch.as_tensor(own),
        n_cells=torch.as_tensor(n_cells).double(),
        group=torch.arange(-1, N_DRUGS),
        n_genes=N_GENES,
    )


def test_scores_are_posterior_means():
    """E[z | x] of jointly normal states and genes."""
    truth = model(2)
    with_states = truth.loadings.T @ total(truth)
    np.testing.assert_allclose(truth.score_weights().T, with_states @ torch.linalg.inv(covariance(truth)), atol=1e-10)


@pytest.mark.parametrize("n_states", [1, 2])
def test_what_states_add_is_told_by_the_noise_of_the_other_genes(n_states):
    truth = model(n_states)
    weights, open_var = truth.without_own()
    noise = torch.diag(truth.noise_var) + truth.loadings @ truth.loadings.T
    for j in range(N_GENES):
        others = torch.arange(N_GENES) != j
        told = (truth.loadings @ truth.loadings[j])[others]
        by_noise = torch.linalg.solve(noise[others][:, others], told)
        expected = (torch.eye(N_GENES).double() - truth.weights)[:, others] @ by_noise
        np.testing.assert_allclose(weights[:, j], expected, atol=1e-10)
        np.testing.assert_allclose(open_var[j], truth.loadings[j].square().sum() - told @ by_noise, atol=1e-10)


def test_without_the_states_the_noise_of_genes_is_left():
    truth = model(2)
    left = truth.taken_out(statistics(truth))
    np.testing.assert_allclose(
        left.gram / left.residual_dof, total(truth).T @ torch.diag(truth.noise_var) @ total(truth)
    )
    # but means of contexts have the states of their cells by chance
    variance = left.variance_of_means(truth.noise_var)
    np.testing.assert_allclose(variance[:, 1], (truth.noise_var + truth.loadings.square().sum(1)) / N_CELLS)


@pytest.mark.parametrize("n_states", [1, 2])
def test_states_and_the_graph_are_found(n_states):
    truth = model(n_states)
    cells = statistics(truth)
    alone = search_structure(cells)
    assert alone.adjacency.sum() > len(EDGES) + 3  # the states, as edges
    result, found = search_with_states(cells, alone)
    assert found is not None
    assert found.n_states == n_states
    assert set(map(tuple, np.argwhere(result.adjacency).tolist())) == set(EDGES)
    added = truth.loadings @ truth.loadings.T
    np.testing.assert_allclose(found.loadings @ found.loadings.T, added, atol=0.05)
    np.testing.assert_allclose(found.noise_var, truth.noise_var, atol=0.05)


def test_states_that_act_on_few_genes_leave_the_others_alone(monkeypatch):
    """Of all rotations, the one in which states act on few genes: each is found as it is, and most of its loadings on other genes are zero."""
    monkeypatch.setattr(_states, "MAX_STATES", 3)
    loadings = torch.zeros(N_GENES, 3).double()
    for q, genes in enumerate(([0, 3, 5, 9], [1, 4, 7, 8], [2, 6, 8, 9])):
        loadings[genes, q] = torch.tensor([0.8, -0.7, 0.8, 0.7]).double()
    truth = replace(model(1), loadings=loadings)
    cells = statistics(truth)
    result, found = search_with_states(cells, search_structure(cells))
    assert set(map(tuple, np.argwhere(result.adjacency).tolist())) == set(EDGES)
    assert found is not None
    expected = truth.loadings[:, (found.loadings.abs().T @ truth.loadings.abs()).argmax(1)]
    assert len({tuple(own) for own in expected.T.tolist()}) == found.n_states == 3
    np.testing.assert_allclose(found.loadings.abs(), expected.abs(), atol=0.2)
    others = expected == 0
    assert (found.loadings[others] == 0).sum() > 0.5 * others.sum()


def test_states_are_found_among_genes_whose_parents_are_screened(monkeypatch):
    """As of 42 genes or more; here of ten, so that the search is short."""
    monkeypatch.setattr("scgim.structure._climb._FEW_GENES", 0)
    cells = statistics(model(1))
    result, found = search_with_states(cells, search_structure(cells))
    assert found is not None
    assert set(map(tuple, np.argwhere(result.adjacency).tolist())) == set(EDGES)


def test_each_gene_is_screened_with_its_own_variance_of_states():
    """One gene at a time is told the same as all at once."""
    truth = model(1)
    left = truth.taken_out(statistics(truth))
    search = StructureSearch(left, ShiftPrior(0.1))
    pairs = [(j, ()) for j in range(N_GENES)]
    together = score_test(left, search.prior, search.fit(pairs), pairs)
    alone = [score_test(left, search.prior, search.fit([pair]), [pair])[:, 0] for pair in pairs]
    np.testing.assert_allclose(np.stack(alone, 1), together, rtol=1e-9)


def test_none_are_looked_for_where_the_network_holds():
    cells = statistics(model(0))
    alone = search_structure(cells)
    result, found = search_with_states(cells, alone)
    assert found is None
    assert result is alone


def test_none_are_found_where_there_are_none():
    """Told that slopes depart, as if the network did not hold; evidence decides against states."""
    cells = statistics(model(0))
    alone = search_structure(cells)
    alone = replace(alone, prior=replace(alone.prior, departure_var=0.01))
    result, found = search_with_states(cells, alone)
    assert found is None
    assert result is alone


def test_hubs_are_no_states():
    """One gene that acts on all others."""
    truth = model(0)
    truth.weights.zero_()
    truth.weights[0, 1:] = 0.7
    cells = statistics(truth)
    alone = search_structure(cells)
    alone = replace(alone, prior=replace(alone.prior, departure_var=0.01))
    result, found = search_with_states(cells, alone)
    assert found is None
    np.testing.assert_array_equal(result.adjacency, truth.weights != 0)
