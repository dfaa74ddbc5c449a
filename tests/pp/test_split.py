from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgim.pp import split_by_context


def screen(n_drugs=10, doses=(0.1, 1.0, 10.0), n_cells=3) -> AnnData:
    rows = [("control", 0.0)] * 5 + [(f"d{i}", dose) for i in range(n_drugs) for dose in doses for _ in range(n_cells)]
    obs = pd.DataFrame(rows, columns=["perturbation", "dosage"], index=[f"c{i}" for i in range(len(rows))])
    obs["perturbation"] = obs["perturbation"].astype("category")
    obs = obs.sample(frac=1, random_state=0)
    return AnnData(np.ones((len(obs), 2), dtype=np.float32), obs=obs)


def held_out(adata, **kwargs) -> set[tuple[str, float]]:
    """Contexts marked as test, after checking that no context is on both sides and that controls are in training."""
    assert split_by_context(adata, **kwargs) is None
    split = adata.obs[kwargs.get("key_added", "split")]
    assert split.cat.categories.tolist() == ["train", "test"]
    assert (split[adata.obs["perturbation"] == "control"] == "train").all()
    per_context = split.groupby([adata.obs["perturbation"], adata.obs["dosage"]], observed=True).nunique()
    assert (per_context == 1).all()
    test = adata.obs[split == "test"]
    return set(zip(test["perturbation"], test["dosage"], strict=True))


def test_drugs_are_held_out_with_all_their_doses():
    test = held_out(screen(), hold_out="drugs", fraction=0.3)
    drugs = {drug for drug, _ in test}
    assert len(drugs) == 3
    assert test == {(drug, dose) for drug in drugs for dose in (0.1, 1.0, 10.0)}


def test_at_least_one_drug_on_either_side():
    assert len(held_out(screen(n_drugs=2, doses=(1.0,)), fraction=0.01)) == 1
    assert len(held_out(screen(n_drugs=2, doses=(1.0,)), fraction=0.99)) == 1


def test_doses_leave_every_drug_in_training():
    for seed in range(5):
        test = held_out(screen(), hold_out="doses", fraction=0.6, seed=seed)
        assert len(test) == 18
        assert pd.Series([drug for drug, _ in test]).value_counts().max() == 2
    assert len(held_out(screen(), hold_out="doses", fraction=0.95)) == 20


def test_highest_dose():
    adata = screen(n_drugs=3)
    adata = adata[~((adata.obs["perturbation"] == "d1") & (adata.obs["dosage"] != 1.0)).to_numpy()].copy()
    assert held_out(adata, hold_out="highest_dose") == {("d0", 10.0), ("d2", 10.0)}


def test_names_and_contexts():
    test = held_out(screen(), hold_out=["d3", ("d4", 1.0)], key_added="mine")
    assert test == {("d3", 0.1), ("d3", 1.0), ("d3", 10.0), ("d4", 1.0)}


def test_doses_in_mol_per_litre_are_told_apart():
    adata = screen(doses=(1e-10, 1e-9, 1e-8))
    assert held_out(adata, hold_out=[("d4", 1e-9)]) == {("d4", 1e-9)}


def test_same_seed_same_split_whatever_the_order_of_cells():
    adata = screen()
    first = held_out(adata, seed=3)
    assert held_out(adata[::-1].copy(), seed=3) == first
    assert any(held_out(adata, seed=seed) != first for seed in range(4, 8))


def test_one_dose_without_a_dosage_column():
    adata = screen(doses=(1.0,))
    adata.obs = adata.obs.rename(columns={"perturbation": "drug"}).drop(columns="dosage")
    split_by_context(adata, perturbation_key="drug", dosage_key=None, fraction=0.4)
    assert adata.obs.loc[adata.obs["split"] == "test", "drug"].nunique() == 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"perturbation_key": "drug"}, KeyError, "drug"),
        ({"dosage_key": "dose"}, KeyError, "dose"),
        ({"control": "DMSO"}, ValueError, "DMSO"),
        ({"hold_out": "cells"}, ValueError, "hold_out"),
        ({"hold_out": ["aspirin"]}, ValueError, "'aspirin', which has no cells"),
        ({"hold_out": [("d1", 5.0)]}, ValueError, "at dose 5.0, which has no cells. Its doses: '0.1', '1.0', '10.0'"),
        ({"hold_out": ["control"]}, ValueError, "always in training"),
        ({"hold_out": [f"d{i}" for i in range(10)]}, ValueError, "nothing is left to train on"),
        ({"fraction": 1.5}, ValueError, "`fraction` between 0 and 1, found 1.5"),
    ],
)
def test_wrong_input(options, error, message):
    with pytest.raises(error, match=message):
        split_by_context(screen(), **options)


def test_nothing_to_hold_out():
    with pytest.raises(ValueError, match="No perturbation has two doses"):
        split_by_context(screen(doses=(1.0,)), "doses")
    with pytest.raises(ValueError, match="Only 'd0' was measured"):
        split_by_context(screen(n_drugs=1), "drugs")
