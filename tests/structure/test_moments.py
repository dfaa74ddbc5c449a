"""Moments of hidden expression, recovered from counts of a Poisson-lognormal world."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.structure._moments import MomentAccumulator

D, N = 4, 40_000
MEAN = np.array([1.0, 0.5, 2.0, 0.0])
COVARIANCE = np.array([[0.5, 0.3, 0, 0], [0.3, 0.6, -0.2, 0], [0, -0.2, 0.4, 0], [0, 0, 0, 0.3]])
SHIFT = np.array([0.0, 1.0, 0.0, -0.5])


@pytest.fixture(scope="module")
def counts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Counts (N, d), log size factors (N, 1) and contexts (N,): a control and one shift of the means."""
    rng = np.random.default_rng(0)
    context = np.repeat([0, 1], N // 2)
    z = rng.multivariate_normal(MEAN, COVARIANCE, N) + context[:, None] * SHIFT
    log_size = 0.4 * rng.normal(size=(N, 1))
    x = rng.poisson(np.exp(z + log_size))
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(log_size), torch.as_tensor(context)


def gather(counts, n_batches: int = 1):
    accumulator = MomentAccumulator(torch.tensor([-1, 0, 1]), D)  # the last context has no cells
    parts = torch.arange(N).split(-(-N // n_batches))
    for rows in parts:
        accumulator.add_means(*(t[rows] for t in counts))
    for rows in parts:
        accumulator.add_products(*(t[rows] for t in counts))
    return accumulator.finalise()


def test_hidden_moments_are_free_of_counting_noise(counts):
    found = gather(counts)
    spread = np.sqrt(np.diag(COVARIANCE))
    np.testing.assert_allclose(found.spread, spread, atol=0.04)
    np.testing.assert_allclose(found.centre, MEAN, atol=0.05)
    correlation = COVARIANCE / np.outer(spread, spread)
    np.testing.assert_allclose(found.statistics.gram / found.statistics.residual_dof, correlation, atol=0.05)


def test_what_is_measured_is_hidden_expression_and_counting_noise(counts):
    measured = gather(counts).measured
    # of a lognormal distribution, relative to its means
    np.testing.assert_allclose(measured.total - np.diag(measured.noise), np.exp(COVARIANCE) - 1, atol=0.08)
    x, log_size, _ = counts
    np.testing.assert_allclose(
        measured.noise[2], float((1 / (log_size.exp() * np.exp(MEAN[2] + 0.2))).mean()), rtol=0.05
    )


@pytest.mark.parametrize(("spread", "least", "most"), [(0.0, 0.95, 1.0), (1.0, 0.02, 0.8)])
def test_cells_of_odd_values_are_worth_less(spread, least, most):
    """Counts of a high mean are normal, and each cell is worth itself; products of lognormal values that go together vary more."""
    rng, n = np.random.default_rng(0), 4000
    z = spread * (rng.normal(size=(n, 1)) + 0.5 * rng.normal(size=(n, 6)))
    x = torch.as_tensor(rng.poisson(400 * np.exp(z)), dtype=torch.float32)
    accumulator = MomentAccumulator(torch.tensor([-1]), 6)
    for add in (accumulator.add_means, accumulator.add_products):
        add(x, torch.zeros(n, 1), torch.zeros(n, dtype=torch.long))
    assert least * (n - 1) <= accumulator.finalise().measured.n_cells <= most * (n - 1)


def test_means_are_standardised_by_controls(counts):
    found = gather(counts).statistics
    np.testing.assert_array_equal(found.observed, [True, True, False])
    np.testing.assert_array_equal(found.group, [-1, 0])
    np.testing.assert_allclose(found.means[0], 0, atol=1e-12)
    np.testing.assert_allclose(found.means[1], SHIFT / np.sqrt(np.diag(COVARIANCE)), atol=0.06)


def test_error_of_log_means_is_that_of_samples(counts):
    """Given no parents: small samples of the control cells, whose log means vary as they are said to."""
    x, log_size, _ = (t[: N // 2] for t in counts)
    n, rows = 100, torch.arange(N // 2)
    accumulator = MomentAccumulator(torch.tensor([-1, *range(N // 2 // n - 1)]), D)
    for add in (accumulator.add_means, accumulator.add_products):
        add(x, log_size, rows // n)
    found = accumulator.finalise()
    said = found.variance_of_means(found.spread.square())
    np.testing.assert_allclose(accumulator.means.log().var(0), said.mean(0), rtol=0.25)


def test_products_are_less_certain_than_the_number_of_cells_suggests(counts):
    found = gather(counts).statistics
    assert 0 < found.residual_dof < N
    assert (found.n_cells < N / 2).all()


def test_batches_change_nothing(counts):
    a, b = gather(counts), gather(counts, 7)
    np.testing.assert_allclose(a.statistics.gram, b.statistics.gram, rtol=1e-6)
    np.testing.assert_allclose(a.centre, b.centre, rtol=1e-6)


def test_counts_without_hidden_variation():
    """Plain Poisson counts: nothing is left but the floor, and the covariance stays positive definite."""
    rng = np.random.default_rng(1)
    x = torch.as_tensor(rng.poisson(3.0, (5000, D)), dtype=torch.float32)
    accumulator = MomentAccumulator(torch.tensor([-1]), D)
    cells = x, torch.zeros(5000, 1).double(), torch.zeros(5000, dtype=torch.long)
    accumulator.add_means(*cells)
    accumulator.add_products(*cells)
    found = accumulator.finalise()
    assert (found.spread < 0.2).all()
    assert torch.linalg.eigvalsh(found.statistics.gram).min() > 0
