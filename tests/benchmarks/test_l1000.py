"""The benchmark on L1000 wells: its folds, genes, baselines and ranks of known targets."""

from __future__ import annotations

import importlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest


def load(name: str):
    return importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def plate() -> ad.AnnData:
    """Six drugs at six doses and 4 controls, 5 genes."""
    doses = [0.04, 0.12, 0.37, 1.11, 3.33, 10.0]
    obs = pd.DataFrame({"perturbation": ["control"] * 4 + [drug for drug in "abcdef" for _ in doses]})
    obs["dosage"] = [0.0] * 4 + doses * 6
    obs["targets"] = obs["perturbation"].map({"a": "g1|x", "b": "y", "c": "g0|g4"}).fillna("")
    obs["perturbation"] = obs["perturbation"].astype("category")
    x = np.random.default_rng(0).normal(size=(len(obs), 5))
    genes = pd.DataFrame(index=[f"g{j}" for j in range(5)])
    return ad.AnnData(x, obs.set_index(obs.index.astype(str)), genes)


def test_every_drug_loses_two_doses_a_fold_and_every_context_is_held_out_once(plate):
    held_out = np.stack([split == "test" for split in load("real.l1000").dose_folds(plate)])
    assert held_out.sum(axis=0).tolist() == [0] * 4 + [1] * 36
    for fold in held_out:
        doses = plate.obs[fold].groupby("perturbation", observed=True)["dosage"].agg(list)
        assert doses.map(len).tolist() == [2] * 6
        assert sum(min(pair) == 0.04 for pair in doses) == sum(max(pair) == 10.0 for pair in doses) == 2


def test_genes_that_vary_more_than_in_controls_are_chosen(plate):
    plate.X[4:, 3] *= 50
    plate.X[:, 1] *= 50  # as much in controls
    assert load("real.l1000").varying_genes(plate, 1).tolist() == ["g3"]


def test_excess_is_what_lies_outside_the_training_wells(plate):
    plate.obs["split"] = "train"
    predicted = plate[[4, 5]].copy()
    assert load("real.l1000").excess(plate, predicted) == 0.0
    sd = plate.X[:4, 2].std()
    predicted.X[0, 2] = plate.X[:, 2].max() + 3 * sd
    assert load("real.l1000").excess(plate, predicted) == pytest.approx(3.0)


def test_errors_are_shown_by_dose_and_the_excess_is_the_largest():
    l1000 = load("real.l1000")
    rows = [
        {"perturbation": drug, "dosage": dose, "method": method, "mean_shift_error": value * dose}
        for method, value in {"control": 4.0, l1000.MODEL: 1.0}.items()
        for drug in "abc"
        for dose in (1.0, 2.0, 3.0)
    ]
    errors = pd.DataFrame(rows).assign(mean_shift_correlation=0.0, cpu=5.0, excess=np.tile([0.0, 7.0, 1.0], 6))
    table = l1000.error_table(errors, np.array([1.0, 2.0, 3.0])).set_index("method")
    assert table.loc["scGIM", [*l1000.DOSES.values()]].tolist() == [1.0, 2.0, 3.0]
    assert table.loc["scGIM", "ratio to best baseline"] == 0.25
    assert table.loc["scGIM", [l1000.EXCESS, "CPU seconds a fit"]].tolist() == [7.0, 5.0]
    assert np.isnan(table.loc["control (best baseline)", l1000.EXCESS])


def test_known_targets_that_are_measured_are_ranked(plate):
    known_targets = load("real._known_targets")
    known = known_targets.read(plate)
    assert known == {"a": ["g1"], "c": ["g0", "g4"]}
    drug_a = (plate.obs["perturbation"] == "a").to_numpy()
    plate.X[drug_a, 1] += 100
    plate.X[drug_a, 2] += 50
    ranks = known_targets.simple_ranks(plate)
    assert ranks["z-score"].loc["a", ["g1", "g2"]].tolist() == [1, 2]
    table = known_targets.rank_table(ranks, known)
    assert table.loc["a", "rank: z-score"] == 1
    assert table.loc["c", "rank: z-score"] == ranks["z-score"].loc["c", ["g0", "g4"]].min()
    summary = known_targets.summary(table, 5, known, {"z-score": 2.0}).set_index("method")
    expected = (1 + 1 / table.loc["c", "rank: z-score"]) / 2
    assert summary.loc["z-score", "mean reciprocal rank"] == pytest.approx(expected)
    assert summary.loc["z-score", "CPU seconds"] == 2.0
    assert summary.loc["chance", "drugs"] == 2


@pytest.mark.parametrize(("n_genes", "n_targets"), [(5, 1), (6, 2), (4, 4)])
def test_chance_is_that_of_random_orders(n_genes, n_targets):
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(n_genes), (100_000, 1)), axis=1)
    simulated = (1 / (1 + orders[:, :n_targets].min(axis=1))).mean()
    assert load("real._known_targets").chance(n_genes, n_targets) == pytest.approx(simulated, abs=0.003)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_part_of_the_plate(data_dir):
    pytest.importorskip("rdkit")
    l1000 = load("real.l1000")
    if not (data_dir / l1000.FILE).exists():
        pytest.skip(f"no `{l1000.FILE}` in `{data_dir}`")
    tables = l1000.run(data_dir, quick=True)
    errors = tables["l1000-doses"].set_index("method")
    assert (errors["error"] > 0).all()
    assert errors["ratio to best baseline"].drop("scGIM").min() == 1.0
    assert errors.loc["scGIM", l1000.EXCESS] >= 0
    assert len(tables["l1000-target-ranks"]) == 9
    assert set(tables["l1000-targets"]["method"]) >= {"t-test", "z-score", "chance", "scGIM, probability"}


def test_whole_plate_has_the_drugs_and_targets_that_are_described(data_dir):
    pytest.importorskip("rdkit")
    l1000 = load("real.l1000")
    if not (data_dir / l1000.FILE).exists():
        pytest.skip(f"no `{l1000.FILE}` in `{data_dir}`")
    adata = l1000.load(data_dir, quick=False)
    assert adata.shape == (371, 978)
    assert adata.uns[l1000.EMBEDDING].shape == (58, 40)
    assert len(load("real._known_targets").read(adata)) == 25
    assert len(l1000.varying_genes(adata, 100)) == 100


def test_every_table_has_a_place_in_the_documentation():
    page = load("_report").DOCS.read_text(encoding="utf-8")
    for name in ("drugs", "doses", "targets", "target-ranks"):
        assert f"<!-- l1000-{name}:start -->" in page
