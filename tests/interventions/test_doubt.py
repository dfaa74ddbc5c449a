"""How far the generator is trusted: folds, comparison at the largest dosage, and bends of measured curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scgim.interventions._doubt as module
from scgim.interventions._curves import CurveGrid
from scgim.interventions._doubt import Doubt, estimate_doubt, variance_inflation
from scgim.interventions._interventions import Interventions

GRID, RANGE = CurveGrid.over(0.0, 1.0), (0.0, 1.0)


def interventions(n: int, **values) -> Interventions:
    """Drugs that act alike, but for what is given."""
    usual = {"target_probs": 1.0, "emax": 0.0, "emax_sd": 0.1, "log_ec50": 0.5, "log_ec50_sd": 0.0, "exponent": 2.0}
    fields = {**usual, **values}.values()
    return Interventions(*(torch.as_tensor(v, dtype=torch.float64).expand(n, 2).clone() for v in fields))


class Predicts:
    """A generator that predicts an effect of 1 of all drugs, and notes which drugs it was fitted to and asked for."""

    log: list[tuple[list[int], list[int]]] = []

    def __init__(self, features, measured, shapes, log_dosages):
        self.fitted = features[:, 0].int().tolist()
        assert (shapes, log_dosages) == (GRID, RANGE)
        np.testing.assert_array_equal(measured.emax[:, 0], features[:, 0])

    def __call__(self, features):
        Predicts.log.append((self.fitted, features[:, 0].int().tolist()))
        return interventions(len(features), emax=1.0)


@pytest.fixture
def folds(monkeypatch):
    """Which drugs were left in and out for n drugs; their first feature and their effects are their numbers."""

    def run(n: int) -> list[tuple[list[int], list[int]]]:
        monkeypatch.setattr(module, "FeatureGenerator", Predicts)
        Predicts.log = []
        numbers = torch.arange(n).double()[:, None]
        estimate_doubt(numbers, interventions(n, emax=numbers), GRID, RANGE)
        return Predicts.log

    return run


@pytest.mark.parametrize(("n", "n_folds"), [(3, 3), (40, 10), (41, 5), (500, 5)])
def test_each_drug_is_left_out_once(folds, n, n_folds):
    found = folds(n)
    assert len(found) == n_folds
    assert sorted(drug for _, out in found for drug in out) == list(range(n))
    assert all(sorted(rest + out) == list(range(n)) for rest, out in found)


def test_of_very_many_drugs_a_hundred_are_left_out(folds):
    [(rest, out)] = folds(501)
    assert (len(rest), len(out)) == (401, 100)


def test_two_drugs_tell_nothing(folds):
    assert folds(2) == []


def test_predictions_are_compared_with_what_was_measured_of_the_same_drugs(monkeypatch):
    monkeypatch.setattr(module, "FeatureGenerator", Predicts)
    numbers = torch.arange(12).double()[:, None]
    measured = interventions(12, emax=numbers)
    found = estimate_doubt(numbers, measured, GRID, RANGE)
    assert found.inflation == variance_inflation(interventions(12, emax=1.0), measured, 1.0)


@pytest.mark.parametrize("log_dosage", [0.5, 2.0])
def test_inflation_is_the_mode_of_its_posterior(log_dosage):
    """Effects at a dosage are normal around the prediction; genes count by how likely both call them targets."""
    rng = np.random.default_rng(0)
    say, p, q = 1.0 + 0 * rng.normal(size=(30, 2)), rng.uniform(size=(30, 2)), rng.uniform(size=(30, 2))
    seen = say + 0.8 * rng.normal(size=(30, 2))
    predicted = interventions(30, emax=say, target_probs=p, emax_sd=0.3)
    measured = interventions(30, emax=seen, target_probs=q, emax_sd=0.2, log_ec50=0.3, exponent=1.5)
    curve, other = 1 / (1 + np.exp(-2 * (log_dosage - 0.5))), 1 / (1 + np.exp(-1.5 * (log_dosage - 0.3)))
    factors = np.linspace(0, 5, 101)
    score = []
    for f in factors:
        total = np.exp(f) * (0.3 * curve) ** 2 + (0.2 * other) ** 2 + 1e-6
        fit = -0.5 * (p * q * ((seen * other - say * curve) ** 2 / total + np.log(total))).sum()
        score.append(fit - 0.5 * ((f - 0.7) / 1.0) ** 2)
    assert 0 < np.argmax(score) < 100
    assert variance_inflation(predicted, measured, log_dosage) == pytest.approx(np.exp(factors[np.argmax(score)]))


def test_bends_are_those_of_the_curves_of_targets():
    ec50, exponent = torch.tensor([[0.0, 1.0], [2.0, 9.0]]), torch.tensor([[1.0, 2.0], [4.0, 9.0]])
    probs = torch.tensor([[0.9, 0.6], [0.51, 0.5]])  # the last is none
    found = estimate_doubt(
        torch.zeros(2, 1), interventions(2, target_probs=probs, log_ec50=ec50, exponent=exponent), GRID, RANGE
    )
    expected = [[-1.0, -np.log(2)], [0.0, 0.0], [1.0, np.log(2)]]
    np.testing.assert_allclose(found.bends, expected, atol=1e-7)
    assert found.inflation == pytest.approx(np.exp(0.7))


def test_bends_are_drawn_in_pairs():
    bends = torch.tensor([[-1.0, -10.0], [2.0, 20.0], [3.0, 30.0]]).double()
    moved, steeper = Doubt(1.0, bends).draw_bends(torch.Size([200, 3]), torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(steeper, 10 * moved)
    np.testing.assert_array_equal(torch.unique(moved), bends[:, 0])
    assert moved.shape == (200, 3)


def test_without_targets_there_are_no_bends():
    found = estimate_doubt(torch.zeros(2, 1), interventions(2, target_probs=0.0), GRID, RANGE)
    for values in found.draw_bends(torch.Size([4, 2]), torch.Generator()):
        np.testing.assert_array_equal(values, np.zeros((4, 2)))
