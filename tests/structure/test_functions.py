"""Genes that are functions of several parents together, which sums of functions of single parents miss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scgim._priors import ShiftPrior
from scgim.structure._functions import FunctionSearch, RandomUnits, SampledCells, refine_structure, worth_a_look
from scgim.structure._search import StructureResult
from scgim.structure._statistics import StatisticsAccumulator

if TYPE_CHECKING:
    from collections.abc import Callable

PRIOR = ShiftPrior(target_prob=0.1, slab_var=2.0)
ANY = np.array(True)
TRUE = np.array([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
REVERSED = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=bool)


def screen(
    likelihood: str = "normal", *, hard: bool = False, batch: float = 0.0, n_cells: int = 100, seed: int = 0
) -> SampledCells:
    """Genes 0 and 1 set gene 2 together (a product), and gene 3 bends with 0 and 2; a perturbation acts on each gene."""
    rng = np.random.default_rng(seed)
    context = np.repeat([0, 1, 2, 3, 4], [400, *[n_cells] * 4])
    n = len(context)
    covariate = rng.integers(0, 2, n) - 0.5
    x, h = np.zeros((n, 4)), np.zeros((n, 4))
    mechanisms: list[Callable[[], np.ndarray | float]] = [
        lambda: 0.0,
        lambda: 0.0,
        lambda: 1.2 * h[:, 0] * h[:, 1],
        lambda: 1.5 * np.tanh(1.5 * h[:, 0]) - np.tanh(1 + h[:, 2]),
    ]
    for j, mechanism in enumerate(mechanisms):
        target = context == j + 1
        value = mechanism() * ~target if hard else mechanism() + np.zeros(n)
        value = value + 2.0 * target + batch * covariate
        if likelihood == "normal":
            x[:, j] = value + 0.6 * rng.normal(size=n)
            observed = x[:, j]
        else:
            mean = np.exp(1.5 + 0.5 * value)
            x[:, j] = rng.poisson(mean * (rng.gamma(3.0, 1 / 3.0, n) if likelihood == "nb" else 1.0))
            observed = np.log1p(x[:, j])
        h[:, j] = (observed - observed[context == 0].mean()) / observed[context == 0].std()
    tensors = (torch.as_tensor(a) for a in (h, x, context))
    design = torch.as_tensor(covariate[:, None] if batch else np.zeros((n, 0)))
    return SampledCells(*tensors, design, torch.zeros(n).double(), torch.tensor([-1, 0, 1, 2, 3]), likelihood)


def evidence(cells: SampledCells, gene: int, parents: list[tuple[int, ...]], **kwargs) -> list[float]:
    search = FunctionSearch(cells, ANY, PRIOR, edge_log_odds=0.0, **kwargs)
    return search.scores([(gene, p) for p in parents])


def additive(cells: SampledCells, hard: bool = False):
    accumulator = StatisticsAccumulator(cells.group, 4, 8, cells.covariates.shape[1], by_group=hard)
    accumulator.update(torch.cat([cells.h, cells.h.tanh()], 1), cells.context, cells.covariates)
    return accumulator.finalise()


def start(adjacency: np.ndarray) -> StructureResult:
    return StructureResult(adjacency, adjacency.astype(float), 0.0, PRIOR, [])


@pytest.mark.parametrize("likelihood", ["normal", "nb", "poisson"])
@pytest.mark.parametrize("hard", [False, True])
def test_parents_that_act_together_are_found(likelihood, hard):
    options = [(), (0,), (1,), (0, 1), (0, 1, 3)]
    cells = screen(likelihood, hard=hard)
    scores = evidence(cells, 2, options[:-1], intervention="hard" if hard else "shift")
    assert scores[3] == max(scores)
    assert scores[3] - max(scores[:3]) > 50


def test_a_gene_that_does_not_act_is_not_worth_its_functions():
    rng = np.random.default_rng(1)
    cells = screen()
    h = torch.cat([cells.h, torch.as_tensor(rng.normal(size=(len(cells.h), 1)))], 1)
    x = torch.cat([cells.x, h[:, -1:]], 1)
    wider = SampledCells(h, x, cells.context, cells.covariates, cells.log_size, cells.group, "normal")
    with_it, without = evidence(wider, 2, [(0, 1, 4), (0, 1)])
    assert with_it < without


@pytest.mark.parametrize("likelihood", ["normal", "nb"])
@pytest.mark.parametrize("hard", [False, True])
def test_graph_is_found_from_wrong_ones(likelihood, hard):
    cells = screen(likelihood, hard=hard)
    result = refine_structure(
        cells,
        additive(cells, hard),
        [start(REVERSED), start(np.zeros((4, 4), dtype=bool))],
        intervention="hard" if hard else "shift",
        edge_log_odds=-2.0,
    )
    np.testing.assert_array_equal(result.adjacency, TRUE)
    assert (result.edge_probs[TRUE] > 0.95).all()
    assert result.edge_probs[~TRUE].max() < 0.5
    assert result.trace[-1] >= result.trace[0]


def test_better_start_is_taken_and_kept():
    cells = screen()
    options = {"intervention": "shift", "edge_log_odds": -2.0}
    result = refine_structure(cells, additive(cells), [start(REVERSED), start(TRUE)], **options)
    np.testing.assert_array_equal(result.adjacency, TRUE)
    assert result.trace[0] == result.trace[-1]  # no move was better


def test_of_what_was_not_scored_nothing_is_worth_a_look(monkeypatch):
    monkeypatch.setattr("scgim.structure._climb._FEW_GENES", 0)
    monkeypatch.setattr("scgim.structure._climb._MIN_HELP", np.inf)  # only edges are scored
    found = worth_a_look(additive(screen()), [start(TRUE)], intervention="shift", edge_log_odds=-2.0)
    np.testing.assert_array_equal(found, TRUE | TRUE.T)


def test_a_wrong_edge_is_removed_though_the_sample_had_not_named_it(monkeypatch):
    cells, wrong = screen(), TRUE.copy()
    wrong[1, 0] = True
    monkeypatch.setattr("scgim.structure._functions.worth_a_look", lambda *a, **k: np.zeros((4, 4), dtype=bool))
    monkeypatch.setattr("scgim.structure._functions._MAX_EVALUATIONS", 0)  # by the climb, not by luck of a larger move
    result = refine_structure(cells, additive(cells), [start(wrong)], intervention="shift", edge_log_odds=-2.0)
    np.testing.assert_array_equal(result.adjacency, TRUE)
    assert result.edge_probs[1, 0] < 0.5


def test_covariates_are_no_common_cause():
    """A batch that moves all genes joins them unless it is given."""
    cells = screen("nb", batch=2.0)
    blind = SampledCells(
        cells.h, cells.x, cells.context, cells.covariates[:, :0], cells.log_size, cells.group, cells.likelihood
    )
    gain = [np.diff(evidence(c, 1, [(), (0,)]))[0] for c in (blind, cells)]
    assert gain[0] > 15
    assert gain[1] < 1  # less than an edge must bring


def test_known_targets_enter_by_their_own_gene():
    cells = screen()
    known = torch.full((4, 4), torch.nan, dtype=torch.float64)
    known[0, 2] = 20.0  # perturbation 0 surely acts on gene 2
    told = FunctionSearch(cells, ANY, ShiftPrior(0.1, 2.0, known=known), edge_log_odds=0.0)
    fit = told.fit([(2, (0, 1)), (3, (0, 2))])
    assert fit.target_probs[0, 0] > 0.99
    assert fit.target_probs[1, 0] < 0.5


def test_required_edges_are_looked_at_and_forbidden_ones_never_made():
    cells = screen()
    odds = np.full((4, 4), -2.0)
    odds[1, 0], odds[0, 2] = 1e4, -1e4
    options = {"intervention": "shift", "edge_log_odds": odds}
    result = refine_structure(cells, additive(cells), [start(TRUE)], **options)
    assert result.adjacency[1, 0]
    assert not result.adjacency[0, 2]


def test_units_of_a_gene_are_the_same_in_every_set():
    units, h = RandomUnits(3), torch.randn(5, 3, dtype=torch.float64)
    h[:, 2] = 0.0
    (pair, families), (wider, wider_families) = units(h, (0, 1)), units(h, (0, 1, 2))
    assert families.bincount().tolist() == [2, 10, 64]
    assert wider_families.bincount().tolist() == [3, 15, 64]
    # a parent that is zero changes no more than the scale of the arguments
    argument = torch.atanh(wider[:, -64:]) - units.bias
    expected = (torch.atanh(pair[:, -64:]) - units.bias) * (2 / 3) ** 0.5
    usual = expected.abs() < 2
    torch.testing.assert_close(argument[usual], expected[usual], atol=1e-2, rtol=1e-2)
    assert units(h, ())[0].shape == (5, 0)
