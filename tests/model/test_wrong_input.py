"""Every wrong input gets an error that says what was found and what to do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgim.model import GIM

KEY = "drug_embedding"


def set_value(adata, value):
    X = adata.X.toarray().astype(float)
    X[5, 2] = value
    adata.X = sparse.csr_matrix(X)


def zero_cell(adata):
    X = adata.X.tolil()
    X[4] = 0
    adata.X = X.tocsr()


def zero_gene(adata):
    X = adata.X.tolil()
    X[:, 3] = 0
    adata.X = X.tocsr()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-3.0, r"negative values in `adata\.X` \(such as -3\).*likelihood='normal'"),
        (0.5, r"fractional values in `adata\.X` \(such as 0\.5\).*raw counts"),
        (np.nan, r"NaN values in `adata\.X`"),
        (np.inf, r"infinite values in `adata\.X`"),
    ],
)
def test_values_that_are_no_counts(adata, value, message, dense):
    set_value(adata, value)
    if dense:
        adata.X = adata.X.toarray()
    GIM.setup_anndata(adata)
    with pytest.raises(ValueError, match=message):
        GIM(adata)


def test_wrong_values_in_a_layer_name_the_layer(adata):
    adata.layers["raw"] = adata.X.copy()
    adata.layers["raw"].data[7] = 1.25
    GIM.setup_anndata(adata, layer="raw")
    with pytest.raises(ValueError, match=r"fractional values in `adata\.layers\['raw'\]`"):
        GIM(adata)


def test_continuous_values_must_be_finite(adata):
    set_value(adata, np.nan)
    GIM.setup_anndata(adata)
    with pytest.raises(ValueError, match="NaN values"):
        GIM(adata, likelihood="normal")


@pytest.mark.parametrize(
    ("key", "logs", "message"),
    [
        (None, False, r"`adata\.X` holds whole numbers up to 19.*Use `likelihood='nb'`.*take logarithms\.$"),
        (
            "size_factor",
            False,
            r"up to 19.*`size_factor_key='size_factor'` has no effect.*logarithms, and leave out `size_factor_key`",
        ),
        (
            "size_factor",
            True,
            r"^`size_factor_key='size_factor'` has no effect with `likelihood='normal'`.*leave it out",
        ),
        (None, True, None),
    ],
)
def test_counts_and_size_factors_are_not_for_continuous_values(adata, key, logs, message):
    adata.X = adata.X.minimum(19.0)
    adata.X = adata.X.log1p() if logs else adata.X
    GIM.setup_anndata(adata, size_factor_key=key)
    if message is None:
        GIM(adata, likelihood="normal")
        return
    with pytest.warns(UserWarning, match=message):
        GIM(adata, likelihood="normal")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (zero_cell, r"1 of \d+ cells have no counts.*filter_cells"),
        (zero_gene, r"1 of 8 genes have no counts.*'gene_3'.*filter_genes"),
    ],
)
def test_empty_cells_and_genes(adata, change, message):
    change(adata)
    with pytest.raises(ValueError, match=message):
        GIM.setup_anndata(adata)


def test_one_gene(adata):
    adata = adata[:, :1].copy()
    with pytest.raises(ValueError, match="has 1 gene.*at least two"):
        GIM.setup_anndata(adata)


def test_duplicated_genes(adata):
    adata.var_names = ["gene_0", *adata.var_names[:-1]]
    with pytest.raises(ValueError, match="duplicated: 'gene_0'.*var_names_make_unique"):
        GIM.setup_anndata(adata)


def test_no_controls(adata):
    with pytest.raises(ValueError, match=r"No control cells.*no 'DMSO'.*`control='control'`"):
        GIM.setup_anndata(adata, control="DMSO")


def test_only_controls(adata):
    adata = adata[adata.obs["perturbation"] == "control"].copy()
    with pytest.raises(ValueError, match="All cells are 'control'"):
        GIM.setup_anndata(adata)


def test_perturbation_with_one_cell(adata):
    drug = np.flatnonzero(adata.obs["perturbation"] == "drug_3")
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), drug[1:])].copy()
    with pytest.raises(ValueError, match="single cell: 'drug_3'. Remove them"):
        GIM.setup_anndata(adata)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("perturbation_key", "perturbaton", r"perturbation_key='perturbaton'.*Did you mean 'perturbation'"),
        ("dosage_key", "dose", r"dosage_key='dose'.*`adata\.obs`"),
        ("drug_embedding_key", "morgan", r"drug_embedding_key='morgan'.*`adata\.uns` or `adata\.obsm`"),
        ("layer", "counts", r"layer='counts'.*`adata\.layers`"),
        ("batch_key", "Batch", r"batch_key='Batch'.*Did you mean 'batch'"),
        ("categorical_covariate_keys", ["patient"], r"categorical_covariate_keys='patient'.*`adata\.obs`"),
        ("continuous_covariate_keys", ["age"], r"continuous_covariate_keys='age'.*`adata\.obs`"),
        ("size_factor_key", "size_factors", r"size_factor_key='size_factors'.*Did you mean 'size_factor'"),
    ],
)
def test_missing_keys(adata, argument, value, message):
    with pytest.raises(KeyError, match=message):
        GIM.setup_anndata(adata, **{argument: value})


def test_misspelt_argument(adata):
    with pytest.raises(TypeError, match="dose_key"):
        GIM.setup_anndata(adata, dose_key="dosage")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "NaN doses"),
        (-1.0, "negative doses"),
        (np.inf, "infinite doses"),
        (0.0, "treated cells have dose 0"),
        ("10uM", "text such as '10uM'.*10.0 and not '10uM'"),
    ],
)
def test_wrong_doses(adata, value, message):
    first = adata.obs_names[adata.obs["perturbation"] == "drug_1"][0]
    if isinstance(value, str):
        adata.obs["dosage"] = adata.obs["dosage"].astype(object)
    adata.obs.loc[first, "dosage"] = value
    with pytest.raises(ValueError, match=message):
        GIM.setup_anndata(adata)


def test_control_with_a_dose(adata):
    adata.obs.loc[adata.obs["perturbation"] == "control", "dosage"] = 1.0
    with pytest.raises(ValueError, match="control cells.*have a dose above 0.*Set it to 0"):
        GIM.setup_anndata(adata)


def with_nan(table):
    table.iloc[2, 1] = np.nan


def constant(table):
    table[:] = 1.5


@pytest.mark.parametrize(
    ("change", "message"), [(with_nan, "NaN or infinite features.*'drug_2'.*Impute"), (constant, "is constant: all 8")]
)
@pytest.mark.parametrize("where", ["uns", "obsm"])
def test_wrong_embeddings(adata, change, message, where):
    table = adata.uns[KEY].loc[[f"drug_{i}" for i in range(8)]].copy()
    change(table)
    if where == "uns":
        adata.uns[KEY] = table
    else:
        del adata.uns[KEY]
        adata.obsm[KEY] = table.reindex(adata.obs["perturbation"].astype(str)).to_numpy(copy=True)
        adata.obsm[KEY][adata.obs["perturbation"] == "control"] = 0
    with pytest.raises(ValueError, match=message):
        GIM.setup_anndata(adata)


def test_drug_without_embedding(adata):
    adata.uns[KEY] = adata.uns[KEY].drop(index="drug_5")
    with pytest.raises(ValueError, match="1 of 8 perturbations have no row.*'drug_5'.*Add their features"):
        GIM.setup_anndata(adata)


def test_different_embeddings_within_a_drug(adata):
    table = adata.uns.pop(KEY)
    table.loc["control"] = 0.0
    adata.obsm[KEY] = table.loc[adata.obs["perturbation"].astype(str)].to_numpy(copy=True)
    adata.obsm[KEY][np.flatnonzero(adata.obs["perturbation"] == "drug_4")[3], 0] += 1
    with pytest.raises(ValueError, match="Cells of 'drug_4' have different rows"):
        GIM.setup_anndata(adata)


def test_covariates_that_cannot_be_used(adata):
    adata.obs["age"] = np.where(np.arange(adata.n_obs) == 3, np.nan, 30.0)
    with pytest.raises(ValueError, match=r"1 cells.*NaN.*`adata\.obs\['age'\]`"):
        GIM.setup_anndata(adata, continuous_covariate_keys=["age"])
    adata.obs["age"] = "old"
    with pytest.raises(ValueError, match=r"`adata\.obs\['age'\]` holds text such as 'old'"):
        GIM.setup_anndata(adata, continuous_covariate_keys=["age"])
    adata.obs["patient"] = pd.Categorical(np.where(np.arange(adata.n_obs) == 3, None, "a"))
    with pytest.raises(ValueError, match=r"1 cells.*NaN.*`adata\.obs\['patient'\]`"):
        GIM.setup_anndata(adata, categorical_covariate_keys=["patient"])


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_size_factors_must_be_positive(adata, value):
    adata.obs.loc[adata.obs_names[3], "size_factor"] = value
    with pytest.raises(ValueError, match=r"1 cells have a size factor.*not positive"):
        GIM.setup_anndata(adata, size_factor_key="size_factor")


def test_views_are_explained(adata):
    with pytest.raises(ValueError, match=r"view.*adata\.copy\(\)"):
        GIM.setup_anndata(adata[:100])


def test_sparse_arrays_are_explained(adata):
    adata.X = sparse.csr_array(adata.X)
    with pytest.raises(TypeError, match=r"csr_array.*scipy\.sparse\.csr_matrix"):
        GIM.setup_anndata(adata)


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("mechanism", "'linear', 'mlp'"),
        ("likelihood", "'nb', 'poisson', 'normal'"),
        ("intervention", "'shift', 'hard'"),
    ],
)
def test_unknown_options_list_what_there_is(adata, option, allowed):
    GIM.setup_anndata(adata)
    with pytest.raises(ValueError, match=rf"`{option}` must be one of \[{allowed}\], found 'other'"):
        GIM(adata, **{option: "other"})


def test_model_without_setup(adata):
    with pytest.raises(
        ValueError, match=r"`adata` was not set up.*`GIM.setup_anndata\(adata, \.\.\.\); model = GIM\(adata\)`"
    ):
        GIM(adata)
    GIM.setup_anndata(adata)
    with pytest.raises(ValueError, match="or is a copy or part of data that were"):
        GIM(adata.copy())
    with pytest.raises(ValueError, match="A new model needs data, and `adata` is None"):
        GIM(None)


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.predict("drug_1"),
        lambda m: m.score(),
        lambda m: m.get_adjacency(),
        lambda m: m.get_graph(),
        lambda m: m.get_targets(),
        lambda m: m.get_effects(),
        lambda m: m.get_total_effects(),
        lambda m: m.get_dose_response("drug_1"),
        lambda m: m.annotate(),
    ],
    ids=["predict", "score", "adjacency", "graph", "targets", "effects", "total_effects", "dose_response", "annotate"],
)
def test_nothing_to_tell_before_training(adata, use):
    GIM.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="[Tt]rain the model first"):
        use(GIM(adata))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0.0}, r"`train_size` must lie in \(0, 1\], found 0.0"),
        ({"train_size": 0.7, "validation_size": 0.5}, "must not exceed 1"),
        ({"split_key": "splitt"}, "`split_key` 'splitt' is not a column"),
        ({"split_key": "batch"}, r"No cell has 'train' in `adata\.obs\['batch'\]`"),
        ({"max_epochs": 0}, "`max_epochs` must be at least 1, found 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, found 0"),
    ],
)
def test_wrong_training_options(adata, options, message):
    GIM.setup_anndata(adata)
    with pytest.raises(ValueError, match=message):
        GIM(adata).train(**{"max_epochs": 1, "enable_progress_bar": False, **options})


def test_training_cells_without_controls(adata):
    adata.obs["part"] = np.where(adata.obs["perturbation"] == "control", "test", "train")
    GIM.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"No control cell has 'train' in `adata\.obs\['part'\]`"):
        GIM(adata).train(1, split_key="part", enable_progress_bar=False)
    order = np.argsort(adata.obs["perturbation"] == "control", kind="stable")
    adata = adata[order].copy()
    GIM.setup_anndata(adata)
    with pytest.raises(ValueError, match="No control cell is among the training cells"):
        GIM(adata).train(1, train_size=0.5, shuffle_set_split=False, enable_progress_bar=False)


def test_gpu_where_there_is_none(adata, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    GIM.setup_anndata(adata)
    with pytest.raises(ValueError, match="`accelerator='gpu'`.*no GPU.*accelerator='cpu'"):
        GIM(adata).train(1, accelerator="gpu", enable_progress_bar=False)
