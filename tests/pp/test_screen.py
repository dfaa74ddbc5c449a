from __future__ import annotations

import inspect

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgim import pp
from scgim.model import GIM
from scgim.pp._confounding import cramers_v, inseparable


@pytest.fixture
def adata():
    """A sound screen: 120 controls, 12 drugs at 3 doses with 20 cells each, two balanced plates."""
    rng = np.random.default_rng(0)
    drugs = np.repeat([f"d{i:02d}" for i in range(12)], 60)
    labels = np.concatenate([np.repeat("control", 120), drugs])
    doses = np.concatenate([np.zeros(120), np.tile(np.repeat([0.1, 1.0, 10.0], 20), 12)])
    obs = pd.DataFrame({"perturbation": labels, "dosage": doses}, index=[f"c{i}" for i in range(len(labels))])
    obs["plate"] = np.tile(["p1", "p2"], len(labels) // 2)
    adata = anndata.AnnData(sparse.csr_matrix(rng.poisson(3.0, (len(labels), 5)).astype(np.float32) + 1), obs=obs)
    features = rng.normal(size=(12, 4))
    adata.uns["drug_embedding"] = pd.DataFrame(features, sorted(set(drugs)), list("wxyz"))
    return adata


def test_a_sound_screen_passes_every_check(adata):
    table = pp.check_screen(adata, batch_key="plate")
    assert list(table.columns) == ["value", "verdict", "advice"]
    assert set(table["verdict"]) == {"ok"}
    assert set(table["advice"]) == {""}
    assert table.loc["control cells", "value"] == 120
    assert table.loc["doses", "value"] == "3 a drug"
    assert table.loc["cells per context", "value"] == "median 20, least 20"
    assert table.loc["feature rank", "value"] == "4 of 4"
    assert table.loc["separable from batch", "value"] == "0 not"


def test_all_that_a_model_is_set_up_with_can_be_checked():
    arguments = [set(inspect.signature(f).parameters) for f in (GIM.setup_anndata, pp.check_screen)]
    assert arguments[0] - {"kwargs"} == arguments[1]


def test_size_factors_regulators_and_numbers(adata):
    keys = {"size_factor_key": "size", "regulator_key": "acts", "continuous_covariate_keys": ["age"]}
    adata.obs["size"], adata.obs["age"] = np.linspace(0.5, 2, adata.n_obs), 1.0
    adata.var["acts"] = np.arange(adata.n_vars) < 2
    table = pp.check_screen(adata, **keys)
    assert table.loc["size factors", "value"] == "0.5 to 2"
    assert table.loc["regulators", "value"] == "2 of 5 genes"
    assert table.loc["covariate age", "verdict"] == "ok"
    adata.obs.iloc[3, adata.obs.columns.get_indexer(["size", "age"])] = np.nan
    adata.var["acts"] = "yes"
    table = pp.check_screen(adata, **keys).loc[["size factors", "regulators", "covariate age"]]
    assert set(table["verdict"]) == {"fail"}
    assert "1 cells have no value" in table.loc["covariate age", "advice"]
    assert "must be boolean" in table.loc["regulators", "advice"]


def test_many_genes_of_which_any_may_regulate(adata):
    many = anndata.AnnData(np.repeat(adata.X.toarray(), 200, axis=1), obs=adata.obs, uns=adata.uns)
    found, advice = verdict(many, "regulators")
    assert (found, "mark_regulators" in advice) == ("warn", True)
    assert "regulators" not in pp.check_screen(adata).index


def test_cells_without_counts_are_fine_where_size_factors_are_given(adata):
    adata.X[0] = 0
    adata.obs["size"] = 1.0
    assert verdict(adata, "empty")[0] == "fail"
    assert verdict(adata, "empty", size_factor_key="size")[0] == "ok"


def verdict(adata, check, **keys):
    row = pp.check_screen(adata, **keys).loc[check]
    return row["verdict"], row["advice"]


def test_wrong_counts(adata):
    adata.X = adata.X.log1p()
    assert verdict(adata, "counts")[0] == "fail"
    assert "fractional values" in verdict(adata, "counts")[1]


def test_unsupported_matrix_ends_the_count_checks(adata):
    adata.X = sparse.csr_array(adata.X)
    table = pp.check_screen(adata)
    assert table.loc["matrix", "verdict"] == "fail"
    assert "counts" not in table.index
    assert table.loc["doses", "verdict"] == "ok"


def test_empty_gene(adata):
    X = adata.X.toarray()
    X[:, 2] = 0
    adata.X = X
    assert verdict(adata, "empty")[0] == "fail"


def test_shallow_drug(adata):
    X = adata.X.toarray()
    X[(adata.obs["perturbation"] == "d03").to_numpy()] = [1, 0, 0, 0, 0]
    adata.X = X
    assert verdict(adata, "depth") == ("warn", pp.check_screen(adata).loc["depth", "advice"])
    assert "'d03'" in verdict(adata, "depth")[1]


def test_small_contexts_of_a_level(adata):
    name = "cells per context and 'line'"
    adata.obs["line"] = np.tile(["k562", "a549"], adata.n_obs // 2)
    few = (adata.obs["perturbation"] == "d03") & (adata.obs["dosage"] == 10) & (adata.obs["line"] == "a549")
    small = adata[~few | (np.cumsum(few) <= 4)].copy()
    value, _, advice = pp.check_screen(small, effect_modifier_key="line").loc[name]
    assert value == "median 10, least 4 in 'a549'"
    assert "72 of 72 have fewer than 20 ('d03 at 10 in a549', " in advice
    assert name not in pp.check_screen(small).index


def test_few_controls_and_small_contexts(adata):
    small = adata[np.r_[0:50, 120 : adata.n_obs - 15]].copy()
    assert verdict(small, "control cells")[0] == "warn"
    level, advice = verdict(small, "cells per context")
    assert level == "warn"
    assert "1 of 36 contexts" in advice
    assert "'d11 at 10'" in advice


def test_perturbation_with_one_cell(adata):
    single = adata[: adata.n_obs - 59].copy()
    assert verdict(single, "perturbations") == ("fail", "'d11' have a single cell. Leave them out.")


def test_doses(adata):
    two = adata[adata.obs["dosage"] != 0.1].copy()
    assert verdict(two, "doses")[0] == "warn"
    assert verdict(adata, "doses", dosage_key=None)[0] == "ok"
    adata.obs["dosage"] = adata.obs["dosage"].astype(str) + "uM"
    level, advice = verdict(adata, "doses")
    assert level == "fail"
    assert "text such as '0.0uM'" in advice


def test_features(adata):
    assert verdict(adata, "features", drug_embedding_key=None)[0] == "warn"
    frame = adata.uns["drug_embedding"]
    adata.uns["drug_embedding"] = pd.concat([frame] * 10, axis=1).set_axis([f"f{i}" for i in range(40)], axis=1)
    level, advice = verdict(adata, "feature rank")
    assert level == "warn"
    assert "pca_features(adata, 4)" in advice
    frame.loc["d01"] = frame.loc["d00"]
    adata.uns["drug_embedding"] = frame
    assert verdict(adata, "equal features")[0] == "warn"
    adata.uns["drug_embedding"] = frame.drop(index="d05")
    assert verdict(adata, "features")[0] == "fail"


def test_batches_of_their_own(adata):
    """Drugs d06 to d11 on a second plate: separable as long as it has controls or shares a drug."""
    second = adata.obs["perturbation"] >= "d06"
    adata.obs["plate"] = np.where(second, "p2", "p1")
    table = pp.check_screen(adata, batch_key="plate")
    assert table.loc["batch confounding", "verdict"] == "warn"
    assert table.loc["controls per batch", ["value", "verdict"]].tolist() == [0, "warn"]
    assert table.loc["separable from batch", "verdict"] == "fail"
    assert "'d06'" in table.loc["separable from batch", "advice"]
    adata.obs.loc[adata.obs_names[120], "plate"] = "p2"
    table = pp.check_screen(adata, batch_key="plate")
    assert table.loc["separable from batch", "verdict"] == "ok"
    assert table.loc["controls per batch", "verdict"] == "warn"


def test_separability_equals_the_rank_of_the_design():
    rng = np.random.default_rng(0)
    for _ in range(30):
        table = pd.DataFrame(rng.random((4, 6)) < 0.3, columns=["control", *"abcde"]).astype(int)
        table = table.loc[table.sum(axis=1) > 0, table.sum(axis=0) > 0]
        if "control" not in table:
            continue
        batch, drug = np.nonzero(table.to_numpy())
        onehot = np.hstack([np.eye(table.shape[0])[batch], np.eye(table.shape[1])[drug]])
        free = onehot.shape[1] - 1 - np.linalg.matrix_rank(onehot)
        groups, batches = table.columns[drug].to_numpy(), pd.DataFrame({"batch": batch})
        assert (free == 0) == (not inseparable(groups, "control", batches))


def test_cramers_v():
    assert cramers_v(np.diag([50, 50, 50])) == pytest.approx(1.0)
    assert cramers_v(np.full((3, 4), 25)) == 0.0
    assert cramers_v(np.ones((1, 4))) == 0.0
    rng = np.random.default_rng(0)
    assert cramers_v(rng.multinomial(200, np.full(40, 1 / 40)).reshape(2, 20)) < 0.25


def test_what_cannot_be_tabulated_raises(adata):
    with pytest.raises(KeyError, match="`perturbation_key='drug'`"):
        pp.check_screen(adata, perturbation_key="drug")
    with pytest.raises(KeyError, match="`batch_key='well'`"):
        pp.check_screen(adata, batch_key="well")
    with pytest.raises(ValueError, match="No control cells"):
        pp.check_screen(adata, control="DMSO")


def test_advice_is_printed_whole(adata):
    adata.obs = adata.obs.rename(columns={"dosage": "dose_nM"})
    table = pp.check_screen(adata)
    advice = table.loc["doses", "advice"]
    assert "`dosage_key=None` if each perturbation has one dose" in advice
    assert " ".join(advice.split()) in " ".join(repr(table).split())
    assert "..." not in repr(table).replace("=...", "")
    assert advice.replace("'", "&#x27;") in table._repr_html_() or advice in table._repr_html_()
    assert repr(table).splitlines()[0].split() == ["ok", "matrix", "840", "cells", "x", "5", "genes"]


def test_parts_of_the_table_print_as_pandas_does(adata):
    table = pp.check_screen(adata)
    assert repr(table[["value"]]) == repr(pd.DataFrame(table)[["value"]])
    assert "840 cells x 5 genes" in repr(table.head(2))
