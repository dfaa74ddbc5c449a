"""Depth of cells: closed forms under a known model, and recovery beside a network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import scgim
from scgim.structure._depth import (
    DepthCells,
    DepthModel,
    _better_inverse_dispersion,
    _Gene,
    find_depth,
)

POISSON = 1e9  # an inverse dispersion that is as good as none


def plain_model(n_genes: int, inverse_dispersion: float = POISSON, variance: float = 0.25) -> DepthModel:
    """Genes of mean 8 without a network, drugs or covariates."""
    zero = torch.zeros(n_genes).double()
    return DepthModel(
        weights=torch.zeros(n_genes, n_genes).double(),
        base=zero + np.log(8.0),
        shift=torch.zeros(1, n_genes).double(),
        covariate_effect=torch.zeros(0, n_genes).double(),
        inverse_dispersion=zero + inverse_dispersion,
        centre=zero,
        spread=zero + 1,
        depth=torch.zeros(1).double(),
        variance=torch.tensor(variance).double(),
    )


def as_cells(x: np.ndarray, context: np.ndarray | None = None) -> DepthCells:
    code = torch.zeros(len(x)).long() if context is None else torch.as_tensor(context)
    return DepthCells(torch.as_tensor(x, dtype=torch.float64), code, torch.zeros(len(x), 0).double())


def screen(depth_sd: float, seed: int = 0, n_genes: int = 12) -> tuple[DepthCells, torch.Tensor, np.ndarray]:
    """Cells of a simulated screen, perturbation of each context, and true log depths."""
    adata = scgim.data.simulate_screen(
        n_genes=n_genes, n_drugs=20, doses=(1.0,), n_cells=60, n_controls=400, library_size_sd=depth_sd, seed=seed
    )
    context = adata.obs["perturbation"].cat.codes.to_numpy().astype(int)  # the control is the first
    group = torch.arange(context.max() + 1) - 1
    return as_cells(adata.X.toarray(), context), group, np.log(adata.obs["size_factor"].to_numpy())


@pytest.mark.parametrize("inverse_dispersion", [POISSON, 2.0])
def test_posterior_without_a_network(inverse_dispersion):
    """The slope of the log posterior is zero at the mode, and its information the inverse variance."""
    model = plain_model(5, inverse_dispersion)
    x = torch.as_tensor([[8, 8, 8, 8, 8], [20, 3, 16, 9, 30], [0, 0, 1, 0, 0]]).double()
    mode, sd = model.posterior(as_cells(x), n_steps=30)
    mean = 8 * mode.exp()
    share = 1 / (1 + mean / inverse_dispersion)
    torch.testing.assert_close((share * (x - mean)).sum(1, keepdim=True), mode / 0.25, atol=1e-6, rtol=0)
    torch.testing.assert_close(1 / sd.square(), 5 * mean * share + 4, atol=1e-5, rtol=1e-5)
    assert mode[0].abs() < 1e-9
    assert mode[1] > 0 > mode[2]


def test_one_gene_of_many_counts_does_not_rule():
    """Nine genes are as expected, one of 400 counts is four times that: the total is 3.5 times what it was."""
    model = plain_model(10, 4.0)
    model.base[0] = np.log(400.0)
    x = np.full((1, 10), 8.0)
    x[0, 0] = 1600.0
    mode, _ = model.posterior(as_cells(x))
    total = np.log(x.sum() / (400 + 72))
    assert 0 < float(mode) < 0.3 * total


def test_unknown_contexts_have_no_effects():
    model = replace(plain_model(5), shift=torch.full((1, 5), 1.0).double())
    x = np.full((2, 5), 8.0)
    mode, _ = model.posterior(as_cells(x, np.array([0, -1])))
    assert float(mode[0]) < -0.5
    assert abs(float(mode[1])) < 1e-9


def test_inverse_dispersion():
    rng = np.random.default_rng(0)
    mean = torch.as_tensor(rng.uniform(2, 20, 50_000))
    x = torch.as_tensor(rng.poisson(mean.numpy() * rng.gamma(3.0, 1 / 3, 50_000))).double()
    r = torch.tensor(8.0).double()
    for _ in range(5):
        r = _better_inverse_dispersion(r, (x - mean).square(), mean)
    np.testing.assert_allclose(float(r), 3.0, rtol=0.05)


def test_regression_of_one_gene():
    rng = np.random.default_rng(0)
    n, shift = 20_000, np.array([0.0, 0.7])
    context, h, depth = rng.integers(0, 2, n), rng.normal(size=n), 0.5 * rng.normal(size=n)
    x = torch.as_tensor(rng.poisson(np.exp(1.5 + 0.4 * h + shift[context] + depth))).double()
    design = torch.as_tensor(np.column_stack([h, np.ones(n)]))
    gene = _Gene(design, torch.zeros(2).double(), torch.zeros(2).double(), torch.tensor(8.0).double())
    precision = torch.tensor([1e6, 1.0]).double()
    for _ in range(5):
        gene = gene.fitted(x, torch.as_tensor(depth), torch.as_tensor(context), precision)
    np.testing.assert_allclose(gene.weights, [0.4, 1.5], atol=0.02)
    np.testing.assert_allclose(gene.shift, shift, atol=0.02)
    assert gene.inverse_dispersion > 50


@pytest.mark.parametrize("depth_sd", [0.25, 0.5])
def test_depth_is_found_and_its_error_known(depth_sd):
    cells, group, truth = screen(depth_sd)
    model = find_depth(cells, group, 0.2)
    mode, sd = (part[:, 0].numpy() for part in model.posterior(cells))
    error = mode - truth
    np.testing.assert_allclose(float(model.variance), depth_sd**2, rtol=0.15)
    np.testing.assert_allclose(np.mean((error - error.mean()) ** 2), np.mean(sd**2), rtol=0.3)
    assert np.corrcoef(mode, truth)[0, 1] > 0.85


def test_depth_of_a_whole_context_is_found():
    """Cells of one drug are half as deep: all genes have that in common, which effects have not."""
    cells, group, _ = screen(0.5)
    rng = np.random.default_rng(0)
    shallow = (cells.context == 5)[:, None]
    thinned = torch.as_tensor(rng.binomial(cells.x.numpy().astype(int), 0.5)).double()
    cells = cells._replace(x=torch.where(shallow, thinned, cells.x))
    mode, _ = find_depth(cells, group, 0.2).posterior(cells)
    found = mode[shallow].mean() - mode[~shallow].mean()
    np.testing.assert_allclose(float(found), np.log(0.5), atol=0.15)


def test_none_where_cells_do_not_differ():
    cells, group, _ = screen(0.0)
    assert find_depth(cells, group, 0.05) is None
