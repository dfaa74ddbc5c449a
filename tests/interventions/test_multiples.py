"""Genes and perturbations that are off by more than others: closed forms, and fewer false targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim._priors import ShiftPrior
from scgim.interventions import _effects
from scgim.interventions._curves import CurveGrid
from scgim.interventions._effects import estimate_interventions
from scgim.interventions._multiples import Multiples, inverse_trigamma, multiples, prior_dof


@pytest.mark.parametrize("x", [0.05, 0.5, 1.0, 3.0, 40.0, 1e4])
def test_inverse_of_the_trigamma_function(x):
    value = float(torch.polygamma(1, torch.tensor(x, dtype=torch.float64)))
    assert inverse_trigamma(value) == pytest.approx(x, rel=1e-6)


@pytest.mark.parametrize("dof", [4.0, 12.0])
def test_how_far_multiples_scatter_is_recovered(dof):
    rng = np.random.default_rng(0)
    truth = dof / rng.chisquare(dof, 3000)
    mean_square = torch.as_tensor(truth * rng.chisquare(40, 3000) / 40)
    assert prior_dof(mean_square, torch.full((3000,), 40.0, dtype=torch.float64)) == pytest.approx(dof, rel=0.15)


def test_equal_genes_have_no_multiples():
    rng = np.random.default_rng(0)
    square = torch.as_tensor(rng.normal(size=(50, 30)) ** 2)
    # alike in all genes, so that mean squares scatter by less than by chance
    found, log_prior = multiples(square.mean(1, keepdim=True).expand(50, 30), torch.ones_like(square), 0)
    np.testing.assert_array_equal(found, 1.0)
    assert log_prior == 0
    assert multiples(square, torch.ones_like(square), 0)[0].max() < 1.15  # by chance alone


def test_multiples_are_between_one_and_what_was_seen():
    """The posterior mode: a mean of the prior's one and the mean square, weighted by degrees of freedom."""
    rng = np.random.default_rng(1)
    scale = np.where(np.arange(30) < 4, 9.0, 1.0)
    square = torch.as_tensor(scale * rng.normal(size=(50, 30)) ** 2)
    found, log_prior = multiples(square, torch.ones_like(square), 0)
    dof = prior_dof(square.mean(0), torch.full((30,), 50.0, dtype=torch.float64))
    np.testing.assert_allclose(found, ((dof + square.sum(0)) / (dof + 50)).clamp_min(1.0))
    assert (found[:4] > 4).all()
    assert log_prior < 0


def test_variances_that_are_widened():
    """Of gene 1 by 2, of the second perturbation by 3; the spike is part of what is multiplied."""
    wide = Multiples(torch.tensor([1.0, 2.0]).double(), torch.tensor([[1.0], [3.0]]).double(), 0.0)
    found = wide.widened(torch.full((3, 2), 0.5, dtype=torch.float64), 0.1, torch.tensor([0, 1, 1]))
    np.testing.assert_allclose(found + 0.1, 0.6 * np.array([[1, 2], [3, 6], [3, 6]]))
    ones = Multiples.ones(2, 2).widened(torch.full((3, 2), 0.5, dtype=torch.float64), 0.1, torch.tensor([0, 1, 1]))
    np.testing.assert_allclose(ones, 0.5)


def test_a_perturbation_that_moves_all_genes_a_little_has_its_own_targets_only():
    """Two of 20 perturbations scatter all genes, three genes are off in all; true targets, alike in all, are found."""
    rng = np.random.default_rng(0)
    n, d = 20, 60
    on = rng.random((n, d)) < 0.03
    noise = 0.2 * np.where(np.arange(n) < 2, 3.0, 1.0)[:, None] * np.where(np.arange(d) < 3, 3.0, 1.0)
    shift = on * rng.choice([-2.0, 2.0], (n, d)) + noise * rng.normal(size=(n, d))
    arrays = (torch.as_tensor(a) for a in (shift, np.full((n, d), 25.0), np.arange(n), np.zeros(n)))
    probs = estimate_interventions(
        *arrays, CurveGrid.flat(), ShiftPrior(0.1, 1.0, 1e-3)
    ).interventions.target_probs.numpy()
    called, usual = probs > 0.5, noise < 0.25
    assert (called & on & usual).sum() / (on & usual).sum() > 0.9
    assert (called & ~on).sum() < 10  # 75 with one variance for all


@pytest.mark.parametrize(("evidence", "passage"), [((2.0, 1.0), True), ((1.0, 2.0), False), ((None, 2.0), False)])
def test_departures_stay_where_they_are_likelier_than_variances_of_their_own(monkeypatch, evidence, passage):
    """Both are fitted with variances of their own; where departures were not asked for, they are not tried."""
    tried = []

    def fit(data, prior, n_programmes):
        tried.append(data.passage is not None)
        assert not data.are_alike
        of_this = evidence[0 if data.passage is not None else 1]
        return None if of_this is None else _effects._Fit(of_this, prior, data.passage, data.variance, None)

    monkeypatch.setattr(_effects, "_fit", fit)
    data = _effects._Data(*[None] * 6, passage="passage", member=None)
    before = _effects._Fit(0.0, ShiftPrior(0.1, 1.0), "before", None, None)
    found = _effects._fit_own_variances(data, ShiftPrior(0.1, 1.0), 0, before)
    assert (found.beside == "passage") == passage
    assert tried == [True, False]
    _effects._fit_own_variances(data._replace(passage=None), ShiftPrior(0.1, 1.0), 0, before)
    assert tried == [True, False, False]


@pytest.mark.parametrize(
    ("of_departures", "of_variances", "of_before", "taken"),
    [
        (0.2, 0.3, 0.1, "departures"),
        (0.3, 0.2, 0.1, "variances"),
        (0.3, 0.3, 0.1, "before"),
        (0.3, 0.3, 0.3, "variances"),
        (0.2, 0.2, 0.1, "variances"),
    ],
)
def test_what_leaves_targets_without_end_is_not_taken_however_likely(
    monkeypatch, of_departures, of_variances, of_before, taken
):
    """Fits without departures are likelier here; 0.3 is the most that the prior of a target can be."""

    def fit(data, prior, n_programmes):
        has_departures = data.passage is not None
        evidence, prob, name = (
            (1.0, of_departures, "departures") if has_departures else (2.0, of_variances, "variances")
        )
        return _effects._Fit(evidence, ShiftPrior(prob, 1.0), name, data.variance, None)

    monkeypatch.setattr(_effects, "_fit", fit)
    data = _effects._Data(*[None] * 6, passage="passage", member=None)
    before = _effects._Fit(0.0, ShiftPrior(of_before, 1.0), "before", None, None)
    assert _effects._fit_own_variances(data, ShiftPrior(0.1, 1.0), 0, before).beside == taken
