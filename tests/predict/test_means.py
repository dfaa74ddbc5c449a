"""Means of draws: contrasts with controls, errors of baselines, and what treated cells are worth, in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from scgim.module import GIMModule
from scgim.predict._means import MIN_MEAN, Draws, _contrasts, baseline_errors, cells_without_effect

N_DRAWS, D = 50, 3


def module_of(likelihood: str, measurement: str = "direct") -> GIMModule:
    module = GIMModule(
        D, np.array([-1, 0, 0, 1]), np.log([1.0, 1, 2, 1]), 0, likelihood, "linear", "shift", 3, measurement
    )
    with torch.no_grad():
        module.intercept.copy_(torch.tensor([2.0, 1.0, 0.0]))
        module.log_scale.copy_(torch.tensor([1.0, 2.0, 0.5]))
    module.spread.copy_(torch.tensor([0.5, 2.0, 4.0]))
    return module


@pytest.fixture
def means() -> torch.Tensor:
    """Means of two arms and the control, (draws, 3, d)."""
    rng = np.random.default_rng(0)
    return torch.as_tensor(np.exp(rng.normal(1.0, 0.3, (N_DRAWS, 3, D))))


def test_effects_of_counts_are_log_fold_changes(means):
    direct = torch.randn(N_DRAWS, 2, D)
    found = _contrasts(module_of("nb"), means, torch.zeros_like(means), direct)
    np.testing.assert_allclose(found.mean, means[:, :2], rtol=1e-5)
    np.testing.assert_allclose(found.effect, (means[:, :2] / means[:, 2:]).log(), atol=1e-5)
    assert found.direct is direct


def test_genes_that_are_never_seen_have_no_effect():
    nothing = torch.zeros(N_DRAWS, 3, D).double()
    found = _contrasts(module_of("nb"), nothing, nothing, nothing[:, :2])
    np.testing.assert_allclose(found.mean, MIN_MEAN)
    np.testing.assert_array_equal(found.effect, 0.0)


def test_effects_of_continuous_values_are_in_control_standard_deviations(means):
    module = module_of("normal")
    found = _contrasts(module, means, torch.zeros_like(means), means[:, :2])
    np.testing.assert_allclose(found.mean, means[:, :2], rtol=1e-6)
    np.testing.assert_allclose(found.effect, (means[:, :2] - means[:, 2:]) / module.spread.double(), atol=1e-6)


def shrunk(draws: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
    """Draws around their mean, their variance less that of the noise, plus the noise of that mean."""
    draws, noise = draws.numpy(), noise.numpy().mean(0)
    centre, total = draws.mean(0), draws.var(0, ddof=1)
    kept = np.clip(1 - noise / total, 0.0, None) + noise / total / N_DRAWS
    return centre + (draws - centre) * np.sqrt(np.minimum(kept, 1.0))


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_the_noise_of_finite_samples_is_that_of_arm_and_control(means, likelihood):
    """On the scale of the effect, a tenth of the variance of the draws in the arms and a fifth in controls."""
    module, share = module_of(likelihood), torch.tensor([0.1, 0.1, 0.2])[:, None].double()
    if likelihood == "nb":
        scaled, factor = (means + MIN_MEAN).log(), means + MIN_MEAN
    else:
        scaled, factor = means / module.spread.double(), module.spread.double()
    noise = (share * scaled.var(0)).expand(means.shape)
    found = _contrasts(module, means, noise * factor.square(), torch.zeros_like(means[:, :2]))
    expected = shrunk(scaled[:, :2] - scaled[:, 2:], noise[:, :2] + noise[:, 2:])
    np.testing.assert_allclose(found.effect, expected, rtol=1e-5, atol=1e-7)
    of_arms = shrunk(scaled[:, :2], noise[:, :2])
    np.testing.assert_allclose(
        found.mean, np.exp(of_arms) if likelihood == "nb" else of_arms * factor.numpy(), rtol=1e-5
    )


def drugs_of(n_cells: list[int]) -> SimpleNamespace:
    return SimpleNamespace(n_cells=pd.Series(n_cells))


def sampler_of(module: GIMModule, rate: list[float], n_controls: int = 80) -> SimpleNamespace:
    """A sampler whose control cells have given means."""
    mean = torch.tensor([rate]).double()
    return SimpleNamespace(
        of_pool=False,
        module=module,
        genes=["a", "b", "c"],
        pool={"log_size": np.zeros(n_controls)},
        is_continuous=module.likelihood == "normal",
        means=lambda shift, targets, n, rng: (mean, 0 * mean),
    )


@pytest.mark.parametrize(
    ("likelihood", "measurement", "overdispersed"),
    [("nb", "direct", 1), ("poisson", "direct", 0), ("poisson", "latent", 1), ("normal", "direct", 1)],
)
def test_errors_of_baselines(likelihood, measurement, overdispersed):
    """Variance of one cell over the number of those that tell; for hidden expression, of controls alone."""
    module, rate = module_of(likelihood, measurement), [8.0, 2.0, 0.5]
    module.knowledge.prior.copy_(torch.tensor([0.1, 1.0, 0.05]))
    module.knowledge.target_probs.copy_(torch.tensor([[0.0, 1.0, 0.3], [0.0, 0.0, 1.0]]))
    variance = overdispersed * np.exp([-1.0, -2.0, -0.5])
    if likelihood != "normal":
        variance = variance + 1 / np.array(rate)
    found = baseline_errors(sampler_of(module, rate), drugs_of([40, 10]), torch.Generator())
    # of two contexts with twenty cells each and of one with ten
    worth = np.array([n / (1 + n / k * 0.05 / variance) for n, k in ((40, 2), (10, 1))])
    told = (np.array([[1.0, 0.0, 0.7], [1.0, 1.0, 0.0]]) * worth).sum(0) * (measurement != "latent")
    np.testing.assert_allclose(found, np.sqrt(variance / (80 + told)), rtol=1e-6)
    if measurement != "latent":
        of_treated = cells_without_effect(module, drugs_of([40, 10]), torch.as_tensor(variance))
        np.testing.assert_allclose(of_treated, told, rtol=1e-6)


@pytest.mark.parametrize(("n", "n_samples", "name"), [(1, 5, "n_draws"), (5, 1, "n_samples")])
def test_spread_needs_two_of_each(n, n_samples, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 2, found 1"):
        Draws(n, n_samples, 0).check()
    Draws(2, 2, 0).check()
