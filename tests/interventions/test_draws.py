"""Draws of parameter sets: moments in closed form, what is shared, and noise of finite samples taken out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgim.interventions._curves import CurveGrid
from scgim.interventions._doubt import Doubt, estimate_doubt, variance_inflation
from scgim.interventions._draws import draw_effects
from scgim.interventions._interventions import Interventions
from scgim.nn._mechanism import LinearMechanism, draw_weights
from scgim.predict._means import without_sampling_noise

N_DRAWS = 4000
LOG_TOP = float(np.log(2.0))


def known(**values: float) -> Interventions:
    """One drug and one gene."""
    start = {"target_probs": 1.0, "emax": 1.5, "emax_sd": 0.3, "log_ec50": 0.2, "log_ec50_sd": 0.4, "hill": 1.5}
    return Interventions(*(torch.tensor([[v]], dtype=torch.float64) for v in {**start, **values}.values()))


def effects(
    interventions: Interventions, log_dosage: float, new: bool = False, doubt: Doubt | None = None
) -> np.ndarray:
    """Effects at a dosage in as many draws, each for a drug of its own."""
    drugs = interventions.rows(torch.zeros(N_DRAWS, dtype=torch.long))
    top, dosage = (torch.full((N_DRAWS,), v, dtype=torch.float64) for v in (LOG_TOP, log_dosage))
    generator = torch.Generator().manual_seed(0)
    by_features = torch.full((N_DRAWS,), new)
    return draw_effects(drugs, top, torch.arange(N_DRAWS), dosage, generator, by_features, doubt)[0][:, 0].numpy()


def curve(log_dosage: float) -> float:
    return 1 / (1 + np.exp(-1.5 * (log_dosage - 0.2)))


def test_moments_at_the_largest_dosage():
    drawn = effects(known(), LOG_TOP)
    assert drawn.mean() == pytest.approx(1.5 * curve(LOG_TOP), abs=0.015)
    assert drawn.std() == pytest.approx(0.3 * curve(LOG_TOP), rel=0.05)


def test_midpoints_that_are_not_known_matter_away_from_it():
    sure = known(log_ec50_sd=0.0)
    for dosage in (-0.7, 1.8):
        assert effects(known(), dosage).std() > 1.1 * effects(sure, dosage).std()
        assert effects(sure, dosage).std() == pytest.approx(0.3 * curve(dosage), rel=0.05)
    assert effects(known(), LOG_TOP).std() == pytest.approx(effects(sure, LOG_TOP).std(), rel=1e-6)


def test_targets_are_drawn():
    drawn = effects(known(target_probs=0.3, emax_sd=0.0), LOG_TOP)
    assert (drawn != 0).mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_allclose(drawn[drawn != 0], 1.5 * curve(LOG_TOP))


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_errors_of_baselines_are_taken_from_effects_on_targets(target):
    """At the largest dosage as they are, at others along the curve."""
    sure, error = known(target_probs=target, emax_sd=0.0, log_ec50_sd=0.0), torch.tensor([0.4]).double()
    dosage, top = torch.tensor([LOG_TOP, -0.5]).double(), torch.tensor([LOG_TOP]).double()
    drawn, _ = draw_effects(
        sure, top, torch.zeros(2, dtype=torch.long), dosage, torch.Generator(), baseline_error=error
    )
    at_top = 1.5 * curve(LOG_TOP) - 0.4
    expected = target * at_top * np.array([1.0, curve(-0.5) / curve(LOG_TOP)])
    np.testing.assert_allclose(drawn[:, 0], expected)


def test_curves_that_had_not_risen_say_little_of_how_far_they_go():
    """At most twenty times the effect at the largest dosage."""
    late, top = known(emax_sd=0.0, log_ec50_sd=0.0, log_ec50=8.0), torch.tensor([LOG_TOP]).double()
    drawn, _ = draw_effects(
        late, top, torch.zeros(1, dtype=torch.long), torch.tensor([30.0]).double(), torch.Generator()
    )
    risen = 1 / (1 + np.exp(-1.5 * (LOG_TOP - 8.0)))
    assert drawn.item() == pytest.approx(20 * 1.5 * risen)


def test_nothing_without_a_dosage():
    assert (effects(known(), -np.inf) == 0).all()


def test_dosages_of_a_drug_share_its_curve():
    several = Interventions(*known().of_targets.repeat(1, 2, 3))
    dosage = torch.tensor([0.0, 0.0, LOG_TOP, 0.0], dtype=torch.float64)
    drawn, _ = draw_effects(
        several,
        torch.full((2,), LOG_TOP, dtype=torch.float64),
        torch.tensor([0, 0, 0, 1]),
        dosage,
        torch.Generator().manual_seed(1),
    )
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[2].abs() > drawn[1].abs()).all()
    assert (drawn[3] != drawn[1]).all()


def test_backgrounds_are_drawn_around_what_is_expected():
    grid, background = torch.tensor([-1.0, LOG_TOP]).double(), torch.tensor([[[0.5], [2.0]]]).double()
    sd = torch.tensor([[0.4]], dtype=torch.float64)
    shared = replace(known(target_probs=0.0), background=background, background_sd=sd, grid=grid)
    for dosage, mean, share in ((-1.0, 0.5, 1.0), (LOG_TOP, 2.0, 1.0), (-1 - np.log(2.0), 0.25, 0.5)):
        drawn = effects(shared, dosage)
        assert drawn.mean() == pytest.approx(mean, abs=0.03)
        assert drawn.std() == pytest.approx(0.4 * share, rel=0.05)
    assert (effects(shared, -np.inf) == 0).all()


def test_doubt_widens_drugs_known_by_features_only():
    doubt = Doubt(4.0, torch.tensor([[-0.3, 0.2], [0.3, -0.2]], dtype=torch.float64))
    assert effects(known(), LOG_TOP, new=True, doubt=doubt).std() == pytest.approx(0.6 * curve(LOG_TOP), rel=0.05)
    np.testing.assert_array_equal(
        effects(known(), LOG_TOP, new=False, doubt=doubt), effects(known(), LOG_TOP, doubt=doubt)
    )
    # each draw takes its curve from one that was measured
    sure = effects(known(emax_sd=0.0), -0.5, new=True, doubt=doubt)
    share = [1 / (1 + np.exp(-1.5 * np.exp(b) * (np.array([-0.5, LOG_TOP]) - 0.2 - a))) for a, b in doubt.bends.numpy()]
    expected = sorted(1.5 * curve(LOG_TOP) * s[0] / s[1] for s in share)
    np.testing.assert_allclose(np.unique(sure.round(9)), expected, atol=1e-8)


@pytest.mark.parametrize("true", [1.0, 4.0, 10.0])
def test_inflation_is_found(true):
    rng = np.random.default_rng(0)
    shape = (60, 5)
    predicted = Interventions(*known(emax_sd=0.2).of_targets.expand(6, *shape))
    seen = 1.5 + np.sqrt(true) * 0.2 * rng.normal(size=shape) + 0.05 * rng.normal(size=shape)
    measured = replace(Interventions(*known(emax_sd=0.05).of_targets.expand(6, *shape)), emax=torch.as_tensor(seen))
    assert variance_inflation(predicted, measured, LOG_TOP) == pytest.approx(true, rel=0.25)


def test_inflation_without_targets_is_the_usual_one():
    nothing = known(target_probs=0.0)
    assert variance_inflation(nothing, nothing, LOG_TOP) == pytest.approx(np.exp(0.7), rel=0.03)


def test_features_that_say_little_are_doubted():
    """Drugs whose effects have little to do with the features, against drugs whose effects follow from them."""
    rng = np.random.default_rng(0)
    features = torch.as_tensor(rng.normal(size=(30, 3)))
    emax = features @ torch.as_tensor(rng.normal(size=(3, 4)))
    fields = {name: torch.ones(30, 4, dtype=torch.float64) for name in ("target_probs", "hill")}
    flat = torch.zeros(30, 4, dtype=torch.float64)
    grid = CurveGrid.over(0.0, 1.0)

    def doubt(emax: torch.Tensor) -> Doubt:
        measured = Interventions(fields["target_probs"], emax, flat + 0.1, flat, flat, fields["hill"])
        return estimate_doubt(features, measured, grid, (0.0, 1.0))

    clear, unclear = doubt(emax), doubt(emax + torch.as_tensor(rng.standard_t(2, size=(30, 4))))
    assert 1.0 <= clear.inflation < 3.0
    assert 1.0 <= unclear.inflation < 6.0  # the errors are seen by the generator as well
    assert clear.bends.shape == (120, 2)
    assert not clear.bends.any()
    two = Interventions(*(t[:2] for t in (flat + 1, flat, flat, flat, flat, flat + 1)))
    assert estimate_doubt(features[:2], two, grid, (0.0, 1.0)).inflation == pytest.approx(np.exp(0.7))


def test_weights_are_drawn_around_the_fit():
    fitted, drawn = LinearMechanism(3), LinearMechanism(3)
    fitted.set_graph(np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]]))
    with torch.no_grad():
        fitted.weight.copy_(torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, -0.2], [0.0, 0.0, 0.0]]))
    sd = torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 0.02], [0.0, 0.0, 0.0]], dtype=torch.float64)
    generator, weights = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        draw_weights(drawn, fitted, sd, generator)
        weights.append(drawn.weight.detach().clone())
    weights = torch.stack(weights).double()
    np.testing.assert_allclose(weights.mean(0), fitted.weight.detach(), atol=0.01)
    np.testing.assert_allclose(weights.std(0), sd, rtol=0.05, atol=1e-12)


def test_noise_of_finite_samples_is_taken_out():
    rng = np.random.default_rng(0)
    truth = rng.normal(3.0, 0.2, size=(20000, 1))
    noisy = truth + rng.normal(0.0, 0.3, size=truth.shape)
    freed = without_sampling_noise(
        torch.as_tensor(noisy), torch.full((20000, 1), 0.09, dtype=torch.float64), torch.zeros(1)
    )
    assert freed.std() == pytest.approx(0.2, rel=0.08)
    assert freed.mean() == pytest.approx(noisy.mean())
    # where parameters are certain what is left is the error of the mean of all draws
    noise = torch.as_tensor(rng.normal(0.0, 0.3, size=(400, 2000)))
    freed = without_sampling_noise(noise, torch.full(noise.shape, 0.09, dtype=torch.float64), torch.zeros(2000))
    assert freed.std(0).median() < 0.1
    assert freed.std(0).min() > 0.01
    untouched = torch.as_tensor(truth)
    np.testing.assert_allclose(
        without_sampling_noise(untouched, torch.zeros_like(untouched), torch.zeros(1)), untouched
    )
    # nor is less left than is known to be there
    freed = without_sampling_noise(noise, torch.full(noise.shape, 0.2), torch.full((2000,), 0.04, dtype=torch.float64))
    np.testing.assert_allclose(freed.std(0), 0.2, rtol=0.1)
