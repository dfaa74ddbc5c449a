"""Likelihood of counts given fitted values against a general optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from scgim.nn._likelihood import observation
from scgim.structure._count_fit import CountFit


def counts(seed: int, mean: float, r: float | None, n: int = 400) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    z, log_size, covariate = rng.normal(size=n), 0.3 * rng.normal(size=n), rng.integers(0, 2, n) - 0.5
    log_mean = np.log(mean) + 0.6 * z - 0.1 * z**2 + 0.4 * covariate + log_size
    rate = np.exp(log_mean) * (1.0 if r is None else rng.gamma(r, 1 / r, n))
    values = {"x": rng.poisson(rate), "log_size": log_size, "covariates": covariate[:, None], "fitted": 3 + 0.5 * z}
    return {name: torch.as_tensor(np.asarray(value, dtype=float)) for name, value in values.items()}


@pytest.mark.parametrize(("likelihood", "r"), [("nb", 2.0), ("nb", 0.5), ("poisson", None)])
@pytest.mark.parametrize("mean", [0.5, 20.0])
def test_log_likelihood_is_the_largest_there_is(likelihood, r, mean):
    data = counts(0, mean, r)
    fitted = data.pop("fitted")
    found = float(CountFit(**data, likelihood=likelihood).log_likelihood(fitted))
    z = (fitted - fitted.mean()) / fitted.std()
    columns = torch.stack([torch.ones_like(z), z, z.square(), data["covariates"][:, 0]], 1)

    def loss(values: np.ndarray) -> float:
        weights, log_scale = torch.as_tensor(values[:4]), torch.tensor(values[4])
        return -float(observation(likelihood, columns @ weights, data["log_size"], log_scale).log_prob(data["x"]).sum())

    best = minimize(loss, np.array([np.log(mean), 0, 0, 0, 0.5]), method="BFGS")
    assert found <= -best.fun + 1e-3
    assert found >= -best.fun - 0.05


def test_scale_and_place_of_fitted_values_do_not_matter():
    data = counts(1, 5.0, 2.0)
    fitted = data.pop("fitted")
    fit = CountFit(**data, likelihood="nb")
    torch.testing.assert_close(fit.log_likelihood(fitted), fit.log_likelihood(100 - 7 * fitted))


def test_gene_without_counts_is_certain():
    zeros = torch.zeros(50, dtype=torch.float64)
    fit = CountFit(zeros, zeros, zeros[:, None], "nb")
    assert -50 < float(fit.log_likelihood(torch.linspace(0, 1, 50, dtype=torch.float64))) <= 0
