"""A ranked library as a plot."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from scgim import pl


def table(n: int = 5, **columns) -> pd.DataFrame:
    score = np.linspace(1.0, -0.5, n)
    start = {
        "dosage": 1.0,
        "score": score,
        "lower": score - 0.3,
        "upper": score + 0.1,
        "top_targets": "A, B",
        "known_by": "cells",
    }
    frame = pd.DataFrame({**start, **columns}, index=pd.Index([f"drug_{k}" for k in range(n)], name="perturbation"))
    frame.attrs["metric"] = "change"
    return frame


def test_scores_and_intervals_are_drawn_from_the_best():
    ranked = table()
    ax = pl.rank_drugs(ranked, n_top=3, show=False)
    lines, points = ax.collections
    np.testing.assert_allclose(points.get_offsets(), np.stack([ranked["score"][:3], np.arange(3)], 1))
    segments = np.stack(lines.get_segments())
    np.testing.assert_allclose(segments[:, :, 0], ranked[["lower", "upper"]][:3])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["drug_0", "drug_1", "drug_2"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the best at the top
    (right,) = ax.child_axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["A, B"] * 3
    assert "log fold change" in ax.get_xlabel()
    ranked.attrs["effect_unit"] = "s.d."
    assert pl.rank_drugs(ranked, show=False).get_xlabel() == "Wanted change achieved (s.d.)"


def test_colours_tell_what_is_known():
    ax = pl.rank_drugs(table(3, known_by=["cells", "features", "mean"]), show=False)
    colors = {to_hex(color) for color in ax.collections[1].get_facecolors()}
    assert len(colors) == 3
    (legend,) = ax.figure.legends
    assert len(legend.get_texts()) == 3
    assert not pl.rank_drugs(table(3), show=False).figure.legends


def test_doses_are_named_where_they_differ():
    ax = pl.rank_drugs(table(2, dosage=[1.0, 0.1]), show=False, targets=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["drug_0 at 1", "drug_1 at 0.1"]
    ranked = table(2, dosage=[1000.0, 0.1])
    ranked.attrs["dosage_unit"] = "nM"
    ax = pl.rank_drugs(ranked, show=False, targets=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["drug_0 at 1000 nM", "drug_1 at 0.1 nM"]
    ax = pl.rank_drugs(table(2, dosages=["1+2", "3"]), show=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["drug_0 at 1+2", "drug_1 at 3"]


@pytest.mark.parametrize(
    ("ranked", "options", "error", "message"),
    [
        (table()[["score"]], {}, KeyError, r"no columns \['lower', 'upper'\]"),
        (table().iloc[:0], {}, ValueError, "found 20 and 0 rows"),
        (table(), {"n_top": 0}, ValueError, "found 0 and 5 rows"),
        ("adata", {}, TypeError, "Expected the table"),
    ],
)
def test_wrong_input(ranked, options, error, message):
    with pytest.raises(error, match=message):
        pl.rank_drugs(ranked, show=False, **options)
