"""The report of a fit: what it says follows from what was found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgim.model import GIM
from scgim.model._halves import halves_of
from scgim.model._report import _cautions_of_halves, _dense_cluster


@pytest.fixture(scope="module")
def gim(known) -> GIM:
    return known()


def test_numbers_are_those_of_the_model(model):
    report, targets = model.report(), model.get_targets().groupby(level="perturbation").first()
    assert report.values["edges"] == len(model.get_graph())
    assert report.values["targets"] == (targets > 0.5).to_numpy().sum()
    assert report.values["treated_cells_trained_on"] == model.n_cells_.sum()
    off = model.control_check_.index[~model.control_check_["agree"]]
    assert report["controls"].index.tolist() == off.tolist()
    assert list(report.tables) == ["controls", "cut", "feedback", "features", "usual_targets", "dense_cluster"]
    assert len(report["dense_cluster"]) == 0
    graph = model.get_graph()
    assert report.values["edges_less_likely_than_not"] == (graph["probability"] < 0.5).sum()
    assert "edges" in repr(report)


def test_cut_edges_are_those_without_evidence(model, monkeypatch):
    evidence = np.full((8, 8), -np.inf)
    evidence[0, 1], evidence[2, 3], evidence[4, 5] = -1.5, 20.0, -0.5
    monkeypatch.setattr(model, "edge_evidence_", evidence)
    cut = model.report()["cut"]
    assert cut.to_numpy().tolist() == [["gene_0", "gene_1", -1.5], ["gene_4", "gene_5", -0.5]]


def test_features_that_foretell_are_better_than_the_mean(gim, known):
    error = gim.report()["features"]["error"]
    assert error["no effect"] == 1.0
    assert error["predicted"] < 0.2 < error["mean of the other drugs"]
    assert not any("features" in caution for caution in gim.report().cautions)
    other = known()
    rng = np.random.default_rng(1)
    other._drugs.embedding = other.drug_embedding * 0 + rng.normal(size=other.drug_embedding.shape)
    report = other.report()
    assert report["features"].loc["predicted", "error"] == pytest.approx(
        report["features"].loc["mean of the other drugs", "error"], rel=0.1
    )
    assert any("The features tell" in caution for caution in report.cautions)


def test_genes_called_for_many_drugs_are_named(gim):
    report = gim.report()
    assert report["usual_targets"].index.tolist() == ["a", "d"]  # of all twelve drugs
    assert report["usual_targets"]["share"].tolist() == [1.0, 1.0]
    assert any("at least half of the perturbations" in caution for caution in report.cautions)


def test_genes_that_share_a_cause_are_found_by_their_edges():
    """Nine genes with all edges among them but two, in a network of 60 genes and 90 edges."""
    rng = np.random.default_rng(0)
    adjacency = np.zeros((60, 60), dtype=bool)
    chosen = rng.choice(60 * 59 // 2, 90, replace=False)
    adjacency[np.triu_indices(60, 1)[0][chosen], np.triu_indices(60, 1)[1][chosen]] = True
    names = [f"g{i}" for i in range(60)]
    assert len(_dense_cluster(adjacency, names)) == 0
    adjacency[np.ix_(range(5, 14), range(5, 14))] = np.triu(np.ones((9, 9), dtype=bool), 1)
    adjacency[5, 6] = adjacency[12, 13] = False
    cluster = _dense_cluster(adjacency, names)
    assert set(cluster.index) == {f"g{i}" for i in range(5, 14)}
    assert cluster["n_edges"].sum() == 2 * (36 - 2)
    few = np.zeros((60, 60), dtype=bool)
    few[:8, 8:] = True  # eight regulators of all others are a network, not a cluster
    assert len(_dense_cluster(few, names)) == 0


def test_a_dense_cluster_is_a_caution(model, monkeypatch):
    complete = np.triu(np.ones((8, 8), dtype=bool), 1)
    monkeypatch.setattr(type(model), "adjacency_", complete)
    assert any("8 genes (" in caution and "28 of the 28 edges" in caution for caution in model.report().cautions)


def test_halves_share_out_every_drug_and_context():
    rng = np.random.default_rng(0)
    drug = np.repeat([-1, 0, 1, 2], [11, 8, 3, 2])
    context = np.concatenate([np.zeros(11), np.repeat([1, 2], 4), [3, 4, 5], [6, 7]]).astype(int)
    first, second = halves_of(drug, context, rng)
    assert sorted([*first, *second]) == list(range(len(drug)))
    for label in (drug, context):
        n = [np.unique(label[half], return_counts=True) for half in (first, second)]
        counts = pd.DataFrame([dict(zip(*part, strict=True)) for part in n]).fillna(0)
        assert (counts.iloc[0] - counts.iloc[1]).abs().max() <= 1
    assert set(drug[first]) == set(drug[second]) == set(drug)


def test_halves_of_a_clear_screen_agree(clear):
    _, model = clear
    report = model.report(split_half=True)
    halves = report["halves"]
    assert halves.loc["edges", "all_cells"] == len(model.get_graph())
    assert halves.loc["targets", "agreement"] > 0.8
    assert halves.loc["targets", "correlation"] > 0.9
    edges = report["edges"]
    assert len(edges) == len(model.get_graph())
    assert edges["halves"].isin([0, 1, 2]).all()
    assert edges["halves"].is_monotonic_increasing
    found = report["targets"].set_index(["perturbation", "gene"])["effect"]
    effects = model.get_effects(model.perturbations, 2.0).droplevel("dosage").stack()
    np.testing.assert_allclose(found, effects.loc[found.index])
    assert repr(model.report(split_half=True)) == repr(report)


def test_halves_are_fitted_as_the_model_was(clear, monkeypatch):
    _, model = clear
    asked = {}
    monkeypatch.setattr(GIM, "train", lambda self, **options: asked.update(options))
    monkeypatch.setattr("scgim.model._report.agreement_of_halves", lambda *_: {})
    model.report(split_half=True)
    assert asked["max_epochs"] == 80
    assert {name: asked[name] for name in ("lr", "batch_size", "early_stopping")} == {
        "lr": 0.02,
        "batch_size": 1024,
        "early_stopping": True,
    }


def test_halves_of_an_old_model_need_its_settings(gim):
    with pytest.raises(ValueError, match="Train it again"):
        gim.report(split_half=True)


def test_a_report_does_without_features(adata, fit):
    del adata.uns["drug_embedding"]
    report = fit(adata, {"drug_embedding_key": None, "size_factor_key": "size_factor"}, epochs=3).report()
    assert "features" not in report.tables


def test_halves_need_cells_of_every_drug(adata, fit):
    few = adata.obs["perturbation"] == "drug_0"
    adata = adata[~few | (few.cumsum() <= 3)].copy()
    model = fit(adata, {"size_factor_key": "size_factor"}, epochs=2, train={"train_size": 1.0})
    with pytest.raises(ValueError, match="fewer than four of 'drug_0'"):
        model.report(split_half=True)


def test_the_model_and_its_report_count_alike(model):
    values, shown = model.report().values, model.summary_string
    for name in ("genes", "perturbations", "contexts"):
        assert f"{name}: {values[name]}," in shown
    assert values["contexts"] == len(model.contexts)  # controls left out, as everywhere


def test_a_plate_of_few_wells_a_gene_is_a_caution(model, monkeypatch):
    assert not any("often not reproducible" in caution for caution in model.report().cautions)
    monkeypatch.setattr(model, "n_cells_", model.n_cells_ * 0 + 3)
    (caution,) = [caution for caution in model.report().cautions if "often not reproducible" in caution]
    assert caution.startswith("24 treated cells or wells are few for 8 genes")


def test_no_target_at_all_is_said(known):
    model = known()
    said = "No target is called for any perturbation"
    assert not any(caution.startswith(said) for caution in model.report().cautions)
    model.module.knowledge.target_probs.zero_()
    assert any(caution.startswith(said) for caution in model.report().cautions)


def test_halves_that_do_not_agree_are_said_to_be_no_ground_to_stand_on():
    rows = {"edges": (100, 0.04), "edges, whatever their direction": (100, 0.3), "targets": (7, np.nan)}
    halves = pd.DataFrame(rows, ["all_cells", "agreement"]).T
    strict, loose, none = _cautions_of_halves(halves)
    assert (
        strict
        == "Two halves of the cells agree in 4% of the edges: these are not reproducible, so read none by itself."
    )
    assert loose.endswith("many hang on the choice of cells.")
    assert none == "Neither half of the cells has any of the 7 targets: they are not reproducible."
    assert not _cautions_of_halves(halves.assign(agreement=0.9))
