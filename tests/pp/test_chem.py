from __future__ import annotations

import sys

import anndata
import numpy as np
import pandas as pd
import pytest

from scgim import pp

pytest.importorskip("rdkit")

SMILES = {"aspirin": "CC(=O)Oc1ccccc1C(=O)O", "ethanol": "CCO", "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C"}


@pytest.fixture
def adata():
    labels = ["control", "control", "aspirin", "aspirin", "ethanol", "ethanol"]
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(6)])
    obs["smiles"] = obs["perturbation"].map(SMILES)
    return anndata.AnnData(np.ones((6, 2), dtype=np.float32), obs=obs)


def test_fingerprints_equal_those_of_rdkit():
    from rdkit import Chem
    from rdkit.Chem import AllChem

    found = pp.drug_fingerprints(SMILES, radius=2, n_bits=256)
    assert found.shape == (3, 256)
    generator = AllChem.GetMorganGenerator(radius=2, fpSize=256)
    for name, smiles in SMILES.items():
        expected = set(generator.GetFingerprint(Chem.MolFromSmiles(smiles)).GetOnBits())
        assert set(np.flatnonzero(found.loc[name])) == expected


def test_fingerprints_do_not_depend_on_how_a_molecule_is_written():
    found = pp.drug_fingerprints(["OCC", "CCO"])
    assert list(found.index) == ["OCC", "CCO"]
    np.testing.assert_array_equal(found.iloc[0], found.iloc[1])


@pytest.mark.parametrize("make", [dict, pd.Series])
def test_mapping_and_series_agree(make):
    pd.testing.assert_frame_equal(pp.drug_fingerprints(make(SMILES)), pp.drug_fingerprints(SMILES))


def test_descriptors_have_known_values():
    found = pp.drug_descriptors(SMILES)
    assert found.loc["aspirin", "MolWt"] == pytest.approx(180.16, abs=0.01)
    assert found.loc["aspirin", "TPSA"] == pytest.approx(63.6, abs=0.01)
    assert found["NumHDonors"].tolist() == [1, 1, 0]
    for chosen in ("MolWt", ["MolWt"]):
        assert list(pp.drug_descriptors(SMILES, descriptors=chosen).columns) == ["MolWt"]


def test_alignment_writes_the_perturbations_of_the_screen(adata):
    found = pp.drug_fingerprints({**SMILES, "control": "CS(C)=O"}, adata=adata, n_bits=64)
    assert list(found.index) == list(SMILES)
    stored = adata.uns["drug_embedding"]
    assert list(stored.index) == ["aspirin", "ethanol"]
    np.testing.assert_array_equal(stored, found.loc[["aspirin", "ethanol"]])


def test_column_of_obs(adata):
    found = pp.drug_descriptors("smiles", adata=adata, key_added="descriptors")
    assert sorted(found.index) == ["aspirin", "ethanol"]
    assert "descriptors" in adata.uns


def test_substructures_of_the_bits_of_the_screen(adata):
    from rdkit import Chem

    adata.obs["smiles"] = adata.obs["smiles"].str.replace("CCO", "CC[NH3+].[Cl-]")  # a salt is of two parts
    pp.drug_fingerprints("smiles", adata=adata, n_bits=512)
    bits, known = adata.uns["drug_embedding"], adata.uns["drug_embedding_substructures"]
    assert set(known.index) == set(bits.columns[bits.any()])
    for bit, row in known.iterrows():
        having = bits.index[bits[bit] == 1]
        assert row["drug"] in having
        assert 1 <= row["n_drugs"] <= len(having)
        molecule = Chem.MolFromSmiles(row["smiles"])
        assert 0 <= row["atom"] < molecule.GetNumAtoms()
        assert 0 <= row["radius"] <= 2
        # the example alone has the bit, and holds the substructure
        alone = pp.drug_fingerprints({"one": row["smiles"]}, n_bits=512)
        assert alone.loc["one", bit] == 1
        assert molecule.HasSubstructMatch(Chem.MolFromSmarts(row["substructure"]))


def test_aligned_features_survive_h5ad(adata, tmp_path):
    pp.drug_fingerprints("smiles", adata=adata, n_bits=32)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad").uns["drug_embedding"]
    pd.testing.assert_frame_equal(read, adata.uns["drug_embedding"], check_dtype=False)


@pytest.mark.parametrize("function", [pp.drug_fingerprints, pp.drug_descriptors])
@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ({"ok": "CCO", "broken": "C1CC("}, "1 of 2 SMILES cannot be read by RDKit: 'broken: C1CC.'"),
        ({"ok": "CCO", "none": None}, "No SMILES for 'none'"),
        ({"ok": "CCO", "na": "NA"}, "No SMILES for 'na'"),
        (pd.Series(["CCO", "CC"], index=["x", "x"]), "Drugs are repeated in `smiles`: 'x'"),
        ({}, "no drugs"),
        ("smiles", "names a column of `adata.obs`: pass `adata`"),
    ],
)
def test_wrong_structures(function, smiles, message):
    with pytest.raises(ValueError, match=message):
        function(smiles)


def test_structures_that_do_not_match_the_screen(adata):
    with pytest.raises(ValueError, match="1 of 2 perturbations .* have no SMILES: 'aspirin'"):
        pp.drug_fingerprints({"ethanol": "CCO"}, adata=adata)
    adata.obs.loc["c5", "smiles"] = "CCC"
    with pytest.raises(ValueError, match="Cells of 'ethanol' differ in `adata.obs.'smiles'"):
        pp.drug_fingerprints("smiles", adata=adata)
    with pytest.raises(KeyError, match="`smiles='smile'`.*'smiles'"):
        pp.drug_fingerprints("smile", adata=adata)


def test_unknown_descriptor():
    with pytest.raises(KeyError, match="`descriptors='MolWeight'`"):
        pp.drug_descriptors(SMILES, descriptors=["MolWeight"])


def test_without_rdkit(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r'pip install "scgim\[chem\]"'):
        pp.drug_fingerprints(SMILES)
