"""Importance of features: the slope of what the generator expects, against finite differences and known maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.interventions._curves import CurveGrid
from scgim.interventions._generator import FeatureGenerator, fit_kernel
from scgim.interventions._interventions import Interventions
from scgim.interventions._sensitivity import feature_sensitivity

LOW, HIGH = 0.0, float(np.log(3.0))


def generator(features: np.ndarray, emax: np.ndarray) -> FeatureGenerator:
    one, none = torch.ones(emax.shape, dtype=torch.float64), torch.zeros(emax.shape, dtype=torch.float64)
    on = torch.as_tensor((emax != 0).any(0) * np.ones_like(emax))
    measured = Interventions(on, torch.as_tensor(emax), 0.05 * one, none, none, one)
    return FeatureGenerator(torch.as_tensor(features), measured, CurveGrid.over(LOW, HIGH), (LOW, HIGH))


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 3)) * np.array([1.0, 3.0, 0.2]) + 5.0


def expected(g: FeatureGenerator, x: torch.Tensor) -> torch.Tensor:
    """Effect at the largest dosage as the Gaussian processes expect it."""
    coefficients = torch.stack([fit.predict(g.kernel, g.kernel.standardise(x))[0] for fit in g.fits], 2)
    return coefficients @ g.basis[-1]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_slopes_are_those_of_finite_differences(features, share):
    emax = np.stack([np.sin(features[:, 0]), features[:, 1] / 3, np.zeros(len(features))], 1)
    g = generator(features, emax)
    outputs = torch.as_tensor(np.random.default_rng(1).normal(size=(40, 2)))
    x = torch.as_tensor(features)
    for a, fit in enumerate(g.fits):  # any mixture of kernels, not only the one that was chosen
        linear, radial = g.kernel.parts(g.kernel.features, fit.width)
        inverse = torch.linalg.inv((1 - share) * linear + share * radial + 0.1 * torch.eye(40))
        g.fits[a] = type(fit)(**{**vars(fit), "radial": share, "inverse": inverse, "dual": inverse @ outputs * (a + 1)})
    found = feature_sensitivity(g)
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[i] = 1e-5 * features[:, i].std()
        slope = (expected(g, x + step) - expected(g, x - step)).mean(0) / 2e-5
        np.testing.assert_allclose(found[i, :2], slope, rtol=1e-5, atol=1e-8)


def test_a_linear_map_is_read_off(features):
    slopes = np.array([[0.5, 0.0, 0.0], [0.0, -0.2, 0.0], [1.0, 1.0, 0.0]])
    emax = (features - features.mean(0)) @ slopes
    found = feature_sensitivity(generator(features, emax))
    # three quarters of the height are reached at the largest dosage
    np.testing.assert_allclose(found, 0.75 * slopes * features.std(0)[:, None], atol=0.01)
    assert (found[:, 2] == 0).all()


def test_a_constant_feature_has_no_importance(features):
    with_constant = np.column_stack([features, np.ones(len(features))])
    emax = np.column_stack([features[:, 0] - 5, features[:, 1] - 5])
    np.testing.assert_allclose(feature_sensitivity(generator(with_constant, emax))[3], 0.0, atol=1e-12)


def test_many_features_and_drugs_take_little_time():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 2048))
    g = generator(features, features[:, :2])
    assert feature_sensitivity(g).shape == (2048, 2)
    assert fit_kernel(g.kernel, torch.as_tensor(features[:, :2])).dual.shape == (60, 2)
