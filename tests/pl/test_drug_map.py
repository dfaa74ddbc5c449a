from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import scgim.pl as pl
from scgim.pl._drug_map import embed
from scgim.pl._tones import OKABE_ITO


@pytest.fixture
def drugs(adata) -> pd.DataFrame:
    names = adata.varm["gim_targets"].columns
    return pd.DataFrame(
        {"pathway": ["MAPK", "MAPK", "JAK", "JAK", "cell cycle", None], "weight": range(6)}, index=names
    )


def test_pca_keeps_distances_of_flat_data():
    flat = np.random.default_rng(0).normal(size=(7, 2)) @ np.random.default_rng(1).normal(size=(2, 30))
    xy, names = embed(flat, "pca", 0)
    distances = [np.linalg.norm(values[:, None] - values[None], axis=-1) for values in (flat, xy)]
    np.testing.assert_allclose(*distances)
    assert names[0].startswith("PC1 (")
    shares = [int(name.split("(")[1].split("\N{PERCENT SIGN}")[0]) for name in names]
    assert sum(shares) in (99, 100, 101)


def test_points_are_the_perturbations_by_total_or_direct_effect(adata):
    total = pl.drug_map(adata, show=False).collections[0].get_offsets()
    direct = pl.drug_map(adata, effect="direct", show=False).collections[0].get_offsets()
    np.testing.assert_allclose(total, embed(adata.varm["gim_total_effects"].T.to_numpy(), "pca", 0)[0], atol=0.01)
    assert not np.allclose(total, direct)


def test_categories_have_a_colour_and_a_legend(adata, drugs):
    ax = pl.drug_map(adata, "pathway", annotation=drugs, show=False)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["not known", "JAK", "MAPK", "cell cycle"]
    assert [len(points.get_offsets()) for points in ax.collections] == [1, 2, 2, 1]
    assert [to_hex(points.get_facecolor()[0]).upper() for points in ax.collections[1:]] == list(OKABE_ITO[:3])


def test_colours_of_scanpy_are_taken_over(adata, drugs):
    adata.uns["pathway_colors"] = ["#111111", "#222222", "#333333"]
    ax = pl.drug_map(adata, drugs["pathway"], show=False)
    assert [to_hex(points.get_facecolor()[0]) for points in ax.collections[1:]] == ["#111111", "#222222", "#333333"]


def test_numbers_have_a_colour_bar(adata, drugs):
    ax = pl.drug_map(adata, "weight", annotation=drugs, show=False)
    assert ax.get_legend() is None
    np.testing.assert_array_equal(ax.collections[0].get_array(), range(6))
    assert ax.figure.axes[-1].get_ylabel() == "weight"


def test_colours_by_cells(adata):
    adata.obs["plate"] = adata.obs["perturbation"].map(lambda drug: "a" if str(drug) in ("Drug1", "Drug2") else "b")
    ax = pl.drug_map(adata, "plate", show=False)
    assert [len(points.get_offsets()) for points in ax.collections] == [2, 4]
    with pytest.raises(ValueError, match="differs between cells of one perturbation"):
        pl.drug_map(adata, "dosage", show=False)


@pytest.mark.parametrize("n", [12, 30])
def test_many_categories_differ_in_colour_and_shape(sixty_drugs, n):
    names = pd.Series([f"class {i % n}" for i in range(60)], index=sixty_drugs.varm["gim_targets"].columns)
    ax = pl.drug_map(sixty_drugs, names, show=False)
    assert len({to_hex(points.get_facecolor()[0]) for points in ax.collections}) == n
    shapes = [points.get_paths()[0].vertices.tobytes() for points in ax.collections]
    assert all(a != b for a, b in zip(shapes, shapes[1:], strict=False))
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert len(ax.get_legend().get_texts()) == n
    assert legend.y0 >= 0
    assert legend.y1 <= ax.figure.bbox.y1


def test_effects_within_the_error_of_their_simulation_are_not_shown(adata):
    rng = np.random.default_rng(0)
    noise = pd.DataFrame(rng.normal(0, 0.01, (20, 6)), adata.var_names, adata.varm["gim_targets"].columns)
    noise.loc["GENE3", "Drug1"], noise.loc["GENE4", "Drug2"] = 1.0, -1.0
    adata.varm["gim_total_effects"] = noise
    adata.varm["gim_total_effect_errors"] = noise * 0 + 0.05
    ax = pl.drug_map(adata, show=False)
    xy = ax.collections[0].get_offsets()
    np.testing.assert_allclose(xy[2:] - xy[2], 0, atol=1e-12)
    assert np.linalg.norm(xy[0] - xy[1]) == pytest.approx(np.sqrt(2))
    assert {text.get_text() for text in ax.texts} <= {"Drug1", "Drug2"}
    adata.varm["gim_total_effects"] = noise.clip(-0.01, 0.01)
    ax = pl.drug_map(adata, show=False)
    assert not ax.collections[0].get_offsets().any()
    assert not ax.texts
    assert np.ptp(ax.get_xlim()) == pytest.approx(0.5)


@pytest.mark.slow  # umap is compiled first
def test_umap_is_the_same_for_the_same_seed(adata):
    values = adata.varm["gim_total_effects"].T.to_numpy()
    first, second, other = (embed(values, "umap", seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_labels_are_those_of_the_largest_effects(adata):
    ax = pl.drug_map(adata, n_labels=2, show=False)
    largest = adata.varm["gim_total_effects"].abs().sum().nlargest(2).index
    assert {text.get_text() for text in ax.texts} == set(largest)


def test_errors(adata, drugs):
    with pytest.raises(ValueError, match="`basis`"):
        pl.drug_map(adata, basis="tsne")
    with pytest.raises(ValueError, match="at least three perturbations, found 2"):
        pl.drug_map(adata, perturbations=["Drug1", "Drug2"])
    with pytest.raises(KeyError, match="No column 'moa' among"):
        pl.drug_map(adata, "moa", annotation=drugs)
    with pytest.raises(ValueError, match="names no perturbation that is shown"):
        pl.drug_map(adata, pd.Series(["a"], index=["aspirin"]))
    with pytest.raises(ValueError, match="more than once"):
        pl.drug_map(adata, pd.Series(["a", "b"], index=["Drug1", "Drug1"]))
    assert mpl.pyplot.get_fignums() is not None


def test_labels_of_many_drugs_lie_apart_and_nearest_to_their_own_point(sixty_drugs):
    ax = pl.drug_map(sixty_drugs, show=False)
    ax.figure.draw_without_rendering()
    dots = ax.transData.transform(ax.collections[0].get_offsets())
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) > 15
    gap = 1.5 * ax.figure.dpi / 72
    for text, box in zip(ax.texts, boxes, strict=True):
        assert sum(box.padded(gap).overlaps(other) for other in boxes) == 1  # itself
        far = np.hypot(*(np.maximum(0, np.maximum(box.min - dots, dots - box.max))).T)
        own = ax.transData.transform(text.xy)
        np.testing.assert_allclose(dots[far.argmin()], own, atol=1)
