from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from scgim import datasets


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(2.0, (12, 3)).astype(np.float32)


def written(folder, name, counts, **columns):
    obs = pd.DataFrame(columns, index=[f"cell_{i}" for i in range(len(counts))])
    adata = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=["STAT1", "JAK2", "ISG15"]))
    adata.write_h5ad(folder / name)
    return folder / name


@pytest.fixture
def kang(tmp_path, counts):
    columns = {
        "group_id": ["ctrl", "stim"] * 6,
        "cluster_id": ["B cells"] * 6 + ["CD4 T cells"] * 6,
        "patient": [101, 107, 107] * 4,
    }
    return written(tmp_path, "kang_part.h5ad", counts, **columns)


@pytest.fixture
def papalexi(tmp_path, counts):
    columns = {
        "perturbation": ["control"] * 6 + ["STAT1"] * 3 + ["JAK2"] * 3,
        "guide": ["g1"] * 12,
        "replicate": ["rep_1"] * 12,
    }
    return written(tmp_path, "papalexi_part.h5ad", counts, **columns)


def test_kang_is_read_from_a_file_or_its_folder(kang, counts):
    for path in (kang, str(kang.parent)):
        adata = datasets.kang_2018(path)
        np.testing.assert_array_equal(adata.X.toarray(), counts)
        assert adata.obs["perturbation"].tolist() == ["control", "interferon"] * 6
        assert adata.obs["dosage"].tolist() == [0.0, 1.0] * 6
        assert adata.obs["cell_type"].value_counts().to_dict() == {"B cells": 6, "CD4 T cells": 6}
        assert set(adata.obs["patient"]) == {"101", "107"}
        np.testing.assert_array_equal(adata.obs["n_umi"], counts.sum(1))


def test_counts_are_taken_from_their_layer(kang, counts):
    adata = anndata.read_h5ad(kang)
    adata.layers["counts"], adata.X = adata.X.copy(), np.log1p(adata.X)
    adata.write_h5ad(kang)
    np.testing.assert_array_equal(datasets.kang_2018(kang).X.toarray(), counts)


def test_papalexi_is_read_from_a_file(papalexi, counts):
    adata = datasets.papalexi_2021(papalexi.parent, perturbations=["JAK2"])
    assert adata.obs["perturbation"].value_counts().to_dict() == {"control": 6, "JAK2": 3}
    np.testing.assert_array_equal(adata.X.toarray(), counts[[*range(6), 9, 10, 11]])
    assert adata.obs["dosage"].tolist() == [0.0] * 6 + [1.0] * 3
    np.testing.assert_array_equal(adata.obs["n_umi"], adata.X.toarray().sum(1))


def test_what_cannot_be_read_says_where_the_data_come_from(kang, papalexi, tmp_path):
    for path in (None, tmp_path / "missing.h5ad"):
        with pytest.raises(FileNotFoundError, match="GSE96583"):
            datasets.kang_2018(path)
    with pytest.raises(FileNotFoundError, match="There is no such file or folder.*GSE153056"):
        datasets.papalexi_2021(tmp_path / "missing")
    (tmp_path / "kang_again.h5ad").write_bytes(kang.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"2 files are called like `kang\*.h5ad`"):
        datasets.kang_2018(tmp_path)
    with pytest.raises(KeyError, match="lacks the columns.*group_id"):
        datasets.kang_2018(papalexi)
    adata = anndata.read_h5ad(kang)
    adata.obs["group_id"] = adata.obs["group_id"].astype(str).replace("stim", "stimulated")
    adata.write_h5ad(kang)
    with pytest.raises(ValueError, match="'stimulated'"):
        datasets.kang_2018(kang)
    adata.X = np.log1p(adata.X)
    adata.write_h5ad(kang)
    with pytest.raises(ValueError, match="counts"):
        datasets.kang_2018(kang)


def test_real_files(data_dir):
    kang = datasets.kang_2018(data_dir)
    assert kang.shape == (1556, 1267)
    assert kang.obs["cell_type"].nunique() == 5
    papalexi = datasets.papalexi_2021(data_dir, n_cells=1000)
    assert papalexi.shape == (1000, 299)
    assert "STAT1" in papalexi.obs["perturbation"].cat.categories
