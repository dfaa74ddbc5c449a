"""The kinetic world does what it says, and is made by code of its own."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SMALL = {"n_genes": 30, "n_regulators": 6, "n_drugs": 8, "n_new_drugs": 2, "n_classes": 4, "n_cells": 20}


@pytest.fixture(scope="module")
def kinetic():
    return importlib.import_module("benchmarks.worlds.kinetic")


@pytest.fixture(scope="module")
def world(kinetic):
    return kinetic.make(**SMALL, n_controls=2000, seed=3)


def network_of(kinetic, **options):
    settings = kinetic.Settings(**{**SMALL, **options})
    return settings, kinetic.wire(settings, np.random.default_rng(0))


def descendants(adjacency, gene):
    """Genes that can be reached from a gene, without it unless it lies on a cycle."""
    reached, new = np.zeros(len(adjacency), dtype=bool), adjacency[gene]
    while (new & ~reached).any():
        reached |= new
        new = adjacency[reached].any(axis=0)
    return reached


def test_cells_contexts_and_truth_are_in_place(world):
    cells = world.obs["split"].value_counts().to_dict()
    assert cells == {"train": 2000 + 8 * 3 * 20, "unseen_dose": 8 * 20, "unseen_drug": 2 * 4 * 20}
    held_out = world.obs[world.obs["split"] == "unseen_dose"].groupby("perturbation", observed=True)["dosage"]
    assert held_out.nunique().tolist() == [1] * 8
    assert set(held_out.first()) == {0.1, 0.5, 2.0, 10.0}  # at the ends and between
    assert set(world.obs.loc[world.obs["perturbation"] == "control", "split"]) == {"train"}
    n_targets = world.varm["true_targets"].sum()
    assert n_targets.between(1, 3).all()
    assert world.uns["drug_embedding"].shape == (10, 20)
    assert list(world.uns["drug_embedding"].index) == list(world.varm["true_targets"].columns)
    assert (world.varm["true_effects"].abs().where(world.varm["true_targets"]).min() > 0.3).all()


def test_regulators_are_few_and_only_feedback_closes_cycles(kinetic):
    for n_feedback in (0, 4):
        settings, network = network_of(kinetic, n_feedback=n_feedback)
        graph = network.adjacency
        assert graph.sum() == len(network.parent)
        assert graph.any(axis=1).sum() <= settings.n_regulators
        closes = [descendants(graph, gene)[gene] for gene in range(settings.n_genes)]
        assert any(closes) == bool(n_feedback)


def test_undisturbed_levels_are_a_steady_state(kinetic):
    for n_feedback in (0, 4):
        _, network = network_of(kinetic, n_feedback=n_feedback)
        np.testing.assert_allclose(network.steady_state(np.zeros((1, 30)))[0], network.level, rtol=1e-9)


def test_hill_functions_have_their_fold_and_half_of_it_at_the_threshold(kinetic):
    network = kinetic.Network(
        *(np.array([value]) for value in (0, 1, 5.0, 2.0, 7.0)), level=np.ones(2), decay=np.ones(2)
    )
    x = np.array([[0.0, 1.0], [5.0, 1.0], [1e6, 1.0]])
    np.testing.assert_allclose(network.regulation(x)[:, 1], [1.0, 4.0, 7.0], rtol=1e-6)
    np.testing.assert_array_equal(network.regulation(x)[:, 0], 1.0)


def test_cells_fluctuate_about_the_deterministic_steady_state(kinetic):
    _, network = network_of(kinetic)
    shift = np.zeros(30)
    shift[network.parent[0]] = -1.5
    cells = kinetic.grow(network, np.tile(shift, (1000, 1)), 25.0, np.random.default_rng(1))
    expected = network.steady_state(shift[None])[0]
    np.testing.assert_allclose(cells.mean(axis=0), expected, rtol=0.1)
    # Without regulators the equation has the variance of a birth-death process, that of Poisson.
    free = ~network.adjacency.any(axis=0)
    assert free.sum() >= 3
    np.testing.assert_allclose(cells.var(axis=0)[free] / expected[free], 1.0, atol=0.15)


def test_a_change_of_a_regulator_reaches_its_descendants_and_nothing_else(kinetic):
    _, network = network_of(kinetic)
    for gene in np.unique(network.parent):
        shift = np.zeros((200, 30))
        still = kinetic.grow(network, shift, 15.0, np.random.default_rng(2))
        shift[:, gene] = -2.0
        moved = kinetic.grow(network, shift, 15.0, np.random.default_rng(2))  # the same noise
        reached = descendants(network.adjacency, gene)
        reached[gene] = True
        np.testing.assert_array_equal((moved != still).any(axis=0), reached)
        ratio = moved[:, gene].mean() / network.level[gene]
        assert ratio == pytest.approx(np.exp(-2.0), rel=0.1)


@pytest.mark.parametrize("mean", [0.5, 2.0])
def test_counts_have_the_mean_and_the_depth_that_are_asked_for(kinetic, mean):
    adata = kinetic.make(**SMALL, n_controls=2000, mean_count=mean, gene_noise=0.1, cell_noise=0.0)
    controls = adata[adata.obs["perturbation"] == "control"]
    assert controls.X.mean() == pytest.approx(mean, rel=0.05)
    assert adata.obs["size_factor"].mean() == pytest.approx(1.0)
    assert np.log(adata.obs["size_factor"]).std() == pytest.approx(0.3, rel=0.05)
    # Given abundance and depth, counts are Poisson: their squared residuals are their means.
    means = controls.layers["true_abundance"] * controls.obs["size_factor"].to_numpy()[:, None]
    means *= controls.X.sum() / means.sum()
    residuals = controls.X.toarray() - means
    assert (residuals**2).mean() / means.mean() == pytest.approx(1.0, abs=0.05)


def test_doses_follow_hill_curves(kinetic):
    pharmacology = importlib.import_module("benchmarks.worlds._pharmacology")
    drugs = pharmacology.Drugs(np.array([[2.0, 0.0]]), np.array([[np.log(3.0), 0.0]]), np.array([2.0]), np.ones((1, 1)))
    np.testing.assert_allclose(drugs.log_factor(0, 3.0), [1.0, 0.0])
    np.testing.assert_allclose(drugs.log_factor(0, 6.0), [2 * 4 / 5, 0.0])


def test_features_tell_of_effects(world):
    """Drugs of a class, of which every fourth is one, are nearer by features than others."""
    features = world.uns["drug_embedding"].to_numpy()
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    same = np.arange(10)[:, None] % 4 == np.arange(10)[None] % 4
    np.fill_diagonal(distance, np.nan)
    assert np.nanmean(distance[same]) < 0.6 * np.nanmean(distance[~same])


def test_a_seed_makes_the_same_world_and_depth_leaves_cells_as_they_are(kinetic):
    first, again, other = (kinetic.make(**SMALL, n_controls=50, seed=seed) for seed in (1, 1, 2))
    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0
    shallow = kinetic.make(**SMALL, n_controls=50, seed=1, mean_count=0.5)
    np.testing.assert_array_equal(shallow.layers["true_abundance"], first.layers["true_abundance"])


def test_states_and_lines_differ_and_feedback_is_in_the_graph(kinetic):
    adata = kinetic.make(**SMALL, n_controls=600, n_states=3, n_lines=2, n_feedback=4)
    assert adata.obs["hidden_state"].nunique() == 3
    assert adata.obs["cell_line"].nunique() == 2
    controls = adata[adata.obs["perturbation"] == "control"]
    log = np.log(controls.layers["true_abundance"])
    for column in ("hidden_state", "cell_line"):
        means = np.stack(
            [log[cells].mean(axis=0) for cells in controls.obs.groupby(column, observed=True).indices.values()]
        )
        assert np.ptp(means, axis=0).max() > 0.4
    graph = adata.varp["true_adjacency"].toarray()
    assert any(descendants(graph, gene)[gene] for gene in range(30))


def test_worlds_share_no_code_with_what_they_are_to_test():
    """Neither the package nor the common generator is imported by what makes the data."""
    for name in ("kinetic", "_pharmacology"):
        tree = ast.parse((ROOT / "benchmarks" / "worlds" / f"{name}.py").read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in imports for alias in node.names}
        names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
        assert not [n for n in names if n.split(".")[0] == "scgim" or "_worlds" in n or "make_synth" in n]
