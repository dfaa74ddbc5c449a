"""What is typed in a hurry: names, doses and covariates of the wrong kind get an error that says what to give."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgim.model import GIM

FEW = {"n_samples": 2}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"drug_embedding": 1}, TypeError, r"is 1 \(int\). Give names of measured perturbations as text"),
        ({"drug_embedding": [1, 2]}, ValueError, "Measured perturbations are named by text"),
        ({"drug_embedding": {"drug_1"}}, TypeError, "is a set of neither names nor numbers"),
        (
            {"drug_embedding": [["drug_1", "drug_2"]]},
            TypeError,
            "Give names of measured perturbations as a list of text",
        ),
        ({"drug_embedding": anndata.AnnData(np.ones((1, 4)))}, TypeError, "is an AnnData. Give names"),
        ({"drug_embedding": pd.Series(["DRUG_1"] * 3)}, ValueError, "^'DRUG_1' not among.*Did you mean 'drug_1'"),
        ({"dosage": "1"}, ValueError, "`dosage` holds text such as '1'. Give numbers"),
        ({"dosage": [1.0, None]}, ValueError, "`dosage` holds NoneType such as None"),
        ({"dosage": True}, ValueError, "`dosage` holds bool such as True"),
        ({"dosage": []}, ValueError, "`dosage` is empty"),
        ({"n_samples": 2.5}, ValueError, "`n_samples` must be a whole number, found 2.5"),
        ({"covariates": "batch_0"}, ValueError, "`covariates` is 'batch_0'. Give each covariate one value"),
        ({"covariates": {"batch": ["batch_0", "batch_1"]}}, ValueError, "ask once for each value"),
        ({"size_factor": 0}, ValueError, "`size_factor` must be one or 2 positive numbers, found 0"),
        ({"size_factor": "size_factor"}, ValueError, "one or 2 positive numbers, found 'size_factor'"),
        ({"size_factor": [1, 1, 1]}, ValueError, "one or 2 positive numbers, found 3 values"),
    ],
)
def test_questions_of_the_wrong_kind(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.predict(**{"drug_embedding": "drug_1", "dosage": 1.0, **FEW, **arguments})


def test_covariates_as_a_series(model):
    given = model.predict("drug_1", 1.0, covariates=pd.Series({"batch": "batch_1"}), **FEW)
    np.testing.assert_array_equal(
        given.X.toarray(), model.predict("drug_1", 1.0, covariates={"batch": "batch_1"}, **FEW).X.toarray()
    )


@pytest.mark.parametrize(
    ("combination", "features", "error", "message"),
    [
        ({"Drug_1": 1.0}, None, ValueError, "Did you mean 'drug_1'"),
        (
            {"drug_1": 1.0, "control": 1.0},
            None,
            ValueError,
            "holds the control, 'control', which is no drug. Leave it out",
        ),
        ({"drug_1": [1.0, 2.0]}, None, ValueError, "'drug_1' has several dosages in one combination"),
        ({"new": 1.0}, np.ones((1, 4)), TypeError, "is a ndarray. Give a data frame"),
    ],
)
def test_combinations_of_the_wrong_kind(model, combination, features, error, message):
    with pytest.raises(error, match=message):
        model.predict_combination(combination, features, **FEW)


def test_cells_of_the_wrong_kind(model, adata):
    with pytest.raises(TypeError, match="anndata.read_h5ad"):
        model.score("cells.h5ad")
    with pytest.raises(ValueError, match="`adata` has no cells"):
        model.score(adata[:0].copy())
    without = adata[:30].copy()
    del without.obs["batch"]
    with pytest.raises(KeyError, match="The covariate 'batch' of the model is no column"):
        model.score(without)
    with pytest.raises(ValueError, match="`n_samples` must be at least 1"):
        model.score(adata, n_samples=0)
    with pytest.raises(ValueError, match="`n_samples` must be at least 1"):
        model.get_total_effects("drug_1", n_samples=0)
    for key in (1, ""):
        with pytest.raises(ValueError, match="`key_added` must be text"):
            model.annotate(adata, key_added=key)
    with pytest.raises(ValueError, match="'Gene_1' are not in the model. Did you mean 'gene_1'"):
        model.intervene({"Gene_1": 0.0}, **FEW)


@pytest.mark.parametrize("kind", ["view", "csr64", "dense16", "int64", "same names"])
def test_scores_do_not_depend_on_how_counts_are_kept(model, adata, kind):
    cells = adata[:200].copy()
    expected = model.score(cells.copy(), by="cell", n_samples=3)
    if kind == "view":
        cells = adata[:200]
    elif kind == "csr64":
        cells.X = sparse.csr_matrix(cells.X, dtype=np.float64)
    elif kind == "same names":
        cells.obs_names = ["cell"] * cells.n_obs
    else:
        cells.X = cells.X.toarray().astype("uint16" if kind == "dense16" else "int64")
    np.testing.assert_allclose(model.score(cells, by="cell", n_samples=3), expected, rtol=1e-6)


def test_setups_that_would_go_wrong_unseen(adata):
    for keys in ({"batch_key": "perturbation"}, {"continuous_covariate_keys": ["dosage"]}):
        with pytest.raises(ValueError, match="is the column of perturbations or dosages, and a covariate as well"):
            GIM.setup_anndata(adata, **keys)
    GIM.setup_anndata(adata, categorical_covariate_keys=["batch", "batch"])
    assert GIM(adata)._covariates.keys == ["batch"]
    named = adata.copy()
    named.uns["drug_embedding"] = named.uns["drug_embedding"].rename(index=str.upper)
    with pytest.raises(ValueError, match="'DRUG_0' reads like 'drug_0', but names must be equal"):
        GIM.setup_anndata(named)
    labels = adata.obs["perturbation"].astype(str)
    adata.obs["perturbation"] = labels.where((labels != "drug_1") | (np.arange(len(labels)) % 2 == 0), "Drug_1 ")
    with pytest.warns(
        UserWarning,
        match="differ by capitals or spaces only, '[dD]rug_1 ?', '[dD]rug_1 ?', and are taken for different",
    ):
        GIM.setup_anndata(adata, drug_embedding_key=None)


def test_doses_of_a_table_of_mixed_columns(model):
    table = pd.DataFrame({"drug": model.perturbations[:2], "dose": [1.0, 2]}).to_numpy()
    found = model.predict_mean(table[:, 0], table[:, 1], n_draws=2, n_samples=2)
    assert found.obs["dosage"].tolist() == [1.0, 2.0]
