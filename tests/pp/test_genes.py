from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scgim import pp
from scgim.pp._genes import _response


@pytest.fixture
def adata():
    """60 genes; drugs move genes 0 and 1, controls vary in genes 10 to 14, gene 59 is nearly absent."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", "a", "b"], [150, 60, 60])
    log_mean = np.full((270, 60), 1.0)
    log_mean[labels == "a", 0] += 1.5
    log_mean[labels == "b", 1] -= 1.5
    log_mean[:, 10:15] += rng.normal(0, 1.2, (270, 5))
    X = rng.poisson(np.exp(log_mean)).astype(np.float32)
    X[:, 59] = 0
    X[:3, 59] = 1
    obs = pd.DataFrame(
        {"perturbation": labels, "dosage": (labels != "control") * 1.0}, index=[f"c{i}" for i in range(270)]
    )
    obs["plate"] = pd.Categorical(np.tile(["p1", "p2"], 135))
    return anndata.AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(60)]))


def test_responding_and_variable_genes_come_first(adata):
    chosen = pp.select_genes(adata, 8)
    assert {"g0", "g1", "g10", "g11", "g12", "g13", "g14"} < set(adata.var_names[chosen])
    assert (adata.var["response_pval_adj"][:2] < 1e-6).all()
    assert (adata.var["response_pval_adj"][2:] > 0.05).sum() >= 56
    assert (adata.var["control_variance"][10:15] > 5).all()
    assert (adata.var["control_variance"][15:] < 1.5).all()


@pytest.mark.parametrize("make", [lambda x: x.toarray(), sparse.csc_matrix, lambda x: x.astype(np.int64)])
def test_matrix_type_does_not_matter(adata, make):
    other = adata.copy()
    other.X = make(other.X)
    pd.testing.assert_series_equal(pp.select_genes(adata, 9), pp.select_genes(other, 9))
    pd.testing.assert_frame_equal(adata.var, other.var)


def test_counts_are_not_changed_and_layers_work(adata):
    before = adata.X.copy()
    expected = pp.select_genes(adata, 7).copy()
    assert abs(adata.X - before).max() == 0
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    pd.testing.assert_series_equal(pp.select_genes(adata, 7, layer="counts"), expected)


def test_size_factors_come_from_all_genes(adata):
    pp.select_genes(adata, 7)
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(adata.obs["size_factor"], totals / totals.mean())


def test_rare_genes_are_chosen_only_on_request(adata):
    assert not pp.select_genes(adata, 59)["g59"]
    chosen = pp.select_genes(adata, 3, keep=["g59"])
    assert chosen["g59"]
    assert chosen.sum() == 3


def test_f_statistic_equals_that_of_scipy(adata):
    X = np.log1p(adata.X.toarray().astype(np.float64))
    codes = pd.factorize(adata.obs["perturbation"])[0]
    f, p = _response(sparse.csr_matrix(X), codes, np.zeros(len(codes), dtype=int))
    expected = stats.f_oneway(*[X[codes == k] for k in range(3)])
    np.testing.assert_allclose(f, expected.statistic)
    np.testing.assert_allclose(p, expected.pvalue)


def test_response_is_read_within_batches(adata):
    """A gene that only differs between plates responds to nothing once plates are taken into account."""
    rng = np.random.default_rng(1)
    unbalanced = (adata.obs["perturbation"] == "a").to_numpy() | (rng.random(adata.n_obs) < 0.3)
    adata.obs["plate"] = np.where(unbalanced & (rng.random(adata.n_obs) < 0.9), "p2", "p1")
    X = adata.X.toarray()
    X[(adata.obs["plate"] == "p2").to_numpy(), 20] += 6
    adata.X = X
    pp.select_genes(adata, 7)
    assert adata.var.loc["g20", "response_pval_adj"] < 1e-6
    pp.select_genes(adata, 7, batch_key="plate")
    assert adata.var.loc["g20", "response_pval_adj"] > 0.01


def test_constant_genes_do_not_respond(adata):
    f, p = _response(sparse.csr_matrix(np.full((6, 2), 0.3)), np.array([0, 0, 1, 1, 2, 2]), np.zeros(6, dtype=int))
    assert (f == 0).all()
    assert (p == 1).all()


def test_wrong_input(adata):
    with pytest.raises(ValueError, match="`n_genes=60` is out of range: 59 genes"):
        pp.select_genes(adata, 60)
    with pytest.raises(KeyError, match="`keep='G59'`.*'g59'"):
        pp.select_genes(adata, 5, keep=["G59"])
    with pytest.raises(KeyError, match="`batch_key='plates'`"):
        pp.select_genes(adata, 5, batch_key="plates")
    adata.X = adata.X.log1p()
    with pytest.raises(ValueError, match="fractional values in `adata.X`"):
        pp.select_genes(adata, 5)


def test_designs_that_say_nothing(adata):
    adata.obs["plate"] = adata.obs["perturbation"]
    with pytest.raises(ValueError, match="No batch has two contexts"):
        pp.select_genes(adata, 5, batch_key="plate")
    X = adata.X.toarray()
    X[4] = 0
    adata.X = X
    with pytest.raises(ValueError, match="1 cells have no counts at all in `adata.X`"):
        pp.select_genes(adata, 5)
