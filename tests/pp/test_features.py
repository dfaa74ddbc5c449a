from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from scgim import pp


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    names = [f"f{i}" for i in range(6)]
    return pd.DataFrame(rng.normal(size=(8, 6)), index=[f"drug{i}" for i in range(8)], columns=names)


def test_all_components_keep_all_distances(features):
    found = pp.pca_features(features, 6)
    x, z = features.to_numpy(), found.to_numpy()
    distances = [np.linalg.norm(values[:, None] - values[None], axis=-1) for values in (x, z)]
    np.testing.assert_allclose(*distances)
    assert list(found.columns) == [f"PC{i}" for i in range(1, 7)]
    assert (np.diff(z.var(axis=0)) <= 0).all()


def test_reference_defines_the_components(features):
    whole = pp.pca_features(features, 3)
    shuffled = features.iloc[2:4][features.columns[::-1]]
    pd.testing.assert_frame_equal(pp.pca_features(shuffled, 3, reference=features), whole.iloc[2:4])


def test_scaling_removes_units(features):
    other = features.assign(f0=features["f0"] * 1000)
    pd.testing.assert_frame_equal(pp.pca_features(other, 3, scale=True), pp.pca_features(features, 3, scale=True))


def test_constant_columns_can_be_scaled(features):
    found = pp.pca_features(features.assign(f0=3.0), 3, scale=True)
    assert np.isfinite(found.to_numpy()).all()


def test_anndata_gets_the_result(features):
    adata = anndata.AnnData(np.ones((2, 2)), uns={"drug_embedding": features})
    found = pp.pca_features(adata, 2)
    pd.testing.assert_frame_equal(adata.uns["drug_embedding_pca"], found)
    pd.testing.assert_frame_equal(pp.pca_features(features, 2, reference=adata), found)


@pytest.mark.parametrize("scale", [False, True])
def test_loadings_say_how_a_feature_moves_the_components(features, scale):
    adata = anndata.AnnData(np.ones((2, 2)), uns={"drug_embedding": features.assign(f3=1.0, f1=features["f1"] * 50)})
    table = adata.uns["drug_embedding"]
    found = pp.pca_features(adata, 3, scale=scale)
    loadings = adata.uns["drug_embedding_pca_loadings"]
    assert loadings.index.tolist() == ["f0", "f1", "f2", "f4", "f5"]  # the constant one moves nothing
    assert loadings.columns.tolist() == found.columns.tolist()
    for name in loadings.index:
        moved = table.assign(**{name: table[name] + table[name].std(ddof=0)})
        change = pp.pca_features(moved, 3, scale=scale, reference=table) - found
        np.testing.assert_allclose(change / found.std(ddof=0), np.tile(loadings.loc[name], (8, 1)), atol=1e-9)


def test_what_bits_stand_for_goes_with_the_components(features):
    known = pd.DataFrame({"substructure": "C"}, index=["f0"])
    adata = anndata.AnnData(np.ones((2, 2)), uns={"mine": features, "mine_substructures": known})
    pp.pca_features(adata, 2, key="mine", key_added="few")
    pd.testing.assert_frame_equal(adata.uns["few_substructures"], known)
    assert "few_loadings" in adata.uns


def test_wrong_input(features):
    with pytest.raises(ValueError, match="8 drugs with 6 features have between 1 and 6"):
        pp.pca_features(features, 7)
    with pytest.raises(ValueError, match="between 1 and 2"):
        pp.pca_features(features.iloc[:3], 3)
    with pytest.raises(ValueError, match="lacks 'f5'"):
        pp.pca_features(features.drop(columns="f5"), 2, reference=features)
    with pytest.raises(ValueError, match="NaN"):
        pp.pca_features(features.assign(f0=np.nan), 2)
    with pytest.raises(KeyError, match="`key='drug_embedding'` is not in `adata.uns`"):
        pp.pca_features(anndata.AnnData(np.ones((2, 2))), 2)
