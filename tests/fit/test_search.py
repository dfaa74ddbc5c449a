"""The search under what features say of targets: what it hands to the joint estimation, and when it goes on."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import scgim.fit._search as search
from scgim._priors import ShiftPrior
from scgim.fit._search import search_graph
from scgim.fit._statistics import gather_statistics
from scgim.structure._search import StructureResult, regressions

PARENTS = [[], [], [0], [0, 1]]
FEATURES = torch.arange(6.0).reshape(3, 2)
PRIOR = ShiftPrior(0.05, 1.0, 0.01)
GIVEN = torch.tensor([[torch.nan] * 4, [torch.nan] * 4, [torch.nan, -3.0, torch.nan, torch.nan]]).double()


def graph_of(module) -> StructureResult:
    return StructureResult(module.adjacency.bool().numpy(), np.zeros((4, 4)), 0.0, PRIOR, [])


@pytest.fixture
def known_graph(make_module, make_cells, load, monkeypatch):
    """A module with a given target, statistics of cells, and searches that find its graph at once; they note their arguments."""
    module, calls = make_module("nb"), []
    module.knowledge.target_log_odds[2, 1], module.knowledge.target_is_known[2, 1] = -3.0, True
    module.knowledge.informed_log_odds.fill_(4.0)  # of an earlier fit
    module.knowledge.target_is_informed.fill_(True)
    loader = load(make_cells())
    statistics = gather_statistics(module, loader)
    found = graph_of(module)

    def note(statistics, **options):
        calls.append(options)
        return replace(found, score=float(len(calls)))

    monkeypatch.setattr(search, "search_structure", note)
    monkeypatch.setattr(search, "with_probs_over_graphs", lambda statistics, result, **options: result)
    return module, statistics, loader, calls


def run(known_graph, features=FEATURES):
    module, statistics, loader, _ = known_graph
    return search_graph(module, statistics, loader, seed=7, features=features)[0]


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_effects_of_treated_contexts_go_to_the_joint_estimation(known_graph, monkeypatch):
    module, statistics, _, calls = known_graph
    screens = []

    def nothing_more(screen, prior):
        screens.append((screen, prior))
        return SimpleNamespace(prior=prior)

    monkeypatch.setattr(search, "estimate_jointly", nothing_more)
    assert run(known_graph).score == 1.0  # of the only search
    (screen, prior), *_ = screens
    fit = regressions(statistics, graph_of(module), "shift")
    np.testing.assert_allclose(screen.shift, fit.residuals[:, 1:].T)
    np.testing.assert_allclose(screen.information, statistics.n_cells[1:, None] / fit.noise_var[None])
    same(screen.group, torch.tensor([0, 0, 1]))  # numbered anew: the second drug has no cells
    np.testing.assert_allclose(screen.log_dosage, np.log([1.0, 3.0, 2.0]))
    same(screen.features, FEATURES[[0, 2]])
    assert screen.log_dosages == pytest.approx((0.0, np.log(3.0)))
    same(screen.curves.log_ec50, module.knowledge.curve_grid().log_ec50)
    same(prior.known, GIVEN[[0, 2]])
    assert (prior.target_prob, prior.slab_var, prior.spike_var) == (0.05, 1.0, 0.01)
    same(calls[0]["known_targets"], GIVEN)  # features of an earlier fit are forgotten
    assert (calls[0]["seed"], calls[0]["intervention"]) == (7, "shift")
    same(torch.as_tensor(calls[0]["edge_log_odds"]), module.knowledge.edge_log_odds)


def test_the_search_goes_on_from_where_it_was_under_what_features_say(known_graph, monkeypatch):
    told = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, -3.0, 6.0, 7.0]]).double()
    monkeypatch.setattr(
        search, "estimate_jointly", lambda screen, prior: SimpleNamespace(prior=replace(prior, known=told))
    )
    assert run(known_graph).score == 2.0
    first, second = known_graph[-1]
    assert "start" not in first
    assert second["start"].score == 1.0
    expected = torch.full((3, 4), torch.nan).double()
    expected[[0, 2]] = told
    same(second["known_targets"], expected)


@pytest.mark.parametrize("features", [None, FEATURES])
def test_hard_interventions_and_screens_without_features_are_searched_once(known_graph, monkeypatch, features):
    module, *_, calls = known_graph
    if features is not None:
        module.intervention = "hard"
    monkeypatch.setattr(search, "estimate_jointly", lambda *_: pytest.fail("no features to go by"))
    assert run(known_graph, features).score == 1.0
    assert len(calls) == 1


def test_networks_choose_between_two_searches(make_module, make_cells, load, monkeypatch):
    """That on all functions of the parents and that on linear ones, in this order; cells decide."""
    module, loader, calls = make_module("nb", "mlp"), load(make_cells()), []
    statistics = gather_statistics(module, loader)
    monkeypatch.setattr(search, "search_structure", lambda s, **options: calls.append(s.n_basis) or s.n_basis)
    monkeypatch.setattr(search, "refine_structure", lambda cells, s, found, **options: (len(cells.x), s, found))
    (n, given, found), states = search_graph(module, statistics, loader, seed=0)
    assert states is None
    assert (n, found, calls) == (300, [3, 1], [3, 1])
    assert given is statistics


def test_regressions_are_those_on_the_parents(make_module, make_cells, load):
    """Least squares over all cells, where effects are ruled out."""
    module, cells = make_module("nb"), make_cells()
    result = replace(graph_of(module), prior=ShiftPrior(0.5, 1.0, 0.0, torch.full((3, 4), -1e4).double()))
    fit = regressions(gather_statistics(module, load(cells)), result, "shift")
    h = module.parent_features(torch.as_tensor(cells.x), torch.as_tensor(cells.log_size)[:, None]).double().numpy()
    for j, parents in enumerate(PARENTS):
        design = np.column_stack([h[:, parents], np.ones(len(h))])
        weights = np.linalg.lstsq(design, h[:, j], rcond=None)[0]
        np.testing.assert_allclose(fit.weights[j, [*range(len(parents)), -1]], weights, atol=1e-5)


@pytest.mark.parametrize(("dense", "shared"), [(True, False), (True, True), (False, False)])
def test_cells_are_weighed_where_targets_are_dense_and_no_programme_explains_it(
    known_graph, monkeypatch, dense, shared
):
    found, weighed = graph_of(known_graph[0]), []
    found = replace(found, prior=replace(PRIOR, target_prob=0.3 if dense else 0.29))
    monkeypatch.setattr(search, "search_by_means", lambda *arguments, **options: found)
    monkeypatch.setattr(search, "_share_programmes", lambda *arguments: shared)

    def weigh(statistics, result, known_targets, **options):
        weighed.append(result)
        return replace(result, score=5.0), statistics

    monkeypatch.setattr(search, "search_with_cell_weight", weigh)
    monkeypatch.setattr(search, "search_with_states", lambda statistics, result, **options: (result, None))
    result = run(known_graph, None)
    assert weighed == ([found] if dense and not shared else [])
    assert result.score == (5.0 if weighed else found.score)
