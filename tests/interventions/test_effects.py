"""Posterior of targets and dose-response curves: closed form where there is one, recovery where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from scgim._priors import ShiftPrior
from scgim.interventions._curve_posterior import effects_left_out, summaries
from scgim.interventions._curves import NO_DOSE, CurveGrid, hill_curve
from scgim.interventions._effects import estimate_interventions
from scgim.interventions._interventions import DIRECT_FIELDS

DOSES = np.array([0.1, 0.3, 1.0, 3.0, 10.0])


def simulate_curves(n_perturbations: int, d: int, sd: float, seed: int = 0):
    """Shifts (K, d) measured with noise `sd`, with the truth; each perturbation acts on a few genes."""
    rng = np.random.default_rng(seed)
    on = rng.random((n_perturbations, d)) < 0.15
    emax = on * rng.choice([-1, 1], on.shape) * rng.uniform(1.0, 2.0, on.shape)
    ec50 = np.exp(rng.uniform(np.log(0.4), np.log(2.5), on.shape))
    hill = rng.uniform(1.0, 3.0, on.shape)
    group = np.repeat(np.arange(n_perturbations), len(DOSES))
    log_dosage = np.tile(np.log(DOSES), n_perturbations)
    powers = np.exp(log_dosage)[:, None] ** hill[group]
    shift = emax[group] * powers / (ec50[group] ** hill[group] + powers)
    noisy = shift + sd * rng.normal(size=shift.shape)
    return noisy, np.full(shift.shape, sd**-2.0), group, log_dosage, on, emax, ec50, hill


def estimate(shift, information, group, log_dosage, grid, prior=None):
    arrays = (torch.as_tensor(np.asarray(a)) for a in (shift, information, group, log_dosage))
    return estimate_interventions(*arrays, grid, prior or ShiftPrior(0.1, 1.0, 1e-3))[:3]


@pytest.fixture(scope="module")
def fitted():
    data = simulate_curves(20, 15, sd=0.1)
    return data, *estimate(*data[:4], CurveGrid.over(np.log(DOSES[0]), np.log(DOSES[-1])))


def test_targets_are_recovered(fitted):
    data, found, prior, _ = fitted
    on = data[4]
    assert found.target_probs.numpy()[on].min() > 0.99
    assert found.target_probs.numpy()[~on].max() < 0.5
    assert found.target_probs.numpy()[~on].mean() < 0.05
    np.testing.assert_allclose(prior.target_prob, on.mean(), rtol=0.25)
    np.testing.assert_allclose(prior.slab_var, (data[5][on] ** 2).mean(), rtol=0.25)
    assert prior.spike_var < 1e-3


def test_curves_are_recovered(fitted):
    data, found, *_ = fitted
    on, emax, ec50, hill = data[4:]
    assert np.abs(found.emax.numpy() - emax)[on].mean() < 0.15
    assert np.abs(found.log_ec50.numpy() - np.log(ec50))[on].mean() < 0.25
    assert np.abs(np.log(found.hill.numpy()[on] / hill[on])).mean() < 0.3
    unmeasured = np.log([0.2, 0.6, 2.0, 6.0])
    fitted_effect = found.emax * hill_curve(torch.as_tensor(unmeasured)[:, None, None], found.log_ec50, found.hill)
    power = np.exp(unmeasured)[:, None, None] ** hill
    error = np.abs(fitted_effect.numpy() - emax * power / (ec50**hill + power))[:, on]
    assert error.mean() < 0.07  # the measurements themselves have a standard deviation of 0.1


def test_uncertainty_at_the_largest_dosage_covers_the_truth(fitted):
    data, found, *_ = fitted
    on, emax, ec50, hill = data[4:]
    top = torch.full((20,), data[3].max())
    effect, sd = (found.emax * found.curve(top)).numpy(), (found.emax_sd * found.curve(top)).numpy()
    truth = emax * DOSES[-1] ** hill / (ec50**hill + DOSES[-1] ** hill)
    z = ((effect - truth) / sd)[on]
    assert 0.7 < np.sqrt((z**2).mean()) < 1.4


def test_more_noise_less_certainty():
    grid = CurveGrid.over(np.log(DOSES[0]), np.log(DOSES[-1]))
    sds = []
    for sd in (0.03, 0.3):
        data = simulate_curves(20, 15, sd=sd)
        found, *_ = estimate(*data[:4], grid)
        sds.append(float(found.emax_sd[data[4]].mean()))
    assert sds[1] > 3 * sds[0]


def test_flat_curves_give_the_closed_form():
    """Without doses each gene is a comparison of two normals, and the height has a normal posterior."""
    data = simulate_curves(12, 10, sd=0.2)
    shift, group = data[0][:: len(DOSES)] + 0.8 * data[4], np.arange(12)
    arrays = (torch.as_tensor(a) for a in (shift, np.full(shift.shape, 25.0), group, np.zeros(12)))
    estimate = estimate_interventions(*arrays, CurveGrid.flat(), ShiftPrior(0.1, 1.0, 1e-3))
    found, prior = estimate.interventions, estimate.prior
    off = estimate.variance.numpy() + prior.spike_var
    log_odds = norm.logpdf(shift, 0, np.sqrt(off + prior.slab_var)) - norm.logpdf(shift, 0, np.sqrt(off))
    log_odds += prior.log_odds
    np.testing.assert_allclose(found.target_probs, 1 / (1 + np.exp(-log_odds)), atol=1e-5)
    spread = 1 / (1 / off + 1 / prior.slab_var)
    np.testing.assert_allclose(found.emax, spread * shift / off, rtol=1e-6)
    np.testing.assert_allclose(found.emax_sd, np.sqrt(spread), rtol=1e-6)
    np.testing.assert_allclose(found.curve(torch.zeros(12)), 1.0)


def test_flat_curves_are_the_same_at_any_dosage():
    """Also where responses of screens without doses are kept, so that these and direct effects are the same ones."""
    log_dosage = torch.tensor([NO_DOSE, np.log(1e-12), 0.0, np.log(1e12)]).double()
    np.testing.assert_allclose(CurveGrid.flat().values(log_dosage), 1.0, rtol=1e-12)
    assert CurveGrid.flat().values(torch.tensor([-torch.inf]).double()) == 0


def test_dose_of_a_single_level():
    """One dosage says nothing of the midpoint, but the effect there is known."""
    data = simulate_curves(10, 10, sd=0.05)
    at_top = slice(len(DOSES) - 1, None, len(DOSES))
    shift, log_dosage = data[0][at_top], data[3][at_top]
    found, *_ = estimate(
        shift, data[1][at_top], np.arange(10), log_dosage, CurveGrid.over(log_dosage[0], log_dosage[0])
    )
    effect = found.mean(torch.as_tensor(log_dosage)).numpy()
    np.testing.assert_allclose(effect[data[4]], shift[data[4]], atol=0.15)


def test_no_effects_at_all():
    rng = np.random.default_rng(0)
    shift = 0.1 * rng.normal(size=(30, 10))
    found, prior, _ = estimate(
        shift,
        np.full(shift.shape, 100.0),
        np.repeat(np.arange(6), 5),
        np.tile(np.log(DOSES), 6),
        CurveGrid.over(-2.3, 2.3),
    )
    assert found.target_probs.max() < 0.3
    assert prior.target_prob < 0.03
    assert all(torch.isfinite(getattr(found, name)).all() for name in DIRECT_FIELDS)


def test_an_effect_that_all_genes_share_is_no_target():
    """A few drugs move most genes through a regulator that was not measured; their own targets stand out from that."""
    rng = np.random.default_rng(0)
    group, log_dosage = np.repeat(np.arange(12), 3), np.tile(np.log([0.5, 1.0, 2.0]), 12)
    scores = rng.normal(size=60)
    shared = np.where(np.arange(12) < 5, rng.uniform(0.5, 1.5, 12), 0.0)[:, None] * scores  # perturbations x genes
    on = rng.random((12, 60)) < 0.03
    own = on * rng.choice([-3.0, 3.0], on.shape)
    curve = np.exp(log_dosage)[:, None] / (1 + np.exp(log_dosage)[:, None])
    shift = (shared + own)[group] * curve + 0.1 * rng.normal(size=(36, 60))
    found, _, programme = estimate(shift, np.full(shift.shape, 100.0), group, log_dosage, CurveGrid.over(-0.7, 0.7))
    called = found.target_probs.numpy() > 0.5
    assert (called & on).sum() / on.sum() > 0.8
    assert (called & ~on).sum() < on.sum()
    top = programme[2::3].numpy()  # of each drug at the largest dose
    assert np.corrcoef(top[:5][~on[:5]], shared[:5][~on[:5]])[0, 1] > 0.9


def test_targets_that_drugs_share_are_no_programme():
    """Drugs act on the same three genes, in the same proportion: these are targets, however well a programme would explain them."""
    rng = np.random.default_rng(0)
    group, log_dosage = np.repeat(np.arange(24), 3), np.tile(np.log([0.5, 1.0, 2.0]), 24)
    effect = np.zeros((24, 60))
    effect[:, [4, 20, 33]] = rng.normal(size=(24, 1)) * [2.0, -1.5, 1.8]
    curve = np.exp(log_dosage)[:, None] / (1 + np.exp(log_dosage)[:, None])
    shift = effect[group] * curve + 0.1 * rng.normal(size=(72, 60))
    found, _, programme = estimate(shift, np.full(shift.shape, 100.0), group, log_dosage, CurveGrid.over(-0.7, 0.7))
    np.testing.assert_array_equal(programme, 0)
    called = found.target_probs.numpy() > 0.5
    assert called[np.abs(effect) > 0.5].all()
    assert called[effect == 0].sum() <= 2


def test_information_may_be_zero():
    """A context without cells, as when all of them are held out, says nothing and breaks nothing."""
    data = simulate_curves(4, 5, sd=0.05)
    information = data[1].copy()
    information[-len(DOSES) :] = 0.0
    found, prior, _ = estimate(data[0], information, *data[2:4], CurveGrid.over(-2.3, 2.3))
    np.testing.assert_allclose(found.target_probs[-1], prior.target_prob, atol=0.01)
    assert all(torch.isfinite(getattr(found, name)).all() for name in DIRECT_FIELDS)


def test_grid_priors_are_normalised():
    grid = CurveGrid.over(-1.0, 2.0)
    for g in (grid, grid.coarse(), CurveGrid.flat()):
        np.testing.assert_allclose(g.log_prior.exp().sum(), 1.0)
    np.testing.assert_allclose([grid.log_ec50.min(), grid.log_ec50.max()], [-2.5, 3.5])
    values = grid.values(torch.tensor([-torch.inf, 0.0]).double())
    assert values.shape == (2, len(grid.log_ec50))
    assert (values[0] == 0).all()


def test_effects_left_out_are_those_of_a_refit_without_that_dose(fitted):
    data, _, prior, _ = fitted
    shift, information, group, log_dosage = (torch.as_tensor(a) for a in data[:4])
    grid = CurveGrid.over(np.log(DOSES[0]), np.log(DOSES[-1]))
    found = effects_left_out(shift, information, group, log_dosage, grid, prior)
    rest = torch.arange(len(DOSES)) != 2
    left = torch.nonzero(group < 3)[:, 0]
    left = left[rest.repeat(3)]
    arguments = (part[left] for part in (shift, information, group, log_dosage))
    measured, weight, *where = arguments
    known = summaries(measured, 1 / weight, *where, grid, prior)
    at = torch.full((3,), log_dosage[2])
    torch.testing.assert_close(found[torch.tensor([2, 7, 12])], known.direct(at))
    truth = torch.as_tensor(data[0])
    assert (found - truth)[2::5].square().mean() < 0.2 * truth[
        2::5
    ].square().mean()  # inner doses follow from the others


def test_effects_left_out_of_drugs_of_one_dose_are_unknown():
    data = simulate_curves(4, 6, sd=0.1)
    shift, information, group, log_dosage = (torch.as_tensor(a)[4:] for a in data[:4])  # the first keeps one dose
    found = effects_left_out(
        shift, information, group, log_dosage, CurveGrid.over(-2.3, 2.3), ShiftPrior(0.1, 1.0, 1e-3)
    )
    assert found[0].isnan().all()
    assert found[1:].isfinite().all()


def test_perturbations_of_different_numbers_of_contexts_do_not_depend_on_each_other(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    group = torch.tensor([2, 0, 1, 1, 3, 2, 2, 0, 3])
    shift = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    log_dosage = torch.randn(9, generator=generator, dtype=torch.float64)
    grid, prior = CurveGrid.over(-1.0, 1.0), ShiftPrior(0.1, 1.0, 0.01)
    arguments = (torch.full_like(shift, 50.0), group, log_dosage, grid, prior)
    together, prior_together, *_ = estimate_interventions(shift, *arguments)
    monkeypatch.setattr("scgim.interventions._curve_posterior._BLOCK_VALUES", 1)
    apart, prior_apart, *_ = estimate_interventions(shift, *arguments)
    assert prior_together.slab_var == pytest.approx(prior_apart.slab_var)
    for name, values in vars(together).items():
        torch.testing.assert_close(values, getattr(apart, name), msg=name)
    renamed = torch.tensor([1, 3, 0, 2])  # perturbation 0 is now called 1, and so on
    found, *_ = estimate_interventions(shift, arguments[0], renamed[group], *arguments[2:])
    torch.testing.assert_close(found.emax[renamed], together.emax)


@pytest.mark.parametrize(("low", "high", "spread"), [(-1.0, 2.0, 1.5), (0.0, 0.4, 0.7)])
def test_usual_curves_lie_within_the_measured_doses_and_are_of_usual_steepness(low, high, spread):
    """Log prior: normal in midpoint and in log exponent."""
    grid = CurveGrid.over(low, high)
    midpoint = (grid.log_ec50 - 0.5 * (low + high)) / spread
    steepness = (grid.hill.log() - np.log(1.5)) / 0.6
    expected = -0.5 * (midpoint.square() + steepness.square())
    np.testing.assert_allclose(grid.log_prior, expected - expected.logsumexp(0))
    assert (float(grid.log_ec50.min()), float(grid.log_ec50.max())) == (low - 1.5, high + 1.5)
