"""A search that ends early, and what is said of one that takes long."""

from __future__ import annotations

import numpy as np
import pytest

from scgim.fit._search_bar import SearchBar, usual_time
from scgim.model import GIM
from scgim.structure._graph import topological_order

OPTIONS = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.mark.parametrize("measurement", ["direct", "latent"])
def test_after_an_interrupt_the_fit_goes_on(adata, monkeypatch, measurement):
    moves = []

    def moved(self, score):
        moves.append(score)
        if len(moves) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(SearchBar, "moved", moved)
    GIM.setup_anndata(adata)
    model = GIM(adata, measurement=measurement)
    with pytest.warns(UserWarning, match="search for the graph was interrupted.*goes on"):
        model.train(5, **OPTIONS)
    assert len(moves) == 4
    assert model.is_trained_
    assert 1 <= model.adjacency_.sum() <= 4
    topological_order(model.adjacency_)
    assert np.isfinite(model.predict("drug_1", n_samples=5, seed=0).X.toarray()).all()


def test_an_mlp_is_refined_from_the_best_graph_so_far(adata, monkeypatch):
    def moved(self, score):
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchBar, "moved", moved)
    adata = adata[:, :4].copy()
    GIM.setup_anndata(adata)
    model = GIM(adata, mechanism="mlp")
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):  # the second one is meant
        model.train(2, **OPTIONS)
    assert not model.is_trained_


def test_a_search_without_time_is_short(adata):
    GIM.setup_anndata(adata)
    model = GIM(adata)
    model.train(2, max_search_seconds=1e-6, **OPTIONS)
    assert model.adjacency_.sum() <= 1
    assert model.is_trained_


@pytest.mark.parametrize("seconds", [0, -1.0, "long", True])
def test_a_time_that_is_none(adata, seconds):
    GIM.setup_anndata(adata)
    with pytest.raises(ValueError, match="`max_search_seconds` must be a positive number of seconds or None"):
        GIM(adata).train(1, max_search_seconds=seconds, **OPTIONS)


def test_many_genes_without_regulators_are_warned_of(adata, monkeypatch):
    monkeypatch.setattr("scgim.fit._fit.MANY_GENES", 8)
    GIM.setup_anndata(adata)
    with pytest.warns(UserWarning, match="each of 8 genes.*mark_regulators.*select_genes.*max_search_seconds"):
        GIM(adata).train(1, **OPTIONS)
    adata.var["regulator"] = np.arange(8) < 4
    GIM.setup_anndata(adata, regulator_key="regulator")
    GIM(adata).train(1, **OPTIONS)  # warnings are errors


def test_usual_times():
    assert usual_time(1000).endswith("minutes")
    assert usual_time(10_000).endswith("hours")


def test_bar_shows_stage_share_and_score(capsys):
    with SearchBar(mininterval=0) as bar:
        bar.moved(-12.34)
        bar.progress("first graph", 30, 90)
        bar.progress("first graph", 60, 90)
        bar.progress("larger moves", 10, 1000)
        bar.moved(-10.0)
        bar.progress("larger moves", 500, 1000)
    shown = capsys.readouterr().err
    assert "Searching for the graph" in shown
    assert "Graph 1/3: first graph:  67%" in shown
    assert "Graph 2/3: larger moves:  50%" in shown
    assert "moves=2, score=-10.0" in shown
