"""What holds for every plot: where it draws, what it returns, what it says when results are missing."""

from __future__ import annotations

import inspect

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import scgim.pl as pl
from scgim._docs import d


def _drug(adata) -> str:
    return adata.varm["gim_targets"].columns[0]


def _predicted(adata) -> ad.AnnData:
    rows = (adata.obs["perturbation"] == _drug(adata)) & (adata.obs["dosage"] == 1.0)
    predicted = ad.AnnData(adata[rows].X.copy(), obs=adata.obs[rows].copy(), var=adata.var.copy())
    predicted.obs["size_factor"] = 1.0
    return predicted


def _ranked(adata) -> pd.DataFrame:
    """A library as long as the screen has perturbations."""
    shifts = adata.varm["gim_shifts"]
    score = shifts.iloc[0].sort_values(ascending=False)
    known = np.resize(["cells", "features", "mean"], len(score))
    columns = {"dosage": 1.0, "score": score, "lower": score - 0.1, "upper": score + 0.2, "known_by": known}
    return pd.DataFrame({**columns, "top_targets": f"{shifts.index[0]}, {shifts.index[-1]}"}, index=score.index)


CALLS = {
    "calibration": lambda adata, **kwargs: pl.calibration(adata, **kwargs),
    "dose_response": lambda adata, **kwargs: pl.dose_response(adata, _drug(adata), **kwargs),
    "drug_map": lambda adata, **kwargs: pl.drug_map(adata, "n_cells", **kwargs),
    "effects": lambda adata, **kwargs: pl.effects(adata, _drug(adata), **kwargs),
    "feature_importance": lambda adata, **kwargs: pl.feature_importance(adata, **kwargs),
    "history": lambda adata, **kwargs: pl.history(adata, **kwargs),
    "network": lambda adata, **kwargs: pl.network(adata, **kwargs),
    "network_reached": lambda adata, **kwargs: pl.network(adata, _drug(adata), **kwargs),
    "predicted_vs_observed": lambda adata, **kwargs: pl.predicted_vs_observed(adata, _predicted(adata), **kwargs),
    "rank_drugs": lambda adata, **kwargs: pl.rank_drugs(_ranked(adata), **kwargs),
    "targets": lambda adata, **kwargs: pl.targets(adata, **kwargs),
}
PANELS = {"dose_response", "history", "predicted_vs_observed"}
TABLES = {"rank_drugs"}  # drawn from a table, not from annotated data
MATRICES = {"feature_importance", "targets"}


@pytest.fixture(params=CALLS)
def name(request) -> str:
    return request.param


def test_every_plot_is_here():
    assert {call.removesuffix("_reached") for call in CALLS} == set(pl.__all__)


def test_returns_axes_or_figure_or_nothing(adata, name, monkeypatch):
    kinds = {True: list, False: dict if name in MATRICES else Axes}
    assert isinstance(CALLS[name](adata, show=False), kinds[name in PANELS])
    figure = CALLS[name](adata, return_fig=True)
    assert isinstance(figure, sc.pl.MatrixPlot if name in MATRICES else Figure)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert CALLS[name](adata, show=True) is None
    assert shown == [True]
    sc.settings.autoshow = False
    assert CALLS[name](adata) is not None
    sc.settings.autoshow = True
    assert CALLS[name](adata) is None
    assert shown == [True, True]


def test_draws_only_in_the_axes_given_and_never_shows_them(adata, name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    figure, (mine, other) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    result = CALLS[name](adata, ax=mine, show=True)
    figure.draw_without_rendering()
    assert plt.get_fignums() == [figure.number]
    assert not other.has_data()
    assert not other.child_axes
    drawn = list(result.values()) if isinstance(result, dict) else result if isinstance(result, list) else [result]
    assert all(ax.figure is figure for ax in drawn)
    assert all(ax.get_window_extent().x1 <= other.get_window_extent().x0 for ax in drawn)


def test_lies_on_no_neighbour_in_a_plain_grid(awkward, name):
    if name == "drug_map" and awkward.varm["gim_targets"].shape[1] < 3:
        return
    figure, grid = plt.subplots(2, 2)
    for other in grid.ravel()[1:]:
        other.plot([0, 1], [0, 1])
    before = set(figure.axes)
    CALLS[name](awkward, ax=grid[0, 0])
    figure.draw_without_rendering()
    own = [grid[0, 0], *(set(figure.axes) - before)]
    boxes = [box for ax in own if (box := ax.get_tightbbox()) is not None]
    for other in grid.ravel()[1:]:
        theirs = other.get_tightbbox().padded(-2)
        assert not any(box.overlaps(theirs) for box in boxes)
    assert all(box.x0 >= -1 for box in boxes)


def test_keeps_most_of_a_plain_grid_for_what_it_draws(awkward, name):
    if name == "drug_map" and awkward.varm["gim_targets"].shape[1] < 3:
        return
    figure, grid = plt.subplots(2, 2)
    place = grid[0, 0].get_window_extent()
    others = set(grid.ravel()[1:])
    CALLS[name](awkward, ax=grid[0, 0])
    figure.draw_without_rendering()
    used = {ax for ax in figure.findobj(Axes) if ax.axison or name.startswith("network")} - others
    own = [ax.get_window_extent() for ax in used]
    largest = max(own, key=lambda box: box.width * box.height)
    assert largest.width > 0.3 * place.width
    assert largest.height > 0.3 * place.height


@pytest.mark.parametrize("size", [(6.4, 4.8), (10, 8), (30, 10)])
@pytest.mark.parametrize("kind", ["dots", "predicted_vs_observed"])
def test_texts_of_a_plot_in_a_grid_lie_apart(adata, kind, size):
    """Legends beside a dot plot, and one under panels whose labels are names of genes."""
    figure, grid = plt.subplots(2, 2, figsize=size)
    if kind == "dots":
        pl.targets(adata, kind="dot", ax=grid[1, 0])
    else:
        treated = adata[adata.obs["perturbation"] != "control"]
        predicted = ad.AnnData(treated.X.copy(), obs=treated.obs.copy(), var=adata.var.copy())
        panels = pl.predicted_vs_observed(adata, predicted, ax=grid[1, 0])
        assert len(panels) == (2 if size[0] == 30 else 1)
    figure.draw_without_rendering()
    axes = [axis for ax in figure.findobj(Axes) if ax.axison for axis in (ax.xaxis, ax.yaxis)]
    ticks = [label for axis in axes for label in axis.get_ticklabels() if _is_seen(axis, label)]
    hidden = {label for ax in figure.findobj(Axes) for axis in (ax.xaxis, ax.yaxis) for label in axis.get_ticklabels()}
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in hidden]
    for text in texts:
        box = text.get_window_extent().padded(-1)
        touched = [other for other in [*texts, *ticks] if other is not text and box.overlaps(other.get_window_extent())]
        assert not touched, text


def test_effects_on_continuous_values_are_in_standard_deviations(adata):
    adata.uns["gim"]["params"]["likelihood"] = "normal"
    drug = _drug(adata)
    assert pl.effects(adata, drug, show=False).get_xlabel() == "Effect (s.d.)"
    for axes in (pl.network(adata, drug, show=False), pl.targets(adata, kind="dot", show=False)["mainplot_ax"]):
        texts = " ".join(text.get_text() for text in axes.figure.findobj(Text))
        assert "s.d." in texts
        assert "log fold change" not in texts


def _is_seen(axis, label) -> bool:
    low, high = sorted(axis.get_view_interval())
    return bool(label.get_text()) and low <= label.get_position()[axis.axis_name == "y"] <= high


def test_text_can_be_seen_on_dark_ground(adata, name):
    with plt.style.context("dark_background"):
        result = CALLS[name](adata, show=False)
        ax = (
            result[next(iter(result))]
            if isinstance(result, dict)
            else result[0]
            if isinstance(result, list)
            else result
        )
        drug_name = _drug(adata)
        for text in ax.figure.figure.findobj(mpl.text.Text):
            in_a_box = text.get_text() == drug_name and name == "network_reached"
            if text.get_text() and text.get_visible() and not in_a_box:
                assert np.mean(to_rgb(text.get_color())) > 0.4, text


def test_text_of_pdf_files_is_text(adata, name, tmp_path):
    result = CALLS[name](adata, show=False)
    ax = result[next(iter(result))] if isinstance(result, dict) else result[0] if isinstance(result, list) else result
    ax.figure.figure.savefig(tmp_path / "figure.pdf")
    assert mpl.rcParams["pdf.fonttype"] == 3
    content = (tmp_path / "figure.pdf").read_bytes()
    assert b"/CIDFontType2" in content  # TrueType, type 42
    assert b"/Subtype /Type3" not in content


def test_figsize_title_and_settings(adata, name):
    before = dict(mpl.rcParams)
    result = CALLS[name](adata, show=False, figsize=(6, 5), title="A title of my own")
    assert dict(mpl.rcParams) == before
    ax = next(iter(result.values())) if isinstance(result, dict) else result[0] if isinstance(result, list) else result
    assert tuple(ax.figure.get_size_inches()) == (6, 5)
    texts = [text.get_text() for text in ax.figure.findobj(mpl.text.Text)]
    assert "A title of my own" in texts


@pytest.mark.parametrize("name", sorted(set(CALLS) - TABLES))
def test_missing_results_say_what_to_do(adata, name):
    with pytest.raises(KeyError, match=r"Run `model.annotate\(adata\)`"):
        CALLS[name](adata, key="absent", show=False)


@pytest.mark.parametrize("function", sorted(set(pl.__all__) - {"history"} - TABLES))
def test_a_model_in_place_of_adata_is_explained(adata, model, function):
    more = (adata,) if function == "predicted_vs_observed" else ()
    with pytest.raises(TypeError, match="Expected annotated data"):
        getattr(pl, function)(model, *more, show=False)


def test_stored_results_are_left_as_they_are(adata, name):
    frames = {slot: values.copy() for slot, values in adata.varm.items()}
    history = adata.uns["gim"]["history"].copy()
    CALLS[name](adata, show=False)
    for slot, values in frames.items():
        np.testing.assert_array_equal(adata.varm[slot], values)
    assert adata.uns["gim"]["history"].equals(history)


def test_awkward_input_is_drawn(awkward, name):
    if name == "drug_map" and awkward.varm["gim_targets"].shape[1] < 3:
        with pytest.raises(ValueError, match="at least three perturbations, found 1"):
            CALLS[name](awkward, show=False)
        return
    assert CALLS[name](awkward, show=False) is not None


def test_works_on_a_file_that_was_read_back(adata, name, tmp_path):
    params = adata.uns["gim"]["params"]
    adata.uns["gim"]["params"] = {what: value for what, value in params.items() if value is not None}
    adata.write_h5ad(tmp_path / "annotated.h5ad")
    assert CALLS[name](ad.read_h5ad(tmp_path / "annotated.h5ad"), show=False) is not None


def test_works_on_a_view_of_some_genes(adata, name):
    view = adata[:, adata.var_names[:12]]
    if name == "network_reached":
        targets = view.varm["gim_targets"][_drug(adata)]
        assert pl.network(view, _drug(adata), min_target_prob=targets.max(), show=False) is not None
    else:
        assert CALLS[name](view, show=False) is not None


@pytest.mark.parametrize("function", pl.__all__)
def test_signatures_and_docstrings(function):
    signature = inspect.signature(getattr(pl, function))
    positional = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 3
    assert {"ax", "show", "return_fig", "figsize", "title"} <= set(signature.parameters)
    assert function in TABLES or "key" in signature.parameters
    text = inspect.getdoc(getattr(pl, function))
    assert "%(" not in text
    assert "Returns" in text
    documented = text.split("Parameters\n----------\n")[1].split("\n\nReturns")[0]
    heads = [line.lstrip("*") for line in documented.splitlines() if line and not line.startswith(" ")]
    assert heads == list(signature.parameters)


def test_fragments_hold_no_reference_to_others():
    assert all("%(" not in str(text) for text in d.params.values())


def test_numbers_are_finite_in_the_fixture(adata):
    assert all(np.isfinite(np.asarray(values)).all() for values in adata.varm.values())
