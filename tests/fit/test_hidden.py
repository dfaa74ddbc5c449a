"""When a graph of hidden expression is searched by the whole covariance."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scgim.fit import _hidden
from scgim.structure._search import StructureResult
from scgim.structure._statistics import ContextStatistics


def test_the_graph_by_means_stays_where_the_covariance_asks_for_many_regulators(monkeypatch):
    hidden = SimpleNamespace(statistics=SimpleNamespace(n_genes=30), measured=None)
    result = SimpleNamespace(adjacency=np.zeros((30, 30), dtype=bool))
    dense = np.triu(np.ones((30, 30), dtype=bool), 1)
    found = SimpleNamespace(adjacency=dense)
    monkeypatch.setattr(_hidden.CovarianceSettings, "start", lambda *arguments: found)
    monkeypatch.setattr(_hidden.CovarianceSettings, "settle", None)  # not to be called
    options = {"watch": SimpleNamespace(moved=None), "edge_log_odds": 0.0, "regulators": None}
    assert not list(_hidden._by_whole_covariance(hidden, result, options))


@pytest.mark.parametrize(
    ("n_genes", "cells_worth", "why_not"),
    [(30, 9.0, "counts are too few"), (201, 20.0, "201 genes are too many"), (200, 10.0, "")],
)
def test_covariance_is_searched_with_enough_counts_and_few_genes(n_genes, cells_worth, why_not):
    found = _hidden._why_not_whole(SimpleNamespace(n_genes=n_genes, residual_dof=cells_worth))
    assert found.startswith(why_not)
    assert bool(found) == bool(why_not)


def test_what_was_found_by_the_covariance_is_there_before_means_are_asked_again(monkeypatch):
    """A search that is stopped later keeps it, and the statistics without noise by which it was found."""
    d, adjacency = 30, np.zeros((30, 30), dtype=bool)
    adjacency[0, 1:] = True
    found = SimpleNamespace(adjacency=adjacency, hidden_scatter=lambda: (np.eye(d), 12.0))
    one = torch.ones(1).double()
    statistics = ContextStatistics(torch.eye(d).double(), torch.zeros(1, d).double(), one, -one.long(), d)
    result = StructureResult(np.zeros((d, d), dtype=bool), np.zeros((d, d)), 0.0, None, [])

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(_hidden.CovarianceSettings, "start", lambda *arguments: found)
    monkeypatch.setattr(_hidden.CovarianceSettings, "settle", lambda *arguments: found)
    monkeypatch.setattr(_hidden, "_search_by_means", stopped)
    options = {"watch": SimpleNamespace(moved=None, is_stopped=False), "edge_log_odds": 0.0, "regulators": None}
    steps = _hidden._by_whole_covariance(SimpleNamespace(statistics=statistics, measured=None), result, options)
    best, without_noise = next(steps)
    np.testing.assert_array_equal(best.adjacency, adjacency)
    np.testing.assert_array_equal(without_noise.gram, 12.0 * np.eye(d))
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    monkeypatch.setattr(_hidden, "_N_TURNS", 1)  # after the last turn means are not asked in vain
    assert (
        len([*_hidden._by_whole_covariance(SimpleNamespace(statistics=statistics, measured=None), result, options)])
        == 1
    )


@pytest.mark.parametrize(
    ("edge", "told", "is_stopped", "warned"),
    [(True, False, False, True), (False, False, False, False), (True, True, False, False), (True, False, True, False)],
)
def test_warning_of_stand_ins_needs_edges_and_unknown_regulators(monkeypatch, recwarn, edge, told, is_stopped, warned):
    """With nothing to find, or regulators that are told, or a search that was stopped early, there is nothing to warn of."""
    d = 201
    adjacency = np.zeros((d, d), dtype=bool)
    adjacency[0, 1] = edge
    found = StructureResult(adjacency, adjacency.astype(float), 0.0, None, [])
    watch = SimpleNamespace(is_stopped=is_stopped)
    options = {"regulators": np.ones(d, dtype=bool) if told else None}
    statistics = SimpleNamespace(n_genes=d, residual_dof=20.0)
    monkeypatch.setattr(_hidden, "search_options", lambda *arguments: options)
    monkeypatch.setattr(_hidden, "_search_by_means", lambda *arguments, **options: found)
    for name in ("with_probs_over_graphs", "with_loops"):
        monkeypatch.setattr(_hidden, name, lambda statistics, result, **options: result)
    monkeypatch.setattr(_hidden, "_less_sure", lambda statistics: statistics)
    monkeypatch.setattr(_hidden, "cells_a_gene", lambda statistics: 20.0)
    module = SimpleNamespace(
        mechanism=SimpleNamespace(is_linear=True), knowledge=SimpleNamespace(known_targets=lambda: None)
    )
    result, _ = _hidden._search(module, SimpleNamespace(statistics=statistics), 0, watch)
    assert result is found
    assert [w.category for w in recwarn] == [UserWarning] * warned
