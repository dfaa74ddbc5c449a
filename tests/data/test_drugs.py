from __future__ import annotations

import numpy as np
import pytest

from scgim.data._drugs import drug_features, random_drugs

RANGES = {"emax": (0.6, 1.6), "ec50": (0.5, 1.5), "hill": (1.0, 4.0)}
DOSES = np.array([0.5, 1.0, 2.0])


def library(n_drugs, n_genes=12, seed=0):
    return random_drugs(n_drugs, n_genes, max_targets=3, rng=np.random.default_rng(seed), **RANGES)


def features(drugs, n_features, *, n_train=20, noise=0.0, kind="linear"):
    rng = np.random.default_rng(5)
    return drug_features(drugs, DOSES, n_train=n_train, n_features=n_features, noise=noise, kind=kind, rng=rng)


def test_drugs_have_one_to_three_targets_and_effects_only_there():
    drugs = library(200)
    assert set(drugs.targets.sum(1)) == {1, 2, 3}
    assert ((drugs.emax != 0) == drugs.targets).all()
    sizes = np.abs(drugs.emax[drugs.targets])
    assert sizes.min() >= 0.6
    assert sizes.max() <= 1.6


def test_hill_curve():
    drugs = library(5)
    every = np.arange(5)
    np.testing.assert_array_equal(drugs.shift(every, np.zeros(5)), np.zeros((5, 12)))
    np.testing.assert_allclose(drugs.shift(every, np.full(5, 1e9)), drugs.emax, rtol=1e-6)
    drugs.ec50[:] = 0.7
    np.testing.assert_allclose(drugs.shift(every, np.full(5, 0.7)), drugs.emax / 2)
    c, n = 1.3, drugs.hill
    np.testing.assert_allclose(drugs.shift(every, np.full(5, c)), drugs.emax * c**n / (0.7**n + c**n))


def test_longer_library_begins_with_the_shorter_one():
    short, long = library(5), library(9)
    for name in ("targets", "emax", "ec50", "hill"):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[:5])


@pytest.mark.parametrize("n_features", [5, 19, 200])
def test_features_have_the_width_and_scale_asked_for(n_features):
    values = features(library(25), n_features)
    assert values.shape == (25, n_features)
    assert values[:20].std() == pytest.approx(1)


def test_linear_features_determine_the_effects_of_training_drugs():
    drugs = library(20)
    effects = np.concatenate([drugs.shift(np.arange(20), np.full(20, dose)) for dose in DOSES], axis=1)
    for n_features in (19, 200):  # 20 drugs span at most 19 directions around their mean
        X = np.column_stack([features(drugs, n_features), np.ones(20)])
        residual = effects - X @ np.linalg.lstsq(X, effects, rcond=None)[0]
        np.testing.assert_allclose(residual, 0, atol=1e-8)


def test_nonlinear_features_are_a_nonlinear_function_of_the_linear_ones():
    drugs = library(60)
    linear, bent = features(drugs, 8, n_train=60), features(drugs, 8, n_train=60, kind="nonlinear")
    X = np.column_stack([linear, np.ones(60)])
    residual = bent - X @ np.linalg.lstsq(X, bent, rcond=None)[0]
    assert 0.02 < residual.var() / bent.var() < 0.9


def test_noise_has_the_standard_deviation_asked_for():
    drugs = library(300)
    difference = features(drugs, 10, noise=0.5) - features(drugs, 10)
    assert difference.std() == pytest.approx(0.5, rel=0.05)
