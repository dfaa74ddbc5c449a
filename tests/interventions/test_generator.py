"""The generator learns a map from features to effects where there is one, and shrinks to the mean where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.interventions._curves import CurveGrid
from scgim.interventions._generator import _LEVEL, DrugKernel, FeatureGenerator, fit_kernel
from scgim.interventions._interventions import Interventions

N_DRUGS, N_NEW, N_FEATURES, N_GENES = 40, 30, 4, 10
LOW, HIGH = np.log(0.5), np.log(4.0)
RESPONSIVE = 6  # the first genes follow the features, no drug acts on the others


def measured(emax: np.ndarray, target_probs: np.ndarray | None = None) -> Interventions:
    values = {
        "target_probs": np.broadcast_to(np.arange(N_GENES) < RESPONSIVE, emax.shape)
        if target_probs is None
        else target_probs,
        "emax": emax,
        "emax_sd": np.full(emax.shape, 0.05),
        "log_ec50": np.zeros(emax.shape),
        "log_ec50_sd": np.full(emax.shape, 0.1),
        "hill": np.full(emax.shape, 1.5),
    }
    return Interventions(*(torch.as_tensor(np.asarray(v, dtype=float)) for v in values.values()))


@pytest.fixture(scope="module")
def linear_map():
    """Features and heights, linear in them, of measured and of new drugs."""
    rng = np.random.default_rng(0)
    features = 3.0 * rng.normal(size=(N_DRUGS + N_NEW, N_FEATURES)) + 5.0
    slopes = rng.normal(size=(N_FEATURES, N_GENES)) / 3 * (np.arange(N_GENES) < RESPONSIVE)
    emax = (features - 5.0) @ slopes / 2 + 0.4 * (np.arange(N_GENES) < RESPONSIVE)
    return features[:N_DRUGS], emax[:N_DRUGS], features[N_DRUGS:], emax[N_DRUGS:]


def generator(features: np.ndarray, interventions: Interventions) -> FeatureGenerator:
    return FeatureGenerator(torch.as_tensor(features), interventions, CurveGrid.over(LOW, HIGH), (LOW, HIGH))


def effects(interventions: Interventions, dosage: float = 2.0) -> np.ndarray:
    return interventions.mean(torch.full((len(interventions.emax),), np.log(dosage)).double()).numpy()


def test_a_linear_map_is_recovered(linear_map):
    features, emax, new, truth = linear_map
    predicted = generator(features, measured(emax))(torch.as_tensor(new))
    for dosage in (0.7, 2.0):
        expected = effects(measured(truth), dosage)
        error = ((effects(predicted, dosage) - expected) ** 2).mean()
        assert error < 0.03 * (expected**2).mean()
    assert (predicted.target_probs[:, RESPONSIVE:] == 0).all()


def test_predictions_shrink_to_the_mean_where_features_tell_nothing(linear_map):
    features, emax, new, truth = linear_map
    shuffled = features[np.random.default_rng(1).permutation(N_DRUGS)]
    predicted = effects(generator(shuffled, measured(emax))(torch.as_tensor(new)))
    observed, expected = effects(measured(emax)), effects(measured(truth))
    assert (predicted.std(0)[:RESPONSIVE] < 0.3 * observed.std(0)[:RESPONSIVE]).all()
    of_mean = ((observed.mean(0) - expected) ** 2).mean()
    assert ((predicted - expected) ** 2).mean() < 1.1 * of_mean


def test_uncertainty_grows_away_from_the_measured_drugs(linear_map):
    features, emax, *_ = linear_map
    g = generator(features, measured(emax))
    direction = np.random.default_rng(3).normal(size=N_FEATURES)
    far = torch.as_tensor(features.mean(0) + np.array([[0.0], [3.0], [30.0]]) * direction)
    predicted = g(far)
    sd = predicted.emax_sd[:, :RESPONSIVE].mean(1)
    assert sd[0] < sd[1] < sd[2]
    assert torch.isfinite(predicted.emax).all()


def test_features_are_standardised(linear_map):
    """Shifting all features and scaling them together changes nothing."""
    features, emax, new, _ = linear_map
    a = effects(generator(features, measured(emax))(torch.as_tensor(new)))
    b = effects(generator(1e4 + 100 * features, measured(emax))(torch.as_tensor(1e4 + 100 * new)))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_sparse_targets_stay_sparse():
    """Drugs of two classes that act on one gene each: a new drug gets the target of its class."""
    rng = np.random.default_rng(0)
    classes = rng.integers(2, size=N_DRUGS + N_NEW)
    features = np.eye(2)[classes] + 0.05 * rng.normal(size=(N_DRUGS + N_NEW, 2))
    on = np.zeros((N_DRUGS + N_NEW, N_GENES))
    on[np.arange(len(on)), classes] = 1.0
    emax = on * np.where(classes == 0, 1.5, -1.5)[:, None]
    predicted = generator(features[:N_DRUGS], measured(emax[:N_DRUGS], on[:N_DRUGS]))(
        torch.as_tensor(features[N_DRUGS:])
    )
    np.testing.assert_array_equal(predicted.target_probs.numpy() > 0.5, on[N_DRUGS:] > 0)
    np.testing.assert_allclose(predicted.emax.numpy()[on[N_DRUGS:] > 0], emax[N_DRUGS:][on[N_DRUGS:] > 0], atol=0.3)


def test_kernel_ridge_leaves_one_out_in_closed_form(linear_map):
    features, emax, *_ = linear_map
    kernel = DrugKernel(torch.as_tensor(features))
    outputs = emax - emax.mean(0)
    fit = fit_kernel(kernel, torch.as_tensor(outputs))
    linear, radial = kernel.parts(kernel.features, fit.width)
    K = ((1 - fit.radial) * linear + fit.radial * radial).numpy() + _LEVEL
    refitted = np.empty_like(outputs)
    for u in range(N_DRUGS):
        rest = np.delete(np.arange(N_DRUGS), u)
        refitted[u] = K[u, rest] @ np.linalg.solve(
            K[np.ix_(rest, rest)] + fit.noise * np.eye(N_DRUGS - 1), outputs[rest]
        )
    np.testing.assert_allclose(fit.loss, ((refitted - outputs) ** 2).sum(), rtol=1e-6)
    left_out, scale = fit.left_out()
    np.testing.assert_allclose(left_out, refitted, atol=1e-6)
    np.testing.assert_allclose(scale.mean(), 1.0)
    mean, variance = fit.predict(kernel, kernel.features[:3])
    np.testing.assert_allclose(
        mean, K[:3] @ np.linalg.solve(K + fit.noise * np.eye(N_DRUGS), outputs), rtol=1e-6, atol=1e-8
    )
    assert (variance > 0).all()


def test_a_screen_without_targets(linear_map):
    features, emax, new, _ = linear_map
    predicted = generator(features, measured(0 * emax, np.full(emax.shape, 0.001)))(torch.as_tensor(new))
    assert (effects(predicted) == 0).all()
    assert (predicted.target_probs == 0).all()


@pytest.mark.parametrize("n_drugs", [1, 2])
def test_few_drugs(linear_map, n_drugs):
    features, emax, new, _ = linear_map
    predicted = generator(features[:n_drugs], measured(emax[:n_drugs]))(torch.as_tensor(new))
    assert np.isfinite(effects(predicted)).all()
    assert np.abs(effects(predicted)).max() < 3 * np.abs(emax[:n_drugs]).max()


def test_identical_drugs(linear_map):
    features, emax, *_ = linear_map
    features = np.repeat(features[:2], 5, axis=0)
    predicted = generator(features, measured(np.repeat(emax[:2], 5, axis=0)))(torch.as_tensor(features[[0, 5]]))
    assert np.isfinite(effects(predicted)).all()


def test_screen_without_doses(linear_map):
    features, emax, new, truth = linear_map
    flat = FeatureGenerator(torch.as_tensor(features), measured(emax), CurveGrid.flat(), (0.0, 0.0))
    predicted = flat(torch.as_tensor(new))
    truth_effects = effects(measured(truth), 1.0)
    assert ((effects(predicted, 1.0) - truth_effects) ** 2).mean() < 0.05 * (truth_effects**2).mean()
    np.testing.assert_allclose(effects(predicted, 0.1), effects(predicted, 10.0))


def test_a_sample_of_many_drugs_chooses_the_kernel_for_all(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 5))
    outputs = features @ rng.normal(size=(5, 3)) + 0.1 * rng.normal(size=(400, 3))
    kernel = DrugKernel(torch.as_tensor(features[:300]))
    whole = fit_kernel(kernel, torch.as_tensor(outputs[:300]))
    monkeypatch.setattr("scgim.interventions._generator._MAX_CHOOSING", 100)
    sampled = fit_kernel(kernel, torch.as_tensor(outputs[:300]))
    assert sampled.dual.shape == (300, 3)
    new = kernel.standardise(torch.as_tensor(features[300:]))
    error = [
        float((fit.predict(kernel, new)[0] - torch.as_tensor(outputs[300:])).square().mean())
        for fit in (whole, sampled)
    ]
    assert error[1] < 1.2 * error[0] < 0.05
