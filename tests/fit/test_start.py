"""The start of the descent against regressions by hand.

Where targets are certain and their effects free, the fit of the search is least squares with a dummy for each context that moves.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgim._priors import ShiftPrior
from scgim.fit._start import start_from
from scgim.fit._statistics import gather_statistics
from scgim.structure._search import StructureResult

PARENTS = [[], [], [0], [0, 1]]
# Drug 0 (contexts 1 and 2) acts on gene 0, drug 2 (context 4) on genes 2 and 3; no cell has had drug 1.
TARGETS = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
MOVED = [[1, 2], [], [4], [4]]
SLAB, SPIKE = 1e6, 1e-9


def result_of(module) -> StructureResult:
    known = torch.as_tensor(np.where(TARGETS, 100.0, -100.0))
    probs = np.zeros((4, 4))
    return StructureResult(module.adjacency.bool().numpy(), probs, 0.0, ShiftPrior(0.07, SLAB, SPIKE, known), [])


def least_squares(h: np.ndarray, y: np.ndarray, context: np.ndarray, moved: list[int]) -> np.ndarray:
    """Coefficients of the columns of h, the intercept, and the contexts that are moved."""
    dummies = (context[:, None] == np.array(moved, dtype=int)[None]).astype(float)
    return np.linalg.lstsq(np.column_stack([h, np.ones(len(y)), dummies]), y, rcond=None)[0]


def features(module, cells) -> np.ndarray:
    """Standardised parent features of all cells, in double precision."""
    x, log_size = torch.as_tensor(cells.x), torch.as_tensor(cells.log_size)[:, None]
    return module.parent_features(x, log_size).double().numpy()


def prepare(make_module, make_cells, load, *args):
    module, cells = make_module(*args), make_cells(counts=args[0] != "normal")
    module.centre.copy_(torch.tensor([1.4, 1.0, 0.8, 1.2]))
    module.spread.copy_(torch.tensor([0.5, 0.8, 0.4, 1.5]))
    module.intercept_loc.copy_(torch.tensor([1.5, -0.3, 0.6, -4.0]))
    if args[0] == "normal":
        module.centre.fill_(5.0)
    module.knowledge.prior.fill_(0.5)
    return module, cells, gather_statistics(module, load(cells))


def expected_stretch(module) -> np.ndarray:
    """Of log(mean) over log1p, in control standard deviations of the latter; no more than fivefold for the rare last gene."""
    mean = np.exp(module.intercept_loc.numpy().astype(float))
    steep = (1 + mean) / mean
    assert steep[3] > 5 > steep[:3].max()
    return module.spread.numpy() * np.array([*steep[:3], 5.0])


def log_fold(module, moved: float, gene: int) -> float:
    """Log fold change by which the feature of a gene moves by so many spreads; a twentieth of the mean is left at least."""
    mean = np.exp(module.intercept_loc[gene].item())
    treated = np.expm1(np.log1p(mean) + moved * module.spread[gene].item())
    return np.log(max(treated, 0.05 * mean) / mean)


@pytest.mark.parametrize("likelihood", ["nb", "poisson", "normal"])
def test_linear_fits_are_carried_to_the_log_mean(make_module, make_cells, load, likelihood):
    module, cells, statistics = prepare(make_module, make_cells, load, likelihood)
    module.shift.data.fill_(7.0)
    log_scale = module.log_scale.detach().clone()
    start_from(module, statistics, result_of(module))
    h = features(module, cells)
    stretch = np.ones(4) if likelihood == "normal" else expected_stretch(module)
    weight, shift = np.zeros((4, 4)), np.zeros((5, 4))
    shift[3] = 7.0  # without cells: as it was
    for j, parents in enumerate(PARENTS):
        fit = least_squares(h[:, parents], h[:, j], cells.context, MOVED[j])
        weight[parents, j] = fit[: len(parents)] * stretch[j]
        moved = fit[len(parents) + 1 :]
        shift[MOVED[j], j] = moved if likelihood == "normal" else [log_fold(module, m, j) for m in moved]
    np.testing.assert_allclose(module.mechanism.weight.detach(), weight, atol=2e-3)
    np.testing.assert_allclose(module.shift.detach(), shift, atol=2e-3)
    assert np.abs(weight[0, [2, 3]]).min() > 0.15  # edges and effects are there to be seen
    assert np.abs(shift[4, [2, 3]]).min() > 0.2
    if likelihood != "normal":
        torch.testing.assert_close(module.log_scale.detach(), log_scale)
    scale = np.sort(stretch)[1] ** 2
    np.testing.assert_allclose(module.knowledge.prior, [0.07, SLAB * scale, SPIKE * scale], rtol=1e-5)


def test_the_precision_of_continuous_values_is_that_within_contexts(make_module, make_cells, load):
    module, cells, statistics = prepare(make_module, make_cells, load, "normal")
    start_from(module, statistics, result_of(module))
    h, present = features(module, cells), [0, 1, 2, 4]
    within = h - np.array([h[cells.context == k].mean(0) if k in present else h[0] for k in range(5)])[cells.context]
    for j, parents in enumerate(PARENTS):
        fit = least_squares(h[:, parents], h[:, j], cells.context, MOVED[j])[: len(parents)]
        residuals = within[:, j] - within[:, parents] @ fit
        precision = (len(h) - len(present)) / (residuals**2).sum()
        np.testing.assert_allclose(module.log_scale[j].item(), np.log(precision), atol=2e-3)


def test_weights_of_networks_are_slopes_at_zero(make_module, make_cells, load):
    """The functions are h, tanh h and tanh^2 h, whose slopes at zero are 1, 1 and 0."""
    module, cells, statistics = prepare(make_module, make_cells, load, "nb", "mlp")
    start_from(module, statistics, result_of(module))
    h, stretch = features(module, cells), expected_stretch(module)
    weight = np.zeros((4, 4))
    for j, parents in enumerate(PARENTS):
        by_function = [h[:, parents], np.tanh(h[:, parents]), np.tanh(h[:, parents]) ** 2]
        fit = least_squares(np.hstack(by_function), h[:, j], cells.context, MOVED[j])
        n = len(parents)
        weight[parents, j] = (fit[:n] + fit[n : 2 * n]) * stretch[j]
    np.testing.assert_allclose(module.mechanism.linear.weight.detach(), weight, atol=5e-3)
    assert np.abs(weight[[0, 0, 1], [2, 3, 3]]).min() > 0.1


def test_hard_targets_are_left_out_of_the_regressions(make_module, make_cells, load):
    module, cells, statistics = prepare(make_module, make_cells, load, "nb", "linear", "hard")
    start_from(module, statistics, result_of(module))
    h, stretch = features(module, cells), expected_stretch(module)
    limit = np.log(0.999 / 0.001)
    np.testing.assert_allclose(module.target_logits.detach(), np.where(TARGETS, limit, -limit), rtol=1e-5)
    for j, parents in enumerate(PARENTS):
        free = ~np.isin(cells.context, MOVED[j])
        fit = least_squares(h[free][:, parents], h[free, j], cells.context[free], [])
        np.testing.assert_allclose(
            module.mechanism.weight.detach()[parents, j], fit[: len(parents)] * stretch[j], atol=2e-3
        )
        for k in MOVED[j]:
            own = cells.context == k
            left = h[own, j].mean() - h[own][:, parents].mean(0) @ fit[: len(parents)] - fit[-1]
            np.testing.assert_allclose(module.shift[k, j].item(), log_fold(module, left, j), atol=4e-3)


def test_shifts_have_no_target_logits(make_module, make_cells, load):
    module, _, statistics = prepare(make_module, make_cells, load, "nb")
    before = module.target_logits.detach().clone()
    start_from(module, statistics, result_of(module))
    torch.testing.assert_close(module.target_logits.detach(), before)


def test_the_graph_is_that_of_the_search(make_module, make_cells, load):
    module, _, statistics = prepare(make_module, make_cells, load, "nb")
    result = result_of(module)
    other = np.zeros((4, 4), dtype=bool)
    other[2, 1] = True
    start_from(module, statistics, StructureResult(other, result.edge_probs, 0.0, result.prior, []))
    np.testing.assert_array_equal(module.adjacency, other)
    assert module.mechanism.weight[2, 1].abs() > 0.01


@pytest.mark.parametrize("proportional", [False, True])
def test_inference_takes_mechanisms_to_be_wrong_as_the_search_did(make_module, make_cells, load, proportional):
    module, _, statistics = prepare(make_module, make_cells, load, "nb")
    result = result_of(module)
    prior = replace(result.prior, proportional=proportional)
    start_from(module, statistics, replace(result, prior=prior))
    assert module.knowledge.shift_prior().proportional == proportional
