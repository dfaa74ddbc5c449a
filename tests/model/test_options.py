"""Each kind of model and of data, from setup to prediction."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scgim
from scgim.model import GIM

KEY = "drug_embedding"


def truth_of(adata) -> tuple[np.ndarray, np.ndarray]:
    """Edges, genes x genes, and direct targets, drugs x genes."""
    edges = adata.varp["true_adjacency"]
    edges = edges.toarray() if sparse.issparse(edges) else np.asarray(edges)
    return edges > 0, adata.varm["true_targets"].to_numpy().T > 0


def simulate(**options):
    settings = {"n_genes": 8, "n_drugs": 16, "doses": (1.0, 2.0), "n_cells": 30, "n_controls": 400, "seed": 2}
    return scgim.data.simulate_screen(**{**settings, **options})


def assert_sane(model: GIM, n_genes: int = 8) -> None:
    """All results are there, finite and within their bounds."""
    assert np.isfinite(model.score()["log_likelihood"]).all()
    for frame in (model.get_targets(), model.get_adjacency()):
        assert frame.to_numpy().min() >= 0
        assert frame.to_numpy().max() <= 1
    assert np.isfinite(model.get_effects().to_numpy()).all()
    assert np.isfinite(model.get_total_effects(n_samples=20).to_numpy()).all()
    predicted = model.predict(model.perturbations[:2], n_samples=5, seed=0)
    assert predicted.shape == (10, n_genes)
    assert np.isfinite(predicted.layers["expected"]).all()


@pytest.mark.parametrize(
    ("world", "options"),
    [
        ({}, {}),
        ({"likelihood": "poisson"}, {"likelihood": "poisson"}),
        ({"likelihood": "normal"}, {"likelihood": "normal"}),
        ({"intervention": "hard"}, {"intervention": "hard"}),
        ({"mechanism": "mlp", "seed": 0}, {"mechanism": "mlp", "n_hidden": 4}),
    ],
    ids=["nb", "poisson", "normal", "hard", "mlp"],
)
def test_edges_and_targets_are_recovered(world, options, fit):
    adata = simulate(**world)
    model = fit(adata, epochs=40, train={"lr": 0.05}, **options)
    assert_sane(model)
    edges, targets = truth_of(adata)
    called = model.get_targets(model.perturbations, 1.0).to_numpy() > 0.5
    probs = model.get_adjacency().to_numpy()
    assert scgim.metrics.edge_metrics(edges, probs)["auprc"] > 0.85
    hits = (called & targets).sum()
    assert hits / targets.sum() > 0.85
    assert hits / called.sum() > 0.75


def test_screen_without_doses_and_features(fit):
    """As in a CRISPR screen: one dose, and nothing known of the perturbations."""
    adata = simulate(doses=(2.0,))
    del adata.uns[KEY]
    del adata.obs["dosage"]
    model = fit(adata, {"dosage_key": None, "drug_embedding_key": None}, epochs=10)
    assert_sane(model)
    _, targets = truth_of(adata)
    assert scgim.metrics.target_metrics(targets, model.get_targets().to_numpy())["auprc"] > 0.8
    assert model.drug_embedding is None
    assert set(model.contexts.get_level_values("dosage")) == {1.0}
    np.testing.assert_array_equal(model.get_effects("drug_01", 1.0), model.get_effects("drug_01"))
    with pytest.raises(ValueError, match="Found a dosage of 0.5, and the screen was set up without doses"):
        model.get_effects("drug_01", 0.5)
    with pytest.raises(ValueError, match=r"set up without drug embeddings.*'drug_00'"):
        model.predict(np.ones((1, 3)))
    with pytest.raises(ValueError, match="'unheard of' not among the measured perturbations"):
        model.predict("unheard of")


def test_screen_without_doses_but_with_features(adata, fit):
    model = fit(adata, {"dosage_key": None}, epochs=3)
    assert len(model.contexts) == 8
    predicted = model.predict(adata.uns[KEY].loc[["drug_9"]], n_samples=3, seed=0)
    assert set(predicted.obs["dosage"]) == {1.0}


def test_embedding_per_cell_or_per_drug_is_the_same(adata, fit):
    per_drug = fit(adata.copy(), epochs=2)
    table = adata.uns.pop(KEY)
    table.loc["control"] = 0.0
    adata.obsm[KEY] = table.loc[adata.obs["perturbation"].astype(str)].set_axis(adata.obs_names)
    per_cell = fit(adata, epochs=2)
    pd.testing.assert_frame_equal(per_cell.drug_embedding, per_drug.drug_embedding)
    new = table.loc[["drug_8"]]
    pd.testing.assert_frame_equal(per_cell.get_effects(new, 1.0), per_drug.get_effects(new, 1.0))


def test_unnamed_embedding_columns(adata, fit):
    table = adata.uns.pop(KEY)
    table.loc["control"] = 0.0
    adata.obsm[KEY] = sparse.csr_matrix(table.loc[adata.obs["perturbation"].astype(str)].to_numpy())
    model = fit(adata, epochs=2)
    assert list(model.drug_embedding.columns) == ["0", "1", "2", "3"]
    assert model.predict(table.loc[["drug_8"]].to_numpy(), n_samples=2, seed=0).n_obs == 2


FORMS = {
    "csr": lambda X: X,
    "csc": lambda X: X.tocsc(),
    "dense": lambda X: X.toarray(),
    "float64": lambda X: X.toarray().astype(np.float64),
    "int64": lambda X: X.toarray().astype(np.int64),
    "int32 csr": lambda X: X.astype(np.int32),
    "uint16 csr": lambda X: X.astype(np.uint16),
    "float16": lambda X: X.toarray().astype(np.float16),
    "fortran": lambda X: np.asfortranarray(X.toarray()),
}


@pytest.fixture(scope="module")
def reference(_train_split, fit) -> pd.DataFrame:
    return fit(_train_split.copy(), epochs=2).get_effects()


@pytest.mark.filterwarnings("ignore:Training will be faster")  # advice of scvi-tools to use CSR
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_counts_give_one_result(adata, fit, form, reference):
    adata.X = FORMS[form](adata.X)
    before = adata.X.copy()
    model = fit(adata, epochs=2)
    np.testing.assert_allclose(model.get_effects(), reference, atol=1e-5)
    assert type(adata.X) is type(before)
    assert adata.X.dtype == before.dtype
    assert (before != adata.X).sum() == 0


def test_counts_in_a_layer(adata, fit, reference):
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    model = fit(adata, {"layer": "counts"}, epochs=2)
    np.testing.assert_allclose(model.get_effects(), reference, atol=1e-5)
    model.annotate()
    assert adata.uns["gim"]["params"]["layer"] == "counts"


def test_own_names_of_keys(adata, fit, reference):
    adata.obs = adata.obs.rename(columns={"perturbation": "drug", "dosage": "dose"})
    adata.obs["drug"] = adata.obs["drug"].cat.rename_categories({"control": "DMSO"})
    adata.uns["fingerprint"] = adata.uns.pop(KEY)
    keys = {"perturbation_key": "drug", "dosage_key": "dose", "drug_embedding_key": "fingerprint", "control": "DMSO"}
    model = fit(adata, keys, epochs=2)
    np.testing.assert_allclose(model.get_effects(), reference, atol=1e-5)
    assert "DMSO" in model.score().index


def test_drugs_named_by_numbers(adata, fit, reference):
    code = adata.obs["perturbation"].astype(str).str.removeprefix("drug_").replace("control", "-1").astype(int)
    adata.obs["perturbation"] = code.to_numpy()
    adata.uns[KEY].index = adata.uns[KEY].index.str.removeprefix("drug_").astype(int)
    model = fit(adata, {"control": "-1"}, epochs=2)
    np.testing.assert_allclose(model.get_effects(), reference, atol=1e-5)
    assert model.perturbations[0] == "0"


def test_covariates_are_taken_out(fit):
    """A strong batch and a continuous covariate, confounded with drugs, must not become targets."""
    adata = simulate(n_batches=2, batch_sd=0.8, doses=(2.0,), n_drugs=8)
    rng = np.random.default_rng(0)
    adata.obs["age"] = rng.normal(50, 10, adata.n_obs)
    counts = adata.X.toarray().astype(float)
    factor = np.exp(0.05 * (adata.obs["age"].to_numpy()[:, None] - 50) * (np.arange(8) == 2))
    adata.X = sparse.csr_matrix(rng.poisson(counts * factor).astype(np.float32))
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    adata.obs["line"] = pd.Categorical(adata.obs["batch"].astype(str))
    setup = {
        "categorical_covariate_keys": ["line"],
        "continuous_covariate_keys": ["age"],
        "size_factor_key": "size_factor",
    }
    model = fit(adata, setup, epochs=40, train={"lr": 0.05})
    assert_sane(model)
    slope = model.module.covariate_effect.detach().numpy()
    assert slope.shape == (3, 8)  # two lines and an age
    np.testing.assert_allclose(slope[2, 2], 0.05 * adata.obs["age"].std(), rtol=0.3)
    assert np.abs(np.delete(slope[2], 2)).max() < 0.1
    means = [np.log(np.asarray(adata[adata.obs["line"] == line].X.mean(0)).ravel()) for line in ("batch_0", "batch_1")]
    contrast = slope[1] - slope[0]
    assert np.corrcoef(contrast, means[1] - means[0])[0, 1] > 0.8
    _, targets = truth_of(adata)
    assert scgim.metrics.target_metrics(targets, model.get_targets().to_numpy())["auprc"] > 0.7


def test_size_factors_from_totals_or_given(fit):
    adata = simulate(library_size_sd=0.5, doses=(2.0,))
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    from_totals = fit(adata.copy(), epochs=2)
    pool = from_totals.control_pool_["log_size"]
    controls = adata.obs["perturbation"] == "control"
    assert np.corrcoef(pool, np.log(adata.obs["size_factor"][controls]))[0, 1] > 0.8
    given = fit(adata, {"size_factor_key": "size_factor"}, epochs=2)
    np.testing.assert_allclose(given.control_pool_["log_size"], np.log(adata.obs["size_factor"][controls]), rtol=1e-5)


def test_one_drug(adata, fit):
    adata = adata[adata.obs["perturbation"].isin(["control", "drug_1"])].copy()
    model = fit(adata, epochs=3)
    predicted = model.predict(adata.uns[KEY].loc[["drug_8"]], n_samples=3, seed=0)
    assert np.isfinite(predicted.layers["expected"]).all()
    assert model.get_targets().shape == (3, 8)


def test_two_genes(adata, fit):
    adata = adata[:, :2].copy()
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    assert_sane(fit(adata, epochs=3), n_genes=2)


def test_drugs_without_any_effect(fit):
    """Nothing acts on anything: no targets, and a new drug does nothing."""
    adata = simulate(effect_size=(1e-6, 1e-5))
    model = fit(adata, epochs=20)
    assert model.get_targets().to_numpy().mean() < 0.05
    new = adata.uns[KEY].iloc[:1].rename(index=lambda _: "new")
    assert np.abs(model.get_effects(new, 1.0).to_numpy()).max() < 0.2


def test_summary_and_setup_can_be_shown(model, capsys):
    assert "genes: 8, perturbations: 8, contexts: 24" in model.summary_string
    assert "measurement: auto (graph of counts), likelihood: nb\nTraining status: Trained" in model.summary_string
    repr(model)
    model.view_anndata_setup()
    assert "gim_context State Registry" in capsys.readouterr().out


def test_setup_leaves_the_data_as_they_were(adata):
    before = adata.copy()
    GIM.setup_anndata(adata, batch_key="batch")
    assert (adata.X != before.X).nnz == 0
    new = set(adata.obs) - set(before.obs)
    assert new
    assert all(name.startswith("_scvi") for name in new)
    pd.testing.assert_frame_equal(adata.obs[list(before.obs)], before.obs)
    pd.testing.assert_frame_equal(adata.uns[KEY], before.uns[KEY])
