"""Feedback that the graph leaves out, as users see it."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgim

GENES = [f"gene_{j}" for j in range(5)]


@pytest.fixture(scope="module")
def screen():
    """Genes 0 and 1 act on each other; 0 acts on 2, and 3 on 4."""
    rng = np.random.default_rng(0)
    weights = np.zeros((5, 5))
    weights[0, 1], weights[1, 0], weights[0, 2], weights[3, 4] = 0.7, 0.6, -0.8, 0.9
    x, perturbation = [rng.normal(size=(300, 5))], ["control"] * 300
    for drug in range(15):
        effect = np.zeros(5)
        effect[drug % 5] = rng.choice([-1, 1]) * rng.uniform(3, 5)
        x.append(rng.normal(size=(30, 5)) + effect)
        perturbation += [f"drug_{drug}"] * 30
    x = np.concatenate(x) @ np.linalg.inv(np.eye(5) - weights)
    obs = pd.DataFrame({"perturbation": perturbation}, index=[f"cell_{n}" for n in range(len(x))])
    return ad.AnnData(x, obs=obs.astype("category"), var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def model(screen):
    scgim.model.GIM.setup_anndata(screen, drug_embedding_key=None, dosage_key=None)
    model = scgim.model.GIM(screen, likelihood="normal")
    with pytest.warns(
        UserWarning, match=r"ask for feedback, .*: 'gene_[01] -> gene_[01] -> gene_[01]'\. .*get_feedback"
    ):
        model.train(20, accelerator="cpu", enable_progress_bar=False)
    return model


def test_the_loop_is_found_with_both_directions(model):
    table = model.get_feedback()
    assert len(table) == 1
    loop = table.iloc[0]
    assert {loop["source"], loop["target"]} == {"gene_0", "gene_1"}
    assert loop["loop"] == f"{loop['target']} -> {loop['source']} -> {loop['target']}"
    assert loop["gain"] == pytest.approx(0.42, abs=0.08)
    assert loop["gain"] == loop["weight"] * loop["forward_weight"]
    assert min(loop["evidence"], loop["forward_evidence"]) > 10
    assert loop["probability"] > 0.999


def test_the_edge_back_is_not_in_the_graph(model):
    loop = model.get_feedback().iloc[0]
    edges = set(model.get_graph()[["source", "target"]].itertuples(index=False, name=None))
    assert (loop["source"], loop["target"]) not in edges
    assert (loop["target"], loop["source"]) in edges


def test_the_report_has_it(model):
    report = model.report()
    pd.testing.assert_frame_equal(report["feedback"], model.get_feedback())
    assert any("leaves out feedback, 'gene_" in caution for caution in report.cautions)


def test_what_is_given_is_a_copy(model):
    table = model.get_feedback()
    table.loc[0, "evidence"] = np.nan
    assert model.get_feedback()["evidence"].notna().all()


def test_it_is_saved_with_the_model(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = scgim.model.GIM.load(tmp_path / "model", adata=False)
    pd.testing.assert_frame_equal(loaded.get_feedback(), model.get_feedback())


def test_a_model_that_did_not_look_for_it_says_so(model, monkeypatch):
    monkeypatch.setattr(model, "feedback_", None)
    with pytest.raises(ValueError, match="Feedback was not looked for"):
        model.get_feedback()
    assert "feedback" not in model.report().tables
