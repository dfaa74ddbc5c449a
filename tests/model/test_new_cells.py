"""Drugs in cells that were not in the training data, of which there are controls alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from scipy import sparse

from scgim.model import GIM

LINES, DRUGS, GENES, NEW = ["a549", "k562", "mcf7"], [f"drug_{u}" for u in range(4)], 10, "mcf7"
BASELINE = np.log(5) + np.array([0.4, -0.4, 0.2])[:, None] * np.random.default_rng(3).choice([-1, 1], (3, GENES))


def effect(drug: str) -> np.ndarray:
    """Change of log means of targets: each drug acts on two genes; gene 1 follows gene 0, and no drug changes gene 9."""
    out, u = np.zeros(GENES), DRUGS.index(drug)
    out[[u, u + 5]] = 1.0, -0.8
    return out


def cells(line: str, drug: str, n: int, rng: np.random.Generator) -> AnnData:
    size = rng.lognormal(0, 0.2, n)
    log_mean = np.tile(BASELINE[LINES.index(line)], (n, 1)) + (0 if drug == "control" else effect(drug))
    x = rng.poisson(size[:, None] * np.exp(log_mean))
    log_mean[:, 1] += 0.8 * (np.log1p(x[:, 0] / size) - np.log1p(5))
    x[:, 1] = rng.poisson(size * np.exp(log_mean[:, 1]))
    obs = pd.DataFrame({"perturbation": drug, "line": line, "size_factor": size, "batch": rng.choice(["b1", "b2"], n)})
    adata = AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs.rename(index=str))
    adata.var_names = [f"gene_{j}" for j in range(GENES)]
    return adata


def screen(lines: list[str], seed: int = 0) -> AnnData:
    """Drugs in all lines but the new one, of which there are controls."""
    import anndata

    rng = np.random.default_rng(seed)
    arms = [(line, drug) for line in lines for drug in ["control", *DRUGS] if drug == "control" or line != NEW]
    parts = [cells(line, drug, 250 if drug == "control" else 80, rng) for line, drug in arms]
    return anndata.concat(parts, index_unique="-", keys=[str(k) for k in range(len(parts))])


def fit(adata: AnnData, **setup) -> GIM:
    scvi.settings.seed = 0
    options = {"dosage_key": None, "drug_embedding_key": None, "size_factor_key": "size_factor"}
    GIM.setup_anndata(adata, **{**options, **setup})
    model = GIM(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def with_controls() -> GIM:
    """Fitted to the controls of the new line as well."""
    return fit(screen(LINES), effect_modifier_key="line")


@pytest.fixture(scope="module")
def without() -> GIM:
    return fit(screen(LINES[:2]), effect_modifier_key="line")


@pytest.fixture(scope="module")
def shared() -> GIM:
    """Effects that are the same in all lines."""
    return fit(screen(LINES[:2]), categorical_covariate_keys=["line"], batch_key="batch")


@pytest.fixture(scope="module")
def controls() -> AnnData:
    return cells(NEW, "control", 400, np.random.default_rng(7))


def log_means(adata: AnnData) -> np.ndarray:
    return np.log(np.asarray(adata.X.sum(axis=0)).ravel() / adata.obs["size_factor"].sum())


@pytest.fixture(scope="module")
def truth() -> pd.DataFrame:
    """True log means in the new line, drugs x genes."""
    rng = np.random.default_rng(8)
    return pd.DataFrame({drug: log_means(cells(NEW, drug, 4000, rng)) for drug in ["control", *DRUGS]}).T


@pytest.mark.parametrize("which", ["with_controls", "without", "shared"])
def test_cells_of_the_new_line_are_predicted(which, controls, truth, request):
    model = request.getfixturevalue(which)
    predicted = model.predict(DRUGS, n_samples=2000, control_adata=controls)
    found = {drug: log_means(predicted[predicted.obs["perturbation"] == drug]) for drug in DRUGS}
    error = pd.DataFrame(found).T - truth.loc[DRUGS]
    assert np.abs(error.to_numpy()).max() < 0.3
    assert np.sqrt((error**2).to_numpy().mean()) < 0.1
    if which != "shared":
        assert (predicted.obs["line"] == NEW).all()
    rounded = [np.unique(np.round(a.obs["size_factor"].astype(float), 5)) for a in (predicted, controls)]
    assert len(np.setdiff1d(*rounded)) < 5  # but for what rounding does


def test_controls_that_were_trained_on_give_what_their_level_gives(with_controls):
    own = with_controls.adata[with_controls.adata.obs["line"] == NEW].copy()
    by_name = with_controls.predict(DRUGS, n_samples=3000, covariates={"line": NEW})
    by_cells = with_controls.predict(DRUGS, n_samples=3000, control_adata=own)
    for drug in DRUGS:
        parts = [log_means(a[a.obs["perturbation"] == drug]) for a in (by_name, by_cells)]
        np.testing.assert_allclose(*parts, atol=0.12)


def test_means_have_intervals_wider_than_in_measured_lines(without, controls, truth):
    options = {"n_draws": 60, "seed": 0}
    new = without.predict_mean(DRUGS, control_adata=controls, **options)
    old = without.predict_mean(DRUGS, covariates={"line": "k562"}, **options)
    assert (new.obs["line"] == NEW).all()
    change = new.to_df("log_fold_change").to_numpy()
    np.testing.assert_allclose(change, (truth.loc[DRUGS] - truth.loc["control"]).to_numpy(), atol=0.3)
    width = [
        a.to_df("log_fold_change_upper").to_numpy() - a.to_df("log_fold_change_lower").to_numpy() for a in (new, old)
    ]
    targets = np.array([effect(drug) != 0 for drug in DRUGS])
    assert (width[0][targets] > width[1][targets]).mean() > 0.8


def test_genes_are_matched_by_name(without, controls):
    again = controls[:, controls.var_names[::-1]].copy()
    extra = AnnData(np.ones((again.n_obs, 1), np.float32), obs=again.obs, var=pd.DataFrame(index=["another"]))
    import anndata

    wide = anndata.concat([again, extra], axis=1, merge="same")
    parts = [without.predict(["drug_0"], n_samples=50, control_adata=a).X.toarray() for a in (controls, wide)]
    np.testing.assert_array_equal(*parts)


def test_genes_that_are_lacking(without, controls):
    with pytest.warns(UserWarning, match="lacks 1 of 10 genes, which these drugs do not change: 'gene_9'"):
        predicted = without.predict(["drug_0"], n_samples=500, control_adata=controls[:, :9].copy())
    assert predicted.n_vars == GENES
    for gene in ("gene_0", "gene_5", "gene_1"):  # a target that goes up, one that goes down, and what follows
        few = controls[:, controls.var_names != gene].copy()
        with pytest.raises(ValueError, match=f"lacks genes that these drugs act on or change: '{gene}'"):
            without.predict(["drug_0"], control_adata=few)
    other = controls.copy()
    other.var_names = [f"ENSG{j}" for j in range(GENES)]
    with pytest.raises(ValueError, match="none of the genes of the model.*'ENSG0'"):
        without.predict(["drug_0"], control_adata=other)


def test_what_cannot_be_used_is_named(without, shared, controls):
    def refused(model, adata, error, match, **options):
        with pytest.raises(error, match=match):
            model.predict(["drug_0"], control_adata=adata, **options)

    normalised = controls.copy()
    normalised.X = normalised.X.multiply(0.3).tocsr()
    refused(without, normalised, ValueError, "fractional values in `control_adata.X`")
    refused(without, screen(LINES[:1]), ValueError, "cells that are not 'control': 'drug_0'")
    refused(without, controls[:1].copy(), ValueError, "has 1 cells")
    refused(without, controls.to_df(), TypeError, "is a DataFrame")
    mixed = controls.copy()
    mixed.obs["line"] = ["a", "b"] * 200
    refused(without, mixed, ValueError, "several levels of 'line': 'a', 'b'")
    refused(without, controls, ValueError, "Give one of the two", covariates={"line": "a549"})
    no_size = controls.copy()
    del no_size.obs["size_factor"]
    refused(without, no_size, KeyError, "size_factor")
    no_batch = controls.copy()
    del no_batch.obs["batch"]
    refused(shared, no_batch, KeyError, r"lacks \['batch'\]")
    assert shared.predict(["drug_0"], n_samples=10, control_adata=no_batch, covariates={"batch": "b1"}).n_obs == 10
    twice = controls.copy()
    twice.var_names = ["gene_0", *twice.var_names[:-1]]
    refused(without, twice, ValueError, "several genes of one name")


def test_a_line_that_is_not_known_by_name(without):
    with pytest.raises(ValueError, match="not in the training data: 'mcf7'.*as `control_adata`"):
        without.predict(["drug_0"], covariates={"line": "mcf7"})


def test_continuous_values(controls):
    adata = screen(LINES[:2])
    adata.X = np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])
    new = controls.copy()
    new.X = np.log1p(new.X.toarray() / new.obs["size_factor"].to_numpy()[:, None])
    scvi.settings.seed = 0
    GIM.setup_anndata(adata, dosage_key=None, drug_embedding_key=None, effect_modifier_key="line")
    model = GIM(adata, likelihood="normal")
    model.train(accelerator="cpu", enable_progress_bar=False)
    nothing = model.predict_mean({}, n_draws=20, n_samples=400, control_adata=new).X
    np.testing.assert_allclose(nothing[0], new.X.mean(0), atol=0.05)
    means = model.predict_mean(["drug_0"], n_draws=20, n_samples=400, control_adata=new)
    assert means.to_df()["gene_0"].iloc[0] - new.X.mean(0)[0] > 0.4
