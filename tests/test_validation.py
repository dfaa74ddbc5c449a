from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgim import _validation as validation

LABELS = ["control", "control", "a", "a", "b", "b"]
KINDS = {
    "dense": np.asarray,
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(2.0, (6, 4)) + 1


@pytest.fixture
def adata(counts):
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical(LABELS), "dosage": [0, 0, 1, 10, 1, 10.0]}, index=[f"cell{i}" for i in range(6)]
    )
    var = pd.DataFrame(index=[f"gene{j}" for j in range(4)])
    return anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture
def features():
    return pd.DataFrame({"mass": [1.0, 2.0], "logp": [0.5, -0.5]}, index=["b", "a"])


def backed(tmp_path, X):
    path = tmp_path / "backed.h5ad"
    anndata.AnnData(X).write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


# keys


def test_key_error_suggests_the_closest_name():
    with pytest.raises(KeyError, match=r"`perturbation_key='perturbaton'` is not in `adata.obs`.*'perturbation'"):
        validation.check_key("perturbaton", ["perturbation", "dosage"], where="adata.obs", argument="perturbation_key")


def test_key_error_without_a_close_name_lists_what_is_there():
    with pytest.raises(KeyError, match=r"It has: 'batch', 'dosage'"):
        validation.check_key("xyz", ["batch", "dosage"], where="adata.obs", argument="perturbation_key")


def test_quote_some_counts_the_rest():
    assert validation.quote_some("abc", 2) == "'a', 'b' and 1 more"


# kind of matrix


@pytest.mark.parametrize("name", ["dense", "csr_matrix", "csc_matrix"])
@pytest.mark.parametrize("dtype", ["int32", "uint16", "float32", "float64"])
def test_supported_matrices_pass(adata, name, dtype):
    adata.X = KINDS[name](adata.X.toarray()).astype(dtype)
    validation.check_matrix_type(adata)


@pytest.mark.parametrize("name", ["csr_array", "csc_array"])
def test_sparse_arrays_are_explained(adata, name):
    adata.X = KINDS[name](adata.X.toarray())
    with pytest.raises(
        TypeError, match=rf"`{name}`.*Convert it: `adata.X = scipy.sparse.{name[:3]}_matrix\(adata.X\)`"
    ):
        validation.check_matrix_type(adata)


def test_sparse_array_in_a_layer_names_the_layer(adata):
    adata.layers["counts"] = sparse.csr_array(adata.X)
    with pytest.raises(TypeError, match=r"`adata.layers\['counts'\]` is a scipy `csr_array`"):
        validation.check_matrix_type(adata, "counts")


def test_missing_layer(adata):
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(KeyError, match="`layer='count'`.*Did you mean 'counts'"):
        validation.check_matrix_type(adata, "count")


def test_view_is_explained(adata):
    with pytest.raises(ValueError, match=r"view of another AnnData.*`adata = adata.copy\(\)`"):
        validation.check_matrix_type(adata[:3])


def test_missing_matrix_is_explained(adata):
    empty = anndata.AnnData(obs=adata.obs, var=adata.var)
    with pytest.raises(ValueError, match="`adata.X` is empty.*`layer=...`"):
        validation.check_matrix_type(empty)


def test_boolean_matrix_is_explained(adata):
    adata.X = adata.X.toarray() > 0
    with pytest.raises(TypeError, match="dtype bool"):
        validation.check_matrix_type(adata)


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix])
def test_matrix_in_a_file_is_explained_or_allowed(tmp_path, counts, make):
    stored = backed(tmp_path, make(counts.astype(np.float32)))
    with pytest.raises(ValueError, match=r"`adata.X` lies in a file.*`adata = adata.to_memory\(\)`"):
        validation.check_matrix_type(stored)
    validation.check_matrix_type(stored, allow_stored=True)


def test_columns_in_a_file_are_explained(tmp_path, counts):
    stored = backed(tmp_path, sparse.csc_matrix(counts.astype(np.float32)))
    with pytest.raises(ValueError, match=r"column by column.*`adata = adata.to_memory\(\)`.*csr_matrix"):
        validation.check_matrix_type(stored, allow_stored=True)


# values


@pytest.mark.parametrize("dtype", ["int16", "int64", "uint8", "float32", "float64"])
def test_counts_pass(kind, counts, dtype):
    validation.check_counts(kind(counts.astype(dtype)), where="adata.X")


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "negative values in `adata.X` .such as -1"), (0.5, "fractional values in `adata.X` .such as 0.5")]
    + [(np.nan, "NaN values"), (np.inf, "infinite values")],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_that_are_no_counts(kind, counts, value, message, dtype):
    X = counts.astype(dtype)
    X[4, 2] = value
    with pytest.raises(ValueError, match=rf"{message}.*raw counts.*`likelihood='normal'`"):
        validation.check_counts(kind(X), where="adata.X")


def test_negative_integers(kind, counts):
    counts[5, 3] = -2
    with pytest.raises(ValueError, match="negative"):
        validation.check_counts(kind(counts), where="adata.X")


def test_bad_value_beyond_the_first_block_is_found(kind, counts, monkeypatch):
    monkeypatch.setattr("scgim._validation._matrix._BLOCK_VALUES", 5)
    X = counts.astype(float)
    validation.check_counts(kind(X), where="adata.X")
    X[5, 3] = 0.25
    with pytest.raises(ValueError, match=r"such as 0\.25"):
        validation.check_counts(kind(X), where="adata.X")


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_backed_values_are_read_in_blocks(tmp_path, counts, make, monkeypatch):
    monkeypatch.setattr("scgim._validation._matrix._BLOCK_VALUES", 7)
    X = counts.astype(np.float32)
    X[5, 1] = 1.5
    with pytest.raises(ValueError, match="fractional"):
        validation.check_counts(backed(tmp_path, make(X)).X, where="adata.X")


def test_continuous_values_may_be_negative_but_not_missing(kind, counts):
    X = counts - 2.5
    validation.check_continuous(kind(X), where="adata.X")
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN values in `adata.X`"):
        validation.check_continuous(kind(X), where="adata.X")


# genes and cells


@pytest.mark.parametrize("block", [3, 2**22])
def test_empty_cells_and_genes(kind, counts, monkeypatch, block):
    monkeypatch.setattr("scgim._validation._matrix._BLOCK_VALUES", block)
    genes, cells = [f"gene{j}" for j in range(4)], [f"cell{i}" for i in range(6)]
    validation.check_nonempty(kind(counts), genes, cells, where="adata.X")
    no_gene, no_cell = counts.copy(), counts.copy()
    no_gene[:, 3] = 0
    no_cell[2] = 0
    with pytest.raises(ValueError, match=r"1 of 4 genes have no counts.*'gene3'.*sc.pp.filter_genes"):
        validation.check_nonempty(kind(no_gene), genes, cells, where="adata.X")
    with pytest.raises(ValueError, match=r"1 of 6 cells have no counts.*'cell2'.*sc.pp.filter_cells"):
        validation.check_nonempty(kind(no_cell), genes, cells, where="adata.X")


def test_stored_zeros_count_as_zeros(counts):
    X = sparse.csr_matrix(counts)
    X.data[X.indices == 1] = 0
    with pytest.raises(ValueError, match="'gene1'"):
        validation.check_nonempty(X, [f"gene{j}" for j in range(4)], list("abcdef"), where="adata.X")


def test_one_gene_and_duplicated_genes():
    with pytest.raises(ValueError, match=r"1 gene\(s\).*at least two"):
        validation.check_var_names(["gene0"])
    with pytest.raises(ValueError, match=r"duplicated: 'TP53'.*`adata.var_names_make_unique\(\)`"):
        validation.check_var_names(["TP53", "MYC", "TP53"])


def test_no_cells():
    with pytest.raises(ValueError, match="no cells"):
        validation.check_nonempty(np.ones((0, 2)), ["a", "b"], [], where="adata.X")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["b", "a", "c"], "another order .gene 0 is 'b', expected 'a'.*training_adata.var_names"),
        (["a", "b"], "lacks 1 of the 3 genes.*'c'"),
        (["a", "b", "x"], "lacks 1 of the 3 genes.*'c'; it has 1 others: 'x'"),
        (["a", "b", "c", "x"], "1 genes unknown to the model: 'x'"),
        (["a", "b", "c", "c"], "duplicated: 'c'"),
    ],
)
def test_other_genes(found, message):
    validation.check_gene_names(["a", "b", "c"], ["a", "b", "c"])
    with pytest.raises(ValueError, match=message):
        validation.check_gene_names(found, ["a", "b", "c"])


# perturbations


def test_labels_are_strings_without_unused_categories(adata):
    adata.obs["perturbation"] = pd.Categorical([0, 0, 1, 1, 2, 2], categories=[0, 1, 2, 3])
    labels = validation.check_perturbations(adata.obs, "perturbation", "0")
    assert list(labels.categories) == ["0", "1", "2"]
    assert list(labels) == ["0", "0", "1", "1", "2", "2"]


def test_misspelt_perturbation_key(adata):
    with pytest.raises(KeyError, match=r"`perturbation_key='Perturbations'`.*Did you mean 'perturbation'"):
        validation.check_perturbations(adata.obs, "Perturbations", "control")


def test_missing_labels(adata):
    adata.obs["perturbation"] = [None, *LABELS[1:]]
    with pytest.raises(ValueError, match="1 cells have no label"):
        validation.check_perturbations(adata.obs, "perturbation", "control")


def test_no_controls_lists_the_categories_and_guesses(adata):
    adata.obs["perturbation"] = ["DMSO", "DMSO", *LABELS[2:]]
    with pytest.raises(ValueError, match=r"No control cells.*Did you mean `control='DMSO'`.*'DMSO', 'a', 'b'"):
        validation.check_perturbations(adata.obs, "perturbation", "control")


def test_nothing_but_controls(adata):
    adata.obs["perturbation"] = "control"
    with pytest.raises(ValueError, match="All cells are 'control'"):
        validation.check_perturbations(adata.obs, "perturbation", "control")


def test_perturbation_with_one_cell(adata):
    adata.obs["perturbation"] = [*LABELS[:4], "b", "c"]
    with pytest.raises(ValueError, match=r"2 labels in .* have a single cell: 'b', 'c'. Remove them"):
        validation.check_perturbations(adata.obs, "perturbation", "control")


# doses


def dose(adata, values):
    adata.obs["dosage"] = values
    return validation.check_dosage(adata.obs, "dosage", "perturbation", "control")


@pytest.mark.parametrize("dtype", ["int64", "float32", "category", "Int64", "Float64"])
def test_numeric_doses_pass(adata, dtype):
    values = pd.Series([0, 0, 1, 10, 1, 10], index=adata.obs_names).astype(dtype)
    assert dose(adata, values).tolist() == [0, 0, 1, 10, 1, 10]


def test_no_dosage_key_means_one_dose(adata):
    assert validation.check_dosage(adata.obs, None, "perturbation", "control").tolist() == [0, 0, 1, 1, 1, 1]


def test_missing_dosage_key(adata):
    with pytest.raises(KeyError, match="`dosage_key='dose'`.*'dosage'"):
        validation.check_dosage(adata.obs, "dose", "perturbation", "control")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0, "10uM", 1, 1, 1], "text such as '10uM'"),
        (["0", "0", "1", "1", "1", "1"], r"Convert it to numbers: .*astype\(float\)"),
        ([False, False, True, True, True, True], "dtype bool"),
        ([0, 0, np.nan, 1, 1, 1], r"NaN doses .*1 cells of 'a'"),
        ([np.nan, np.nan, 1, 1, 1, 1], "NaN doses .*0 for controls"),
        ([0, 0, 1, 1, np.inf, 1], "infinite doses.*'b'"),
        ([0, 0, 1, 1, 1, -1], "negative doses.*'b'"),
        ([0, 5, 1, 1, 1, 1], r"1 control cells .* dose above 0 .*such as 5"),
        ([0, 0, 0, 1, 1, 1], "1 treated cells have dose 0 .*'a'"),
    ],
)
def test_wrong_doses(adata, values, message):
    with pytest.raises(ValueError, match=message):
        dose(adata, values)


def test_text_categories_as_doses(adata):
    with pytest.raises(ValueError, match="text such as '1nM'"):
        dose(adata, pd.Categorical(["0", "0", "1nM", "1nM", "1nM", "1nM"]))


def test_query_dosage():
    assert validation.check_query_dosage(2, 3).tolist() == [2, 2, 2]
    assert validation.check_query_dosage(np.float32(0.5), 2).tolist() == [0.5, 0.5]
    assert validation.check_query_dosage([1, 2.5], 2).tolist() == [1, 2.5]
    with pytest.raises(ValueError, match="3 values for 2 rows"):
        validation.check_query_dosage([1, 2, 3], 2)
    for bad in (np.nan, -1.0, np.inf):
        with pytest.raises(ValueError, match="`dosage` contains"):
            validation.check_query_dosage(bad, 1)
    with pytest.raises(ValueError, match="text such as '10uM'"):
        validation.check_query_dosage("10uM", 1)


def test_size_factors(adata):
    adata.obs["size"] = 1.5
    assert validation.check_size_factors(adata.obs, "size").tolist() == [1.5] * 6
    adata.obs.loc["cell1", "size"] = 0.0
    with pytest.raises(ValueError, match="1 cells have a size factor .*not positive"):
        validation.check_size_factors(adata.obs, "size")


def test_unseen_covariate_values():
    known = {"batch": ["x", "y"]}
    validation.check_covariates(pd.DataFrame({"batch": ["y", "x"]}), known)
    with pytest.raises(ValueError, match=r"'batch' has values .*'z'. Known values: 'x', 'y'"):
        validation.check_covariates(pd.DataFrame({"batch": ["x", "z"]}), known)
    with pytest.raises(KeyError, match="`covariate='batch'`"):
        validation.check_covariates(pd.DataFrame({"batches": ["x"]}), known)


# embedding of an AnnData


def resolve(adata, key="drug_embedding"):
    return validation.resolve_embedding(adata, key, adata.obs["perturbation"], control="control")


def test_embedding_from_uns_is_ordered_by_name(adata, features):
    adata.uns["drug_embedding"] = pd.concat([features, pd.DataFrame(np.nan, ["unused"], features.columns)])
    found = resolve(adata)
    assert list(found.index) == ["a", "b"]
    assert list(found.columns) == ["mass", "logp"]
    np.testing.assert_array_equal(found, [[2.0, -0.5], [1.0, 0.5]])


def as_obsm(adata, features, form):
    table = pd.concat([features, pd.DataFrame(np.nan, ["control"], features.columns)])
    cells = table.loc[adata.obs["perturbation"]].set_axis(adata.obs_names)
    forms = {
        "frame": lambda: cells,
        "array": cells.to_numpy,
        "csr_matrix": lambda: sparse.csr_matrix(cells.to_numpy()),
        "csr_array": lambda: sparse.csr_array(cells.to_numpy()),
    }
    return forms[form]()


@pytest.mark.parametrize("form", ["frame", "array", "csr_matrix", "csr_array"])
def test_embedding_from_obsm_ignores_controls(adata, features, form):
    adata.obsm["drug_embedding"] = as_obsm(adata, features, form)
    found = resolve(adata)
    np.testing.assert_array_equal(found, [[2.0, -0.5], [1.0, 0.5]])
    assert list(found.columns) == (["mass", "logp"] if form == "frame" else ["0", "1"])


@pytest.mark.parametrize("form", ["frame", "array", "csr_matrix"])
def test_different_embeddings_within_a_drug(adata, features, form):
    values = as_obsm(adata, features, "frame")
    values.iloc[5, 0] += 1
    adata.obsm["drug_embedding"] = {
        "frame": values,
        "array": values.to_numpy(),
        "csr_matrix": sparse.csr_matrix(values.to_numpy()),
    }[form]
    with pytest.raises(ValueError, match=r"Cells of 'b' have different rows in `adata.obsm\['drug_embedding'\]`"):
        resolve(adata)


def test_embedding_in_neither_slot(adata, features):
    adata.uns["embedding"] = features
    with pytest.raises(KeyError, match="`drug_embedding_key='drug_embedding'` is not in `adata.uns` or `adata.obsm`"):
        resolve(adata)


def test_array_in_uns(adata):
    adata.uns["drug_embedding"] = np.eye(2)
    with pytest.raises(TypeError, match=r"is a `ndarray`. Expected a data frame .*pd.DataFrame\(features"):
        resolve(adata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(index="a"), "1 of 2 perturbations have no row .*'a'"),
        (lambda f: pd.concat([f, f.loc[["a"]]]), "index` are duplicated: 'a'"),
        (lambda f: f.assign(mass=[np.nan, 1.0]), "NaN or infinite features .* for 'b'"),
        (lambda f: f.assign(mass=[np.inf, 1.0]), "NaN or infinite features .* for 'b'"),
        (lambda f: f.assign(mass=1.0, logp=2.0), "is constant: all 2 perturbations.*`drug_embedding_key=None`"),
        (lambda f: f.assign(mass=["heavy", "light"]), "not numeric: 'mass'"),
        (lambda f: f[[]], "no columns"),
        (lambda f: f.set_axis(["x", "x"], axis=1), "Columns of .* are duplicated: 'x'"),
    ],
)
def test_wrong_embeddings(adata, features, change, message):
    adata.uns["drug_embedding"] = change(features)
    with pytest.raises(ValueError, match=message):
        resolve(adata)


def test_text_in_obsm(adata):
    adata.obsm["drug_embedding"] = np.array([["x", "y"]] * 6)
    with pytest.raises(ValueError, match="Expected numbers"):
        resolve(adata)


def test_constant_column_warns_but_stays(adata, features):
    adata.uns["drug_embedding"] = features.assign(ph=7.4)
    with pytest.warns(UserWarning, match="1 columns of .*carry no information: 'ph'"):
        assert "ph" in resolve(adata)


def test_constant_bits_do_not_warn(adata, features):
    adata.uns["drug_embedding"] = features.assign(bit=0, other=1)
    assert resolve(adata).shape == (2, 4)


def test_a_single_drug_has_no_variation_to_check(adata, features):
    one = adata[adata.obs["perturbation"] != "b"].copy()
    one.uns["drug_embedding"] = features
    assert resolve(one).index.tolist() == ["a"]


# embedding of a query


def query(embedding, feature_names=("mass", "logp")):
    return validation.check_query_embedding(embedding, feature_names, ["a", "b"])


def test_query_frame_is_ordered_by_column_name(features):
    found = query(features[["logp", "mass"]])
    assert list(found.columns) == ["mass", "logp"]
    assert list(found.index) == ["b", "a"]
    assert found.dtypes.eq(np.float64).all()


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, lambda x: x.tolist(), lambda x: x.astype("float32")])
def test_query_arrays_get_names_that_are_free(make):
    found = query(make(np.arange(6.0).reshape(3, 2)))
    assert list(found.index) == ["drug_0", "drug_1", "drug_2"]
    np.testing.assert_array_equal(found, np.arange(6.0).reshape(3, 2))
    taken = validation.check_query_embedding(np.ones((2, 2)), ["x", "y"], ["drug_1"])
    assert list(taken.index) == ["new_drug_0", "new_drug_1"]


def test_one_drug_as_row_or_series():
    assert query(np.array([1.0, 2.0])).shape == (1, 2)
    found = query(pd.Series({"logp": 1.0, "mass": 3.0}, name="new"))
    assert found.index.tolist() == ["new"]
    assert found.loc["new"].tolist() == [3.0, 1.0]


def test_repeated_names_are_kept_for_several_doses(features):
    assert list(query(features.loc[["a", "a"]]).index) == ["a", "a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.to_numpy()[:, :1], r"shape \(2, 1\). Expected \(drugs, 2\)"),
        (lambda f: f.rename(columns={"mass": "weight"}), "lacks 'mass' and has unknown 'weight'"),
        (lambda f: f[["mass"]], "lacks 'logp'"),
        (lambda f: f.assign(extra=1.0), "has unknown 'extra'"),
        (lambda f: f.assign(mass=[np.nan, 1]), "NaN or infinite features in `drug_embedding` for 'b'"),
        (lambda f: f.assign(mass=["x", "y"]), "not numeric: 'mass'"),
        (lambda f: f.iloc[:0], "no rows"),
        (lambda f: [], "no rows"),
    ],
)
def test_wrong_queries(features, change, message):
    with pytest.raises(ValueError, match=message):
        query(change(features))


def test_measured_perturbations_by_name():
    assert list(query("a").index) == ["a"]
    assert query(["b", "a"]).shape == (2, 0)
    assert query(np.array(["b", "a"])).shape == (2, 0)
    with pytest.raises(ValueError, match=r"'new' not among the measured perturbations \('a', 'b'\)"):
        query(["a", "new"])
    with pytest.raises(ValueError, match="Did you mean 'drug_007'"):
        validation.check_query_embedding(["drug_07"], None, ["drug_007", "other"])


@pytest.mark.parametrize("level", [0.0, 1.0, 95, np.nan, "A549"])
def test_intervals_hold_a_share(level):
    validation.check_interval(0.9)
    with pytest.raises(ValueError, match="Expected `level`.*between 0 and 1") as error:
        validation.check_interval(level)
    assert ("`covariates`" in str(error.value)) == isinstance(level, str)


def test_keys_that_may_be_none_say_so():
    with pytest.raises(KeyError, match="`dosage_key=None` if each perturbation has one dose"):
        validation.check_key("dosage", ["dose"], where="adata.obs", argument="dosage_key")
    with pytest.raises(KeyError) as error:
        validation.check_key("perturbation", ["drug"], where="adata.obs", argument="perturbation_key")
    assert "None" not in str(error.value)


def test_model_without_embeddings(features):
    assert list(query(["b"], None).index) == ["b"]
    assert query(features, None).shape == (2, 0)
    with pytest.raises(ValueError, match="set up without drug embeddings .*`drug_embedding_key=None`"):
        query(np.ones((1, 2)), None)
    with pytest.raises(ValueError, match="'new' not among the measured"):
        query(features.rename(index={"a": "new"}), None)


def test_dates_are_no_counts(adata):
    adata.layers["dates"] = np.full(adata.shape, np.datetime64("2020-01-01"))
    with pytest.raises(TypeError, match=r"`adata.layers\['dates'\]` has dtype datetime64"):
        validation.check_matrix_type(adata, "dates")
