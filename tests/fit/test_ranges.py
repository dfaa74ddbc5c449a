"""How far values go and parents act in the training cells; odd cells, contexts and hidden parents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgim.fit._ranges import note_ranges
from scgim.train._data import Cells

N = 1000  # so that two cells at either end are odd
WEIGHT = 0.7


def prepare(make_module, likelihood: str):
    """Gene 0 acts on gene 2 by a known weight, on parent features that are not standardised."""
    module = make_module(likelihood)
    with torch.no_grad():
        module.mechanism.weight.zero_()
        module.mechanism.weight[0, 2] = WEIGHT
    return module


def cells_of(parent: np.ndarray, context: np.ndarray | None = None, log_size: float = 0.0) -> Cells:
    x = np.full((len(parent), 4), 3.0, dtype=np.float32)
    x[:, 0] = parent
    context = np.zeros(len(parent), dtype=np.int64) if context is None else context
    return Cells(x, context, np.zeros((len(parent), 0), np.float32), np.full(len(parent), log_size, np.float32))


def test_two_in_a_thousand_odd_cells_do_not_count(make_module, load):
    module, rng = prepare(make_module, "nb"), np.random.default_rng(0)
    parent = rng.integers(5, 20, N).astype(float)
    parent[[10, 500]], parent[[20, 999]] = 24.0, 0.0  # odd, two at either end
    parent[[30, 40]] = 21.0, 3.0  # the most and the least that are not
    note_ranges(module, load(cells_of(parent)))
    np.testing.assert_allclose(module.knowledge.reach[:, 2], WEIGHT * np.log1p([3.0, 21.0]), rtol=1e-5)
    np.testing.assert_array_equal(module.knowledge.reach[:, [0, 1, 3]], 0.0)
    np.testing.assert_array_equal(module.knowledge.value_range, [[0.0, 3, 3, 3], [24.0, 3, 3, 3]])


def test_means_of_contexts_count_however_few_cells_they_have(make_module, load):
    module = prepare(make_module, "nb")
    parent, context = np.tile([8.0, 9.0, 10.0, 11.0], N // 4), np.zeros(N, dtype=np.int64)
    parent[:2], context[:2] = (1.0, 2.0), 1
    parent[2:4], context[2:4] = (25.0, 30.0), 4
    note_ranges(module, load(cells_of(parent, context)))
    expected = [np.log1p([1.0, 2.0]).mean(), np.log1p([25.0, 30.0]).mean()]
    np.testing.assert_allclose(module.knowledge.reach[:, 2], WEIGHT * np.array(expected), rtol=1e-5)


def test_single_cells_are_not_multiplied_by_more_than_ten(make_module, load):
    """Ten times the mean over cells of what parents multiply a gene by."""
    module = prepare(make_module, "nb")
    with torch.no_grad():
        module.mechanism.weight[0, 2] = 1.0
    parent = np.zeros(N)
    parent[::100] = 99.0
    note_ranges(module, load(cells_of(parent)))
    mean_fold = 0.99 * 1 + 0.01 * 100
    assert module.knowledge.reach[1, 2].item() == pytest.approx(np.log(10 * mean_fold), rel=1e-5)
    assert module.knowledge.reach[0, 2].item() == 0.0


def test_continuous_values_reach_as_far_as_any_cell(make_module, load):
    module, rng = prepare(make_module, "normal"), np.random.default_rng(0)
    parent = rng.normal(size=N)
    parent[3], parent[7] = 60.0, -50.0
    note_ranges(module, load(cells_of(parent, log_size=1.0)))  # size factors have no meaning
    np.testing.assert_allclose(module.knowledge.reach[:, 2], WEIGHT * np.array([-50.0, 60.0]), rtol=1e-5)
    np.testing.assert_allclose(module.knowledge.value_range[:, 0], [-50.0, 60.0])


def test_values_of_counts_are_per_unit_of_size_factor(make_module, load):
    module = prepare(make_module, "poisson")
    parent = np.tile([2.0, 6.0], N // 2)
    note_ranges(module, load(cells_of(parent, log_size=np.log(2.0))))
    np.testing.assert_allclose(module.knowledge.value_range, [[1.0, 1.5, 1.5, 1.5], [3.0, 1.5, 1.5, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(module.knowledge.reach[:, 2], WEIGHT * np.log1p([1.0, 3.0]), rtol=1e-5)


def test_hidden_parents_have_no_range(make_module, load):
    module = prepare(make_module, "poisson")
    note_ranges(module, load(cells_of(np.tile([2.0, 6.0], N // 2))), of_parents=False)
    assert module.knowledge.reach.isinf().all()
    np.testing.assert_array_equal(module.knowledge.value_range[:, 0], [2.0, 6.0])


def test_of_many_cells_some_are_kept(make_module, load, monkeypatch):
    """Every fourth of each minibatch of 64; contexts and values are those of all cells."""
    monkeypatch.setattr("scgim.fit._ranges.MAX_SAMPLED_CELLS", N // 4)
    module = prepare(make_module, "normal")
    parent = np.where(np.arange(N) % 64 % 4 == 0, np.arange(N) % 7, 50.0)
    cells = cells_of(parent)
    note_ranges(module, load(replace(cells, context=np.repeat([0, 1], N // 2))))
    means = [parent[: N // 2].mean(), parent[N // 2 :].mean()]
    np.testing.assert_allclose(module.knowledge.reach[:, 2], WEIGHT * np.array([0.0, max(means)]), rtol=1e-5)
    np.testing.assert_array_equal(module.knowledge.value_range[:, 0], [0.0, 50.0])
