"""Bulk plates: positions of wells, and what the check of a screen says of them."""

from __future__ import annotations

import string

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgim import pp
from scgim.pp._confounding import inseparable


def make_plate(columns_of_doses: bool) -> anndata.AnnData:
    """Eight rows of twelve wells: 32 controls in columns 1 to 4, then 16 drugs at 4 doses, one well each.

    Either a column has one dose and a row two drugs, or treated wells lie at random.
    """
    rows, columns = np.divmod(np.arange(96), 12)
    treated = np.flatnonzero(columns >= 4)
    drug, dose = 2 * rows[treated] + (columns[treated] >= 8), 10.0 ** (columns[treated] % 4)
    if not columns_of_doses:
        order = np.random.default_rng(0).permutation(64)
        drug, dose = drug[order], dose[order]
    obs = pd.DataFrame({"perturbation": "control", "dosage": 0.0}, index=[f"w{i}" for i in range(96)])
    obs["well"] = [f"{string.ascii_uppercase[r]}{c + 1:02d}" for r, c in zip(rows, columns, strict=True)]
    obs.loc[obs.index[treated], "perturbation"] = [f"d{k:02d}" for k in drug]
    obs.loc[obs.index[treated], "dosage"] = dose
    x = np.random.default_rng(1).normal(8, 1, (96, 5)).astype(np.float32)
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=list("vwxyz")))


@pytest.fixture
def plate():
    return make_plate(columns_of_doses=True)


def check(adata, **keys):
    return pp.check_screen(adata, drug_embedding_key=None, **keys)


def test_names_of_wells():
    adata = anndata.AnnData(obs=pd.DataFrame({"well": ["A03", "P24", "b7", "AF48", "A10"]}, index=list("abcde")))
    position = pp.plate_position(adata)
    assert adata.obs["plate_row"].tolist() == ["A", "P", "B", "AF", "A"]
    assert adata.obs["plate_column"].tolist() == ["3", "24", "7", "48", "10"]
    assert list(adata.obs["plate_row"].cat.categories) == ["A", "B", "P", "AF"]
    assert list(adata.obs["plate_column"].cat.categories) == ["3", "7", "10", "24", "48"]
    pd.testing.assert_frame_equal(position, adata.obs[["plate_row", "plate_column"]])


@pytest.mark.parametrize("name", ["X1:A03", "A", "12", "A0", "A49", "AG1", "", None])
def test_what_is_no_well_is_named(name):
    adata = anndata.AnnData(obs=pd.DataFrame({"position": ["A01", name]}, index=list("ab")))
    shown = "(None|nan)" if name is None else name  # pandas 3 takes None in text for NaN
    with pytest.raises(ValueError, match=rf"1 of 2 values in `adata\.obs\['position'\]`.*: '{shown}'\. .*extract"):
        pp.plate_position(adata, "position")
    assert "plate_row" not in adata.obs
    with pytest.raises(KeyError, match="`well_key='well'` is not in `adata.obs`"):
        pp.plate_position(adata)


def test_the_remedy_works():
    adata = anndata.AnnData(obs=pd.DataFrame({"well": ["X1_B19:A03", "X1_B19:P24"]}, index=list("ab")))
    adata.obs["well"] = adata.obs["well"].str.extract(r"([A-Z]+[0-9]+)$", expand=False)
    assert pp.plate_position(adata)["plate_row"].tolist() == ["A", "P"]


def test_continuous_plate(plate):
    table = check(plate)
    assert table.index[0] == "kind"
    assert table.loc["kind", ["value", "verdict"]].tolist() == ["bulk plate", "ok"]
    assert table.loc["matrix", "value"] == "96 wells x 5 genes"
    assert "counts" not in table.index
    assert "depth" not in table.index
    assert table.loc["values", "verdict"] == "warn"
    assert "`likelihood='normal'`" in table.loc["values", "advice"]
    assert "raw counts" not in " ".join(table["advice"])
    assert table.loc["control wells", ["value", "verdict"]].tolist() == [32, "ok"]
    assert table.loc["wells per context", "value"] == "median 1, least 1"
    assert "64 of 64 contexts have fewer than 3 wells" in table.loc["wells per context", "advice"]
    assert "by up to 1.00 standard deviations" in table.loc["wells per context", "advice"]


def test_few_controls(plate):
    table = check(plate[~plate.obs["well"].str[1:].isin(["03", "04"])].copy())
    assert table.loc["control wells", ["value", "verdict"]].tolist() == [16, "warn"]
    assert "off by some 0.25 standard deviations" in table.loc["control wells", "advice"]


def test_counts_and_normalised_counts(plate):
    counts = np.random.default_rng(0).poisson(3, (96, 300)).astype(np.float32) + np.eye(96, 300, dtype=np.float32)
    adata = anndata.AnnData(sparse.csr_matrix(counts), obs=plate.obs)
    table = check(adata)
    assert table.loc["counts", "verdict"] == "ok"
    assert table.loc["counts", "value"].startswith("raw counts, median 8")
    assert table.loc["depth", "verdict"] == "ok"
    adata.X = adata.X.log1p()
    advice = check(adata).loc["values", "advice"]
    assert "With 5% zeros they look like normalised counts" in advice
    assert "logarithms" not in advice
    adata.X = adata.X * 100
    assert "take those first" in check(adata).loc["values", "advice"]


def test_missing_values_are_not_taken_for_continuous(plate):
    plate.X[3, 2] = np.nan
    assert check(plate).loc["counts", "verdict"] == "fail"


def test_plate_in_a_file(plate, tmp_path):
    plate.write_h5ad(tmp_path / "plate.h5ad")
    stored = anndata.read_h5ad(tmp_path / "plate.h5ad", backed="r")
    pd.testing.assert_frame_equal(check(stored), check(plate))
    stored.file.close()


def test_doses_along_columns_and_drugs_along_rows(plate):
    table = check(plate)
    columns, rows = table.loc["plate columns"], table.loc["plate rows"]
    assert columns["value"] == "controls in 4 of 12, Cramer's V 0.97 with dose and 0.00 with drug"
    assert columns["advice"].startswith("Doses go along with the column (`well`)")
    assert "could not be told from 64 of 64 contexts" in columns["advice"]
    assert rows["value"].startswith("controls in 8 of 8, Cramer's V 0.00 with dose")
    assert rows["advice"].startswith("Drugs go along with the row (`well`)")
    assert "As a covariate" not in rows["advice"]


def test_random_layout():
    adata = make_plate(columns_of_doses=False)
    table = check(adata)
    assert set(table.loc[["plate rows", "plate columns"], "verdict"]) == {"ok"}
    pp.plate_position(adata)
    adata.obs = adata.obs.drop(columns="well").rename(columns={"plate_row": "Row", "plate_column": "col"})
    adata.obs["col"] = adata.obs["col"].astype(int)
    pd.testing.assert_frame_equal(check(adata), table)
    adata.obs = adata.obs.drop(columns=["Row", "col"])
    assert check(adata).loc["plate position", ["value", "verdict"]].tolist() == ["not in `adata.obs`", "ok"]


def test_covariates_that_go_with_contexts_are_named(plate):
    pp.plate_position(plate)
    table = check(plate, categorical_covariate_keys=["plate_row"])
    assert table.loc["covariate plate_row", ["value", "verdict"]].tolist() == ["8 levels with 4 to 4 controls", "ok"]
    assert table.loc["separable from covariates", ["value", "verdict"]].tolist() == ["0 of 64 contexts not", "ok"]
    table = check(plate, categorical_covariate_keys=["plate_row", "plate_column"])
    assert table.loc["covariate plate_column", "verdict"] == "warn"
    assert table.loc["covariate plate_column", "advice"].startswith("No controls in '5', '6', '7', '8', '9' and 3 more")
    assert table.loc["separable from covariates", ["value", "verdict"]].tolist() == ["64 of 64 contexts not", "fail"]
    assert "those of `plate_column` (64):" in table.loc["separable from covariates", "advice"]


def test_covariates_that_are_confounded_only_together(plate):
    """Two covariates, each in both levels among controls, but always both or neither there, and one of them for a drug."""
    control = (plate.obs["perturbation"] == "control").to_numpy()
    both = np.tile([True, False], 48)
    plate.obs["a"] = np.where(both & control, "yes", "no")
    plate.obs["b"] = np.where((both & control) | (plate.obs["perturbation"] == "d03"), "yes", "no")
    for keys in (["a"], ["b"]):
        assert check(plate, categorical_covariate_keys=keys).loc["separable from covariates", "verdict"] == "ok"
    together = check(plate, categorical_covariate_keys=["a", "b"]).loc["separable from covariates"]
    assert together["value"] == "4 of 64 contexts not"
    assert "'d03 at 1', 'd03 at 10', 'd03 at 100', 'd03 at 1000' cannot" in together["advice"]
    assert "the covariates taken together" in together["advice"]


def test_separable_contexts_are_those_of_a_full_rank_design():
    rng = np.random.default_rng(0)
    for _ in range(30):
        groups = np.array(["control", *"abcd"])[np.r_[0, rng.integers(5, size=14)]]
        covariates = pd.DataFrame({"p": rng.integers(4, size=15), "q": rng.integers(3, size=15)})
        names = sorted(set(groups) - {"control"})
        levels = pd.get_dummies(covariates.astype(str)).to_numpy(dtype=float)
        design = np.column_stack([np.ones(15), levels, *[groups == name for name in names]])
        # an effect can be told if no combination of the others does the same
        others = [np.delete(design, 1 + levels.shape[1] + i, axis=1) for i in range(len(names))]
        rank = np.linalg.matrix_rank(design)
        lost = [name for name, rest in zip(names, others, strict=True) if np.linalg.matrix_rank(rest) == rank]
        assert inseparable(groups, "control", covariates) == lost


def test_wrong_covariates(plate):
    with pytest.raises(TypeError, match="`categorical_covariate_keys` is the text 'well'"):
        check(plate, categorical_covariate_keys="well")
    with pytest.raises(KeyError, match="`categorical_covariate_keys='wells'`.*'well'"):
        check(plate, categorical_covariate_keys=["wells"])
    plate.obs.loc["w7", "well"] = np.nan
    assert check(plate, categorical_covariate_keys=["well"]).loc["covariate well", "verdict"] == "fail"


def test_few_cells_at_random_are_no_plate(plate):
    """A sample of cells has unequal numbers a context, and cells have few counts."""
    rng = np.random.default_rng(0)
    X = sparse.csr_matrix(rng.poisson(5.0, (160, 400)).astype(np.float32) + 1)
    obs = pd.DataFrame({"perturbation": [f"d{k}" for k in rng.integers(40, size=160)]}, index=map(str, range(160)))
    obs.loc[obs.index[:40], "perturbation"] = "control"
    sample = anndata.AnnData(X, obs=obs)
    assert "cells per context" in check(sample, dosage_key=None).index
    obs = plate.obs.drop(columns="well")
    cells = anndata.AnnData(sparse.csr_matrix(np.ones((96, 9), dtype=np.float32)), obs=obs)
    assert "cells per context" in check(cells).index
