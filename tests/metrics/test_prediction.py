from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import rbf_kernel

from scgim.metrics import (
    distribution_metrics,
    energy_distance,
    mean_shift_correlation,
    mean_shift_error,
    mmd,
    r2_scores,
    wasserstein1,
)
from scgim.metrics._scale import ControlScale

rng = np.random.default_rng(0)
X, Y, CONTROL = rng.normal(size=(30, 4)), rng.normal(0.5, 1.5, size=(41, 4)), rng.normal(size=(25, 4))


def brute_force_energy(x, y):
    norm = np.linalg.norm
    between = np.mean([norm(a - b) for a in x for b in y])
    within = [np.mean([norm(z[i] - z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)]
    return 2 * between - sum(within)


def test_energy_distance_by_brute_force():
    assert energy_distance(X, Y) == pytest.approx(brute_force_energy(X, Y))


def test_energy_distance_by_hand():
    # Points 0 and 2 against 1 and 5: between (1 + 5 + 1 + 3) / 4, within 2 and 4.
    assert energy_distance([[0.0], [2.0]], [[1.0], [5.0]]) == pytest.approx(2 * 2.5 - 2 - 4)


def test_energy_distance_agrees_with_scipy_in_one_dimension():
    for gene in range(4):
        expected = stats.energy_distance(X[:, gene], Y[:, gene])
        assert energy_distance(X[:, [gene]], Y[:, [gene]], unbiased=False) == pytest.approx(expected**2)


def test_energy_distance_of_shifted_normals():
    # In one dimension E|X - Y| of normals at distance m is that of a folded normal.
    sample = np.random.default_rng(1).normal(size=(2, 4000, 1))
    m, sd = 2.0, np.sqrt(2)
    folded = sd * np.sqrt(2 / np.pi) * np.exp(-(m**2) / 4) + m * (1 - 2 * stats.norm.cdf(-m / sd))
    assert energy_distance(sample[0], sample[1] + m) == pytest.approx(2 * folded - 4 / np.sqrt(np.pi), abs=0.1)


@pytest.mark.parametrize("metric", [energy_distance, mmd])
def test_unbiased_distances_of_equal_distributions_are_zero_on_average(metric):
    values = [metric(*np.random.default_rng(seed).normal(size=(2, 20, 3))) for seed in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert min(values) < 0
    assert metric(X, X, unbiased=False) == pytest.approx(0, abs=1e-12)


def test_mmd_agrees_with_scikit_learn_kernels():
    n, m = len(X), len(Y)
    for gamma in (None, 0.7):
        k = rbf_kernel(np.concatenate([X, Y]), gamma=gamma or 1 / 8)
        xx, yy, xy = k[:n, :n], k[n:, n:], k[:n, n:]
        expected = (xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean()
        assert mmd(X, Y, gamma=gamma) == pytest.approx(expected)
        biased = xx.mean() + yy.mean() - 2 * xy.mean()
        assert mmd(X, Y, gamma=gamma, unbiased=False) == pytest.approx(biased)


def test_distances_in_blocks_are_the_same(monkeypatch):
    whole = energy_distance(X, Y), mmd(X, Y)
    monkeypatch.setattr("scgim.metrics._prediction._BLOCK_VALUES", 50)
    assert (energy_distance(X, Y), mmd(X, Y)) == pytest.approx(whole)


@pytest.mark.parametrize(("n", "m"), [(30, 41), (7, 21), (1, 5), (12, 12)])
def test_wasserstein_agrees_with_scipy(n, m):
    x, y = np.random.default_rng(n).normal(size=(n, 5)), np.random.default_rng(m).gamma(1, size=(m, 5))
    expected = [stats.wasserstein_distance(x[:, gene], y[:, gene]) for gene in range(5)]
    np.testing.assert_allclose(wasserstein1(x, y), expected)


def test_wasserstein_of_a_shift_is_the_shift():
    np.testing.assert_allclose(wasserstein1(X, X + [0.0, 1.0, -2.0, 0.5]), [0.0, 1.0, 2.0, 0.5])


def test_mean_shift_by_hand():
    observed, predicted, control = [[2.0, 0.0, 1.0]], [[1.0, 0.0, 3.0]], [[0.0, 0.0, 0.0]]
    assert mean_shift_error(observed, predicted) == pytest.approx((1 + 0 + 4) / 3)
    expected = np.corrcoef([2, 0, 1], [1, 0, 3])[0, 1]
    assert mean_shift_correlation(observed, predicted, control) == pytest.approx(expected)


def test_correlation_of_control_cells_with_a_shift_is_zero():
    assert mean_shift_correlation(X, CONTROL, CONTROL) == 0.0


def test_three_kinds_of_r2():
    true, predicted = X[:, 0], X[:, 0] * 0.5 + 0.1 * X[:, 1]
    found = r2_scores(true, predicted)
    assert found["pearson_r"] == pytest.approx(stats.pearsonr(true, predicted).statistic)
    assert found["pearson_r_squared"] == pytest.approx(found["pearson_r"] ** 2)
    assert found["coefficient_of_determination"] == pytest.approx(r2_score(true, predicted))
    assert np.isnan(r2_scores([1.0, 1.0], [1.0, 2.0])["coefficient_of_determination"])


def counts(n, scale=1.0, seed=0):
    return np.random.default_rng(seed).negative_binomial(3, 0.3 / scale, size=(n, 6)).astype(np.float32)


def test_distribution_metrics_are_those_of_standardised_log_counts():
    observed, predicted, control = counts(60, 1.2, 1), counts(50, 1.0, 2), counts(80, 1.1, 3)
    found = distribution_metrics(observed, predicted, control)
    log = np.log1p(control.astype(float))
    x, y, c = ((np.log1p(cells.astype(float)) - log.mean(0)) / log.std(0) for cells in (observed, predicted, control))
    assert found["energy_distance"] == pytest.approx(brute_force_energy(x, y))
    assert found["mmd"] == pytest.approx(mmd(x, y))
    assert found["wasserstein1"] == pytest.approx(wasserstein1(x, y).mean())
    assert found["mean_shift_error"] == pytest.approx(mean_shift_error(x, y))
    assert found["mean_shift_correlation"] == pytest.approx(mean_shift_correlation(x, y, c))
    assert found["mean_shift_determination"] == pytest.approx(r2_score(x.mean(0), y.mean(0)))


@pytest.mark.parametrize("convert", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, pd.DataFrame])
def test_matrix_types_give_the_same_numbers(convert):
    cells = counts(60, 1.2, 1), counts(50, 1.0, 2), counts(80, 1.1, 3)
    assert distribution_metrics(*map(convert, cells)) == pytest.approx(distribution_metrics(*cells))
    assert energy_distance(*map(convert, cells[:2])) == pytest.approx(energy_distance(*cells[:2]))


def test_cells_are_drawn_for_distances_and_all_used_for_means():
    observed, predicted, control = counts(500, 1.2, 1), counts(500, 1.0, 2), counts(500, 1.0, 3)
    all_cells = distribution_metrics(observed, predicted, control, max_cells=1000)
    some = distribution_metrics(observed, predicted, control, max_cells=100, seed=1)
    assert some["mean_shift_error"] == all_cells["mean_shift_error"]
    assert some["energy_distance"] != all_cells["energy_distance"]
    assert some["energy_distance"] == pytest.approx(all_cells["energy_distance"], abs=0.15)
    assert some == distribution_metrics(observed, predicted, control, max_cells=100, seed=1)


def test_scale_reads_blocks_and_leaves_constant_genes_unscaled(monkeypatch):
    control = counts(90)
    control[:, 2] = 4.0
    whole = ControlScale(control)
    standardised = whole.transform(control)
    np.testing.assert_allclose(standardised.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(standardised.std(0), [1, 1, 0, 1, 1, 1], atol=1e-12)
    other = counts(31, 1.3, 5)
    np.testing.assert_allclose(whole.mean(other), whole.transform(other).mean(0))
    np.testing.assert_allclose(whole.transform(other)[:, 2], np.log1p(other[:, 2]) - np.log(5), atol=1e-6)
    monkeypatch.setattr("scgim._validation._matrix._BLOCK_VALUES", 20)
    for convert in (np.asarray, sparse.csr_matrix, sparse.csc_matrix):
        np.testing.assert_allclose(ControlScale(convert(control)).transform(control), standardised, atol=1e-12)


def test_continuous_data_need_no_logarithm():
    found = distribution_metrics(X, Y, CONTROL, log1p=False)
    c = CONTROL
    expected = mean_shift_error((X - c.mean(0)) / c.std(0), (Y - c.mean(0)) / c.std(0))
    assert found["mean_shift_error"] == pytest.approx(expected)


def test_wrong_input():
    with pytest.raises(ValueError, match="`observed` has 4 genes and `predicted` 3"):
        energy_distance(X, Y[:, :3])
    with pytest.raises(ValueError, match="at least two cells on either side, found 1 and 41"):
        mmd(X[:1], Y)
    with pytest.raises(ValueError, match="Expected `predicted` as cells x genes"):
        wasserstein1(X, Y[0])
    with pytest.raises(ValueError, match="have 4, 4 and 2 genes"):
        distribution_metrics(X, Y, CONTROL[:, :2])
    with pytest.raises(ValueError, match="3 values and `predicted` 2"):
        r2_scores([1, 2, 3], [1, 2])
