from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

import scgim.pl as pl


def _cells(adata, mask) -> ad.AnnData:
    return ad.AnnData(adata[mask].X.copy(), obs=adata.obs[mask].copy(), var=adata.var.copy())


@pytest.fixture
def perfect(adata) -> ad.AnnData:
    """A prediction that is the measurement."""
    return _cells(adata, adata.obs["perturbation"] != "control")


@pytest.fixture
def unit_sizes(adata):
    adata.obs["size_factor"] = 1.0
    return adata


def test_a_perfect_prediction_lies_on_the_diagonal(unit_sizes):
    predicted = _cells(unit_sizes, unit_sizes.obs["perturbation"] != "control")
    means, _ = pl.predicted_vs_observed(unit_sizes, predicted, show=False)
    points = np.concatenate([scatter.get_offsets() for scatter in means.collections])
    assert len(points) == 6 * 4 * 20
    np.testing.assert_allclose(points[:, 0], points[:, 1])
    assert means.get_title() == "Pearson r = 1.00"


def test_shifts_are_in_standard_deviations_of_control(unit_sizes):
    predicted = _cells(unit_sizes, (unit_sizes.obs["perturbation"] == "Drug3") & (unit_sizes.obs["dosage"] == 1.0))
    means, _ = pl.predicted_vs_observed(unit_sizes, predicted, show=False)
    log = np.log1p(unit_sizes.X.toarray())
    control = log[unit_sizes.obs["perturbation"] == "control"]
    rows = ((unit_sizes.obs["perturbation"] == "Drug3") & (unit_sizes.obs["dosage"] == 1.0)).to_numpy()
    expected = (log[rows].mean(0) - control.mean(0)) / control.std(0)
    np.testing.assert_allclose(means.collections[0].get_offsets()[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_size_factors_of_the_prediction_may_have_another_scale(unit_sizes, perfect):
    perfect.obs["size_factor"], perfect.X = 40.0, perfect.X * 40
    means, _ = pl.predicted_vs_observed(unit_sizes, perfect, show=False)
    points = np.concatenate([scatter.get_offsets() for scatter in means.collections])
    np.testing.assert_allclose(points[:, 0], points[:, 1])


@pytest.mark.parametrize("unit", [1.0, 1e-10])
def test_doses_are_the_same_but_for_rounding_in_any_unit(unit_sizes, perfect, unit):
    """0.1 of 64 and of 32 bits is one dose; doses in mol/L are tiny, and all different."""
    unit_sizes.obs["dosage"] *= unit
    perfect.obs["dosage"] = (perfect.obs["dosage"] * unit).astype(np.float32)
    odd = np.arange(unit_sizes.n_obs) % 2 == 0
    unit_sizes.obs["dosage"] = np.where(odd, unit_sizes.obs["dosage"].astype(np.float32), unit_sizes.obs["dosage"])
    means, _ = pl.predicted_vs_observed(unit_sizes, perfect, show=False)
    points = np.concatenate([scatter.get_offsets() for scatter in means.collections])
    assert len(points) == 6 * 4 * 20
    np.testing.assert_allclose(points[:, 0], points[:, 1])


def test_chosen_genes_have_their_distributions(adata, perfect):
    _, violins = pl.predicted_vs_observed(adata, perfect, "Drug2", genes=["GENE4", "GENE2"], show=False)
    assert [label.get_text() for label in violins.get_xticklabels()] == ["GENE4", "GENE2"]
    assert violins.get_title().startswith("Drug2 at ")
    labels = [text.get_text() for text in violins.get_legend().get_texts()]
    assert labels == ["control, mean and s.d.", "measured", "predicted"]


def test_several_perturbations_have_colours_and_a_legend_that_covers_no_point(adata, perfect):
    means, _ = pl.predicted_vs_observed(adata, perfect, ["Drug1", "Drug2"], show=False)
    (legend,) = means.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Drug1", "Drug2"]
    colors, counts = np.unique(means.collections[0].get_facecolor(), axis=0, return_counts=True)
    assert {to_rgba(h.get_color(), h.get_alpha()) for h in legend.legend_handles} == set(map(tuple, colors))
    assert counts.tolist() == [4 * 20, 4 * 20]
    means.figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= means.get_window_extent().y0


def test_of_more_perturbations_than_colours_the_strongest_have_one(sixty_drugs):
    cells = _cells(sixty_drugs, sixty_drugs.obs["perturbation"] != "control")
    means, _ = pl.predicted_vs_observed(sixty_drugs, cells, show=False)
    (legend,) = means.figure.legends
    *names, last = [text.get_text() for text in legend.get_texts()]
    assert (len(names), last) == (7, "53 others")
    others, colored = means.collections
    assert len(others.get_offsets()) == 53 * 4 * 20
    largest = np.square(others.get_offsets()[:, 0]).reshape(-1, 20).sum(1).max()
    for name in names:
        alone = pl.predicted_vs_observed(sixty_drugs, cells, name, show=False)[0].collections[0].get_offsets()[:, 0]
        assert np.square(alone).reshape(4, 20).sum(1).max() >= largest
    # in any order, so that no drug lies on all others
    shades = colored.get_facecolor()
    assert len(np.unique(shades[-40:], axis=0)) > 4


def test_few_cells_are_points_and_many_a_density(adata, sixty_drugs):
    for screen, n_cells in ((adata, 25), (sixty_drugs, 5)):
        chosen = (screen.obs["perturbation"] == "Drug1") & (screen.obs["dosage"] == 1.0)
        _, violins = pl.predicted_vs_observed(screen, _cells(screen, chosen), genes="GENE2", show=False)
        points = [c for c in violins.collections if type(c).__name__ == "PathCollection"]
        assert len(points) == (0 if n_cells == 25 else 2)
        assert all(len(side.get_offsets()) == n_cells for side in points)


def test_the_unit_of_doses_is_named(adata, perfect):
    adata.uns["dosage_unit"] = "µM"
    _, violins = pl.predicted_vs_observed(adata, perfect, "Drug2", show=False)
    assert violins.get_title().endswith(" µM")


def test_genes_in_another_order_are_matched_by_name(adata, perfect):
    mixed = perfect[:, perfect.var_names[::-1]].copy()
    straight, reverse = (pl.predicted_vs_observed(adata, p, show=False)[0].get_title() for p in (perfect, mixed))
    assert straight == reverse


def test_a_gene_without_variation_is_left_out(adata, perfect):
    for cells in (adata, perfect):
        dense = cells.X.toarray()
        dense[:, 3] = 0
        cells.X = dense
    means, _ = pl.predicted_vs_observed(adata, perfect, genes=["GENE1", "GENE4"], show=False)
    assert sum(len(scatter.get_offsets()) for scatter in means.collections) == 6 * 4 * 19


def test_controls_without_any_variation_are_an_error(adata, perfect):
    dense = adata.X.toarray()
    dense[(adata.obs["perturbation"] == "control").to_numpy()] = 1
    adata.X = dense
    adata.obs["size_factor"] = 1.0
    with pytest.raises(ValueError, match="No gene varies among the control cells"):
        pl.predicted_vs_observed(adata, perfect, show=False)


def test_without_doses_contexts_match_by_name(adata, perfect):
    adata.uns["gim"]["params"]["dosage_key"] = None
    perfect.obs["dosage"] = 123.0
    _, violins = pl.predicted_vs_observed(adata, perfect, "Drug2", show=False)
    assert violins.get_title() == "Drug2"


def test_errors(adata, perfect):
    elsewhere = perfect.copy()
    elsewhere.obs["dosage"] = 0.77
    with pytest.raises(
        ValueError,
        match=r"Measured are, for example, 'Drug1' at 0.1, .*; predicted are 'Drug1' at 0.77, .*dosage=\.\.\.",
    ):
        pl.predicted_vs_observed(adata, elsewhere)
    with pytest.raises(KeyError, match="Unknown perturbation"):
        pl.predicted_vs_observed(adata, perfect, "Aspirin")
    with pytest.raises(ValueError, match="no longer holds the measured cells"):
        pl.predicted_vs_observed(adata[:0], perfect)
    with pytest.raises(ValueError, match="no control cells"):
        pl.predicted_vs_observed(adata[adata.obs["perturbation"] != "control"], perfect)
    with pytest.raises(ValueError, match="`n_genes`"):
        pl.predicted_vs_observed(adata, perfect, n_genes=0)
    renamed = perfect.copy()
    renamed.var_names = [f"other{i}" for i in range(20)]
    with pytest.raises(ValueError, match="share no gene"):
        pl.predicted_vs_observed(adata, renamed)
    adata.X = adata.X * 0.3
    with pytest.raises(ValueError, match="no longer holds counts"):
        pl.predicted_vs_observed(adata, perfect)


def test_names_of_many_drugs_leave_room_for_the_points_in_a_plain_grid(sixty_drugs):
    adata = sixty_drugs
    treated = adata[adata.obs["perturbation"] != "control"]
    predicted = ad.AnnData(treated.X.copy(), obs=treated.obs.copy(), var=adata.var.copy())
    figure, grid = plt.subplots(2, 2)
    height = grid[0, 0].get_window_extent().height
    (panel,) = pl.predicted_vs_observed(adata, predicted, ax=grid[0, 0])
    figure.draw_without_rendering()
    assert len(panel.get_legend().get_texts()) == 8
    assert panel.get_window_extent().height > 0.5 * height


def test_cells_predicted_for_one_line_are_compared_with_those_of_that_line(unit_sizes):
    unit_sizes.obs["line"] = np.where(np.arange(unit_sizes.n_obs) % 2, "a", "b")
    own = unit_sizes.obs["line"] == "a"
    predicted = _cells(unit_sizes, own & (unit_sizes.obs["perturbation"] == "Drug3"))
    means, _ = pl.predicted_vs_observed(unit_sizes, predicted, show=False)
    alone, _ = pl.predicted_vs_observed(unit_sizes[own.to_numpy()], predicted, show=False)
    for points, expected in zip(means.collections, alone.collections, strict=True):
        np.testing.assert_allclose(points.get_offsets(), expected.get_offsets())
        np.testing.assert_allclose(*points.get_offsets().T)
