from __future__ import annotations

import numpy as np
import pytest

from scgim import datasets
from scgim.datasets import _papalexi

CELLS = [f"l1_{i}" for i in range(20)]
GENES = ["STAT1", "JAK2", "NEVER"]


@pytest.fixture
def counts():
    counts = np.random.default_rng(0).poisson(2.0, (20, 3)) + 1
    counts[:, 2] = 0
    return counts


@pytest.fixture(params=["named", "unnamed"])
def geo(serve, counts, request):
    """R writes a table with, or without, an (empty) name for the column of row names."""
    corner = '""\t' if request.param == "named" else ""
    header = corner + "\t".join(f'"{c}"' for c in CELLS)
    rows = ["\t".join([f'"{g}"', *map(str, counts[:, j])]) for j, g in enumerate(GENES)]
    columns = ["orig.ident", "nCount_RNA", "guide_ID", "gene", "replicate", "Phase"]
    labels = [corner + "\t".join(f'"{c}"' for c in columns)]
    for i, cell in reversed(list(enumerate(CELLS))):
        gene = "NT" if i < 10 else ("STAT1" if i < 15 else "JAK2")
        labels.append("\t".join([cell, "Lane1", str(counts[i].sum()), f"{gene}g1", gene, f"rep{i % 2 + 1}", "G1"]))
    serve(_papalexi, "PAPALEXI", {"counts": "\n".join([header, *rows]) + "\n", "labels": "\n".join(labels) + "\n"})


def test_papalexi(geo, counts, tmp_path):
    adata = datasets.papalexi_2021(cache_dir=tmp_path, progress=False)
    assert list(adata.var_names) == ["STAT1", "JAK2"]
    np.testing.assert_array_equal(adata[CELLS].X.toarray(), counts[:, :2])
    assert adata.obs["perturbation"].value_counts().to_dict() == {"control": 10, "STAT1": 5, "JAK2": 5}
    assert adata.obs.loc["l1_12", ["dosage", "guide", "replicate"]].tolist() == [1.0, "STAT1g1", "rep1"]
    assert (adata.obs["dosage"] == (adata.obs["perturbation"] != "control")).all()


def test_subset(geo, tmp_path):
    adata = datasets.papalexi_2021(perturbations=["STAT1"], n_cells=9, cache_dir=tmp_path, progress=False)
    assert adata.n_obs == 9
    assert set(adata.obs["perturbation"]) == {"control", "STAT1"}
    with pytest.raises(KeyError, match="`perturbations='STAT9'`"):
        datasets.papalexi_2021(perturbations=["STAT9"], cache_dir=tmp_path, progress=False)
