"""Hidden expression or counts: closed forms, and which of two covariances is which."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.structure._reliability import evidence_by_counts, evidence_by_hidden

N_CELLS = 5000.0
EDGES = np.zeros((6, 6), dtype=bool)
EDGES[0, 1:5] = EDGES[4, 5] = True


def correlation(reliability: float) -> torch.Tensor:
    """Of what is measured of a star and a chain."""
    carried = torch.linalg.inv(torch.eye(6).double() - 0.7 * torch.as_tensor(EDGES).double())
    hidden = carried.T @ carried
    spread = hidden.diagonal().sqrt()
    measured = reliability * hidden / torch.outer(spread, spread)
    return measured.fill_diagonal_(1.0)


def test_evidence_by_counts_is_that_of_a_normal_distribution():
    measured = correlation(1.0)
    expected = -0.5 * N_CELLS * float(torch.logdet(measured) + 6) - 0.5 * EDGES.sum() * np.log(N_CELLS)
    np.testing.assert_allclose(evidence_by_counts(measured, N_CELLS, EDGES), expected, rtol=1e-10)


def test_hidden_expression_costs_a_parameter_a_gene_where_counts_act():
    measured = correlation(1.0)
    lost = evidence_by_counts(measured, N_CELLS, EDGES) - evidence_by_hidden(measured, N_CELLS, EDGES)
    np.testing.assert_allclose(lost, 0.5 * 6 * np.log(N_CELLS), rtol=0.05)


@pytest.mark.parametrize("reliability", [0.5, 0.8])
def test_hidden_expression_explains_siblings_of_a_parent_that_is_measured_with_noise(reliability):
    measured = correlation(reliability)
    by_hidden = evidence_by_hidden(measured, N_CELLS, EDGES)
    assert by_hidden > evidence_by_counts(measured, N_CELLS, EDGES) + 50
    best = -0.5 * N_CELLS * float(torch.logdet(measured) + 6) - 0.5 * (EDGES.sum() + 6) * np.log(N_CELLS)
    np.testing.assert_allclose(by_hidden, best, atol=1.0)  # the truth is among what is tried


def test_known_hidden_correlation_is_a_start():
    measured = correlation(0.6)
    found = [evidence_by_hidden(measured, N_CELLS, EDGES, start) for start in (None, correlation(1.0))]
    np.testing.assert_allclose(*found, atol=1.0)
