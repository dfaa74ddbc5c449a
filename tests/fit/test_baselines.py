"""Baselines of drawn cells: those of roots in closed form, those of children by the means of draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.fit._baselines import match_baselines
from scgim.train._data import Cells

MEANS = np.array([8.0, 5.0, 20.0, 3.0])


def cells_of(n_controls: int, n_treated: int, n_covariates: int = 0) -> Cells:
    """Poisson counts of given means per unit of size factor; twice that of the first gene in treated cells."""
    rng = np.random.default_rng(0)
    context = np.repeat([0, 1], [n_controls, n_treated])
    log_size = rng.normal(0.0, 0.3, len(context)).astype(np.float32)
    rate = MEANS * np.where(context[:, None] * np.array([1, 0, 0, 0]), 2.0, 1.0) * np.exp(log_size)[:, None]
    covariates = np.ones((len(context), n_covariates), np.float32)
    return Cells(rng.poisson(rate).astype(np.float32), context, covariates, log_size)


def prepare(make_module, off: float = 0.0, likelihood: str = "poisson", **options):
    """A module whose intercepts are too low by `off`; its parents do nothing."""
    module = make_module(likelihood, **options)
    with torch.no_grad():
        module.mechanism.weight.zero_()
        module.intercept.copy_(torch.as_tensor(np.log(MEANS) - off))
    module.baseline_offset.fill_(5.0)  # of an earlier fit
    return module


def log_means(cells: Cells, rows: np.ndarray) -> np.ndarray:
    """Of as many cells as are drawn, each several times, in a fixed random order."""
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()]
    order = np.tile(order, -(-40_000 // len(rows)))[:40_000]
    enough = 0.5 / len(rows)
    return np.log(cells.x[order].sum(0) / np.exp(cells.log_size[order].astype(float)).sum() + enough)


def tolerances(cells: Cells, rows: np.ndarray) -> np.ndarray:
    x = cells.x[rows]
    return np.minimum(2 * x.std(0) / x.mean(0) / len(rows) ** 0.5, 0.04)


@pytest.mark.parametrize("off", [0.3, -0.3, 1.7])
def test_baselines_are_moved_to_within_the_tolerance(make_module, load, off):
    module, cells = prepare(make_module, off), cells_of(400, 100)
    match_baselines(module, load(cells))
    control = np.flatnonzero(cells.context == 0)
    gap = log_means(cells, control) - module.intercept.detach().numpy()
    expected = gap - np.clip(gap, -tolerances(cells, control), tolerances(cells, control))
    np.testing.assert_allclose(module.baseline_offset, expected, atol=2e-3)


def test_steps_come_to_no_more_than_three(make_module, load):
    module = prepare(make_module, 5.0)
    match_baselines(module, load(cells_of(400, 0)))
    np.testing.assert_allclose(module.baseline_offset, 6 * 0.5)


def test_small_differences_are_let_pass(make_module, load):
    module, cells = prepare(make_module), cells_of(400, 0)
    with torch.no_grad():
        module.intercept.copy_(torch.as_tensor(log_means(cells, np.arange(400)) + [0.03, -0.03, 0.0, 0.06]))
    match_baselines(module, load(cells))
    moved = np.maximum(0.0, np.array([0.03, 0.03, 0.0, 0.06]) - tolerances(cells, np.arange(400)))
    np.testing.assert_allclose(module.baseline_offset, moved * [-1, 1, 1, -1], atol=2e-3)
    assert (module.baseline_offset[[0, 2]] == 0).all()
    assert moved[3] > 0.01


def test_covariates_are_part_of_the_mean(make_module, load):
    module, cells = prepare(make_module, n_covariates=1), cells_of(400, 0, 1)
    with torch.no_grad():
        module.covariate_effect.fill_(-0.4)
    match_baselines(module, load(cells))
    np.testing.assert_allclose(module.baseline_offset, 0.4, atol=0.1)


def test_children_have_the_observed_mean_given_drawn_parents(make_module, load):
    """An overdispersed parent acts on a log scale, so that the mean of its child is not the one at its mean."""
    module, cells = prepare(make_module, 0.2, "nb"), cells_of(2000, 0)
    with torch.no_grad():
        module.mechanism.weight[0, 2], module.log_scale[:] = 1.2, 0.5
    module.centre.fill_(1.0)
    module.spread.fill_(0.6)
    match_baselines(module, load(cells))
    nothing, n = torch.zeros(40_000, 4), 40_000
    generator = torch.Generator().manual_seed(1)
    _, mean = module.sample_cells(nothing, nothing.bool(), torch.zeros(n, 0), torch.zeros(n, 1), generator)
    np.testing.assert_allclose(mean.double().mean(0).log(), np.log(MEANS), atol=0.08)
    assert module.baseline_offset[2].abs() > 0.5


def test_few_controls_are_matched_together_with_all_cells(make_module, load):
    """Under the effects of their drugs: the dose has risen to half of what the first drug does in the end."""
    for n_controls, effect in ((99, np.log(2.0)), (99, 0.0), (100, 0.0)):
        module, cells = prepare(make_module), cells_of(n_controls, 900)
        known = module.knowledge
        known.target_probs[0, 0], known.emax[0, 0], known.hill[:] = 1.0, 2 * effect, 1.0
        known.emax_sd.zero_()
        match_baselines(module, load(cells))
        rows = np.arange(len(cells)) if n_controls < 100 else np.arange(100)
        share = (cells.context[rows] == 1) * np.exp(cells.log_size[rows])
        share = share.sum() / np.exp(cells.log_size[rows]).sum()
        drawn = np.log(MEANS) + np.array([np.log1p(share * (np.exp(effect) - 1)), 0, 0, 0])
        gap = log_means(cells, rows) - drawn
        expected = gap - np.clip(gap, -tolerances(cells, rows), tolerances(cells, rows))
        np.testing.assert_allclose(module.baseline_offset, expected, atol=0.02)
        assert (module.baseline_offset[0] > 0.4) == (n_controls == 99 and effect == 0.0)


def test_few_controls_are_not_matched_together_with_combinations(make_module, load):
    """Those of the first drug and the third lack half of what both do of the second gene."""
    group, members = np.array([-1, 0, 1, 2]), np.array([[3, 1], [3, 2]])
    module = prepare(make_module, group=group, dosage=np.array([0.0, 1.0, 1.0, 1.0]), members=members)
    cells = cells_of(60, 900)
    cells.context[500:] = 3
    cells.x[500:, 1] *= 0.5
    cells.x[:, 0] = cells_of(960, 0).x[:, 0]
    match_baselines(module, load(cells))
    np.testing.assert_allclose(module.baseline_offset, 0.0, atol=0.05)


def test_genes_without_counts_are_not_driven_to_nothing(make_module, load):
    """Half a count is added to the sums that are compared."""
    module, cells = prepare(make_module), cells_of(400, 0)
    with torch.no_grad():
        module.intercept[1] = -6.0
    cells.x[:, 1] = 0.0
    match_baselines(module, load(cells))
    offset = 0.0
    for _ in range(6):
        offset += max(-0.5, np.log(0.5 / 400) - np.log(np.exp(-6.0 + offset) + 0.5 / 400))
    assert module.baseline_offset[1].item() == pytest.approx(offset, abs=0.01)


def test_continuous_values_need_none(make_module, load):
    module = prepare(make_module, 0.3, likelihood="normal")
    match_baselines(module, load(cells_of(400, 0)))
    np.testing.assert_array_equal(module.baseline_offset, 0.0)


def test_hidden_expression_with_noise_has_the_means_of_observed_cells(make_module, load):
    """Noise of variance v lifts the mean of exp(z) by v / 2; the rest has to be found."""
    module, cells = prepare(make_module, 0.3, measurement="latent"), cells_of(2000, 0)
    match_baselines(module, load(cells))
    lift = 0.5 * torch.exp(-module.log_scale.detach())
    np.testing.assert_allclose(module.baseline_offset + lift, 0.3, atol=0.08)
