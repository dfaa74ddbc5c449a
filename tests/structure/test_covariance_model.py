"""Likelihood of a graph of hidden expression by the whole covariance of what is measured."""

import numpy as np
import pytest

from scgim.structure._covariance_model import CovarianceModel, MeasuredCovariance

N_CELLS = 2000.0


def implied(weights, variance, noise, loadings=None):
    """Covariance of what is measured of a linear network, factors of variance 1 added."""
    carried = np.linalg.inv(np.eye(len(weights)) - weights)
    own = np.diag(variance) + (0 if loadings is None else loadings.T @ loadings)
    return carried.T @ own @ carried + np.diag(noise)


@pytest.fixture
def network():
    """0 -> 1 -> 2, 0 -> 3, with the weights, variances and noise."""
    weights = np.zeros((4, 4))
    weights[0, 1], weights[1, 2], weights[0, 3] = 1.2, -0.8, 0.5
    return weights, np.array([0.5, 0.2, 0.3, 0.4]), np.array([0.8, 0.1, 0.4, 0.2])


def model_of(network):
    weights, variance, noise = network
    return CovarianceModel(MeasuredCovariance(implied(weights, variance, noise), noise, N_CELLS))


def test_fit_recovers_weights_and_variances(network):
    weights, variance, _ = network
    fit = model_of(network).first_fit(weights != 0, np.zeros((0, 4)))
    # a prior of precision 1 beside some hundreds of cells' worth
    np.testing.assert_allclose(fit.weights, weights, atol=0.02)
    np.testing.assert_allclose(np.exp(fit.log_var), variance, rtol=0.05)


def test_regressions_on_what_is_measured_would_fall_short(network):
    weights, _, noise = network
    total = implied(*network)
    naive = total[0, 1] / total[0, 0]
    assert naive == pytest.approx(1.2 * 0.5 / (0.5 + noise[0]))  # attenuated
    fit = model_of(network).first_fit(weights != 0, np.zeros((0, 4)))
    assert abs(fit.weights[0, 1] - 1.2) < 0.1 * abs(naive - 1.2)


def test_log_likelihood_is_that_of_a_normal_distribution(network):
    weights, variance, noise = network
    model = model_of(network)
    fit = model._implied(weights != 0, weights, np.log(variance))
    total = implied(weights, variance, noise)
    expected = -0.5 * N_CELLS * (np.linalg.slogdet(total)[1] + 4)
    assert fit.log_likelihood == pytest.approx(expected)


def test_gradient_agrees_with_differences(network):
    weights, variance, _ = network
    model, graph = model_of(network), weights != 0
    weights, log_var = 0.7 * weights, np.log(variance) + 0.2
    rows, columns = np.nonzero(graph)
    gradient = model._gradient(rows, columns, model._implied(graph, weights, log_var))
    step = 1e-5
    for k, (i, j) in enumerate(zip(rows, columns, strict=True)):
        up, down = weights.copy(), weights.copy()
        up[i, j] += step
        down[i, j] -= step
        slope = (
            model._implied(graph, up, log_var).log_likelihood - model._implied(graph, down, log_var).log_likelihood
        ) / (2 * step)
        assert gradient[k] == pytest.approx(slope, rel=1e-4, abs=1e-3)
    for j in range(4):
        up, down = log_var.copy(), log_var.copy()
        up[j] += step
        down[j] -= step
        slope = (
            model._implied(graph, weights, up).log_likelihood - model._implied(graph, weights, down).log_likelihood
        ) / (2 * step)
        assert gradient[len(rows) + j] == pytest.approx(slope, rel=1e-4, abs=1e-3)


def test_information_is_the_curvature_where_the_model_is_true(network):
    weights, variance, _ = network
    model, graph = model_of(network), weights != 0
    rows, columns = np.nonzero(graph)
    fit = model._implied(graph, weights, np.log(variance))
    information = model._information(rows, columns, fit)
    step = 1e-5
    for k, (i, j) in enumerate(zip(rows, columns, strict=True)):
        moved = weights.copy()
        moved[i, j] += step
        gradient = model._gradient(rows, columns, model._implied(graph, moved, np.log(variance)))
        np.testing.assert_allclose(-gradient / step, information[k], rtol=1e-3, atol=1e-3 * N_CELLS)


def test_tests_tell_what_another_fit_would(network):
    weights, _, _ = network
    model, graph, none = model_of(network), weights != 0, np.zeros((0, 4))
    whole = model.first_fit(graph, none)
    without = graph.copy()
    without[0, 3] = False
    less = model.first_fit(without, none)
    difference = whole.log_likelihood - less.log_likelihood
    assert model.gains(less)[0, 3] == pytest.approx(difference, rel=0.2)
    assert model.losses(whole)[0, 3] == pytest.approx(difference, rel=0.2)
    assert not model.losses(whole)[~graph].any()


def test_a_factor_is_found_and_pays(network):
    weights, variance, noise = network
    rng = np.random.default_rng(0)
    size = 12
    loadings = rng.uniform(0.2, 0.4, (1, size))
    total = implied(np.zeros((size, size)), np.full(size, 0.3), np.full(size, 0.2), loadings)
    measured, graph = MeasuredCovariance(total, np.full(size, 0.2), N_CELLS), np.zeros((size, size), bool)
    without = CovarianceModel(measured).first_fit(graph, np.zeros((0, size)))
    model = CovarianceModel(measured, 1)
    fit = model.first_fit(graph, CovarianceModel(measured).further_loadings(without))
    found = fit.weights[size:, :size]
    np.testing.assert_allclose(np.abs(found), loadings, atol=0.02)
    assert fit.log_likelihood - model.price_of_factors(fit) > without.log_likelihood + 50
    np.testing.assert_allclose(model.hidden_covariance(fit), np.diag(np.exp(fit.log_var[:size])), atol=1e-12)


def test_a_factor_does_not_pay_where_there_is_none():
    size = 12
    values = np.random.default_rng(1).normal(0, 1, (int(N_CELLS), size))
    measured, graph = MeasuredCovariance(np.cov(values.T), np.full(size, 0.3), N_CELLS), np.zeros((size, size), bool)
    without = CovarianceModel(measured).first_fit(graph, np.zeros((0, size)))
    model = CovarianceModel(measured, 1)
    fit = model.first_fit(graph, CovarianceModel(measured).further_loadings(without))
    assert fit.log_likelihood - model.price_of_factors(fit) < without.log_likelihood
