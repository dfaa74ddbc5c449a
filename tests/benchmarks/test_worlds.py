"""The stand-in for sciPlex does what it says; the suites on worlds of other form run and have their tables."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
SMALL = {"n_genes": 30, "n_drugs": 60, "n_components": 10, "n_controls": 3000, "mean_count": 0.3}


def load(name: str):
    return importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def screen():
    return load("worlds.sciplex_like").make(**SMALL, seed=1)


def test_screen_has_lines_doses_and_numbers_of_cells_that_are_asked_for(screen):
    treated = screen.obs[screen.obs["perturbation"] != "control"]
    groups = treated.groupby(["perturbation", "dosage", "cell_line"], observed=True)
    sizes = groups.size()
    assert len(sizes) == 60 * 4 * 3
    assert (sizes.min(), sizes.max()) == (10, 100)
    assert (groups["split"].nunique() == 1).all()
    assert (groups["batch"].nunique() == 1).all()
    assert screen.obs["batch"].nunique() == 3
    controls = screen.obs[screen.obs["perturbation"] == "control"]
    assert controls["cell_line"].value_counts().tolist() == [3000] * 3
    assert set(controls["split"]) == {"train"}
    # Lines are alike in mean, and the mean count is as asked.
    means = [screen.X[cells].mean() for cells in controls.groupby("cell_line", observed=True).indices.values()]
    assert len(means) == 3
    all_cells = screen[screen.obs["perturbation"] == "control"].X
    assert all_cells.mean() == pytest.approx(0.3, rel=0.05)


def test_whole_drugs_and_single_doses_are_held_out(screen):
    contexts = screen.obs.drop_duplicates(["perturbation", "dosage"])
    splits = contexts.groupby("perturbation", observed=True)["split"].agg(list).drop("control")
    new = splits.map(lambda s: set(s) == {"unseen_drug"})
    assert new.sum() == 12
    assert not splits[~new].map(lambda s: "unseen_drug" in s).any()
    missing = splits[~new].map(lambda s: s.count("unseen_dose"))
    assert set(missing) == {0, 1}
    assert missing.mean() == pytest.approx(0.5, abs=0.2)
    assert contexts.loc[contexts["split"] == "unseen_dose", "dosage"].nunique() == 4


def test_one_drug_in_three_does_nothing(screen):
    log_fold = screen.varm["true_log_fold"]
    idle = (log_fold == 0).all()
    assert idle.sum() == 20
    x = np.log1p(screen.X.toarray() / screen.obs["size_factor"].to_numpy()[:, None])
    means = pd.DataFrame(x).groupby([screen.obs["perturbation"].to_numpy(), screen.obs["cell_line"].to_numpy()]).mean()
    shift = (
        (means.drop("control") - means.loc["control"].reindex(means.drop("control").index, level=1)).abs().mean(axis=1)
    )
    by_drug = shift.groupby(level=0).mean()
    strong = log_fold.abs().mean().sort_values().index[-10:]
    assert by_drug[strong].mean() > 2 * by_drug[idle.index[idle]].mean()


def test_genes_vary_together_and_states_are_shifted_by_drugs(screen):
    controls = screen[(screen.obs["perturbation"] == "control") & (screen.obs["cell_line"] == "K562")]
    x = np.log1p(controls.X.toarray())
    correlation = np.corrcoef(x.T)[np.triu_indices(30, 1)]
    assert np.abs(correlation).max() > 4 / np.sqrt(len(x))
    first = screen.obs["hidden_state"] == "state 0"
    high = screen.obs["dosage"] == 10000.0
    assert first[screen.obs["perturbation"] == "control"].mean() == pytest.approx(0.5, abs=0.02)
    assert first[high].mean() > 0.52


def test_structure_and_pathway_tell_of_effects():
    """Drugs of a pathway have effects that are more alike than others, and their features too."""
    sciplex = load("worlds.sciplex_like")
    settings = sciplex.Settings(n_drugs=150, without_effect=0.0, seed=2)
    features, pathway = sciplex.library(settings, None)
    assert features.shape == (150, 40)
    rng = np.random.default_rng(0)
    response = sciplex.respond(settings, features.to_numpy(), pathway, rng.normal(0, 0.5, (8, 100)), rng)
    own = response.log_fold - response.log_fold.mean(axis=0)
    likeness = np.corrcoef(own)
    same = pathway[:, None] == pathway[None]
    np.fill_diagonal(likeness, np.nan)
    assert np.nanmean(likeness[same]) > 0.3
    assert abs(np.nanmean(likeness[~same])) < 0.1
    assert np.corrcoef(features)[same].mean() > 0.3


def test_strength_follows_the_dose_and_the_line():
    sciplex = load("worlds.sciplex_like")
    response = sciplex.Response(
        np.ones((1, 2)), np.ones(1), np.log([100.0]), np.array([1.0]), gain=np.array([[1.0, 2.0]])
    )
    drug = np.zeros(3, dtype=int)
    strength = response.strength(drug, np.array([100.0, 100.0, 300.0]), np.array([0, 1, 0]))
    np.testing.assert_allclose(strength, [0.5, 1.0, 0.75])


def test_names_and_structures_come_from_the_file(data_dir):
    pytest.importorskip("rdkit")
    sciplex = load("worlds.sciplex_like")
    if not (data_dir / sciplex.FILE).exists():
        pytest.skip(f"no `{sciplex.FILE}` in `{data_dir}`")
    features, pathway = sciplex.library(sciplex.Settings(), data_dir)
    assert features.shape == (187, 40)
    assert features.index.is_unique
    assert "control" not in features.index
    assert len(pathway) == 187


def test_a_seed_makes_the_same_screen_and_fewer_cells_can_be_kept():
    make = load("worlds.sciplex_like").make
    small = {**SMALL, "n_controls": 50}
    first, again, other = (make(**small, seed=seed) for seed in (1, 1, 2))
    assert (first.X != again.X).nnz == 0
    assert first.shape != other.shape
    kept = make(**small, seed=1, most_cells=15).obs
    sizes = (
        kept[kept["perturbation"] != "control"].groupby(["perturbation", "dosage", "cell_line"], observed=True).size()
    )
    assert (sizes.min(), sizes.max()) == (10, 15)


def test_screen_shares_no_code_with_what_it_is_to_test():
    tree = ast.parse((ROOT / "benchmarks" / "worlds" / "sciplex_like.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    # What reads structures is what a user would use, and makes no data.
    assert {name for name in modules if name.startswith(("scgim", "benchmarks"))} == {"scgim.pp"}


def test_correlation_and_t_statistics_rank_edges_and_targets():
    kinetic, measure = load("worlds.kinetic"), load("worlds.measure")
    options = {"n_genes": 20, "n_regulators": 4, "n_drugs": 8, "n_new_drugs": 2, "n_classes": 4, "n_cells": 20}
    adata = kinetic.make(**options, n_controls=300, gene_noise=0.6, mean_count=20.0, seed=0)
    scores = measure.simple_structure(adata)
    truth = adata.varm["true_targets"].to_numpy()[:, :8].mean()
    assert scores["target_auprc_ttest"] > 3 * truth
    assert scores["edge_auprc_correlation"] > 2 * adata.varp["true_adjacency"].toarray().mean()


def test_tables_compare_with_the_best_baseline_world_by_world():
    tables = load("worlds.tables")
    scores = {"control": (1.0, 1.0), "ridge": (0.2, 0.4), "krr": (0.4, 0.2), "scGIM": (0.1, 0.1)}
    rows = [
        {"mean count": 2.0, "seed": seed, "split": split, "method": method, "energy_distance": value[seed]}
        for seed in (0, 1)
        for split in ("unseen_dose", "unseen_drug")
        for method, value in scores.items()
    ]
    extra = {
        "mean_shift_correlation": 0.5,
        "mean_shift_error": 0.1,
        "edge_auprc": 0.3,
        "cpu": 7.0,
        "centred_correlation": 0.2,
    }
    frame = pd.DataFrame(rows).assign(**extra)
    found = tables.tables("kinetic", frame)
    assert found["worlds-kinetic"][tables.RATIO].tolist() == ["0.5 ± 0", "0.5 ± 0"]
    assert found["worlds-kinetic-structure"]["edge AUPRC"].tolist() == ["0.3 ± 0"]
    assert "centred correlation (r)" in found["worlds-kinetic-metrics"]
    assert "7 ± 0" in tables.remarks("kinetic", frame)[0]


def test_both_winners_are_named():
    rows = [
        {
            "split": "unseen_drug",
            "method": method,
            "mean_shift_correlation": r,
            "energy_distance": e,
            "mean_shift_error": 0.0,
        }
        for method, r, e in (("trainmean", 0.2, 0.1), ("scGIM", 0.4, 0.3))
    ]
    note = load("worlds.tables")._winners(pd.DataFrame(rows), "unseen_drug")
    assert note == "Best on unseen drugs: scGIM by correlation of mean shifts (r), trainmean by energy distance."


def test_suites_name_every_fit_once_and_each_has_its_tables_in_the_documentation():
    page = load("_report").DOCS.read_text(encoding="utf-8")
    suites = load("worlds.suites").SUITES
    assert set(suites) == set(load("worlds.tables").BY)
    for name, suite in suites.items():
        jobs = suite([0, 1])
        assert len({job.identity for job in jobs}) == len(jobs)
        assert "Expected:" in suite.__doc__
        assert f"<!-- worlds-{name}:start -->" in page
    for name in ("kinetic-structure", "kinetic-metrics", "variants-structure"):
        assert f"<!-- worlds-{name}:start -->" in page


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["kinetic", "sciplex"])
def test_a_suite_runs_from_the_command_line(suite, tmp_path, capsys):
    options = [suite, "--seeds", "0", "--quick", "--max-jobs", "1", "--work", str(tmp_path), "--data", str(tmp_path)]
    assert load("worlds.run").main(options) == 0
    assert f"worlds-{suite}" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "results" / f"quick_worlds_{suite}.csv").set_index(["split", "method"])
    assert {"scGIM", "ridge", "dosemean"} <= set(rows.index.get_level_values("method"))
    assert rows.loc[("unseen_drug", "scGIM"), "cpu"] > 0
    assert rows["energy_distance"].notna().all()


@pytest.mark.parametrize(("suite", "file"), [("gnw", "gnw"), ("hsc", "dspin_hsc_boolode.h5ad")])
def test_a_suite_of_files_runs_and_has_its_table(suite, file, tmp_path, capsys):
    data = ROOT.parent / "shared" / "data"
    if not (data / file).exists():
        pytest.skip(f"The worlds of the suite {suite!r} are not in {data}.")
    options = [suite, "--seeds", "0", "--quick", "--max-jobs", "1", "--work", str(tmp_path), "--data", str(data)]
    assert load("worlds.run").main(options) == 0
    assert f"worlds-{suite}" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "results" / f"quick_worlds_{suite}.csv")
    assert (
        rows.loc[0, ["edge_auprc", "target_auprc", "target_auprc_ttest", "edge_auprc_correlation"]].between(0, 1).all()
    )
