"""Covariates as columns of a design matrix."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgim.model import GIM
from scgim.predict._covariates import ScaledDesign, centre_and_scale, check_columns


@pytest.fixture
def design(adata):
    adata.obs["age"] = np.linspace(20, 60, adata.n_obs)
    adata.obs["line"] = pd.Categorical(np.resize(["K562", "A549", "MCF7"], adata.n_obs))
    keys = {"categorical_covariate_keys": ["line"], "continuous_covariate_keys": ["age"]}
    GIM.setup_anndata(adata, batch_key="batch", **keys)
    return GIM(adata)._covariates, adata.obs


def test_columns(design):
    covariates, obs = design
    assert covariates.keys == ["batch", "line", "age"]
    encoded = covariates.encode(obs)
    assert encoded.shape == (len(obs), 2 + 3 + 1)
    np.testing.assert_array_equal(encoded[:, :5].sum(1), 2)
    for column, line in enumerate(["A549", "K562", "MCF7"]):
        np.testing.assert_array_equal(encoded[:, 2 + column], obs["line"] == line)
    np.testing.assert_allclose(encoded[:, 5], obs["age"])


def test_levels_are_matched_as_text(design):
    covariates, obs = design
    other = pd.DataFrame({"batch": ["batch_1"], "line": ["K562"], "age": [30]})
    np.testing.assert_array_equal(covariates.encode(other), [[0, 1, 0, 1, 0, 30]])
    with pytest.raises(ValueError, match="'line' has values that were not in the training data: 'HEK'"):
        covariates.encode(other.assign(line="HEK"))
    with pytest.raises(KeyError, match="age"):
        covariates.encode(other.drop(columns="age"))
    assert len(obs)


def test_no_covariates(adata):
    GIM.setup_anndata(adata)
    covariates = GIM(adata)._covariates
    assert covariates.keys == []
    assert covariates.encode(adata.obs).shape == (adata.n_obs, 0)


def test_centre_is_that_of_controls_and_scale_of_continuous_columns_only():
    design = np.array([[1, 0, 10.0], [0, 1, 20.0], [1, 0, 30.0], [1, 0, 40.0]])
    centre, scale = centre_and_scale(design, 1, np.array([True, True, False, False]))
    np.testing.assert_allclose(centre, [0.5, 0.5, 15.0])
    np.testing.assert_allclose(scale, [1.0, 1.0, np.std([10, 20, 30, 40])])
    _, constant = centre_and_scale(np.full((4, 1), 7.0), 1, np.ones(4, bool))
    np.testing.assert_array_equal(constant, 1.0)


def test_one_key_as_text_is_explained():
    obs = pd.DataFrame({"line": ["a", "b"]})
    with pytest.raises(TypeError, match=r"Expected a list: `categorical_covariate_keys=\['line'\]`"):
        check_columns(obs, None, "line", None)


def test_categories_without_cells_are_none(adata):
    names = adata.obs["perturbation"].astype(str)
    adata.obs["perturbation"] = pd.Categorical(names, [*names.unique(), "of no cell"])
    adata.obs["line"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "x", "y"), ["of no cell", "x", "y"])
    GIM.setup_anndata(adata, effect_modifier_key="line")
    model = GIM(adata)
    assert model.perturbations == sorted(set(names) - {"control"})
    assert set(model.contexts.get_level_values("line")) == {"x", "y"}
    assert model._covariates.encode(adata.obs).shape == (adata.n_obs, 2)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_cells_need_no_names_of_their_own(adata):
    GIM.setup_anndata(adata)
    known = GIM(adata)._prepare_cells()
    same = adata.copy()
    same.obs_names = ["cell"] * same.n_obs
    GIM.setup_anndata(same)
    cells = GIM(same)._prepare_cells()
    np.testing.assert_array_equal(cells.context, known.context)
    np.testing.assert_array_equal(cells.log_size, known.log_size)


@pytest.mark.parametrize("argument", ["batch_key", "categorical_covariate_keys", "effect_modifier_key"])
def test_text_and_numbers_in_one_column_are_named(adata, argument):
    adata.obs["mixed"] = [("a" if i % 2 else 1) for i in range(adata.n_obs)]
    keys = ["mixed"] if argument == "categorical_covariate_keys" else "mixed"
    with pytest.raises(
        ValueError, match=r"`adata.obs\['mixed'\]` holds text beside other values: '1', 'a'.*astype\(str\)"
    ):
        GIM.setup_anndata(adata, **{argument: keys})


def test_some_covariates_are_given_and_the_rest_are_those_of_the_cells(design):
    covariates, obs = design
    encoded = covariates.encode(obs)
    scaled = ScaledDesign(covariates, encoded.mean(0), np.arange(1.0, 7.0))
    cells = scaled.scaled(encoded)
    given = scaled.with_covariates(cells, {"line": "K562"})
    np.testing.assert_array_equal(given[:, [0, 1, 5]], cells[:, [0, 1, 5]])
    expected = (np.array([0, 1, 0]) - encoded.mean(0)[2:5]) / [3, 4, 5]
    np.testing.assert_allclose(given[:, 2:5], np.tile(expected, (len(obs), 1)), rtol=1e-5)
    whole = scaled.with_covariates(cells, {"line": "K562", "batch": "batch_0", "age": 30})
    assert (whole == whole[0]).all()
    np.testing.assert_allclose(
        whole[0], scaled.encode(pd.DataFrame({"batch": ["batch_0"], "line": ["K562"], "age": [30]}))[0]
    )
    with pytest.raises(
        ValueError, match=r"holds \['lines'\], which the model does not have. It knows \['batch', 'line', 'age'\]"
    ):
        scaled.with_covariates(cells, {"lines": "K562"})


def test_a_list_of_batches_is_explained(adata):
    with pytest.raises(
        TypeError, match="Expected the name of one column; further ones go to `categorical_covariate_keys`"
    ):
        GIM.setup_anndata(adata, batch_key=["batch", "line"])
