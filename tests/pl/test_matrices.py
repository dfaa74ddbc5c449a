"""`targets` and `feature_importance`, which scanpy draws."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.text import Text

import scgim
import scgim.pl as pl
from scgim.pl._matrix import diagonal_order, similarity_order


def _labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def _color_limits(axes) -> tuple[float, float]:
    (mesh,) = [c for c in axes["mainplot_ax"].collections if hasattr(c, "norm")]
    return mesh.norm.vmin, mesh.norm.vmax


def test_similar_rows_become_neighbours():
    values = np.array([[1, 0], [0, 1], [0.9, 0], [0, 0.9]])
    order = similarity_order(values)
    assert {*order[:2]} in ({0, 2}, {1, 3})
    assert diagonal_order(np.array([[0.0, 0.0, -3.0], [1.0, 2.0, 0.0]])) == [2, 1, 0]


def test_targets_shows_all_genes_and_drugs_on_fixed_limits(adata):
    axes = pl.targets(adata, show=False)
    main = axes["mainplot_ax"]
    assert sorted(_labels(main.yaxis)) == sorted(adata.varm["gim_targets"].columns)
    assert sorted(_labels(main.xaxis)) == sorted(adata.var_names)
    assert _color_limits(axes) == (0.0, 1.0)


def test_targets_draws_the_stored_numbers_in_the_order_of_its_labels(adata):
    axes = pl.targets(adata, show=False)
    (mesh,) = axes["mainplot_ax"].collections
    drugs, genes = _labels(axes["mainplot_ax"].yaxis), _labels(axes["mainplot_ax"].xaxis)
    expected = adata.varm["gim_targets"].T.loc[drugs, genes]
    np.testing.assert_allclose(np.ravel(mesh.get_array()), expected.to_numpy().ravel())


def test_targets_chooses_the_genes_most_often_hit(adata):
    axes = pl.targets(adata, n_top=3, show=False)
    expected = adata.varm["gim_targets"].sum(axis=1).nlargest(3).index
    assert sorted(_labels(axes["mainplot_ax"].xaxis)) == sorted(expected)


def test_targets_of_very_many_drugs_leaves_out_those_without_one(adata):
    names = [f"drug_{i}" for i in range(70)]
    probs = pd.DataFrame(0.01, adata.var_names, names)
    for i in range(0, 70, 2):
        probs.iloc[i % 5, i] = 0.9
    adata.varm["gim_targets"], adata.varm["gim_shifts"] = probs, probs
    axes = pl.targets(adata, n_top=5, show=False)
    assert sorted(_labels(axes["mainplot_ax"].yaxis)) == sorted(names[::2])
    texts = [text.get_text() for text in axes["mainplot_ax"].figure.findobj(Text)]
    assert "35 of 70 perturbations have a target among these genes" in texts
    assert len(_labels(pl.targets(adata, names, show=False)["mainplot_ax"].yaxis)) == 70
    adata.varm["gim_targets"] = 0.5 * probs  # none is likely
    assert len(_labels(pl.targets(adata, show=False)["mainplot_ax"].yaxis)) == 70


def test_targets_keeps_a_given_order(adata):
    genes, drugs = ["GENE7", "GENE2", "GENE5"], ["Drug4", "Drug1"]
    axes = pl.targets(adata, drugs, genes=genes, cluster=False, show=False)
    assert _labels(axes["mainplot_ax"].xaxis) == genes
    assert _labels(axes["mainplot_ax"].yaxis) == drugs


def test_effects_are_centred_at_zero(adata):
    low, high = _color_limits(pl.targets(adata, color="effect", show=False))
    largest = adata.varm["gim_shifts"].abs().to_numpy().max()
    assert (low, high) == pytest.approx((-largest, largest))


def test_dots_are_as_large_as_the_probability(adata):
    axes = pl.targets(adata, kind="dot", show=False)
    (dots,) = [c for c in axes["mainplot_ax"].collections if len(c.get_sizes()) > 1]
    drugs, genes = _labels(axes["mainplot_ax"].yaxis), _labels(axes["mainplot_ax"].xaxis)
    probs = adata.varm["gim_targets"].T.loc[drugs, genes].to_numpy().ravel()
    assert np.array_equal(np.argsort(dots.get_sizes()), np.argsort(probs))
    low, high = axes["color_legend_ax"].get_xlim()
    assert low == -high < 0


def test_swapped_axes(adata):
    axes = pl.targets(adata, swap_axes=True, show=False)
    assert sorted(_labels(axes["mainplot_ax"].xaxis)) == sorted(adata.varm["gim_targets"].columns)
    assert axes["mainplot_ax"].get_xlabel() == "Perturbation"


def test_return_fig_gives_the_scanpy_object(adata):
    assert isinstance(pl.targets(adata, return_fig=True), sc.pl.MatrixPlot)
    plot = pl.targets(adata, kind="dot", return_fig=True)
    assert isinstance(plot, sc.pl.DotPlot)
    assert not plt.get_fignums()
    plot.style(cmap="PuOr").make_figure()
    assert "mainplot_ax" in plot.get_axes()


@pytest.mark.parametrize("layout", [None, "constrained"])
@pytest.mark.parametrize("kind", ["matrix", "dot"])
def test_drawn_in_the_given_axes(adata, kind, layout):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3), layout=layout)
    axes = pl.targets(adata, kind=kind, ax=left, show=True)
    assert axes["mainplot_ax"].figure is figure
    figure.draw_without_rendering()
    assert axes["mainplot_ax"].get_window_extent().x1 <= right.get_window_extent().x0
    assert not right.has_data()
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("kind", ["matrix", "dot"])
def test_labels_do_not_overlap_on_awkward_input(awkward, kind):
    axes = pl.targets(awkward, kind=kind, show=False)
    figure = axes["mainplot_ax"].figure
    figure.draw_without_rendering()
    frame = figure.bbox
    for axis, (low, high) in (
        (axes["mainplot_ax"].xaxis, ("x0", "x1")),
        (axes["mainplot_ax"].yaxis, ("y0", "y1")),
    ):
        boxes = sorted((t.get_window_extent() for t in axis.get_ticklabels()), key=lambda box: getattr(box, low))
        assert all(getattr(a, high) <= getattr(b, low) + 1 for a, b in zip(boxes, boxes[1:], strict=False))
        assert all(b.x0 >= frame.x0 - 1 and b.y0 >= frame.y0 - 1 and b.x1 <= frame.x1 + 1 for b in boxes)
    assert max(figure.get_size_inches()) < 12


def test_one_drug_lists_genes_by_probability():
    adata = _one_drug()
    axes = pl.targets(adata, n_top=5, show=False)
    assert _labels(axes["mainplot_ax"].xaxis) == list(adata.varm["gim_targets"]["Drug1"].nlargest(5).index)


def _one_drug():
    from anndata import AnnData

    probs = pd.DataFrame({"Drug1": np.linspace(0, 1, 8)}, index=[f"g{i}" for i in range(8)])
    adata = AnnData(np.zeros((1, 8)), var=pd.DataFrame(index=probs.index))
    adata.varm["gim_targets"] = probs
    adata.varm["gim_shifts"] = -probs
    return adata


def test_errors(adata):
    with pytest.raises(ValueError, match="`kind`"):
        pl.targets(adata, kind="heat")
    with pytest.raises(ValueError, match="`color`"):
        pl.targets(adata, color="size")
    with pytest.raises(ValueError, match="`n_top`"):
        pl.targets(adata, n_top=0)
    with pytest.raises(KeyError, match="Unknown perturbation"):
        pl.targets(adata, "Drug99")
    with pytest.raises(KeyError, match=r"No `other_targets` in `adata.varm`. Run `model.annotate\(adata\)` first."):
        pl.targets(adata, key="other")


def test_feature_importance_is_centred_and_cut_to_the_largest(adata):
    axes = pl.feature_importance(adata, n_features=3, n_genes=4, show=False)
    stored = adata.uns["gim"]["feature_importance"]
    assert sorted(_labels(axes["mainplot_ax"].yaxis)) == sorted(stored.abs().sum(axis=1).nlargest(3).index)
    assert sorted(_labels(axes["mainplot_ax"].xaxis)) == sorted(stored.abs().sum().nlargest(4).index)
    low, high = _color_limits(axes)
    assert low == -high < 0


def test_features_that_tell_nothing_do_not_fill_the_scale(adata):
    stored = adata.uns["gim"]
    stored["feature_importance"] = stored["feature_importance"] * 1e-6
    axes = pl.feature_importance(adata, show=False)
    assert _color_limits(axes) == (-0.05, 0.05)
    (note,) = axes["mainplot_ax"].texts  # of a matrix without any colour
    assert note.get_text().replace("\n", " ") == "No feature changes an effect by more than 0.05"
    axes = pl.feature_importance(adata, title="mine", show=False)
    assert (axes["mainplot_ax"].get_title(), len(axes["mainplot_ax"].texts)) == ("mine", 1)


def test_feature_importance_of_a_subset_of_genes(adata):
    axes = pl.feature_importance(adata[:, :5], show=False)
    assert sorted(_labels(axes["mainplot_ax"].xaxis)) == sorted(adata.var_names[:5])


def test_feature_importance_without_features(adata):
    del adata.uns["gim"]["feature_importance"]
    with pytest.raises(KeyError, match="set up with a drug embedding"):
        pl.feature_importance(adata)


def test_importances_that_are_all_zero_are_an_error(adata):
    adata.uns["gim"]["feature_importance"] *= 0.0
    with pytest.raises(ValueError, match="all importances are 0"):
        pl.feature_importance(adata, show=False)


@pytest.fixture
def fingerprints(adata):
    """A fit on two components of the fingerprints of six molecules."""
    pytest.importorskip("rdkit")
    smiles = [
        "CC(=O)Oc1ccccc1C(=O)O",
        "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
        "CC(=O)Nc1ccc(O)cc1",
        "OC(=O)c1ccccc1O",
        "CCO",
        "NCCO",
    ]
    scgim.pp.drug_fingerprints(
        dict(zip(adata.varm["gim_targets"].columns, smiles, strict=True)), adata=adata, n_bits=64
    )
    components = scgim.pp.pca_features(adata, 2)
    stored = adata.uns["gim"]
    stored["params"]["drug_embedding_key"] = "drug_embedding_pca"
    stored["feature_importance"] = stored["feature_importance"].iloc[:2].set_axis(components.columns)
    return adata


def test_importance_of_components_is_carried_back_to_bits(fingerprints):
    axes = pl.feature_importance(fingerprints, n_features=5, show=False)
    (mesh,) = [c for c in axes["mainplot_ax"].collections if hasattr(c, "norm")]
    bits, genes = _labels(axes["mainplot_ax"].yaxis), _labels(axes["mainplot_ax"].xaxis)
    loadings, importance = (
        fingerprints.uns["drug_embedding_pca_loadings"],
        fingerprints.uns["gim"]["feature_importance"],
    )
    expected = loadings @ importance
    assert set(bits) == set(expected.abs().sum(axis=1).nlargest(5).index)
    np.testing.assert_allclose(np.ravel(mesh.get_array()), expected.loc[bits, genes].to_numpy().ravel())
    # the bits are far apart and each has its substructure beside it, of colours that RDKit gives to its atoms
    boxes = [artist for artist in axes["mainplot_ax"].artists if isinstance(artist, AnnotationBbox)]
    assert len(boxes) == 5
    axes["mainplot_ax"].figure.draw_without_rendering()
    labels = [label.get_window_extent() for label in axes["mainplot_ax"].get_yticklabels()]
    for box, label in zip(boxes, labels, strict=True):
        picture = box.get_window_extent()
        assert label.x1 <= picture.x0 + 1
        assert picture.x1 <= axes["mainplot_ax"].get_window_extent().x0 + 1
        assert abs((picture.y0 + picture.y1) / 2 - (label.y0 + label.y1) / 2) < 6
        assert box.offsetbox.get_data().std() > 0.01


def test_components_as_they_are(fingerprints):
    axes = pl.feature_importance(fingerprints, components=True, show=False)
    assert sorted(_labels(axes["mainplot_ax"].yaxis)) == ["PC1", "PC2"]
    assert not axes["mainplot_ax"].artists


def test_without_pictures_substructures_are_named(fingerprints):
    known = fingerprints.uns["drug_embedding_substructures"]["substructure"]
    axes = pl.feature_importance(fingerprints, n_features=4, structures=False, show=False)
    labels = [label.split(" ") for label in _labels(axes["mainplot_ax"].yaxis)]
    assert [text for _, text in labels] == [known[bit] for bit, _ in labels]
    _, ax = plt.subplots(figsize=(8, 6))
    axes = pl.feature_importance(fingerprints, n_features=4, ax=ax)
    assert not axes["mainplot_ax"].artists


def test_components_of_unknown_features_stay_components(fingerprints):
    del fingerprints.uns["drug_embedding_pca_loadings"]
    axes = pl.feature_importance(fingerprints, show=False)
    assert sorted(_labels(axes["mainplot_ax"].yaxis)) == ["PC1", "PC2"]
    with pytest.raises(ValueError, match="`structures=True` needs bits"):
        pl.feature_importance(fingerprints, structures=True)


@pytest.mark.parametrize("in_axes", [False, True])
def test_a_title_is_within_the_figure(adata, in_axes):
    for plot in (pl.targets, pl.feature_importance):
        ax = plt.subplots(2, 2)[1][1, 0] if in_axes else None
        main = plot(adata, title="What it is", ax=ax, show=False)["mainplot_ax"]
        figure = main.figure.figure
        figure.draw_without_rendering()
        (title,) = [text for text in figure.findobj(Text) if text.get_text() == "What it is"]
        box = title.get_window_extent()
        assert figure.bbox.y0 <= main.get_window_extent().y1 <= box.y0 < box.y1 <= figure.bbox.y1
