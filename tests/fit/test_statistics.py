"""Scales, sufficient statistics and samples of cells, by numpy over all cells at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgim.fit._statistics import gather_statistics, sample_cells, set_scales

GROUP = np.array([-1, 0, 0, 1, 2])


def test_scales_of_counts_are_those_of_control_cells(make_module, make_cells, load):
    module, cells = make_module(), make_cells()
    x = cells.x.copy()
    x[:, 1] = 0.0  # a gene that does not vary
    set_scales(module, load(replace(cells, x=x)))
    control = cells.context == 0
    size = np.exp(cells.log_size[control])[:, None]
    h = np.log1p(x[control] / size)
    np.testing.assert_allclose(module.centre, h.mean(0), rtol=1e-5)
    np.testing.assert_allclose(module.spread[[0, 2, 3]], h.std(0)[[0, 2, 3]], rtol=1e-4)
    assert module.spread[1] == 1.0
    log_mean = np.log((x[control].sum(0) + 0.5) / size.sum())
    np.testing.assert_allclose(module.intercept_loc, log_mean, rtol=1e-5)
    np.testing.assert_array_equal(module.intercept.detach(), module.intercept_loc)


def test_a_spread_is_kept_down_to_a_thousandth(make_module, make_cells, load):
    module, cells = make_module("normal"), make_cells(counts=False)
    wave = np.tile([1.0, -1.0], 150)[:, None]
    x = (wave * [2.0, 3e-3, 4e-4, 0.0]).astype(np.float32)
    set_scales(module, load(replace(cells, x=x, context=np.zeros(300, dtype=np.int64))))
    np.testing.assert_allclose(module.spread, [2.0, 3e-3, 1.0, 1.0], rtol=1e-4)


def test_treated_cells_do_not_enter_scales(make_module, make_cells, load):
    first, second, cells = make_module(), make_module(), make_cells()
    set_scales(first, load(cells))
    treated = cells.context > 0
    x, log_size = cells.x.copy(), cells.log_size.copy()
    x[treated], log_size[treated] = 50.0, 2.0
    set_scales(second, load(replace(cells, x=x, log_size=log_size)))
    for name in ("centre", "spread", "intercept_loc"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-6)


def test_scales_of_continuous_values_are_their_moments(make_module, make_cells, load):
    module, cells = make_module("normal"), make_cells(counts=False)
    set_scales(module, load(cells))
    control = cells.x[cells.context == 0]
    np.testing.assert_allclose(module.centre, control.mean(0), rtol=1e-5)
    np.testing.assert_allclose(module.spread, control.std(0), rtol=1e-4)
    np.testing.assert_array_equal(module.intercept.detach(), 0.0)  # values are standardised
    np.testing.assert_array_equal(module.intercept_loc, 0.0)


def test_of_few_wells_the_unit_is_partly_that_of_all(make_module, make_cells, load):
    """24 wells of 4 genes, half of the 12 wells a gene that would do by controls alone; a gene that does not vary among these has none."""
    module, cells = make_module("normal"), make_cells(24, counts=False)
    control, x = cells.context == 0, cells.x.copy()
    x[~control] *= 3
    x[control, 1] = 0.5
    set_scales(module, load(replace(cells, x=x)))
    mixed = np.sqrt(0.5 * x[control].var(0) + 0.5 * x.var(0))
    np.testing.assert_allclose(module.spread[[0, 2, 3]], mixed[[0, 2, 3]], rtol=1e-4)
    assert module.spread[1] == 1.0


def scaled_module(make_module, *args):
    """A module on a scale that is neither that of counts nor that of the controls."""
    module = make_module(*args)
    module.centre.copy_(torch.tensor([1.0, 0.5, 0.8, 1.2]))
    module.spread.copy_(torch.tensor([0.5, 0.8, 0.4, 1.5]))
    return module


def standardised(module, cells) -> np.ndarray:
    h = np.log1p(cells.x / np.exp(cells.log_size)[:, None])
    return ((h - module.centre.numpy()) / module.spread.numpy()).astype(np.float64)


@pytest.mark.parametrize("mechanism", ["linear", "mlp"])
def test_statistics_are_means_of_contexts_and_scatter_within(make_module, make_cells, load, mechanism):
    module, cells = scaled_module(make_module, "nb", mechanism), make_cells()
    found = gather_statistics(module, load(cells))
    h = standardised(module, cells)
    columns = h if mechanism == "linear" else np.hstack([h, np.tanh(h), np.tanh(h) ** 2])
    means = np.array([columns[cells.context == k].mean(0) for k in (0, 1, 2, 4)])
    within = columns - means[np.array([0, 1, 2, -1, 3])[cells.context]]
    np.testing.assert_allclose(found.means, means, atol=1e-5)
    np.testing.assert_allclose(found.gram, within.T @ within, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(found.n_cells, np.bincount(cells.context, minlength=5)[[0, 1, 2, 4]])
    np.testing.assert_array_equal(found.group, GROUP[[0, 1, 2, 4]])
    np.testing.assert_array_equal(found.observed, [True, True, True, False, True])
    assert (found.n_genes, found.gram_by_group) == (4, None)


def test_hard_interventions_keep_the_scatter_of_each_drug_apart(make_module, make_cells, load):
    module, cells = scaled_module(make_module, "nb", "linear", "hard"), make_cells()
    found = gather_statistics(module, load(cells)).gram_by_group
    h = standardised(module, cells)
    scatter = lambda k: (lambda v: v.T @ v)(h[cells.context == k] - h[cells.context == k].mean(0))
    expected = [scatter(1) + scatter(2), np.zeros((4, 4)), scatter(4), scatter(0)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_covariates_are_taken_out(make_module, make_cells, load):
    """What is left of the cells does not vary with the covariates within contexts."""
    module, cells = scaled_module(make_module, "nb", "linear", "shift", 2), make_cells(n_covariates=2)
    found = gather_statistics(module, load(cells))
    h, c = standardised(module, cells), cells.covariates.astype(np.float64)
    dummies = np.eye(5)[cells.context][:, [0, 1, 2, 4]]
    coefficients = np.linalg.lstsq(np.hstack([dummies, c]), h, rcond=None)[0]
    residuals = h - np.hstack([dummies, c]) @ coefficients
    np.testing.assert_allclose(found.gram, residuals.T @ residuals, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.means, coefficients[:4] + c.mean(0) @ coefficients[4:], atol=1e-4)


def test_sampled_cells_are_the_cells_in_another_order(make_module, make_cells, load):
    module, cells = scaled_module(make_module, "nb", "linear", "shift", 1), make_cells(n_covariates=1)
    found = sample_cells(module, load(cells))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(found.h, standardised(module, cells)[order], atol=1e-5)
    np.testing.assert_array_equal(found.x, cells.x[order])
    np.testing.assert_array_equal(found.covariates, cells.covariates[order])
    np.testing.assert_array_equal(found.log_size, cells.log_size.astype(np.float64)[order])
    # contexts are numbered anew, without the one that has no cells
    np.testing.assert_array_equal(found.context, np.array([0, 1, 2, -1, 3])[cells.context[order]])
    np.testing.assert_array_equal(found.group, GROUP[[0, 1, 2, 4]])
    assert found.likelihood == "nb"


def test_no_more_cells_are_sampled_than_regressions_can_take(make_module, make_cells, load, monkeypatch):
    monkeypatch.setattr("scgim.fit._statistics.MAX_SAMPLED_CELLS", 50)
    cells = make_cells()
    found = sample_cells(make_module(), load(cells))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).numpy()[:50]
    np.testing.assert_array_equal(found.x, cells.x[order])
