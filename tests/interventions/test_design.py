"""Expected information: closed forms, and the update of what is known."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch

from scgim.interventions._curves import CurveGrid
from scgim.interventions._design import CurveBelief, curve_belief, informative_doses, reduction_of_variance
from scgim.interventions._generator import DrugKernel, fit_kernel

CERTAIN = 40.0  # log odds


def two_curves() -> CurveGrid:
    """Midpoints at e^-2 and e^2, steep: a dose of 1 tells them apart, one of e^5 does not."""
    log_ec50 = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    return CurveGrid(log_ec50, torch.full((2,), 5.0).double(), torch.full((2,), math.log(0.5)).double())


def belief(log_odds: float, height: float = 3.0, variance: float = 1e-8) -> CurveBelief:
    shape = (1, 2)
    return CurveBelief(
        torch.tensor([log_odds]).double(),
        torch.full(shape, math.log(0.5)).double(),
        torch.full(shape, height).double(),
        torch.full(shape, variance).double(),
    )


def first(belief: CurveBelief, noise: float, doses: list[float], n: int = 1) -> list[torch.Tensor]:
    told = informative_doses(
        belief, torch.tensor([noise]).double(), torch.tensor(doses).double(), two_curves(), 4000, 0
    )
    return list(islice(told, n))


def test_a_dose_between_two_midpoints_tells_one_bit():
    (told,) = first(belief(CERTAIN), 1e-4, [0.0, 5.0, -5.0])
    np.testing.assert_allclose(told[:, 0], 0, atol=1e-9)  # the target is certain
    np.testing.assert_allclose(told[:, 1], [math.log(2), 0, 0], atol=0.01)
    (noisy,) = first(belief(CERTAIN), 1e6, [0.0])
    np.testing.assert_allclose(noisy, 0, atol=1e-3)


def test_a_dose_where_all_curves_have_risen_tells_of_the_target_only():
    (told,) = first(belief(0.0), 1e-4, [5.0])
    np.testing.assert_allclose(told[0], [math.log(2), 0], atol=0.02)


def test_what_was_told_is_not_told_again():
    once, again = first(belief(CERTAIN), 1e-4, [0.0, 5.0], n=2)
    assert once[0].sum() == pytest.approx(math.log(2), abs=0.01)
    assert again[0].sum() == pytest.approx(0, abs=1e-6)
    noisy = [float(told[0].sum()) for told in first(belief(CERTAIN), 4.0, [0.0], n=6)]
    assert noisy[0] > noisy[3] > noisy[5] > 0
    assert sum(noisy) < math.log(2)


def test_an_update_is_what_all_data_together_say():
    rng = torch.Generator().manual_seed(0)
    grid = CurveGrid.over(-1.0, 1.0)
    shift = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    variance = torch.rand(4, 3, generator=rng, dtype=torch.float64) + 0.1
    doses, prior = torch.tensor([-1.0, 0.0, 0.5, 1.0]).double(), torch.full((3,), 0.3).double()
    before = curve_belief(shift[:3], variance[:3], doses[:3], grid, 2.0, prior)
    after = before.after(shift[3], variance[3], grid.values(doses[3:])[0])
    whole = curve_belief(shift, variance, doses, grid, 2.0, prior)
    for name in ("log_weight", "mean", "variance"):
        torch.testing.assert_close(getattr(after, name), getattr(whole, name))


def test_odds_change_by_the_ratio_of_densities():
    one = belief(0.5)
    y, noise, curve = torch.tensor([2.0]).double(), torch.tensor([0.5]).double(), torch.tensor([0.2, 0.9]).double()
    normal = torch.distributions.Normal
    spread = (1e-8 * curve.square() + 0.5).sqrt()
    on = (0.5 * normal(3.0 * curve, spread).log_prob(y).exp()).sum().log()
    off = normal(0.0, noise.sqrt()).log_prob(y)
    torch.testing.assert_close(one.after(y, noise, curve).log_odds, 0.5 + on - off)
    true = torch.tensor([[1]])
    told = one.log_probs(y[None], noise, curve, torch.tensor([0, 1]), true)
    torch.testing.assert_close(told[0][0], off)
    torch.testing.assert_close(told[1][0, 0], on)
    torch.testing.assert_close(told[2][0, 0], normal(2.7, spread[1]).log_prob(y)[0])


def test_drugs_picked_take_most_off_the_variance():
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(30, 3, generator=rng, dtype=torch.float64)
    kernel = DrugKernel(features[:10])
    fit = fit_kernel(kernel, features[:10, :2] + 0.3 * torch.randn(10, 2, generator=rng, dtype=torch.float64))
    weight = torch.linspace(0.1, 3.0, 20, dtype=torch.float64)

    def each(measured: list[int]) -> torch.Tensor:
        """Of all drugs of the library, by the kernel as written, given the measured ones."""
        x = kernel.standardise(torch.cat([features[:10], features[10:][measured], features[10:]]))
        distance = torch.cdist(x, x).square() / (fit.width * kernel.median)
        k = (1 - fit.radial) * x @ x.T / 3 + fit.radial * torch.exp(-distance) + 1e3
        n = 10 + len(measured)
        given = k[:n, :n] + fit.noise * torch.eye(n)
        return (k[n:, n:] - k[n:, :n] @ torch.linalg.solve(given, k[:n, n:])).diagonal()

    def variance(measured: list[int]) -> float:
        return float((weight * each(measured)).sum())

    own = each([])
    picks, shares = reduction_of_variance(kernel, fit, features[10:], own * weight, 3, seed=0)
    total = variance([])
    for i in range(3):
        left = {q: variance([*picks[:i], q]) for q in range(20) if q not in picks[:i]}
        assert picks[i] == min(left, key=left.get)
        assert shares[i] == pytest.approx((variance(picks[:i]) - left[picks[i]]) / total, rel=1e-4)
