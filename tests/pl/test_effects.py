from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from scipy.stats import norm

import scgim.pl as pl


def _rows(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_bars_are_total_effects_and_points_direct_ones(adata):
    ax = pl.effects(adata, "Drug2", genes=["GENE3", "GENE8", "GENE1"], show=False)
    assert _rows(ax) == ["GENE3", "GENE8", "GENE1"]
    total = adata.varm["gim_total_effects"].loc[_rows(ax), "Drug2"]
    direct = adata.varm["gim_shifts"].loc[_rows(ax), "Drug2"]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], total.where(total.abs() > 0.004, 0))
    lines, points = ax.collections
    np.testing.assert_allclose(points.get_offsets()[:, 0], direct)
    half = norm.ppf(0.975) * adata.varm["gim_shift_sds"].loc[_rows(ax), "Drug2"]
    np.testing.assert_allclose([segment[1, 0] - segment[0, 0] for segment in lines.get_segments()], 2 * half)


def test_interval_widens_with_its_level(adata):
    widths = []
    for level in (0.5, 0.99):
        lines = pl.effects(adata, "Drug2", level=level, show=False).collections[0]
        widths.append(np.ptp(lines.get_segments()[0][:, 0]))
    assert widths[1] / widths[0] == pytest.approx(norm.ppf(0.995) / norm.ppf(0.75))


def test_targets_are_filled(adata):
    ax = pl.effects(adata, "Drug1", show=False)
    filled = [not np.allclose(color[:3], 1) for color in ax.collections[1].get_facecolors()]
    expected = adata.varm["gim_targets"].loc[_rows(ax), "Drug1"] >= 0.5
    assert filled == expected.tolist()
    assert 0 < sum(filled) < len(filled)


def test_the_largest_are_chosen_and_sorted(adata):
    ax = pl.effects(adata, "Drug1", n_top=4, show=False)
    total, direct = (adata.varm[f"gim_{name}"]["Drug1"] for name in ("total_effects", "shifts"))
    assert set(_rows(ax)) == set(np.maximum(total.abs(), direct.abs()).nlargest(4).index)
    assert total[_rows(ax)].is_monotonic_decreasing
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top


def test_totals_within_the_error_of_their_simulation_are_no_rows(adata):
    total = adata.varm["gim_total_effects"].copy()
    total["Drug1"] = 0.03
    total.loc[["GENE7", "GENE9"], "Drug1"] = [0.5, -0.2]
    adata.varm["gim_total_effects"] = total
    adata.varm["gim_total_effect_errors"] = total * 0 + 0.02
    targets = adata.varm["gim_targets"]["Drug1"]
    targets = set(targets.index[targets >= 0.5])
    ax = pl.effects(adata, "Drug1", show=False)
    assert set(_rows(ax)) == targets | {"GENE7", "GENE9"}
    ax = pl.effects(adata, "Drug1", genes=["GENE7", "GENE1"], show=False)
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [0.5, 0.0])


def test_small_effects_do_not_fill_the_axis(adata):
    for name in ("gim_total_effects", "gim_shifts", "gim_shift_sds"):
        adata.varm[name] = adata.varm[name] * 0 + 0.01
    low, high = pl.effects(adata, "Drug1", show=False).get_xlim()
    assert (low, high) == (-0.25, 0.25)


def test_names_of_two_hundred_genes_do_not_touch(many_genes):
    ax = pl.effects(many_genes, "Drug1", genes=many_genes.var_names[:200], show=False)
    ax.figure.draw_without_rendering()
    boxes = sorted((label.get_window_extent() for label in ax.get_yticklabels()), key=lambda box: box.y0)
    assert len(boxes) == 200
    assert all(a.y1 <= b.y0 + 1 for a, b in zip(boxes, boxes[1:], strict=False))
    assert ax.get_yticklabels()[0].get_fontsize() > 6


def test_errors(adata):
    with pytest.raises(ValueError, match="`perturbation` is needed: 6 are stored"):
        pl.effects(adata)
    with pytest.raises(KeyError, match="Unknown gene"):
        pl.effects(adata, "Drug1", genes="GENE77")
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="`level`.*between 0 and 1"):
            pl.effects(adata, "Drug1", level=level)
    with pytest.raises(ValueError, match="`n_top`"):
        pl.effects(adata, "Drug1", n_top=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_legend_has_the_colours_of_the_targets_that_are_drawn(adata, sign):
    adata.varm["gim_shifts"]["Drug1"] = sign * adata.varm["gim_shifts"]["Drug1"].abs()
    ax = pl.effects(adata, "Drug1", show=False)
    (legend,) = ax.figure.legends
    marks = {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}
    word = {1: "raised", -1: "lowered"}[sign]
    assert list(marks) == ["total", f"target, {word}", "direct, no target"]
    drawn = ax.collections[1].get_facecolors()[np.asarray(adata.varm["gim_targets"].loc[_rows(ax), "Drug1"] >= 0.5)]
    assert {tuple(color) for color in drawn} == {to_rgba(marks[f"target, {word}"].get_color())}


def test_totals_have_intervals_and_those_of_few_counts_are_hollow(adata):
    genes = ["GENE3", "GENE8", "GENE1"]
    total = adata.varm["gim_total_effects"]
    adata.varm["gim_total_effect_sds"] = total * 0 + 0.2
    means = np.where(adata.var_names == "GENE8", 1e-3, 50.0)
    adata.uns["gim"]["controls"] = pd.DataFrame({"mean": means}, adata.var_names)
    ax = pl.effects(adata, "Drug2", genes=genes, show=False)
    _, _, lines = ax.collections
    segments = np.array(lines.get_segments())[:, :, 0]
    np.testing.assert_allclose(np.diff(segments).ravel(), 2 * norm.ppf(0.975) * 0.2)
    np.testing.assert_allclose(segments.mean(axis=1), [bar.get_width() for bar in ax.patches])
    assert [np.allclose(bar.get_facecolor(), 1) for bar in ax.patches] == [False, True, False]
    assert "total, few counts" in [text.get_text() for text in ax.figure.legends[0].get_texts()]
