"""The course of a run: how it refines, which edges are cut, and how sure the search and the fit are of each."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scgim.fit._course import Course
from scgim.fit._fit import Fit, Names, _copy, unchanged_if_stopped

EDGES = ([0, 0, 1], [2, 3, 3])


def fit_of(module, descend=None, **course) -> Fit:
    names = Names([f"gene_{j}" for j in range(4)], ["a", "b", "c"])
    course = Course([], 30, 0.04, 64, early_stopping=True, **course)
    loader = SimpleNamespace(n=300)
    return Fit(module, loader, course, None, torch.ones(3).bool(), names, descend, seed=0, progress=False)


def evidence_of(*values: float) -> np.ndarray:
    evidence = np.full((4, 4), -np.inf)
    evidence[EDGES] = values
    return evidence


@pytest.mark.parametrize("mechanism", ["linear", "mlp"])
def test_edges_without_support_are_cut(make_module, mechanism):
    """But for networks, whose hidden units may support them."""
    module = make_module("nb", mechanism)
    cut = fit_of(module)._cut(evidence_of(0.5, 0.0, -3.0))
    expected = np.zeros((4, 4), dtype=bool)
    expected[EDGES] = [True, cut is False, cut is False]
    np.testing.assert_array_equal(module.adjacency.bool(), expected)
    assert cut == (mechanism == "linear")
    assert not fit_of(make_module())._cut(evidence_of(0.5, 0.1, 3.0))


def test_edges_are_as_sure_as_the_less_sure_of_search_and_fit(make_module):
    module, search = make_module(), np.full((4, 4), 0.4)
    search[EDGES] = 0.9
    fit_of(module, edge_probs=search)._note_edge_probs(evidence_of(1.0, 100.0, -100.0))
    search[EDGES] = [1 / (1 + np.exp(-1.0)), 0.9, 1 / (1 + np.exp(50.0))]
    np.testing.assert_allclose(module.knowledge.edge_probs, search, rtol=1e-6)


def test_of_networks_the_search_alone_is_sure(make_module):
    module, search = make_module("nb", "mlp"), np.full((4, 4), 0.4)
    fit_of(module, edge_probs=search)._note_edge_probs(evidence_of(-1.0, -1.0, -1.0))
    np.testing.assert_array_equal(module.knowledge.edge_probs, search)


@pytest.mark.parametrize("weak", [False, True])
def test_after_edges_are_cut_a_third_of_the_epochs_refine_at_a_quarter_of_the_rate(make_module, monkeypatch, weak):
    runs, evidence = [], evidence_of(1.0, 2.0, -1.0 if weak else 3.0)
    trainer = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda value: value))

    def descend(epochs, lr, *, early_stopping):
        runs.append((epochs, lr, early_stopping))
        return trainer

    fit = fit_of(make_module(), descend, phase="fit")
    monkeypatch.setattr(fit, "_infer", lambda: evidence)
    monkeypatch.setattr(fit, "_conclude", lambda *, is_inferred: runs.append(("concluded", is_inferred)))
    fit._fit_on_graph()
    refined = [(10, 0.01, False)] if weak else []
    assert runs == [(30, 0.04, True), *refined, ("concluded", not weak)]  # nothing is inferred twice at one fit
    assert fit.course.phase == ("refine" if weak else "fit")


def test_a_stopped_search_leaves_the_module_as_it_was(make_module):
    """Tables of one value are kept as that value."""
    module = make_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def stopped_search() -> None:
        with unchanged_if_stopped(module):
            for value in module.state_dict().values():
                value.copy_(value + 1 if value.dtype != torch.bool else ~value)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_search()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    table = torch.zeros(100, 100)
    assert _copy(table).untyped_storage().nbytes() == table.element_size()
    assert _copy(torch.eye(100)).untyped_storage().nbytes() == table.numel() * table.element_size()
