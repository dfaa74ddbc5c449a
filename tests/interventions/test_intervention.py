"""Hill curves, the spike-and-slab prior, and draws of interventions against closed forms."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from scgim._priors import shift_log_prior
from scgim.interventions._curves import NO_DOSE, hill_curve, interpolation
from scgim.interventions._interventions import Interventions


def interventions(**kwargs) -> Interventions:
    """One drug and two genes unless told otherwise."""
    values = {
        "target_probs": [[0.3, 1.0]],
        "emax": [[2.0, -1.0]],
        "emax_sd": [[0.5, 0.1]],
        "log_ec50": [[0.0, np.log(2.0)]],
        "log_ec50_sd": [[0.1, 0.2]],
        "hill": [[2.0, 1.0]],
        **kwargs,
    }
    return Interventions(**{name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()})


def test_hill_curve_is_the_ratio_of_powers():
    dosage, ec50, hill = np.meshgrid([0.01, 0.5, 3.0, 100.0], [0.2, 4.0], [0.5, 1.0, 3.6])
    curve = hill_curve(*(torch.as_tensor(t) for t in (np.log(dosage), np.log(ec50), hill)))
    np.testing.assert_allclose(curve, dosage**hill / (ec50**hill + dosage**hill), rtol=1e-10)


def test_hill_curve_at_its_ends():
    log_dosage = torch.tensor([-torch.inf, 0.7, 700.0], dtype=torch.float64)
    curve = hill_curve(log_dosage, torch.tensor(0.7).double(), torch.tensor(5.0).double())
    np.testing.assert_allclose(curve, [0.0, 0.5, 1.0])


def test_log_prior_by_enumeration():
    rng = np.random.default_rng(0)
    shift, group = rng.normal(size=(4, 2)), np.array([0, 0, 1, 1])
    target_prob, spike, slab = 0.2, 0.1, 1.5
    logs = []
    for on in itertools.product([0, 1], repeat=4):  # 2 perturbations x 2 genes
        on = np.array(on).reshape(2, 2)
        sd = np.where(on, slab, spike)[group]
        prior = np.where(on, np.log(target_prob), np.log(1 - target_prob)).sum()
        logs.append(prior + (-0.5 * (shift / sd) ** 2 - np.log(sd)).sum())
    parameters = torch.tensor([target_prob, spike, slab], dtype=torch.float64)
    found = shift_log_prior(torch.as_tensor(shift), torch.as_tensor(group), *parameters)
    np.testing.assert_allclose(found, logsumexp(logs), rtol=1e-12)


def test_log_prior_takes_a_target_probability_for_each_gene():
    shift, group = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([0])
    sds = torch.tensor(0.1).double(), torch.tensor(1.0).double()
    both = shift_log_prior(shift, group, torch.tensor([[0.9, 0.01]]).double(), *sds)
    each = [shift_log_prior(shift[:, [j]], group, torch.tensor(p).double(), *sds) for j, p in enumerate([0.9, 0.01])]
    np.testing.assert_allclose(both, sum(each))


def test_moments_of_effects():
    k = interventions()
    curve = np.array([[0.5, 1 / 3]])  # at dosage 1
    log_dosage = torch.zeros(1).double()
    p, m, s = (np.array(v) for v in ([[0.3, 1.0]], [[2.0, -1.0]], [[0.5, 0.1]]))
    np.testing.assert_allclose(k.curve(log_dosage), curve)
    np.testing.assert_allclose(k.mean(log_dosage), p * m * curve)
    np.testing.assert_allclose(k.sd(log_dosage), np.sqrt(p * (m**2 + s**2) - (p * m) ** 2) * curve)


def test_draws_have_those_moments():
    k, log_dosage = interventions(), torch.zeros(1).double()
    effects, targets = k.sample(log_dosage, 200_000, torch.Generator().manual_seed(0))
    assert effects.shape == targets.shape == (1, 200_000, 2)
    np.testing.assert_allclose(targets.double().mean(1), k.target_probs, atol=0.005)
    np.testing.assert_allclose(effects.mean(1), k.mean(log_dosage), atol=0.005)
    np.testing.assert_allclose(effects.std(1), k.sd(log_dosage), atol=0.005)
    assert (effects[~targets] == 0).all()


def test_no_effect_without_drug():
    effects, _ = interventions().sample(torch.tensor([-torch.inf]).double(), 10, torch.Generator().manual_seed(0))
    assert (effects == 0).all()


def test_rows_and_stack():
    k = interventions()
    both = Interventions.stack([k, interventions(emax=[[5.0, 6.0]])])
    np.testing.assert_array_equal(both.emax, [[2.0, -1.0], [5.0, 6.0]])
    np.testing.assert_array_equal(both.rows(torch.tensor([1, 0, 1])).emax, [[5.0, 6.0], [2.0, -1.0], [5.0, 6.0]])


@pytest.mark.parametrize("seed", [0, 1])
def test_draws_are_reproducible(seed):
    k, log_dosage = interventions(), torch.zeros(1).double()
    a, b = (k.sample(log_dosage, 50, torch.Generator().manual_seed(seed))[0] for _ in range(2))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


GRID = torch.tensor([-1.0, 0.5, 2.0]).double()


def test_interpolation_is_exact_at_the_grid_and_linear_between():
    np.testing.assert_array_equal(interpolation(GRID, GRID), np.eye(3))
    between = interpolation(torch.tensor([-0.25, 1.7], dtype=torch.float64), GRID)
    np.testing.assert_allclose(between, [[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]], atol=1e-12)


def test_what_was_measured_is_not_carried_beyond_the_grid():
    """Above it the last point holds; below it, effects are proportional to the dosage."""
    above = interpolation(torch.tensor([2.0, 5.0, 800.0]).double(), GRID)
    np.testing.assert_array_equal(above, [[0.0, 0.0, 1.0]] * 3)
    share = torch.tensor([0.5, 0.01, 0.0]).double()
    below = interpolation(GRID[0] + share.log(), GRID)
    np.testing.assert_allclose(below, share[:, None] * torch.tensor([1.0, 0.0, 0.0]), atol=1e-15)


def test_interpolation_of_one_point():
    """That of a screen without doses holds at all; that of one dose in proportion below it."""
    without = torch.tensor([NO_DOSE]).double()
    np.testing.assert_array_equal(interpolation(torch.tensor([-20.0, 0.0, 9.0]).double(), without), np.ones((3, 1)))
    np.testing.assert_array_equal(interpolation(torch.tensor([-torch.inf]).double(), without), [[0.0]])
    one = interpolation(torch.tensor([0.0, 1.0, 4.0]).double(), torch.ones(1).double())
    np.testing.assert_allclose(one[:, 0], [np.exp(-1.0), 1.0, 1.0])


def with_background() -> Interventions:
    background = torch.tensor([[[1.0, -2.0], [3.0, 0.0], [4.0, 6.0]]]).double()
    return replace(interventions(), background=background, grid=GRID, background_sd=torch.ones(1, 2).double())


def test_background_is_added_to_direct_effects():
    k, log_dosage = with_background(), torch.tensor([-0.25]).double()
    np.testing.assert_allclose(k.background_at(log_dosage), [[2.0, -1.0]])
    np.testing.assert_allclose(k.mean(log_dosage), k.direct(log_dosage) + k.background_at(log_dosage))
    np.testing.assert_allclose(k.direct(log_dosage), interventions().mean(log_dosage))
    effects, targets = k.sample(log_dosage, 50, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(effects[~targets], 2.0)  # of the first gene; the second is a target in all cells
    assert (~targets).any()
    np.testing.assert_array_equal(k.mean(torch.tensor([-torch.inf])), [[0.0, 0.0]])


def test_background_goes_with_its_drug():
    other = replace(with_background(), background=-with_background().background)
    both = Interventions.stack([with_background(), other]).rows(torch.tensor([1, 0]))
    np.testing.assert_array_equal(both.grid, GRID)
    np.testing.assert_array_equal(both.background[0], -both.background[1])
    np.testing.assert_array_equal(both.background[0], other.background[0])
    assert both.background_sd.shape == (2, 2)
    assert both.of_targets.shape == (6, 2, 2)
    torch.testing.assert_close(Interventions(*both.of_targets).emax, both.emax)


def test_what_is_known_is_not_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        interventions().emax = torch.zeros(1, 2)
