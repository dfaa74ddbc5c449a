"""Regulators are marked by name."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgim.pp import mark_regulators
from scgim.pp._mark_regulators import known_regulators


def screen(*genes):
    return ad.AnnData(np.ones((2, len(genes)), dtype=np.float32), var=pd.DataFrame(index=list(genes)))


@pytest.mark.parametrize(
    ("organism", "genes"), [("human", ["STAT1", "MAPK1", "ACTB"]), ("mouse", ["Stat1", "Mapk1", "Actb"])]
)
def test_transcription_factors_and_kinases_are_marked(organism, genes):
    adata = screen(*genes)
    mark_regulators(adata, organism)
    assert adata.var["regulator"].tolist() == [True, True, False]
    assert adata.var["regulator"].dtype == bool


def test_a_list_is_taken_as_it_is():
    adata = screen("a", "b", "c")
    mark_regulators(adata, ["b", "z"], key_added="may")
    assert adata.var["may"].tolist() == [False, True, False]


def test_lists_hold_symbols_once():
    names = known_regulators("human")
    assert len(names) == len(set(names)) > 900
    assert not [name for name in names if name != name.strip() or " " in name]
    assert {"TP53", "MYC", "JAK2", "IRF1"} <= set(names)


def test_few_matches_are_warned_of_and_none_is_an_error():
    genes = [f"gene_{i}" for i in range(99)]
    with pytest.warns(UserWarning, match="Only 1 of 100 genes"):
        mark_regulators(screen("STAT1", *genes))
    with pytest.raises(ValueError, match="None of the 99 genes.*'gene_0'"):
        mark_regulators(screen(*genes))
    with pytest.raises(ValueError, match="must be one of .*'rat'"):
        mark_regulators(screen("Stat1"), "rat")
