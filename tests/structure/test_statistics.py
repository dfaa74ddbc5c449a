"""Sufficient statistics against direct computation and least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.structure._statistics import StatisticsAccumulator

GROUP = np.array([-1, 0, 0, 1])


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (N, d), contexts (N,) and covariates (N, Q) that differ between contexts."""
    rng = np.random.default_rng(0)
    context = np.repeat(np.arange(4), [30, 12, 9, 15])
    covariates = rng.normal(size=(len(context), 2)) + 0.5 * context[:, None]
    x = rng.normal(size=(len(context), 3)) + context[:, None] + covariates @ rng.normal(size=(2, 3))
    order = rng.permutation(len(context))
    return x[order], context[order], covariates[order]


def accumulate(x, context, covariates=None, *, n_batches=1, **kwargs):
    n_covariates = 0 if covariates is None else covariates.shape[1]
    accumulator = StatisticsAccumulator(torch.as_tensor(GROUP), 3, x.shape[1], n_covariates, **kwargs)
    for rows in np.array_split(np.arange(len(x)), n_batches):
        c = None if covariates is None else torch.as_tensor(covariates[rows])
        accumulator.update(torch.as_tensor(x[rows]), torch.as_tensor(context[rows]), c)
    return accumulator.finalise()


def scatter(x: np.ndarray, context: np.ndarray) -> np.ndarray:
    residuals = x - np.stack([x[context == k].mean(0) for k in range(context.max() + 1)])[context]
    return residuals.T @ residuals


@pytest.mark.parametrize("n_batches", [1, 5])
def test_means_and_scatter(cells, n_batches):
    x, context, _ = cells
    s = accumulate(x, context, n_batches=n_batches)
    np.testing.assert_array_equal(s.n_cells, [30, 12, 9, 15])
    np.testing.assert_allclose(s.means, np.stack([x[context == k].mean(0) for k in range(4)]))
    np.testing.assert_allclose(s.gram, scatter(x, context))
    assert (s.n_contexts, s.n_groups, s.n_basis, s.residual_dof) == (4, 2, 1, 62.0)
    assert s.gram_by_group is None


def test_scatter_of_each_perturbation_has_controls_last(cells):
    x, context, _ = cells
    s = accumulate(x, context, n_batches=3, by_group=True)
    for g, contexts in enumerate([[1, 2], [3], [0]]):
        member = np.isin(context, contexts)
        np.testing.assert_allclose(
            s.gram_by_group[g], scatter(x[member], np.unique(context[member], return_inverse=True)[1])
        )
    np.testing.assert_allclose(s.gram_by_group.sum(0), s.gram)


@pytest.mark.parametrize("by_group", [False, True])
def test_covariates_are_partialled_out_as_by_least_squares(cells, by_group):
    x, context, covariates = cells
    s = accumulate(x, context, covariates, n_batches=2, by_group=by_group)
    design = np.hstack([np.eye(4)[context], covariates])
    coefficients = np.linalg.lstsq(design, x, rcond=None)[0]
    adjusted = x - covariates @ coefficients[4:]
    np.testing.assert_allclose(s.gram, scatter(adjusted, context), rtol=1e-5)
    np.testing.assert_allclose(s.gram, np.cov((x - design @ coefficients).T, ddof=0) * len(x), rtol=1e-5)
    # means as for the average cell
    np.testing.assert_allclose(s.means, coefficients[:4] + covariates.mean(0) @ coefficients[4:], rtol=1e-5)
    if by_group:
        member = context == 3
        np.testing.assert_allclose(s.gram_by_group[1], scatter(adjusted[member], np.zeros(15, int)), rtol=1e-5)


def test_constant_and_collinear_covariates_do_no_harm(cells):
    x, context, covariates = cells
    redundant = np.hstack([covariates, covariates[:, :1] + covariates[:, 1:], np.ones((len(x), 1))])
    a, b = accumulate(x, context, covariates), accumulate(x, context, redundant)
    np.testing.assert_allclose(a.gram, b.gram, rtol=1e-4)
    np.testing.assert_allclose(a.means, b.means, rtol=1e-4)


def test_contexts_without_cells_are_left_out(cells):
    x, context, _ = cells
    keep = context != 2
    s = accumulate(x[keep], context[keep])
    np.testing.assert_array_equal(s.group, [-1, 0, 1])
    np.testing.assert_array_equal(s.n_cells, [30, 12, 15])


def test_columns_of_several_basis_functions(cells):
    x, context, _ = cells
    s = accumulate(np.hstack([x, x**2]), context)
    assert s.n_basis == 2
    np.testing.assert_array_equal(s.columns(torch.tensor([[0, 2]])), [[0, 3, 2, 5]])


def test_number_of_perturbations_counts_those_without_cells(cells):
    """The last perturbation may be left out of training; its place is kept where scatter is kept apart."""
    x, context, _ = cells
    keep = context != 3
    assert accumulate(x[keep], context[keep], by_group=True).n_groups == 2


@pytest.mark.parametrize("by_group", [False, True])
def test_statistics_of_some_genes_are_those_of_their_columns(cells, by_group):
    """Of two functions of each gene, and whatever their order."""
    x, context, _ = cells
    group, genes = torch.as_tensor(GROUP), torch.tensor([2, 0])
    whole, part = (StatisticsAccumulator(group, n, 2 * n, by_group=by_group) for n in (3, 2))
    whole.update(torch.as_tensor(np.hstack([x, x**2])), torch.as_tensor(context))
    part.update(torch.as_tensor(np.hstack([x[:, [2, 0]], x[:, [2, 0]] ** 2])), torch.as_tensor(context))
    found, expected = whole.finalise().of_genes(genes), part.finalise()
    for name in ("gram", "means", "n_cells", "gram_by_group" if by_group else "gram"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert found.n_genes == 2
    assert found.n_basis == 2
