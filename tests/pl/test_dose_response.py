from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import scgim.pl as pl
from scgim.pl._dose_response import hill_curve
from scgim.pl._measured import measured_changes
from scgim.pl._utils import axes_inches

KINDS = ["direct effect", "predicted total", "measured"]


def _curve(ax) -> np.ndarray:
    return next(line for line in ax.lines if len(line.get_xdata()) > 100).get_xydata()


def _points(ax) -> list:
    return [line for line in ax.lines if line.get_marker() == "o"]


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
    assert [text.get_text() for text in ax.texts] == [f"target probability {prob:.2f}"]


@pytest.mark.parametrize(
    ("ec50", "text"), [(0.321, "EC50 0.32 nM"), (0.0321, "EC50 below 0.1 nM"), (1234.0, "EC50 above 10 nM")]
)
def test_doses_are_written_as_numbers_with_their_unit(adata, ec50, text):
    adata.uns["dosage_unit"] = "nM"
    gene = adata.varm["gim_targets"]["Drug1"].idxmax()
    adata.varm["gim_ec50"] = adata.varm["gim_ec50"] * 0 + ec50
    (ax,) = pl.dose_response(adata, "Drug1", gene, show=False)
    assert ax.texts[0].get_text().startswith(text)
    assert ax.get_xlabel() == "Dose (nM)"
    ax.figure.draw_without_rendering()
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert {"0.1", "1", "10"} <= set(ticks)


def test_one_dose_tells_nothing_of_the_ec50(adata):
    known = adata.uns["gim"]["contexts"]
    adata.uns["gim"]["contexts"] = known[known["dosage"] == 10.0]
    gene = adata.varm["gim_targets"]["Drug1"].idxmax()
    (ax,) = pl.dose_response(adata, "Drug1", gene, show=False, points=False)
    assert ax.texts[0].get_text().startswith("target probability")
    assert _diamond(ax) is None


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
    assert (
        _diamond(pl.dose_response(adata, "Drug1", adata.varm["gim_targets"]["Drug1"].idxmin(), show=False)[0]) is None
    )
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
    assert [text.get_text() for text in legend.get_texts()] == ["Drug1", "Drug2", *KINDS]
    assert [len([line for line in ax.lines if len(line.get_xdata()) > 100]) for ax in axes] == [2, 2]


def test_more_curves_than_can_be_told_apart(sixty_drugs):
    (ax,) = pl.dose_response(sixty_drugs, sixty_drugs.varm["gim_targets"].columns, "GENE1", show=False)
    (legend,) = ax.figure.legends
    strongest = sixty_drugs.varm["gim_shifts"].loc["GENE1"].abs().nlargest(7).index
    assert [text.get_text() for text in legend.get_texts()] == [*strongest, "53 others", *KINDS]
    curves = [line for line in ax.lines if len(line.get_xdata()) > 100]
    assert len(curves) == 60
    assert len({line.get_color() for line in curves}) == 8
    assert [handle.get_color() for handle in legend.legend_handles[:7]] == [line.get_color() for line in curves[:7]]
    assert len([line for line in ax.lines if line.get_marker() == "o"]) == 7
    assert len([line for line in ax.lines if line.get_linestyle() == "--"]) == 7


def test_legends_take_their_room_from_the_figure_and_not_from_the_panels(sixty_drugs):
    drugs = sixty_drugs.varm["gim_targets"].columns
    heights = []
    for n in (2, 7):
        (ax,) = pl.dose_response(sixty_drugs, drugs[:n], "GENE1", show=False)
        heights.append(axes_inches(ax)[1])
    assert heights[1] == pytest.approx(heights[0], rel=0.15)


def test_measured_changes_are_log_fold_changes_of_means(adata):
    params = {**adata.uns["gim"]["params"], "size_factor_key": "size_factor"}
    adata.obs["size_factor"] = np.linspace(0.5, 2, adata.n_obs)
    table = measured_changes(adata, ["Drug2"], ["GENE4", "GENE5"], params, None)
    control = (adata.obs["perturbation"] == "control").to_numpy()
    rows = ((adata.obs["perturbation"] == "Drug2") & (adata.obs["dosage"] == 0.5)).to_numpy()
    factors = adata.obs["size_factor"] / np.median(adata.obs["size_factor"][control])
    values = adata[:, "GENE5"].X.toarray().ravel() / factors.to_numpy()
    found = table[(table["gene"] == "GENE5") & (table["dosage"] == 0.5)]
    assert found["mean"].item() == pytest.approx(np.log(values[rows].mean() / values[control].mean()), abs=0.02)
    variance = max(values[rows].var(ddof=1), values[rows].mean())  # at least that of a Poisson distribution
    relative = np.sqrt(variance / rows.sum()) / values[rows].mean()
    of_controls = values[control].std(ddof=1) / np.sqrt(control.sum()) / values[control].mean()
    assert found["error"].item() == pytest.approx(np.hypot(relative, of_controls), rel=0.03)
    assert len(table) == 4 * 2


def test_genes_without_counts_have_a_finite_change_or_none(adata):
    dense = adata.X.toarray()
    treated = (adata.obs["perturbation"] == "Drug2").to_numpy()
    dense[treated, 3], dense[:, 4] = 0, 0  # not seen under the drug; never seen
    adata.X = dense
    table = measured_changes(adata, ["Drug2"], ["GENE4", "GENE5"], adata.uns["gim"]["params"], None)
    changes = table.set_index("gene")["mean"]
    assert (changes["GENE4"] < -2).all()
    assert np.isfinite(table.set_index("gene").loc["GENE4", "error"]).all()
    assert changes["GENE5"].isna().all()
    assert pl.dose_response(adata, "Drug2", ["GENE4", "GENE5"], show=False) is not None


def test_points_and_the_predicted_total_share_the_axis_of_the_curve(adata):
    (ax,) = pl.dose_response(adata, "Drug1", "GENE3", show=False)
    assert not ax.child_axes
    assert ax.get_ylabel() == "Log fold change"
    (legend,) = ax.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == KINDS
    table = measured_changes(adata, ["Drug1"], ["GENE3"], adata.uns["gim"]["params"], None)
    points = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_ydata().astype(float), table["mean"])
    np.testing.assert_allclose(points.get_xdata().astype(float), [0.1, 0.5, 1.0, 10.0])
    total = next(line for line in ax.lines if line.get_linestyle() == "--")
    np.testing.assert_array_equal(total.get_xdata().astype(float), [0.1, 0.5, 1.0, 10.0])
    np.testing.assert_allclose(total.get_ydata()[-1], adata.varm["gim_total_effects"].loc["GENE3", "Drug1"])
    np.testing.assert_allclose(total.get_ydata(), adata.varm["gim_context_effects"][2, :4])


def test_data_annotated_before_totals_were_stored_at_each_dose(adata):
    del adata.varm["gim_context_effects"]
    (ax,) = pl.dose_response(adata, "Drug1", "GENE3", show=False)
    (legend,) = ax.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["direct effect", "measured"]


def test_without_cells_only_curves(adata):
    (ax,) = pl.dose_response(adata[:0], "Drug1", "GENE3", show=False)
    assert not _points(ax)
    assert ax.get_xlim()[1] == pytest.approx(12.5)


def test_normalised_cells_are_left_out_with_a_word(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.37
    with pytest.warns(UserWarning, match="`adata.X` no longer holds counts"):
        (ax,) = pl.dose_response(adata, "Drug1", "GENE3", show=False)
    assert not _points(ax)
    (ax,) = pl.dose_response(adata, "Drug1", "GENE3", layer="counts", show=False)
    assert _points(ax)


def test_continuous_data_are_taken_as_they_are(adata):
    adata.uns["gim"]["params"]["likelihood"] = "normal"
    adata.X = adata.X.toarray() - 1.7
    table = measured_changes(adata, ["Drug1"], ["GENE3"], adata.uns["gim"]["params"], None)
    frame = pd.DataFrame({"x": adata[:, "GENE3"].X.ravel(), "drug": adata.obs["perturbation"].to_numpy()})
    control = frame.loc[frame["drug"] == "control", "x"]
    expected = (
        frame.loc[(frame["drug"] == "Drug1").to_numpy() & (adata.obs["dosage"] == 10).to_numpy(), "x"].mean()
        - control.mean()
    ) / control.std(ddof=0)
    assert table.loc[table["dosage"] == 10, "mean"].item() == pytest.approx(expected, rel=0.01)
    (ax,) = pl.dose_response(adata, "Drug1", "GENE3", show=False)
    assert ax.get_ylabel() == "Effect\n(s.d.)"


def test_continuous_data_are_in_the_unit_of_the_model(adata):
    """As stored in `var`; data that were annotated before it was are in standard deviations of controls."""
    adata.uns["gim"]["params"]["likelihood"] = "normal"
    adata.var["gim_sd"] = 4.0
    (ax,) = pl.dose_response(adata, "Drug1", "GENE3", show=False)
    points = next(line for line in ax.lines if line.get_marker() == "o").get_ydata().astype(float)
    mean = adata.to_df()["GENE3"].groupby([adata.obs["perturbation"], adata.obs["dosage"]], observed=True).mean()
    np.testing.assert_allclose(points, (mean["Drug1"] - mean["control"].item()) / 4, rtol=1e-5)


def test_errors(adata):
    with pytest.raises(ValueError, match="`perturbations` is needed"):
        pl.dose_response(adata)
    with pytest.raises(ValueError, match="`n_top`"):
        pl.dose_response(adata, "Drug1", n_top=0)
    adata.uns["gim"]["params"]["dosage_key"] = None
    with pytest.raises(ValueError, match="fitted without doses"):
        pl.dose_response(adata, "Drug1")


def test_as_many_panels_as_the_axes_of_the_user_hold(adata):
    for size, n in (((3, 3), 1), ((6.4, 3), 2), ((9, 3), 3), ((4, 6), 2)):
        _, ax = plt.subplots(figsize=size)
        assert len(pl.dose_response(adata, "Drug1", ax=ax)) == n
    _, ax = plt.subplots(figsize=(3, 6))
    axes = pl.dose_response(adata, "Drug1", ["GENE1", "GENE2"], ax=ax)  # those asked for, below one another
    ax.figure.draw_without_rendering()
    boxes = [panel.get_window_extent() for panel in axes]
    assert boxes[0].x0 == pytest.approx(boxes[1].x0)
    assert boxes[0].y0 > boxes[1].y1
