"""Preparation of screens in which cells got several drugs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgim.pp import check_screen, select_genes, split_by_context

PAIRS = ("a+b", "b+a", "b+c", "c+d")


def screen(n: int = 30) -> AnnData:
    labels = np.repeat(["control", "a", "b", "c", *PAIRS], n)
    dosage = ["0" if x == "control" else "+".join(["1", "2"][: x.count("+") + 1]) for x in labels]
    obs = pd.DataFrame({"perturbation": labels, "dosage": dosage}, index=[f"cell_{i}" for i in range(len(labels))])
    x = np.random.default_rng(0).poisson(5.0, (len(labels), 6)).astype(np.float32)
    x[labels == "b+c", 3] *= 4
    adata = AnnData(x, obs=obs, var=pd.DataFrame(index=[f"gene_{j}" for j in range(6)]))
    adata.uns["drug_embedding"] = pd.DataFrame(np.eye(4), list("abcd"))
    return adata


@pytest.mark.parametrize(
    ("sign", "labels", "found"),
    [
        ("+", ["a+b", "b+c"], "2 joined by '+'"),
        ("+", ["x+y"], "1 joined by '+'"),
        ("_", ["a_b", "a_x"], "1 joined by '_'"),
        ("|", ["b|c", "b|control"], "2 joined by '|'"),
        ("+", ["(+)-JQ1", "a_x"], None),
        ("+", ["Na+/K+ ATPase inhibitor", "a_x"], None),
    ],
)
def test_a_separator_that_was_left_out_is_named(sign, labels, found):
    adata = screen()
    names = np.repeat(["control", "a", "b", "c", *labels], 30)
    adata = adata[: len(names)].copy()
    adata.obs["perturbation"] = names
    table = check_screen(adata, dosage_key=None, drug_embedding_key=None)
    if found is None:
        assert "combinations" not in table.index
        return
    value, verdict, advice = table.loc["combinations"]
    assert (value, verdict) == (found, "warn")
    assert f"{labels[0]!r}" in advice
    assert f"`combination_separator={sign!r}`" in advice


def test_combinations_are_held_out_whatever_the_order_of_their_names():
    adata = screen()
    adata.obs.loc[adata.obs["perturbation"] == "b+a", "dosage"] = "2+1"  # as in "a+b"
    held = set()
    for seed in range(30):
        split_by_context(adata, "combinations", fraction=0.3, combination_separator="+", seed=seed)
        test = set(adata.obs["perturbation"][adata.obs["split"] == "test"])
        assert test in ({"a+b", "b+a"}, {"b+c"}, {"c+d"})
        held |= test
    assert held == set(PAIRS)


def test_a_drug_is_held_out_in_all_its_combinations():
    adata = screen()
    split_by_context(adata, "drugs", fraction=0.25, combination_separator="+", seed=0)
    test = set(adata.obs["perturbation"][adata.obs["split"] == "test"])
    labels = set(adata.obs["perturbation"])
    assert any(test == {label for label in labels if drug in label.split("+")} for drug in "abcd")


def test_combinations_are_held_out_by_name():
    adata = screen()
    split_by_context(adata, ["b:1+c:2"], combination_separator="+")
    assert set(adata.obs["perturbation"][adata.obs["split"] == "test"]) == {"b+c"}


def test_where_there_are_no_combinations_none_can_be_held_out():
    adata = screen()
    adata.obs["dosage"] = (adata.obs["perturbation"] != "control").astype(float)
    with pytest.raises(ValueError, match="Name the `combination_separator`"):
        split_by_context(adata, "combinations")


def test_a_gene_that_answers_to_a_combination_is_chosen():
    adata = screen()
    with pytest.raises(ValueError, match="holds text such as"):
        select_genes(adata, 2, keep=["gene_0"])
    chosen = select_genes(adata, 3, keep=["gene_0"], combination_separator="+")
    assert chosen["gene_3"]
    assert adata.var["response_f"].idxmax() == "gene_3"


def test_a_check_reads_combinations_and_features_of_drugs():
    table = check_screen(screen(), combination_separator="+")
    assert table.loc["combinations", "value"] == 4
    assert table.loc["combinations", "verdict"] == "ok"
    assert table.loc["features", "value"] == "4 drugs x 4"
    assert (table["verdict"] != "fail").all()


def test_a_check_names_drugs_that_were_only_given_together():
    adata = screen()
    adata = adata[~adata.obs["perturbation"].isin(["b", "a", "b+a", "b+c"])].copy()
    table = check_screen(adata, combination_separator="+")
    assert table.loc["combinations", "verdict"] == "warn"
    assert "'a+b'" in table.loc["combinations", "advice"]
