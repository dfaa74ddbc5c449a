"""Targets planted in cells: folds are as drawn, and nothing else is changed."""

from __future__ import annotations

import importlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

N, D = 4000, 12


@pytest.fixture(scope="module")
def planted():
    return importlib.import_module("benchmarks.worlds.planted")


@pytest.fixture(scope="module")
def source() -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": "control", "plate": "one"}, [f"c{i}" for i in range(N)])
    return ad.AnnData(sparse.csr_matrix(rng.poisson(40.0, (N, D)).astype(float)), obs)


def test_cells_of_one_treatment_are_taken(planted, source, tmp_path):
    source = source.copy()
    source.obs["perturbation"] = ["other"] * 10 + ["control"] * (N - 10)
    source.write_h5ad(tmp_path / "cells.h5ad")
    assert planted.Source("cells.h5ad", ["plate"]).cells(tmp_path).obs_names.tolist() == source.obs_names[10:].tolist()
    other = planted.Source("cells.h5ad", ["plate"], value="other").cells(tmp_path)
    np.testing.assert_array_equal(other.X.toarray(), source.X[:10].toarray())


def test_drugs_change_their_targets_by_a_fold_and_nothing_else(planted, source):
    world = planted.plant(source, ["plate"], D, "planted", 0)
    x, truth = world.X.toarray(), world.varm["true_targets"].T
    assert (truth.sum(axis=1) == 0).sum() == planted.N_NULL
    assert truth.sum(axis=1).max() == 3
    for drug, hit in truth.iterrows():
        fold = np.log(x[(world.obs["perturbation"] == drug).to_numpy()].mean(0) / 40)
        np.testing.assert_allclose(fold[~hit], 0, atol=0.1)
        assert (np.abs(fold[hit]) > 0.4).all()
        assert (np.abs(fold[hit]) < 1.6).all()
    np.testing.assert_allclose(x[(world.obs["perturbation"] == "control").to_numpy()].mean(0), 40, rtol=0.02)


def test_where_nothing_is_to_be_found_counts_are_those_of_the_file(planted, source):
    world = planted.plant(source, ["plate"], D, "nothing to find", 0)
    np.testing.assert_array_equal(world.X.toarray(), source.X[:N].toarray())
    assert not world.varm["true_targets"].to_numpy().any()
    assert (world.obs["perturbation"].value_counts().drop("control") == planted.N_CELLS).all()


def test_genes_of_the_largest_mean_are_taken_and_size_factors_are_of_all(planted, source):
    more = source.copy()
    more.X = sparse.csr_matrix(source.X.toarray() * np.arange(1, D + 1))
    world = planted.plant(more, ["plate"], 3, "nothing to find", 0)
    assert world.var_names.tolist() == ["9", "10", "11"]
    totals = np.asarray(more.X[:N].sum(1)).ravel()
    np.testing.assert_allclose(world.obs["size_factor"], totals / totals.mean())


def test_what_is_told_the_sizes_of_effects_finds_them(planted, source):
    world = planted.plant(source, ["plate"], D, "planted", 0)
    truth = world.varm["true_targets"].T
    odds = planted.told_sizes(world, ["plate"], truth.index.tolist())
    np.testing.assert_array_equal(odds > 0, truth)  # of counts of forty, 50 cells leave no doubt


def test_genes_that_controls_do_not_have_are_told_of_too(planted, source):
    """Of a level in which no control has a count of a gene, drugs may have one."""
    world = planted.plant(source, ["plate"], D, "planted", 0)
    x, control = world.X.toarray(), (world.obs["perturbation"] == "control").to_numpy()
    x[control, 0] = 0
    world.X = sparse.csr_matrix(x)
    assert np.isfinite(planted.told_sizes(world, ["plate"], ["drug_0"])).all()


def test_nothing_is_told_where_there_is_nothing(planted, source):
    world = planted.plant(source, ["plate"], D, "nothing to find", 0)
    assert planted.told_sizes(world, ["plate"], ["drug_0", "drug_1"]).max() < 0
