from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scgim.pl as pl

TERMS = ["elbo", "loss", "acyclicity", "sparsity edges", "sparsity shifts", "learning rate"]


def test_stages_are_the_search_and_the_fit(model):
    search, fit = pl.history(model, show=False)
    assert [ax.get_title() for ax in (search, fit)] == ["Search", "Fit"]
    assert search.lines[0].get_ydata().tolist() == model.search_trace_
    assert (search.get_ylabel(), search.get_xlabel()) == ("Score of the graph", "Round")
    assert [line.get_label() for line in fit.lines[:2]] == ["training", "validation"]


def test_training_and_validation_are_likelihoods_of_cells(model):
    _, fit = pl.history(model, show=False)
    training, validation = fit.lines[:2]
    np.testing.assert_array_equal(
        training.get_ydata(), -model.history["log_likelihood"]["log_likelihood"].astype(float)
    )
    np.testing.assert_array_equal(
        validation.get_ydata(), model.history["elbo_validation"]["elbo_validation"].astype(float)
    )
    assert fit.get_ylabel() == "Negative log-likelihood\na cell"


def test_the_cut_and_the_refinement_are_named(model):
    _, fit = pl.history(model, show=False)
    texts = [text.get_text().strip() for text in fit.texts]
    assert texts == ["fit, cut 3 edges", "refine"]
    assert fit.lines[2].get_xdata() == [29.5, 29.5]
    del model.history["edges"]
    assert not pl.history(model, show=False)[1].texts


@pytest.mark.parametrize("cut_at", [5, 30])
@pytest.mark.parametrize("in_a_grid", [False, True])
def test_nothing_is_drawn_over_names_of_stages_and_curves(model, cut_at, in_a_grid):
    edges = model.history["edges"]
    edges["edges"] = np.where(np.arange(len(edges)) < cut_at, 31.0, 28.0)
    ax = plt.subplots(2, 2)[1][0, 0] if in_a_grid else None
    fit = pl.history(model, ax=ax, show=False)[-1]
    fit.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in fit.texts]
    legend = fit.get_legend().get_window_extent()
    for curve in fit.lines[:2]:
        points = fit.transData.transform(np.column_stack([curve.get_xdata(), curve.get_ydata()]))
        assert not any(box.contains(*point) for box in [*boxes, legend] for point in points)
    assert not any(legend.overlaps(text.get_window_extent()) for text in [fit.title, *fit.texts])
    assert all(fit.get_window_extent().x0 < box.x0 and box.x1 < fit.get_window_extent().x1 + 15 for box in boxes)


def test_scores_are_written_out(model):
    model.search_trace_ = [-63215.0, -63155.0, -63147.0]
    search = pl.history(model, show=False)[0]
    search.figure.canvas.draw()
    assert {label.get_text() for label in search.get_yticklabels()} >= {"−63200", "−63160"}


def test_a_search_that_was_over_at_once_has_no_panel(model):
    model.search_trace_ = [-5.0, -5.0]
    assert [ax.get_title() for ax in pl.history(model, show=False)] == ["Fit"]


def test_without_a_descent_only_the_search(model):
    (ax,) = pl.history(
        SimpleNamespace(history={"search_score": pd.DataFrame({"search_score": [-3.0, -2.0]})}), show=False
    )
    assert ax.get_title() == "Search"


def test_terms_are_drawn_as_logged_with_training_and_validation_together(model):
    axes = pl.history(model, terms=TERMS, show=False)
    assert [ax.get_title() for ax in axes] == TERMS
    assert [len(ax.lines) for ax in axes] == [2, 1, 1, 1, 1, 1]
    line = axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), model.history["elbo_train"]["elbo_train"].astype(float))
    np.testing.assert_array_equal(line.get_xdata(), range(40))


def test_only_terms_over_powers_of_ten_are_logarithmic(model):
    scales = {ax.get_title(): ax.get_yscale() for ax in pl.history(model, terms=list(model.history)[:6], show=False)}
    assert scales["acyclicity"] == "log"
    assert scales["elbo"] == scales["log likelihood"] == "linear"


def test_stored_history_looks_like_that_of_the_model(adata, model):
    stored, live = (pl.history(source, show=False) for source in (adata, model))
    assert [ax.get_title() for ax in stored] == [ax.get_title() for ax in live]
    np.testing.assert_array_equal(stored[1].lines[0].get_ydata(), live[1].lines[0].get_ydata())


@pytest.mark.parametrize("terms", ["elbo", "elbo_train", ["elbo", "elbo_validation"]])
def test_terms_by_either_name(model, terms):
    axes = pl.history(model, terms=terms, show=False)
    assert [ax.get_title() for ax in axes] == ["elbo"]
    assert len(axes[0].lines) == 2


def test_epochs_without_a_value_and_single_epochs():
    epochs = pd.RangeIndex(4, name="epoch")
    history = {
        "elbo_validation": pd.DataFrame({"elbo_validation": [1.0, None, np.nan, 3.0]}, index=epochs, dtype=object),
        "once": pd.DataFrame({"once": [2.0]}, dtype=object),
        "never": pd.DataFrame({"never": [None]}, dtype=object),
    }
    axes = pl.history(SimpleNamespace(history=history), terms=["elbo", "once"], show=False)
    assert axes[0].lines[0].get_xdata().tolist() == [0, 3]
    assert axes[1].lines[0].get_marker() == "o"
    with pytest.raises(KeyError, match="Unknown term"):
        pl.history(SimpleNamespace(history=history), terms="never")


def test_epochs_stored_as_text_are_numbers(adata):
    history = adata.uns["gim"]["history"]
    adata.uns["gim"]["history"] = history.set_axis(history.index.astype(str))
    line = pl.history(adata, show=False)[1].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), range(40))


def test_errors(model, adata):
    with pytest.raises(TypeError, match="Expected a trained model or annotated data, found int"):
        pl.history(3)
    with pytest.raises(ValueError, match=r"Run `model.train\(\)` first"):
        pl.history(SimpleNamespace(history=None))
    with pytest.raises(ValueError, match="at least one epoch"):
        pl.history(SimpleNamespace(history={}))
    with pytest.raises(KeyError, match="Unknown term"):
        pl.history(model, terms="elbow")
    del adata.uns["gim"]["history"]
    with pytest.raises(KeyError, match="No `history`"):
        pl.history(adata)


def test_training_comes_first_in_whatever_order_terms_were_logged(model):
    model.history = {name: model.history[name] for name in ("elbo_validation", "elbo_train")}
    ax = pl.history(model, show=False)[-1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training", "validation"]
    assert [line.get_color() for line in ax.lines] == ["#0072B2", "#D55E00"]


def test_scores_by_another_prior_are_not_joined_to_those_of_the_search(model):
    """As stored by earlier versions: the prior was estimated anew after each of the first two rounds."""
    model.search_trace_ = [-10357.8, -10491.1, -10589.8, -10564.7, -10550.0]
    search = pl.history(model, show=False)[0]
    assert search.lines[0].get_ydata().tolist() == model.search_trace_[2:]
    assert search.lines[0].get_xdata().tolist() == [0, 1, 2]
    model.search_trace_ = [-5.0, -4.0, -6.0]
    assert [ax.get_title() for ax in pl.history(model, show=False)] == ["Fit"]
