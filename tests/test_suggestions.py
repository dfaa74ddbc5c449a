"""Suggested names are other spellings and slips, never another drug of the class."""

from __future__ import annotations

import numpy as np
import pytest

from scgim._validation import close_names

DRUGS = [
    "Dasatinib",
    "Bosutinib",
    "Nilotinib",
    "Pracinostat",
    "Belinostat",
    "Trametinib (GSK1120212)",
    "Simvastatin",
    "JQ1",
]


@pytest.fixture(scope="module")
def drugs(data_dir) -> list[str]:
    """Names of the drugs of a real screen."""
    lines = (data_dir / "sciplex3_drug_smiles.csv").read_text().splitlines()
    return sorted({line.split(",")[0] for line in lines} - {"control", ""})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dasatinib", "Dasatinib"),
        ("Dastinib", "Dasatinib"),
        ("Daasatinb", "Dasatinib"),
        ("Simvastain", "Simvastatin"),
        ("trametinib", "Trametinib (GSK1120212)"),
        ("jq-1", "JQ1"),
        ("Nilotinib (AMN107)", "Nilotinib"),
    ],
)
def test_slips_and_spellings(name, meant):
    assert close_names(name, DRUGS) == [meant]


@pytest.mark.parametrize(
    "name",
    ["Ponatinib", "Lapatinib", "Erlotinib", "Dacinostat", "Panobinostat", "Atorvastatin", "JQ2", "Rituximab", "", "7"],
)
def test_other_drugs_of_a_class_are_not_meant(name):
    assert close_names(name, DRUGS) == []


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("STAT3", ["STAT1"], []),
        ("drug_12", ["drug_10", "drug_11"], []),
        ("drug_07", ["drug_007"], ["drug_007"]),
        ("SRT2105", ["SRT2104", "SRT3025"], ["SRT2104"]),
        ("product", ["n_products_2", "product_name"], ["product_name"]),
        ("cellline", ["cell_line"], ["cell_line"]),
        ("gene", ["genes", "gene_"], ["gene_", "genes"]),
    ],
)
def test_numbers_and_keys(name, known, expected):
    assert close_names(name, known, 2) == expected


def test_names_of_a_real_screen(drugs):
    assert [(a, b) for a in drugs for b in drugs if a < b and close_names(a, [b])] == [("Ruxolitinib", "S-Ruxolitinib")]
    rng = np.random.default_rng(0)
    words = [name for name in drugs if name.isalpha() and len(name) >= 5]
    assert len(words) > 100
    for name in words:
        at = int(rng.integers(1, len(name) - 1))
        for slip in (
            name[:at] + name[at + 1 :],
            name[:at] + "x" + name[at:],
            name[:at] + name[at : at + 2][::-1] + name[at + 2 :],
        ):
            assert close_names(slip, drugs) == [name], slip
