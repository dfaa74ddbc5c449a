"""Size factors: found where cells differ in depth, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scgim._size_factors import common_variance, estimate_size_factors, total_counts


def counts(depth_sd: float, n_cells: int = 1500, n_genes: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.normal(-(depth_sd**2) / 2, depth_sd, n_cells))
    means = rng.uniform(2.0, 10.0, n_genes)
    return rng.poisson(depth[:, None] * means * rng.gamma(4.0, 0.25, (n_cells, n_genes))), depth


@pytest.mark.parametrize("depth_sd", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_variance_of_the_log_depth(depth_sd, form):
    x, _ = counts(depth_sd)
    np.testing.assert_allclose(common_variance(form(x)), depth_sd**2, atol=0.03)


def test_a_few_correlated_genes_are_not_depth():
    x, _ = counts(0.0)
    shared = np.random.default_rng(1).gamma(4.0, 0.25, len(x))
    x[:, :5] = np.random.default_rng(2).poisson(x[:, :5] * shared[:, None])
    assert common_variance(x) < 0.01


def test_totals_where_cells_differ_in_depth():
    x, depth = counts(0.5)
    size = estimate_size_factors(sparse.csr_matrix(x), np.ones(len(x), bool))
    np.testing.assert_allclose(size.mean(), 1.0)
    assert np.corrcoef(np.log(size), np.log(depth))[0, 1] > 0.9


def test_ones_where_they_do_not():
    x, _ = counts(0.0)
    np.testing.assert_array_equal(estimate_size_factors(x, np.ones(len(x), bool)), 1.0)


def test_controls_decide():
    """A drug that changes the totals is biology; the depth of control cells is not."""
    x, _ = counts(0.0)
    x[750:] *= np.random.default_rng(0).integers(1, 5, (750, 1))
    np.testing.assert_array_equal(estimate_size_factors(x, np.arange(len(x)) < 750), 1.0)


def test_too_little_to_tell():
    assert common_variance(np.ones((5, 10))) == 0.0
    assert common_variance(np.ones((100, 2))) == 0.0
    assert common_variance(np.zeros((100, 5))) == 0.0


def test_totals_are_positive():
    np.testing.assert_array_equal(total_counts(sparse.csr_matrix(np.array([[0, 0], [2, 3]]))), [1.0, 5.0])
