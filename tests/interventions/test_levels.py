"""Effects by level: closed forms against numerical integration, and what is carried between levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from scgim._priors import ShiftPrior
from scgim.interventions._curves import CurveGrid, hill_curve
from scgim.interventions._effects import estimate_interventions
from scgim.interventions._levels import Told, active_levels
from scgim.interventions._transfer import Transfer

A, B = torch.tensor([[2.0, 0.5, 0.0]]).double(), torch.tensor([[3.0, -0.4, 0.0]]).double()
SLAB, LEVEL = 1.5, 0.6


def joint() -> tuple[torch.Tensor, torch.Tensor, float]:
    """Posterior mean and covariance of common height and heights of three levels, and log evidence, by linear algebra."""
    prior = SLAB * torch.ones(4, 4).double()
    prior[1:, 1:] += LEVEL * torch.eye(3).double()
    precision = torch.diag(torch.cat([torch.zeros(1), A[0]]).double())
    weighted = torch.cat([torch.zeros(1), B[0]]).double()
    cov = torch.linalg.inv(torch.linalg.inv(prior) + precision)
    mean = cov @ weighted
    evidence = 0.5 * weighted @ mean - 0.5 * torch.logdet(torch.eye(4).double() + prior @ precision)
    return mean, cov, float(evidence)


def test_common_height_and_evidence_are_those_of_the_joint_normal():
    mean, cov, evidence = joint()
    found, common, variance = Told(A, B).gain(SLAB, LEVEL)
    assert float(found) == pytest.approx(evidence)
    assert float(common) == pytest.approx(float(mean[0]))
    assert float(variance) == pytest.approx(float(cov[0, 0]))


def test_heights_of_levels_are_those_of_the_joint_normal():
    mean, cov, _ = joint()
    _, common, variance = Told(A, B).gain(SLAB, LEVEL)
    heights, spread = Told(A, B).heights(common, variance, LEVEL)
    np.testing.assert_allclose(heights[0], mean[1:])
    np.testing.assert_allclose(spread[0], cov.diagonal()[1:])


def test_without_deviations_levels_are_pooled():
    """A level share of next to nothing: the evidence of one height for all contexts."""
    found, mean, _ = Told(A, B).gain(SLAB, 1e-12)
    a, b = float(A.sum()), float(B.sum())
    assert float(mean) == pytest.approx(b / (a + 1 / SLAB))
    assert float(found) == pytest.approx(0.5 * b**2 / (a + 1 / SLAB) - 0.5 * np.log(1 + a * SLAB))


def test_a_level_that_does_not_answer_is_told_from_the_others():
    """By numerical integration over the height of the level that is asked about."""
    told = Told(torch.tensor([[50.0, 50.0, 50.0]]).double(), torch.tensor([[100.0, 100.0, 0.0]]).double())
    evidence = told.speaks_for(SLAB, LEVEL)[0]
    h = torch.linspace(-12, 14, 200_001, dtype=torch.float64)
    for level in range(3):
        others = [k for k in range(3) if k != level]
        spread = 1 + told.precision[0, others] * LEVEL
        precision = float((told.precision[0, others] / spread).sum() + 1 / SLAB)
        mean = float((told.weighted[0, others] / spread).sum() / precision)
        density = torch.as_tensor(norm.logpdf(h.numpy(), mean, (1 / precision + LEVEL) ** 0.5))
        likelihood = told.weighted[0, level] * h - 0.5 * told.precision[0, level] * h**2
        assert float(evidence[level]) == pytest.approx(
            float((density + likelihood).logsumexp(0) + (h[1] - h[0]).log()), abs=1e-6
        )
    probs = active_levels(evidence[None], torch.ones(1).double(), told.precision > 0)[0]
    assert probs[0] > 0.99
    assert probs[1] > 0.99
    assert probs[2] < 0.3


def screen(deviation: float, seed: int = 0):
    """12 drugs at 3 doses in 3 levels on 30 genes; heights of targets differ by `deviation` between levels, of one drug by all."""
    rng = np.random.default_rng(seed)
    u, n_levels, d, doses = 12, 3, 30, np.array([0.3, 1.0, 3.0])
    on = rng.random((u, d)) < 0.1
    emax = on * rng.choice([-1, 1], (u, d)) * rng.uniform(1.0, 2.0, (u, d))
    heights = emax[:, None] * np.ones((1, n_levels, 1)) + on[:, None] * deviation * rng.normal(size=(u, n_levels, d))
    group, level, dose = (part.ravel() for part in np.meshgrid(range(u), range(n_levels), doses, indexing="ij"))
    curve = hill_curve(torch.as_tensor(np.log(dose)), torch.zeros(1).double(), torch.ones(1).double())[:, None]
    shift = torch.as_tensor(heights[group, level]) * curve + 0.1 * torch.as_tensor(rng.normal(size=(len(group), d)))
    member = torch.nn.functional.one_hot(torch.as_tensor(level), n_levels).double()
    where = torch.as_tensor(group), torch.as_tensor(np.log(dose)), CurveGrid.over(np.log(0.3), np.log(3.0))
    return shift, torch.full(shift.shape, 100.0).double(), where, member, on, torch.as_tensor(heights)


def test_levels_that_agree_share_their_effects():
    shift, information, where, member, on, _ = screen(0.0)
    found = estimate_interventions(shift, information, *where, ShiftPrior(0.05), member=member)
    plain = estimate_interventions(shift, information, *where, ShiftPrior(0.05))
    assert found.prior.level_share == 0
    levels = found.interventions.levels
    torch.testing.assert_close(levels.emax, found.interventions.emax[:, None].expand_as(levels.emax))
    torch.testing.assert_close(found.interventions.emax, plain.interventions.emax)
    assert ((found.interventions.target_probs > 0.5).numpy() == on).mean() > 0.99


def test_levels_that_differ_have_effects_of_their_own():
    shift, information, where, member, on, heights = screen(1.0)
    found = estimate_interventions(shift, information, *where, ShiftPrior(0.05), member=member)
    assert found.prior.level_share > 0.05
    own = [found.interventions.at_level(k).direct(torch.full((12,), np.log(3.0))) for k in range(3)]
    truth = heights * 0.75
    error = torch.stack(own, 1) - truth
    common = found.interventions.direct(torch.full((12,), np.log(3.0)))[:, None] - truth
    assert error[:, :, on.any(0)].square().mean() < 0.1 * common[:, :, on.any(0)].square().mean()


def transfer(**options) -> Transfer:
    mean = torch.tensor([[1.0, 0.5], [1.0, 0.5], [4.0, 0.5]]).double()
    return replace(Transfer.between(mean, counts=True), **options)


def test_on_the_scale_of_means_counts_are_added():
    """With power 1, what is added in one level is added in the other; two thirds of a count are a smaller fold of four."""
    known = torch.tensor([[True, True, False]])
    added = torch.log(torch.tensor([1.0 + 1.0, 1.0])).double()
    heights = added.expand(1, 3, 2)
    found = transfer(power=1.0, share=0.0).carried(heights, known)[0, 2]
    kept = 2 / (2 + 0.05)  # of the common part, for the nugget
    assert float(found[0]) == pytest.approx(np.log((4 + kept * 1.0) / 4), abs=1e-6)
    folds = transfer(power=0.0, share=0.0).carried(heights, known)[0, 2]
    assert float(folds[0]) == pytest.approx(kept * np.log(2), abs=0.03)


def test_levels_that_are_alike_weigh_more():
    weights = transfer(share=3.0, length=0.5).weights(torch.tensor([True, False, True]))
    assert weights[1, 0] > weights[1, 2]
    assert weights[1, 1] == 0


def test_settings_are_chosen_by_levels_left_out():
    """Changes that add counts in a world where controls differ tenfold: fold changes must not be carried."""
    rng = np.random.default_rng(0)
    mean = torch.as_tensor(np.exp(rng.normal(0, 1.2, (4, 60))))
    added = torch.as_tensor(rng.uniform(1, 4, 60))
    heights = torch.log((mean + added) / mean)[None]
    between = Transfer.between(mean, counts=True)
    chosen = between.chosen(heights, torch.full_like(heights, 100.0))
    assert chosen.power == 0.5
    known = torch.tensor([[True, True, True, False]])
    error = [(t.carried(heights, known) - heights)[0, 3].square().mean() for t in (chosen, replace(between, power=0.0))]
    assert error[0] < 0.3 * error[1]


def test_where_levels_differ_at_random_fold_changes_are_carried_as_they_are():
    """Of many settings the best of a few levels is best by chance; it is taken only where levels agree that it is."""
    is_plain = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        mean = torch.as_tensor(np.exp(rng.normal(0, 1, 60) + rng.normal(0, 0.3, (4, 60))))
        heights = torch.as_tensor(rng.normal(0, 1, 60) + rng.normal(0, 0.7, (4, 60)))[None]
        chosen = Transfer.between(mean, counts=True).chosen(heights, torch.full_like(heights, 100.0))
        is_plain.append(chosen.power == 0 and chosen.share == 0)
    assert np.mean(is_plain) > 0.75


def test_what_the_network_makes_of_effects_is_taken_where_it_predicts_levels_left_out():
    """Changes differ between levels in a way that only the network knows, which is believed within what others show."""
    rng = np.random.default_rng(0)
    mean = torch.as_tensor(np.exp(rng.normal(0, 1, 60) + rng.normal(0, 0.3, (4, 60))))
    heights = torch.as_tensor(rng.normal(0, 1, 60) + rng.normal(0, 0.7, (4, 60)))[None]
    information = torch.full_like(heights, 100.0)
    noise = torch.as_tensor(rng.normal(0, 0.1, (1, 4, 60)))
    right = Transfer.between(mean, counts=True).chosen(heights, information, through=heights + noise)
    wrong = Transfer.between(mean, counts=True).chosen(heights, information, through=-heights)
    assert (right.network, wrong.network) == (1.0, 0.0)
    assert right.error < 0.3 * wrong.error
    known, end = torch.ones(1, 4, dtype=torch.bool), heights.amax(1).clamp_min(0.0)
    torch.testing.assert_close(right.mixed(0 * end, heights[:, 0], heights, known), heights[:, 0])
    torch.testing.assert_close(
        right.mixed(0 * end, end + 5.0, heights, known), end
    )  # no further than it was seen to go
    torch.testing.assert_close(right.mixed(0 * end, end + 5.0, heights, ~known), 0 * end)
    assert right.with_settings(wrong.settings).network == 0
