"""Draws of cells: their backdrop, random numbers and pieces."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scgim.module import GIMModule
from scgim.nn._likelihood import CommonNoise
from scgim.predict._sampler import Backdrop, Sampler


def sampler(likelihood: str = "poisson", device: str = "cpu", n_genes: int = 2) -> Sampler:
    module = SimpleNamespace(likelihood=likelihood, device=torch.device(device))
    pool = {
        "covariates": np.arange(8.0).reshape(4, 2).astype(np.float32),
        "log_size": np.arange(4.0).astype(np.float32),
    }
    design = SimpleNamespace(level_named=lambda covariates: None)  # no effect modifier
    return Sampler(module, [f"gene_{j}" for j in range(n_genes)], pool, design)


def test_on_the_processor_random_numbers_go_on_from_those_that_were_drawn():
    rng = torch.Generator().manual_seed(3)
    assert sampler()._on_device(rng) is rng


def test_covariates_and_size_factors_are_those_of_the_same_control_cells():
    found = sampler().backdrop(50, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(found.covariates[:, 0], 2 * found.log_size)
    assert sorted(set(found.log_size.tolist())) == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("size_factor", [2.0, [1.0, 2.0, 4.0]])
def test_size_factors_may_be_given(size_factor):
    found = sampler().backdrop(3, torch.Generator(), size_factor=size_factor)
    np.testing.assert_allclose(found.log_size, np.log(np.broadcast_to(size_factor, 3)), rtol=1e-6)


@pytest.mark.parametrize("size_factor", [[1.0, 2.0], 0.0, -1.0, np.inf, np.nan])
def test_size_factors_are_one_or_as_many_positive_numbers(size_factor):
    with pytest.raises(ValueError, match="must be one or 3 positive numbers"):
        sampler().backdrop(3, torch.Generator(), size_factor=size_factor)


def test_means_are_per_unit_of_size_factor():
    cells = Backdrop(torch.zeros(2, 0), torch.tensor([0.0, 1.0]))
    expected = torch.tensor([[2.0, 4.0], [2.0, 4.0]])
    per_unit = expected / cells.log_size.exp()[:, None]
    torch.testing.assert_close(sampler()._per_unit(expected, cells), per_unit)
    torch.testing.assert_close(sampler("normal")._per_unit(expected, cells), expected)


def test_cells_are_drawn_in_pieces_of_eight_million_values():
    assert sampler(n_genes=1000)._rows_at_once(100) == 80
    assert sampler(n_genes=1000)._rows_at_once(10**6) == 1


def test_backdrops_are_cut_and_repeated():
    cells = Backdrop(torch.arange(6.0).reshape(3, 2), torch.arange(3.0))
    twice = cells.repeat(2)
    assert (len(cells), len(twice), len(cells.rows(slice(1, 3)))) == (3, 6, 2)
    np.testing.assert_array_equal(twice.covariates, np.tile(cells.covariates, (2, 1)))
    np.testing.assert_array_equal(twice.log_size, [0, 1, 2, 0, 1, 2])


def test_means_of_the_same_cells_differ_by_effects_alone():
    """Counts of genes without children are not drawn, which changes no mean: not by a bit."""
    adjacency = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    module = GIMModule(3, [-1, 0], None, 0, "nb", "linear", "shift", 0)
    module.mechanism.set_graph(adjacency.numpy())
    module.mechanism.weight.data.fill_(0.3)
    pool = {"covariates": np.zeros((4, 0), np.float32), "log_size": np.linspace(-0.5, 0.5, 4).astype(np.float32)}
    design = SimpleNamespace(level_named=lambda covariates: None)
    own = Sampler(module, ["a", "b", "c"], pool, design)
    means, nothing = own.coupled_means(200, seed=1), torch.zeros(200, 3)
    reference = means(nothing, nothing.bool())
    shift = torch.tensor([0.5, 0.0, 0.0]).expand(200, 3)
    moved = means(shift, shift > 0)
    torch.testing.assert_close(means(nothing, nothing.bool()), reference, rtol=0, atol=0)
    cells = own.backdrop(200, torch.Generator().manual_seed(1))
    noise = CommonNoise(torch.Generator().manual_seed(1))
    for effects, found in ((nothing, reference), (shift, moved)):
        args = effects, effects > 0, cells.covariates, cells.log_size[:, None], noise.again()
        _, expected = module.sample_cells(*args)
        per_unit = (expected * torch.exp(-cells.log_size[:, None])).double()
        torch.testing.assert_close(found, per_unit, rtol=0, atol=0)
    assert (moved[:, 1] >= reference[:, 1]).all()
    assert moved[:, 1].mean() > reference[:, 1].mean()


def test_means_draw_no_counts_of_genes_that_act_on_none():
    """In a chain the last gene's counts change nothing: means are those over cells that are drawn whole, but for the noise of cells."""
    module = GIMModule(3, [-1, 0], None, 0, "nb", "linear", "shift", 0)
    module.mechanism.set_graph(np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=bool))
    module.mechanism.weight.data.fill_(0.3)
    pool = {"covariates": np.zeros((4, 0), np.float32), "log_size": np.linspace(-0.5, 0.5, 4).astype(np.float32)}
    design = SimpleNamespace(
        level_named=lambda covariates: None, level=lambda covariates: np.zeros(len(covariates), int)
    )
    own = Sampler(module, ["a", "b", "c"], pool, design)
    shift = torch.tensor([[[0.0, 0.0, 0.0]], [[0.7, 0.0, 0.0]]])
    found, variance = own.means(shift, shift > 0, 20_000, torch.Generator().manual_seed(0))
    cells = own.backdrop(20_000, torch.Generator().manual_seed(1))
    for row, effects in enumerate(shift):
        args = effects.expand(20_000, 3), effects.expand(20_000, 3) > 0, cells.covariates, cells.log_size[:, None]
        _, expected = module.sample_cells(*args, torch.Generator().manual_seed(2))
        per_unit = (expected * torch.exp(-cells.log_size[:, None])).double()
        assert ((per_unit.mean(0) - found[row]).abs() <= 5 * (2 * variance[row]).sqrt() + 1e-6).all()
    assert list(own.of_means()["drawn"]) == [True, True, False]
