from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import scgim.pl as pl
from scgim.pl._dose_response import hill_curve, measured_shifts
from scgim.pl._utils import axes_inches


def _curve(ax) -> np.ndarray:
    return next(line for line in ax.lines if len(line.get_xdata()) > 100).get_xydata()


def _diamond(ax):
    found = [line for line in ax.lines if line.get_marker() == "D"]
    return found[0].get_xydata()[0] if found else None


def test_hill_curve_at_its_landmarks():
    doses = np.array([1e-300, 2.0, 1e12])
    np.testing.assert_allclose(hill_curve(doses, -3.0, 2.0, 4.0), [0.0, -1.5, -3.0], atol=1e-12)


def test_curve_and_band_follow_the_stored_parameters(adata):
    (ax,) = pl.dose_response(adata, "Drug1", "GENE3", show=False, points=False)
    params = {name: adata.varm[f"gim_{name}"].loc["GENE3", "Drug1"] for name in ("emax", "ec50", "hill", "shift_sds")}
    x, y = _curve(ax).T
    power = x ** params["hill"]
    prob = adata.varm["gim_targets"].loc["GENE3", "Drug1"]
    expected = prob * params["emax"] * power / (params["ec50"] ** params["hill"] + power)
    np.testing.assert_allclose(y, expected, rtol=1e-9)
    assert ax.get_title() == "GENE3"
    assert any(f"EC50 {params['ec50']:.2g}" in text.get_text() for text in ax.texts)


def test_band_has_the_stored_sd_at_the_largest_dose(adata):
    (ax,) = pl.dose_response(adata, "Drug1", "GENE3", show=False, points=False, level=0.9)
    band = ax.collections[0].get_paths()[0].vertices
    shift, sd = (adata.varm[name].loc["GENE3", "Drug1"] for name in ("gim_shifts", "gim_shift_sds"))
    x, y = _curve(ax).T
    at_end = band[np.isclose(band[:, 0], x[-1])][:, 1]
    half = norm.ppf(0.95) * sd * abs(y[-1] / shift)
    assert (at_end.max() - at_end.min()) / 2 == pytest.approx(half)


def test_ec50_is_marked_where_it_was_measured(adata):
    targets = adata.varm["gim_targets"]["Drug1"].nlargest(1).index
    (ax,) = pl.dose_response(adata, "Drug1", targets, show=False)
    names = ("ec50", "emax", "targets")
    ec50, emax, prob = (adata.varm[f"gim_{name}"].loc[targets[0], "Drug1"] for name in names)
    np.testing.assert_allclose(_diamond(ax), [ec50, prob * emax / 2])
    adata.varm["gim_ec50"] = adata.varm["gim_ec50"] * 1000
    (ax,) = pl.dose_response(adata, "Drug1", targets, show=False)
    assert _diamond(ax) is None


def test_most_probable_targets_are_chosen(adata):
    axes = pl.dose_response(adata, "Drug2", n_top=2, show=False)
    assert [ax.get_title() for ax in axes] == adata.varm["gim_targets"]["Drug2"].nlargest(2).index.tolist()


def test_several_perturbations_share_a_panel(adata):
    axes = pl.dose_response(adata, ["Drug1", "Drug2"], ["GENE1", "GENE2"], show=False)
    assert len(axes) == 2
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Drug1", "Drug2"]
    assert [len([line for line in ax.lines if len(line.get_xdata()) > 100]) for ax in axes] == [2, 2]


def test_more_curves_than_can_be_told_apart(sixty_drugs):
    (ax,) = pl.dose_response(sixty_drugs, sixty_drugs.varm["gim_targets"].columns, "GENE1", show=False)
    (legend,) = ax.figure.legends
    strongest = sixty_drugs.varm["gim_shifts"].loc["GENE1"].abs().nlargest(7).index
    assert [text.get_text() for text in legend.get_texts()] == [*strongest, "53 others"]
    curves = [line for line in ax.lines if len(line.get_xdata()) > 100]
    assert len(curves) == 60
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == 8
    assert len([line for line in ax.lines if line.get_marker() == "o"]) == 7


def test_legends_take_their_room_from_the_figure_and_not_from_the_panels(sixty_drugs):
    drugs = sixty_drugs.varm["gim_targets"].columns
    heights = []
    for n in (2, 28):
        (ax,) = pl.dose_response(sixty_drugs, drugs[:n], "GENE1", show=False)
        labels = [(line.get_color(), line.get_linestyle()) for line in ax.lines if len(line.get_xdata()) > 100]
        assert len(set(labels)) == n
        heights.append(axes_inches(ax)[1])
    assert heights[1] == pytest.approx(heights[0], rel=0.15)


def test_measured_shifts_are_standardised_on_controls(adata):
    params = {**adata.uns["gim"]["params"], "size_factor_key": "size_factor"}
    adata.obs["size_factor"] = np.linspace(0.5, 2, adata.n_obs)
    table = measured_shifts(adata, ["Drug2"], ["GENE4", "GENE5"], params, None)
    control = (adata.obs["perturbation"] == "control").to_numpy()
    rows = ((adata.obs["perturbation"] == "Drug2") & (adata.obs["dosage"] == 0.5)).to_numpy()
    factors = adata.obs["size_factor"] / np.median(adata.obs["size_factor"][control])
    log = np.log1p(adata[:, "GENE5"].X.toarray().ravel() / factors.to_numpy())
    z = (log[rows] - log[control].mean()) / log[control].std()
    found = table[(table["gene"] == "GENE5") & (table["dosage"] == 0.5)]
    assert found["mean"].item() == pytest.approx(z.mean(), rel=1e-5)
    assert found["error"].item() == pytest.approx(z.std(ddof=1) / np.sqrt(len(z)), rel=1e-5)
    assert len(table) == 4 * 2


def test_points_have_an_axis_of_their_own_with_the_same_zero(adata):
    (ax,) = pl.dose_response(adata, "Drug1", "GENE3", show=False)
    (right,) = ax.child_axes
    ax.figure.draw_without_rendering()
    assert right.get_ylabel() == "Measured shift\n(control s.d.)"
    low, high = ax.get_ylim()
    scale = right.get_ylim()[1] / high
    assert right.get_ylim()[0] == pytest.approx(low * scale)
    table = measured_shifts(adata, ["Drug1"], ["GENE3"], adata.uns["gim"]["params"], None)
    points = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_ydata().astype(float) * scale, table["mean"], rtol=1e-6)
    np.testing.assert_array_equal(points.get_xdata(), [0.1, 0.5, 1.0, 10.0])


def test_without_cells_only_curves(adata):
    (ax,) = pl.dose_response(adata[:0], "Drug1", "GENE3", show=False)
    assert not ax.child_axes
    assert ax.get_xlim()[1] == pytest.approx(12.5)


def test_normalised_cells_are_left_out_with_a_word(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.37
    with pytest.warns(UserWarning, match="`adata.X` no longer holds counts"):
        (ax,) = pl.dose_response(adata, "Drug1", "GENE3", show=False)
    assert not ax.child_axes
    (ax,) = pl.dose_response(adata, "Drug1", "GENE3", layer="counts", show=False)
    assert ax.child_axes


def test_continuous_data_are_taken_as_they_are(adata):
    adata.uns["gim"]["params"]["likelihood"] = "normal"
    adata.X = adata.X.toarray() - 1.7
    table = measured_shifts(adata, ["Drug1"], ["GENE3"], adata.uns["gim"]["params"], None)
    frame = pd.DataFrame({"x": adata[:, "GENE3"].X.ravel(), "drug": adata.obs["perturbation"].to_numpy()})
    control = frame.loc[frame["drug"] == "control", "x"]
    expected = (
        frame.loc[(frame["drug"] == "Drug1").to_numpy() & (adata.obs["dosage"] == 10).to_numpy(), "x"].mean()
        - control.mean()
    ) / control.std(ddof=0)
    assert table.loc[table["dosage"] == 10, "mean"].item() == pytest.approx(expected, rel=1e-5)


def test_errors(adata):
    with pytest.raises(ValueError, match="`perturbation` is needed"):
        pl.dose_response(adata)
    with pytest.raises(ValueError, match="`n_top`"):
        pl.dose_response(adata, "Drug1", n_top=0)
    adata.uns["gim"]["params"]["dosage_key"] = None
    with pytest.raises(ValueError, match="fitted without doses"):
        pl.dose_response(adata, "Drug1")
