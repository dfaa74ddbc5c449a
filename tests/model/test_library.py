"""Ranking of a library and importance of features, where the answers are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr

import scgim
from scgim._constants import Key
from scgim.model import GIM
from scgim.predict._ranking import agreement, named_targets

if TYPE_CHECKING:
    from anndata import AnnData

A, B, C, D = range(4)
FAST = {"n_draws": 20, "n_samples": 100}


@pytest.fixture(scope="module")
def gim(known) -> GIM:
    return known()


@pytest.fixture(scope="module")
def effects(gim) -> pd.DataFrame:
    """What each measured drug does at the largest dosage."""
    out = gim.predict_mean(gim.perturbations, 3.0, n_draws=20, n_samples=200)
    return out.to_df("log_fold_change").set_axis(gim.perturbations)


def test_scores_are_what_they_are_called():
    rng = np.random.default_rng(0)
    effect, goal = rng.normal(size=(2, 3, 5)), rng.normal(size=5)
    args = torch.as_tensor(effect), torch.as_tensor(goal)
    cosine = effect @ goal / np.linalg.norm(effect, axis=-1) / np.linalg.norm(goal)
    np.testing.assert_allclose(agreement(*args, "cosine"), cosine)
    change = effect @ goal / np.abs(goal).sum()
    np.testing.assert_allclose(agreement(*args, "change", sized=False), change)
    stay = np.where(np.arange(5) < 2, 0.0, goal)
    achieved = np.minimum(effect * np.sign(stay), np.abs(stay))
    expected = achieved @ np.abs(stay) / np.abs(stay).sum() - np.abs(effect[..., :2]).mean(-1)
    np.testing.assert_allclose(agreement(args[0], torch.as_tensor(stay), "change"), expected)
    np.testing.assert_allclose(agreement(*args, "distance"), -np.linalg.norm(effect - goal, axis=-1))
    np.testing.assert_allclose(agreement(*args, "correlation")[1, 2], pearsonr(effect[1, 2], goal)[0])
    assert (agreement(torch.zeros(1, 5).double(), args[1], "cosine") == 0).all()


@pytest.mark.parametrize("metric", ["change", "cosine", "correlation", "distance"])
def test_the_drug_that_does_what_is_wanted_comes_first(gim, effects, metric):
    ranked = gim.rank_drugs(gim.perturbations, effects.loc["drug_07"], dosage=3.0, metric=metric, **FAST)
    assert ranked.index[0] == "drug_07"
    assert ranked["score"].is_monotonic_decreasing
    goal = effects.loc["drug_07"]
    best = {"distance": 0.0, "change": (goal.abs() * goal.abs()).sum() / goal.abs().sum()}.get(metric, 1.0)
    assert ranked["score"].iloc[0] == pytest.approx(best, abs=0.1)
    assert ((ranked["lower"] <= ranked["score"]) & (ranked["score"] <= ranked["upper"])).all()
    assert set(ranked["known_by"]) == {"cells"}
    assert ranked.attrs == {"metric": metric, "level": 0.9, "effect_unit": "log fold change"}
    assert set(ranked["dosage"]) == {3.0}
    assert set(ranked["top_targets"]) == {"a, d"}
    assert len(ranked) == 12


def test_genes_that_should_go_up_and_down(gim):
    """Gene d follows the second feature alone."""
    second = gim.drug_embedding["f1"]
    up = gim.rank_drugs(gim.perturbations, ["d"], dosage=3.0, metric="distance", **FAST)
    down = gim.rank_drugs(gim.perturbations, {"down": "d"}, dosage=3.0, metric="distance", **FAST)
    assert up.index[0] == (second - 4 / 3).abs().idxmin()
    assert down.index[0] == (second + 4 / 3).abs().idxmin()
    np.testing.assert_allclose(up["score"], -(0.75 * second[up.index] - 1).abs(), atol=0.02)
    change = gim.rank_drugs(gim.perturbations, {"up": [], "down": ["d"]}, dosage=3.0, **FAST)["score"]
    np.testing.assert_allclose(change, -0.75 * second[change.index], atol=0.02)
    sign = gim.rank_drugs(gim.perturbations, {"down": ["d"]}, dosage=3.0, metric="cosine", **FAST)["score"]
    np.testing.assert_allclose(sign, -np.sign(second[sign.index]), atol=1e-4)


def test_drugs_that_were_not_measured(gim):
    """The wanted change of a gene picks the new drug by its features."""
    library = pd.DataFrame(0.0, [f"candidate_{i}" for i in range(5)], gim.drug_embedding.columns)
    library["f1"] = [-1.0, -0.5, 0.0, 0.5, 1.0]
    ranked = gim.rank_drugs(library, {"d": 0.4}, dosage=3.0, metric="distance", n_draws=50, n_samples=20)
    assert list(ranked.index[:2]) == ["candidate_3", "candidate_4"]
    assert (ranked["upper"] >= ranked["lower"]).all()


def test_combinations_can_be_ranked(gim, effects):
    pairs = [{"drug_00": 3.0, "drug_01": 3.0}, {"drug_02": 3.0, "drug_03": 3.0}, {"drug_04": 1.0}]
    wanted = effects.loc[["drug_02", "drug_03"], "d"].sum()
    ranked = gim.rank_drugs(pairs, {"d": wanted}, metric="distance", **FAST)
    assert ranked.index[0] == "drug_02+drug_03"
    assert ranked.loc["drug_02+drug_03", "dosages"] == "3+3"


def test_cells_in_the_wanted_state(gim, effects):
    cells = gim.predict("drug_09", 3.0, n_samples=2000, seed=0)
    cells.obs["size_factor"] = 1.0
    np.testing.assert_allclose(gim._wanted(cells), effects.loc["drug_09"], atol=0.06)
    cells.X = cells.X.toarray()
    assert gim.rank_drugs(gim.perturbations, cells, dosage=3.0, metric="distance", **FAST).index[0] == "drug_09"


def test_blocks_do_not_matter(gim, effects, monkeypatch):
    whole = gim.rank_drugs(gim.perturbations, effects.loc["drug_07"], dosage=3.0, **FAST)
    monkeypatch.setattr("scgim.predict._means._BLOCK", 5)
    parts = gim.rank_drugs(gim.perturbations, effects.loc["drug_07"], dosage=3.0, **FAST)
    pd.testing.assert_series_equal(whole["score"], parts["score"][whole.index], atol=0.05)


@pytest.mark.parametrize(
    ("toward", "options", "message"),
    [
        ({"x": 1.0}, {}, "`toward` holds genes 'x', which are not in the model"),
        ([], {}, "`toward` holds no genes"),
        ({"a": np.nan}, {}, "`toward` must give each gene once, a finite value"),
        ({"up": ["a"], "down": ["a"]}, {}, "`toward` must give each gene once"),
        ({"a": 0.0}, {}, "`toward` wants no change of any gene"),
        ({"a": 1.0}, {"level": 95}, "`level`, the share that intervals hold, between 0 and 1 .*found 95"),
        (
            {"a": 1.0},
            {"metric": "euclid"},
            r"`metric` must be one of \['change', 'cosine', 'correlation', 'distance'\], found 'euclid'",
        ),
    ],
)
def test_wrong_wishes(gim, toward, options, message):
    with pytest.raises(ValueError, match=message):
        gim.rank_drugs(gim.perturbations, toward, **options)


def test_importance_is_the_map_from_features_to_effects(gim):
    importance = gim.get_feature_importance()
    assert list(importance.index) == ["f0", "f1", "f2"]
    assert list(importance.columns) == ["a", "b", "c", "d"]
    slopes = np.zeros((3, 4))
    slopes[0, A] = slopes[1, D] = 0.75
    np.testing.assert_allclose(importance, slopes * gim.drug_embedding.std(ddof=0).to_numpy()[:, None], atol=0.03)
    assert (importance[["b", "c"]] == 0).all(axis=None)


def test_annotate_stores_importance(gim, monkeypatch, tmp_path):
    adata: AnnData = gim.adata.copy()
    gim.history_ = {}
    monkeypatch.setattr(GIM, "_history_frame", lambda self: pd.DataFrame({"elbo_train": [1.0]}, ["0"]))
    gim.annotate(adata, n_samples=2)
    stored = adata.uns[Key.DEFAULT]
    pd.testing.assert_frame_equal(stored[Key.uns.FEATURE_IMPORTANCE], gim.get_feature_importance())
    assert stored[Key.uns.PARAMS]["size_factor_key"] == "size_factor"
    adata.write_h5ad(tmp_path / "annotated.h5ad")
    scgim.pl.feature_importance(adata, show=False)
    monkeypatch.setattr("scgim.model._annotation._MAX_FEATURES", 2)
    gim.annotate(adata, n_samples=2)
    assert Key.uns.FEATURE_IMPORTANCE not in adata.uns[Key.DEFAULT]


def test_no_features_no_importance(adata):
    GIM.setup_anndata(adata, drug_embedding_key=None)
    model = GIM(adata)
    model.train(1, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(ValueError, match="without drug features"):
        model.get_feature_importance()
    means = model.predict_mean(["drug_1", "drug_1"], [1.0, 2.0], n_draws=3, n_samples=3)
    assert means.shape == (2, 8)


def test_ranking_in_a_simulated_world(clear):
    """The drug that was measured to do most of what is wanted, by the simulator's own effects."""
    world, model = clear
    effects = world.total_effects(2.0, n_cells=4000).T
    measured = effects.loc[model.perturbations]
    for drug in ("drug_03", "drug_11"):
        goal = effects.loc[drug]
        ranked = model.rank_drugs(model.perturbations, goal, dosage=2.0, n_draws=20)
        assert ranked.index[0] == drug
        achieved = agreement(torch.tensor(measured.to_numpy()), torch.tensor(goal.to_numpy()), "change")
        truth = pd.Series(achieved.numpy(), measured.index)[ranked.index]
        assert np.corrcoef(ranked["score"], truth)[0, 1] > 0.95
        ranked = model.rank_drugs(model.perturbations, goal, dosage=2.0, metric="cosine", n_draws=20)
        cosine = measured @ effects.loc[drug] / np.linalg.norm(measured, axis=1) / np.linalg.norm(effects.loc[drug])
        assert ranked.index[0] == drug
        assert np.corrcoef(ranked["score"], cosine[ranked.index])[0, 1] > 0.95


def test_sides_of_a_wish_are_called_up_and_down(gim):
    with pytest.raises(ValueError, match=r'`toward` holds .*Down.* lists of genes under "up" and "down"'):
        gim.rank_drugs(gim.perturbations, toward={"Down": ["a"]})


def test_genes_that_are_no_targets_have_their_probability():
    probs = np.array([[0.02, 0.9, 0.3, 0.12], [0.05, 0.06, 0.09, 0.01]])
    assert named_targets(probs, list("abcd")) == ["b, c (0.30), d (0.12)", ""]
