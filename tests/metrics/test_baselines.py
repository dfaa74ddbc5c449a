from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from scgim.metrics import _baselines
from scgim.metrics._baselines import Contexts

DRUGS = ["a", "b"]
TRAIN = Contexts(
    drug=np.array(["a", "a", "a", "b"]),
    dosage=np.array([0.1, 1.0, 10.0, 1.0]),
    features=np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]),
    shift=np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [0.0, 3.0]]),
)


def contexts(drug, dosage, features=None) -> Contexts:
    features = np.zeros((len(drug), 2)) if features is None else np.asarray(features, dtype=float)
    return Contexts(np.array(drug), np.array(dosage, dtype=float), features, np.full((len(drug), 2), np.nan))


def linear_world(n_drugs=40, seed=0, noise=0.0) -> Contexts:
    """Shifts that are linear in the features, times the dose."""
    rng = np.random.default_rng(seed)
    drug = np.repeat(np.arange(n_drugs), 3)
    dosage = np.tile([0.5, 1.0, 2.0], n_drugs)
    features = rng.normal(size=(n_drugs, 5))[drug]
    shift = features @ np.random.default_rng(99).normal(size=(5, 3)) * dosage[:, None]
    return Contexts(drug, dosage, features, shift + noise * rng.normal(size=shift.shape))


def test_control_and_trainmean():
    test = contexts(["c", "a"], [1.0, 5.0])
    np.testing.assert_array_equal(_baselines.control(TRAIN, test), np.zeros((2, 2)))
    np.testing.assert_array_equal(_baselines.trainmean(TRAIN, test), [[1.75, 0.75], [1.75, 0.75]])


def test_dosemean_interpolates_each_drug_in_log_dose():
    test = contexts(["c", "a", "c", "c", "c"], [1.0, 1.0, 10**0.5, 100.0, 0.01])
    # Drug a is at 1, 2, 4 in the first gene at doses 0.1, 1, 10; b has one dose, and contributes it everywhere.
    expected = [[1.0, 1.5], [1.0, 1.5], [1.5, 1.5], [2.0, 1.5], [0.5, 1.5]]
    found = _baselines.dosemean(TRAIN, test)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(found[0], found[1])


def test_dosemean_does_not_depend_on_the_order_of_contexts_or_the_unit_of_dose():
    train = linear_world(noise=1.0)
    test = contexts(np.arange(4), [0.3, 0.7, 1.5, 9.0])
    expected = _baselines.dosemean(train, test)
    order = np.random.default_rng(0).permutation(len(train.drug))
    mixed = Contexts(train.drug[order], 1000 * train.dosage[order], train.features[order], train.shift[order])
    found = _baselines.dosemean(mixed, contexts(np.arange(4), [300.0, 700.0, 1500.0, 9000.0]))
    np.testing.assert_allclose(found, expected)


def test_dosemean_is_the_mean_at_measured_doses_and_trainmean_with_one_dose():
    train = linear_world(noise=1.0)
    for dose in (0.5, 1.0, 2.0):
        found = _baselines.dosemean(train, contexts(["new"], [dose]))[0]
        np.testing.assert_allclose(found, train.shift[train.dosage == dose].mean(axis=0))
    one = train.dosage == 1.0
    single = Contexts(train.drug[one], train.dosage[one], train.features[one], train.shift[one])
    test = contexts([0, 1], [1.0, 1.0])
    np.testing.assert_allclose(_baselines.dosemean(single, test), _baselines.trainmean(single, test))


def test_drugmean_is_over_the_doses_of_the_drug():
    test = contexts(["a", "c", "b"], [5.0, 1.0, 0.1])
    expected = [[7 / 3, 0.0], [np.nan, np.nan], [0.0, 3.0]]
    np.testing.assert_allclose(_baselines.drugmean(TRAIN, test), expected)


def test_order_of_baselines():
    expected = "control trainmean dosemean drugmean nearest_dose nearest_drug ridge krr random_forest"
    assert list(_baselines.BASELINES) == expected.split()


def test_nearest_dose_on_the_log_scale_with_ties_and_unmeasured_drugs():
    test = contexts(["a", "a", "a", "b", "c"], [0.2, 100.0, np.sqrt(10), 7.0, 1.0])
    expected = [[1.0, 0.0], [4.0, 0.0], [3.0, 0.0], [0.0, 3.0], [np.nan, np.nan]]
    np.testing.assert_allclose(_baselines.nearest_dose(TRAIN, test), expected)


def test_nearest_drug_is_another_drug_at_its_nearest_dose():
    test = contexts(["c", "c", "a"], [8.0, 8.0, 1.0], [[0.1, 0.2], [0.8, 1.5], [0.0, 0.0]])
    np.testing.assert_allclose(_baselines.nearest_drug(TRAIN, test), [[4.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    only_one = Contexts(TRAIN.drug[:3], TRAIN.dosage[:3], TRAIN.features[:3], TRAIN.shift[:3])
    assert np.isnan(_baselines.nearest_drug(only_one, contexts(["a"], [5.0]))).all()


@pytest.mark.parametrize(("method", "error"), [("ridge", 0.001), ("krr", 0.05)])
def test_regressions_learn_what_is_linear_in_features_times_dose(method, error):
    train, test = linear_world(), linear_world(n_drugs=15, seed=1)
    predicted = _baselines.BASELINES[method](train, test)
    assert ((predicted - test.shift) ** 2).mean() < error * (test.shift**2).mean()


def test_random_forest_learns_doses_of_measured_drugs():
    train = linear_world(noise=0.1)
    predicted = _baselines.random_forest(train, train)
    assert predicted.shape == train.shift.shape
    assert ((predicted - train.shift) ** 2).mean() < 0.1 * train.shift.var()
    np.testing.assert_array_equal(predicted, _baselines.random_forest(train, train))


@pytest.mark.parametrize("method", ["ridge", "krr"])
def test_features_without_information_are_shrunk_to_the_mean(method):
    rng = np.random.default_rng(3)
    drug = np.repeat(np.arange(40), 3)
    train = Contexts(drug, np.tile([0.5, 1.0, 2.0], 40), rng.normal(size=(40, 5))[drug], rng.normal(size=(120, 3)) + 2)
    predicted = _baselines.BASELINES[method](train, linear_world(n_drugs=10, seed=5))
    assert np.abs(predicted - train.shift.mean(0)).mean() < 0.4


def test_ridge_is_scikit_learns_at_the_penalty_chosen(monkeypatch):
    monkeypatch.setattr(_baselines, "_ALPHAS", np.array([0.2]))  # a column
    train, test = linear_world(noise=1.0), linear_world(n_drugs=6, seed=2)

    def design(c):
        f, dose = c.features, c.dosage[:, None]
        return np.hstack([f, f * dose, f * dose**2, dose, dose**2])

    # Features are centred by column and divided by one number before they are multiplied by the dose.
    centre = train.features.mean(0)
    spread = (train.features - centre).std()
    for c in (train, test):
        c.features = (c.features - centre) / spread
    candidates = []
    for with_std in (True, False):
        scaler = StandardScaler(with_std=with_std).fit(design(train))
        fitted = Ridge(alpha=0.2 * 17).fit(scaler.transform(design(train)), train.shift)
        candidates.append(fitted.predict(scaler.transform(design(test))))
    found = _baselines.ridge(train, test)
    assert any(np.allclose(found, candidate) for candidate in candidates)


@pytest.mark.parametrize("method", ["ridge", "krr"])
def test_doses_over_decades_are_used_as_logarithms(method):
    rng = np.random.default_rng(0)
    drug, dosage = np.repeat(np.arange(30), 3), np.tile([0.1, 1.0, 10.0], 30)
    features = rng.normal(size=(30, 2))[drug]
    train = Contexts(drug, dosage, features, (features[:, :1] + 1) * np.log10(10 * dosage)[:, None])
    unseen = np.full(30, 100.0)
    predicted = _baselines.BASELINES[method](train, contexts(np.arange(30), unseen, features[::3]))
    expected = 3 * (features[::3, :1] + 1)
    assert np.corrcoef(predicted.ravel(), expected.ravel())[0, 1] > 0.95
    assert np.abs(predicted).max() < 1.5 * np.abs(expected).max()


@pytest.mark.parametrize("method", sorted(_baselines.BASELINES))
def test_one_drug_and_one_gene(method):
    train = Contexts(np.array(["a", "a"]), np.array([1.0, 2.0]), np.ones((2, 3)), np.array([[1.0], [2.0]]))
    predicted = _baselines.BASELINES[method](
        train, Contexts(np.array(["a"]), np.array([1.5]), np.ones((1, 3)), np.zeros((1, 1)))
    )
    assert predicted.shape == (1, 1)
    assert np.isnan(predicted).all() == (method == "nearest_drug")
