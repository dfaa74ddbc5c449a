"""When a graph of hidden expression is searched by the whole covariance."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from scgim.fit import _hidden


def test_the_graph_by_means_stays_where_the_covariance_asks_for_many_regulators(monkeypatch):
    hidden = SimpleNamespace(statistics=SimpleNamespace(n_genes=30), measured=None)
    result = SimpleNamespace(adjacency=np.zeros((30, 30), dtype=bool))
    dense = np.triu(np.ones((30, 30), dtype=bool), 1)
    found = SimpleNamespace(adjacency=dense)
    monkeypatch.setattr(_hidden.CovarianceSettings, "start", lambda *arguments: found)
    monkeypatch.setattr(_hidden.CovarianceSettings, "settle", None)  # not to be called
    kept = _hidden._by_whole_covariance(hidden, result, {"watch": SimpleNamespace(moved=None), "edge_log_odds": 0.0})
    assert kept == (result, hidden.statistics)
