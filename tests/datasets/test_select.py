from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from scgim.datasets._select import cached, match_names, subsample


def test_names_by_their_beginning():
    names = ["Trametinib (GSK1120212)", "TAK-901", "AG-14361", "AG-490"]
    assert match_names(["trametinib", "TAK-901"], names, argument="drugs") == ["Trametinib (GSK1120212)", "TAK-901"]
    assert match_names("tak", names, argument="drugs") == ["TAK-901"]
    assert match_names(None, names, argument="drugs") == sorted(names)
    with pytest.raises(ValueError, match="`drugs='AG'` fits several: 'AG-14361', 'AG-490'"):
        match_names(["AG"], names, argument="drugs")
    with pytest.raises(KeyError, match=r"`drugs='TAK901'`.*Did you mean 'TAK-901'"):
        match_names(["TAK901"], names, argument="drugs")


def test_subsample_keeps_proportions_and_order():
    obs = pd.DataFrame({"drug": np.repeat(["a", "b", "c"], [600, 300, 100])}, index=[f"c{i}" for i in range(1000)])
    found = subsample(obs, 100, ["drug"], seed=0)
    assert found["drug"].value_counts().to_dict() == {"a": 60, "b": 30, "c": 10}
    assert found.index.equals(obs.index[obs.index.isin(found.index)])
    assert subsample(obs, 100, ["drug"], seed=0).equals(found)
    assert not subsample(obs, 100, ["drug"], seed=1).equals(found)
    assert subsample(obs, None, ["drug"], seed=0) is obs
    with pytest.raises(ValueError, match="`n_cells=0`"):
        subsample(obs, 0, ["drug"], seed=0)


def test_results_are_cached_by_arguments(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return anndata.AnnData(np.full((2, 2), len(calls), dtype=np.float32))

    arguments = {"drugs": pd.Index(["a"]), "seed": np.int64(0)}
    assert cached("x", arguments, tmp_path, make).X[0, 0] == 1
    assert cached("x", {"drugs": ("a",), "seed": 0}, tmp_path, make).X[0, 0] == 1
    assert cached("x", {"drugs": ["b"], "seed": 0}, tmp_path, make).X[0, 0] == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_result_that_cannot_be_made_leaves_nothing(tmp_path):
    def make():
        return anndata.AnnData(np.ones((2, 2), dtype=np.float32), uns={"bad": object()})

    with pytest.raises(Exception, match="bad"):
        cached("x", {}, tmp_path, make)
    assert list(tmp_path.iterdir()) == []
