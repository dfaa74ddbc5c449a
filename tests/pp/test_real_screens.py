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
    assert table.loc["control wells", ["value", "verdict"]].tolist() == [19, "warn"]


def test_crispr_targets_are_among_the_responding_genes(read):
    adata = read("papalexi2021_eccite_crispr.h5ad")
    chosen = pp.select_genes(adata, 60, dosage_key=None, batch_key="replicate")
    assert chosen[["STAT1", "JAK2", "IFNGR2", "UBE2L6", "PSMB9", "NFKBIA"]].all()
    table = pp.check_screen(adata, dosage_key=None, drug_embedding_key=None, batch_key="replicate")
    assert table.loc["separable from batch", "verdict"] == "ok"
    assert "fail" not in set(table["verdict"])
    assert "kind" not in table.index


def test_plate_of_continuous_values(read):
    """L1000, level 3: one well a context, doses along columns, drugs along rows."""
    adata = read("l1000_ljp005_a375_24h.h5ad")
    table = pp.check_screen(adata, drug_embedding_key=None)
    assert table.loc["kind", "value"] == "bulk plate"
    assert table.loc["values", "value"] == "continuous, 3.23 to 15"
    assert "raw counts" not in " ".join(table["advice"])
    assert table.loc["control wells", ["value", "verdict"]].tolist() == [26, "warn"]
    assert table.loc["wells per context", "value"] == "median 1, least 1"
    assert table.loc["plate columns", "value"].endswith("0.97 with dose and 0.00 with drug")
    assert table.loc["plate rows", "value"] == "controls in 5 of 16, Cramer's V 0.00 with dose and 0.93 with drug"
    assert "fail" not in set(table["verdict"])
    pp.plate_position(adata)
    table = pp.check_screen(adata, drug_embedding_key=None, categorical_covariate_keys=["plate_row"])
    assert table.loc["separable from covariates", ["value", "verdict"]].tolist() == ["262 of 351 contexts not", "fail"]


def test_plate_of_counts(read):
    """MAC-seq: three wells a context, laid out such that neither doses nor drugs go with a row or column."""
    adata = read("macseq_mcf10a_drugs.h5ad")
    table = pp.check_screen(adata, drug_embedding_key=None, categorical_covariate_keys=["row", "column"])
    assert table.loc["kind", "value"] == "bulk plate"
    assert table.loc["counts", "value"] == "raw counts, median 831 a well"
    assert table.loc["wells per context", ["value", "verdict"]].tolist() == ["median 3, least 3", "ok"]
    assert set(table.loc[["plate rows", "plate columns"], "verdict"]) == {"ok"}
    assert table.loc["separable from covariates", "value"] == "0 of 81 contexts not"
    without = adata.copy()
    without.obs = without.obs.drop(columns=["row", "column"])
    assert pp.check_screen(without).loc["kind", "value"] == "bulk plate"


def test_cells_of_patients_are_no_plate(read):
    adata = read("zhao2021_gbm_panobinostat.h5ad")
    table = pp.check_screen(adata, drug_embedding_key=None, categorical_covariate_keys=["patient"])
    assert "kind" not in table.index
    assert table.loc["cells per context", "verdict"] == "ok"
    assert table.loc["separable from covariates", "verdict"] == "ok"
