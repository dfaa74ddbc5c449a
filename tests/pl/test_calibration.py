from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve

import scgim.pl as pl
from scgim.metrics import expected_calibration_error
from scgim.pl._calibration import reliability


@pytest.fixture
def coin():
    rng = np.random.default_rng(1)
    probs = rng.uniform(0, 1, 3000)
    return rng.uniform(size=3000) < probs, probs


def test_curve_is_that_of_scikit_learn(coin):
    labels, probs = coin
    curve = reliability(labels, probs, n_bins=8, level=0.95)
    frequency, mean = calibration_curve(labels, probs, n_bins=8)
    np.testing.assert_allclose(curve["frequency"], frequency)
    np.testing.assert_allclose(curve["probability"], mean)
    assert curve["n"].sum() == 3000


def test_intervals_hold_the_truth_of_calibrated_probabilities(coin):
    curve = reliability(*coin, n_bins=10, level=0.999)
    assert ((curve["low"] <= curve["probability"]) & (curve["probability"] <= curve["high"])).all()
    assert (curve["low"] < curve["frequency"]).all()


def test_error_in_the_legend_is_that_of_the_metrics(coin):
    ax = pl.calibration(*coin, show=False)
    (text,) = [text.get_text() for text in ax.get_legend().get_texts()]
    assert text == f"ECE {expected_calibration_error(*coin):.3f}, n = 3,000"
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0], [1, 1]])


def test_edges_are_compared_off_the_diagonal_and_targets_where_known(adata):
    adata.varm["true_targets"] = adata.varm["gim_targets"].round().drop(columns="Drug6")
    ax = pl.calibration(adata, show=False)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[0].startswith("edges: ")
    assert texts[0].endswith("n = 380")
    assert texts[1].startswith("targets: ")
    assert texts[1].endswith("n = 100")


def test_a_second_call_in_the_same_axes_adds_a_curve(coin):
    _, ax = plt.subplots()
    pl.calibration(*coin, label="first", ax=ax)
    pl.calibration(*coin, label="second", ax=ax, title="both")
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [text.split(":")[0] for text in texts] == ["first", "second"]


def test_errors(adata, coin):
    with pytest.raises(TypeError, match="`probs` is needed"):
        pl.calibration(coin[0])
    with pytest.raises(ValueError, match="found 2 and 3"):
        pl.calibration([0, 1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="between 0 and 1"):
        pl.calibration([0, 1], [0.1, 1.2])
    with pytest.raises(ValueError, match="`n_bins`"):
        pl.calibration(*coin, n_bins=0)
    del adata.varp["true_adjacency"]
    with pytest.raises(KeyError, match="No truth to compare with"):
        pl.calibration(adata)
    adata.varm["true_targets"] = pd.DataFrame(np.zeros((20, 1)), index=adata.var_names, columns=["other"])
    with pytest.raises(ValueError, match="found 0 and 0"):
        pl.calibration(adata)
