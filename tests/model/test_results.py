"""Getters and `annotate`: tables that fit together, and are read back and drawn."""

from __future__ import annotations

import anndata
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scgim

TABLES = ["targets", "shifts", "shift_sds", "total_effects", "emax", "ec50", "hill"]


@pytest.fixture(scope="module")
def annotated(model):
    adata = model.adata.copy()
    model.annotate(adata, n_samples=100)
    return adata


def test_graph_is_acyclic_and_strongest_first(model):
    graph = model.get_graph()
    assert len(graph) > 3
    assert list(graph.columns) == ["source", "target", "weight", "weight_sd", "probability"]
    assert nx.is_directed_acyclic_graph(nx.from_pandas_edgelist(graph, create_using=nx.DiGraph))
    assert graph["weight"].abs().is_monotonic_decreasing
    assert (graph["weight"] != 0).all()
    assert (graph["weight_sd"] > 0).all()
    assert len(graph) == model.adjacency_.sum()


def test_adjacency_holds_the_probabilities_of_the_graph(model):
    adjacency, graph = model.get_adjacency(), model.get_graph()
    assert len(graph) > 3
    assert list(adjacency.index) == list(adjacency.columns) == model.gene_names_
    np.testing.assert_array_equal(np.diag(adjacency), 0)
    for edge in graph.itertuples():
        assert adjacency.loc[edge.source, edge.target] == edge.probability
    # an edge has one direction at most
    assert (adjacency + adjacency.T).to_numpy().max() <= 1 + 1e-9


def test_weights_are_those_of_the_mechanism(model):
    weight = model.module.mechanism.weight.detach().numpy()
    graph = model.get_graph()
    assert len(graph) > 3
    for edge in graph.itertuples():
        i, j = (model.gene_names_.index(name) for name in (edge.source, edge.target))
        np.testing.assert_allclose(edge.weight, weight[i, j], rtol=1e-6)


def test_targets_and_effects_of_measured_contexts(model):
    targets, (effects, sds) = model.get_targets(), model.get_effects(return_sd=True)
    for frame in (targets, effects, sds):
        assert frame.index.equals(model.contexts)
        assert list(frame.columns) == model.gene_names_
    assert targets.to_numpy().min() >= 0
    assert targets.to_numpy().max() <= 1
    assert (sds.to_numpy() >= 0).all()
    # all doses of a drug have the same targets, and effects that grow with the dose
    assert (targets.groupby("perturbation").nunique() == 1).all().all()
    assert (effects.abs().groupby("perturbation").diff().fillna(0) >= -1e-12).all().all()


def test_true_targets_stand_out(model, screen):
    truth = screen.varm["true_targets"][model.perturbations].to_numpy().T > 0
    found = model.get_targets(model.perturbations, 1.0).to_numpy()
    assert scgim.metrics.target_metrics(truth, found)["auroc"] > 0.7
    shifts = screen.varm["true_shifts"][model.perturbations].to_numpy().T
    effects = model.get_effects(model.perturbations, 2.0).to_numpy()
    assert np.corrcoef(shifts[truth], effects[truth])[0, 1] > 0.8


def test_total_effects_are_what_predictions_show(model):
    total = model.get_total_effects(["drug_1", "drug_3"], 2.0, n_samples=2000)
    control = model.predict("drug_1", 0.0, n_samples=4000, seed=1, size_factor=1.0).layers["expected"].mean(0)
    for drug in ("drug_1", "drug_3"):
        treated = model.predict(drug, 2.0, n_samples=4000, seed=2, size_factor=1.0).layers["expected"].mean(0)
        np.testing.assert_allclose(total.loc[(drug, 2.0)], np.log(treated / control), atol=0.15)


def test_genes_that_nothing_reaches_do_not_move(model):
    """Without direct effect on itself or on a gene upstream, the total effect is nought."""
    graph = nx.from_pandas_edgelist(model.get_graph(), create_using=nx.DiGraph)
    graph.add_nodes_from(model.gene_names_)
    effects, total = (
        model.get_effects(model.perturbations, 2.0),
        model.get_total_effects(model.perturbations, 2.0, n_samples=500),
    )
    for context in effects.index:
        moved = set(effects.columns[effects.loc[context].abs() > 0.01])
        reached = moved.union(*(nx.descendants(graph, gene) for gene in moved))
        still = [gene for gene in model.gene_names_ if gene not in reached]
        assert total.loc[context, still].abs().max() < 0.25 if still else True


def test_a_curve_without_targets_is_explained(model, monkeypatch):
    assert len(model.get_dose_response("drug_1", ["gene_3", "gene_3"], [1.0])) == 1
    monkeypatch.setattr("scgim.predict._curves._LIKELY", 2.0)
    message = r"No gene is a target of 'drug_1'.*first, with \d\.\d\d\. Name genes.*`genes=\['gene_\d'\]`"
    with pytest.warns(UserWarning, match=message):
        assert model.get_dose_response("drug_1").empty


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("drug_1", []), ValueError, "`genes` is empty"),
        (("drug_1", "Gene_1"), ValueError, r"'Gene_1' are not in the model. Did you mean 'gene_1'\?"),
        (("drug_1", "gene_1", []), ValueError, "`dosage` is empty"),
        ((1,), TypeError, r"`drug_embedding` is 1 \(int\). Give names"),
    ],
)
def test_empty_and_odd_questions_about_a_curve(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.get_dose_response(*arguments)


def test_dose_response_curve(model):
    curve = model.get_dose_response("drug_1", ["gene_0", "gene_3"], [0.0, 0.5, 1.0, 2.0])
    assert list(curve["gene"]) == ["gene_0"] * 4 + ["gene_3"] * 4
    one = curve[curve["gene"] == "gene_3"]
    hill = one["dosage"] ** one["hill"] / (one["ec50"] ** one["hill"] + one["dosage"] ** one["hill"])
    np.testing.assert_allclose(one["effect"], one["emax"] * hill, rtol=1e-6, atol=1e-12)
    assert (one["lower"] <= one["effect"]).all()
    assert (one["effect"] <= one["upper"]).all()
    wide = model.get_dose_response("drug_1", "gene_3", [2.0], level=0.99)
    assert wide["upper"].item() > one["upper"].iloc[-1]


def test_dose_response_by_default_shows_targets_over_two_decades(model):
    surest = int(model.module.knowledge.target_probs.amax(1).argmax())
    curve = model.get_dose_response(model.perturbations[surest])
    assert len(curve) > 0
    assert (curve["target_prob"] > 0.5).all()
    one = curve[curve["gene"] == curve["gene"].iloc[0]]
    np.testing.assert_allclose([one["dosage"].min(), one["dosage"].max()], [0.05, 20.0])


def test_dose_response_of_a_new_drug(model, screen):
    curve = model.get_dose_response(screen.uns["drug_embedding"].loc[["drug_8"]], model.gene_names_)
    assert np.isfinite(curve.drop(columns="gene").to_numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("drug_77",), "'drug_77' not among the measured"),
        (("drug_1", "gene_77"), "Genes 'gene_77' are not in the model"),
        (("drug_1", "gene_0", [-1.0]), "`dosage` contains -1"),
        (("drug_1", "gene_0", ["10uM"]), "text such as '10uM'"),
        ((["drug_1", "drug_2"],), "holds 2 drugs. Give one"),
    ],
)
def test_wrong_questions_about_a_curve(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.get_dose_response(*arguments)


def test_dosage_without_drug(model):
    with pytest.raises(ValueError, match="`dosage` was given without `drug_embedding`"):
        model.get_effects(dosage=1.0)


def test_total_effects_are_stored_at_each_dose_and_with_their_error(model, annotated):
    contexts = annotated.uns["gim"]["contexts"]
    assert pd.MultiIndex.from_frame(contexts).equals(model.contexts)
    total = model.get_total_effects(n_samples=100)
    np.testing.assert_allclose(annotated.varm["gim_context_effects"], total.to_numpy().T)
    # the error is the spread of what other cells give
    draws = np.stack([model.get_total_effects("drug_1", 2.0, n_samples=100, seed=seed) for seed in range(1, 21)])
    spread = np.sqrt(draws.var(axis=0, ddof=1).mean())
    stated = np.sqrt(annotated.varm["gim_total_effect_errors"]["drug_1"].pow(2).mean())
    assert 0.7 < stated / spread < 1.4


@pytest.mark.parametrize("n", [20, 50])
def test_total_effects_are_stored_with_what_is_known_of_them(model, monkeypatch, n):
    """As `predict_mean` says, with few draws of few cells too."""
    for name in ("_N_DRAWS", "_N_CELLS"):
        monkeypatch.setattr(f"scgim.predict._means.{name}", (n, n))
    model.annotate(adata := model.adata.copy())
    sds = adata.varm["gim_total_effect_sds"].to_numpy().T
    predicted = model.predict_mean(model.perturbations, 2.0, level=0.9, n_draws=200, n_samples=2000)
    low, high = (predicted.layers[f"log_fold_change_{side}"] for side in ("lower", "upper"))
    ratio = sds / ((high - low) / (2 * 1.645))
    assert 0.8 < np.median(ratio) < 1.25
    assert np.quantile(ratio, 0.05) > 0.5
    assert np.quantile(ratio, 0.95) < 2.5


def test_annotation(model, annotated):
    np.testing.assert_array_equal(annotated.varp["gim_edge_probs"].toarray(), model.get_adjacency())
    weights = annotated.varp["gim_edge_weights"]
    assert sparse.issparse(weights)
    np.testing.assert_array_equal(weights.toarray() != 0, model.adjacency_)
    for name in TABLES:
        table = annotated.varm[f"gim_{name}"]
        assert list(table.index) == model.gene_names_
        assert list(table.columns) == model.perturbations
        assert np.isfinite(table.to_numpy()).all()
    top = model.get_effects(model.perturbations, 2.0)
    np.testing.assert_allclose(annotated.varm["gim_shifts"].to_numpy().T, top)
    curve = annotated.varm["gim_emax"] * 2.0 ** annotated.varm["gim_hill"]
    curve /= annotated.varm["gim_ec50"] ** annotated.varm["gim_hill"] + 2.0 ** annotated.varm["gim_hill"]
    np.testing.assert_allclose(
        annotated.varm["gim_targets"] * curve, annotated.varm["gim_shifts"], rtol=1e-6, atol=1e-12
    )
    emax = model.get_dose_response("drug_0", model.gene_names_).drop_duplicates("gene").set_index("gene")["emax"]
    np.testing.assert_allclose(annotated.varm["gim_emax"]["drug_0"], emax)
    stored = annotated.uns["gim"]
    assert stored["params"]["perturbation_key"] == "perturbation"
    assert stored["params"]["likelihood"] == "nb"
    np.testing.assert_array_equal(stored["perturbations"]["n_doses"], 3)
    np.testing.assert_array_equal(stored["perturbations"]["max_dosage"], 2.0)
    assert {"elbo_train", "elbo_validation"} <= set(stored["history"])


def test_annotation_survives_a_file_and_subsetting(annotated, tmp_path):
    annotated.write_h5ad(tmp_path / "annotated.h5ad")
    back = anndata.read_h5ad(tmp_path / "annotated.h5ad")
    for name in TABLES:
        pd.testing.assert_frame_equal(back.varm[f"gim_{name}"], annotated.varm[f"gim_{name}"], check_names=False)
    pd.testing.assert_frame_equal(back.uns["gim"]["history"], annotated.uns["gim"]["history"], check_names=False)
    assert back.uns["gim"]["params"] == annotated.uns["gim"]["params"]
    part = back[:, ["gene_3", "gene_5"]]
    assert part.varm["gim_targets"].shape == (2, 8)
    assert part.varp["gim_edge_probs"].shape == (2, 2)


def test_annotation_can_be_drawn(annotated, tmp_path):
    annotated.write_h5ad(tmp_path / "annotated.h5ad")
    back = anndata.read_h5ad(tmp_path / "annotated.h5ad")
    drug = back.varm["gim_targets"].max().idxmax()
    assert scgim.pl.targets(back, show=False) is not None
    assert scgim.pl.network(back, perturbation=drug, show=False) is not None
    assert scgim.pl.dose_response(back, drug, show=False) is not None
    assert scgim.pl.effects(back, drug, show=False) is not None
    assert scgim.pl.history(back, show=False) is not None


def test_annotation_of_other_data_and_under_another_name(model, screen):
    other = screen[:30].copy()
    model.annotate(other, key_added="second", n_samples=5)
    assert "second_targets" in other.varm
    assert "gim_targets" not in other.varm
    with pytest.raises(ValueError, match="genes of the model in another order"):
        model.annotate(screen[:, ::-1].copy())


def test_annotation_of_each_kind_of_model_can_be_written(adata, fit, tmp_path):
    adata.obs["dosage"] = 1.0 * (adata.obs["perturbation"] != "control")
    setup = {"dosage_key": None, "drug_embedding_key": None}
    model = fit(adata, setup, epochs=2, mechanism="mlp", intervention="hard")
    model.annotate(n_samples=5)
    adata.write_h5ad(tmp_path / "annotated.h5ad")
    assert anndata.read_h5ad(tmp_path / "annotated.h5ad").uns["gim"]["params"]["mechanism"] == "mlp"


def test_contexts_and_perturbations(model):
    assert model.perturbations == [f"drug_{i}" for i in range(8)]
    assert len(model.contexts) == 24
    assert model.drug_embedding.shape == (8, 4)
