"""Real screens, where they are at hand."""

from __future__ import annotations

import anndata
import pandas as pd
import pytest

from scgim import pp


@pytest.fixture
def read(data_dir):
    def _read(name):
        path = data_dir / name
        if not path.is_file():
            pytest.skip(f"no `{path}`")
        return anndata.read_h5ad(path) if name.endswith("h5ad") else pd.read_csv(path, header=None, index_col=0)

    return _read


def test_drugs_of_sciplex3(read):
    pytest.importorskip("rdkit")
    smiles = read("sciplex3_drug_smiles.csv")[1].drop("control", errors="ignore")
    fingerprints = pp.drug_fingerprints(smiles)
    assert fingerprints.shape == (len(smiles), 1024)
    assert fingerprints.sum(axis=1).between(5, 200).all()
    assert pp.drug_descriptors(smiles)["MolWt"].between(50, 2000).all()


def test_drug_without_structure_is_named(read):
    pytest.importorskip("rdkit")
    adata = read("macseq_mcf10a_drugs.h5ad")
    with pytest.raises(ValueError, match="No SMILES for 'MK-2206_dihydrochloride'"):
        pp.drug_fingerprints("smiles", adata=adata)
    rest = adata[adata.obs["perturbation"] != "MK-2206_dihydrochloride"].copy()
    pp.drug_fingerprints("smiles", adata=rest)
    table = pp.check_screen(rest)
    assert table.loc["features", "value"] == "26 drugs x 1024"
    assert table.loc["control cells", ["value", "verdict"]].tolist() == [19, "warn"]


def test_crispr_targets_are_among_the_responding_genes(read):
    adata = read("papalexi2021_eccite_crispr.h5ad")
    chosen = pp.select_genes(adata, 60, dosage_key=None, batch_key="replicate")
    assert chosen[["STAT1", "JAK2", "IFNGR2", "UBE2L6", "PSMB9", "NFKBIA"]].all()
    table = pp.check_screen(adata, dosage_key=None, drug_embedding_key=None, batch_key="replicate")
    assert table.loc["separable from batch", "verdict"] == "ok"
    assert "fail" not in set(table["verdict"])
