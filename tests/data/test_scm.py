"""Distributions of the simulator against closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgim.data import ScreenSimulator

N = 40_000


def describe(cells: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return cells.mean().to_numpy(), cells.var().to_numpy()


def downstream(world: ScreenSimulator, genes: list[int]) -> np.ndarray:
    """Genes reached from the genes given, themselves included."""
    reach = np.linalg.matrix_power(np.eye(world.n_genes) + world.adjacency, world.n_genes) > 0
    return reach[genes].any(0)


def test_negative_binomial_mean_and_variance():
    world = ScreenSimulator(n_genes=6, edges_per_gene=0, n_drugs=2)
    mean, variance = describe(world.sample(n_cells=N, seed=0))
    expected = np.exp(world._model.log_mean_count)
    np.testing.assert_allclose(mean, expected, rtol=0.02)
    np.testing.assert_allclose(variance, expected + expected**2 / world._model.inverse_dispersion, rtol=0.06)


def test_poisson_mean_is_variance():
    world = ScreenSimulator(n_genes=6, edges_per_gene=0, n_drugs=2, likelihood="poisson", mean_count=3)
    mean, variance = describe(world.sample(n_cells=N, seed=0))
    np.testing.assert_allclose(mean, variance, rtol=0.05)
    assert world._model.log_mean_count.min() >= np.log(1)
    assert world._model.log_mean_count.max() <= np.log(5)


@pytest.mark.parametrize("mechanism", ["linear", "mlp"])
@pytest.mark.parametrize("n_confounders", [0, 2])
def test_control_means_are_as_asked_whatever_the_parents(mechanism, n_confounders):
    world = ScreenSimulator(n_genes=12, n_drugs=2, mechanism=mechanism, n_confounders=n_confounders)
    mean, _ = describe(world.sample(n_cells=N, seed=0))
    np.testing.assert_allclose(mean, np.exp(world._model.log_mean_count), rtol=0.05)


def test_poisson_lognormal_mean_and_variance():
    world = ScreenSimulator(n_genes=8, n_drugs=2, measurement="poisson", mean_count=2, latent_sd=0.5)
    mean, variance = describe(world.sample(n_cells=4 * N, seed=0))
    expected = np.exp(world._model.log_mean + 0.125)
    np.testing.assert_allclose(mean, expected, rtol=0.03)
    np.testing.assert_allclose(variance, expected + expected**2 * np.expm1(0.25), rtol=0.06)


@pytest.mark.parametrize("mechanism", ["linear", "mlp"])
@pytest.mark.parametrize("graph", ["er", "sf"])
def test_continuous_genes_have_mean_zero_and_unit_variance(mechanism, graph):
    world = ScreenSimulator(likelihood="normal", mechanism=mechanism, graph=graph, n_drugs=2, n_confounders=1)
    mean, variance = describe(world.sample(n_cells=N, seed=0))
    np.testing.assert_allclose(mean, 0, atol=0.05)
    np.testing.assert_allclose(variance, 1, atol=0.06)


def test_linear_gaussian_covariance():
    world = ScreenSimulator(likelihood="normal", n_genes=8, n_drugs=2)
    total = np.linalg.inv(np.eye(8) - world.weights)
    expected = total.T @ np.diag(world._model.noise_sd**2) @ total
    np.testing.assert_allclose(np.cov(world.sample(n_cells=N, seed=0).T), expected, atol=0.05)


def test_linear_gaussian_interventional_mean():
    world = ScreenSimulator(likelihood="normal", n_genes=8, n_drugs=4)
    shift = world.drugs.shift(np.array([0, 3]), np.array([1.0, 2.0])).sum(0)
    shift[5] += 1.0
    sampled = world.sample({"drug_0": 1.0, "drug_3": 2.0}, shift={"gene_5": 1.0}, n_cells=N, seed=1).mean()
    np.testing.assert_allclose(sampled, shift @ np.linalg.inv(np.eye(8) - world.weights), atol=0.05)


def test_shift_multiplies_the_mean_of_the_target_and_reaches_only_what_is_downstream():
    world = ScreenSimulator(n_genes=20, n_drugs=2)
    root = int(np.flatnonzero((world.adjacency.sum(0) == 0) & (world.adjacency.sum(1) > 0))[0])
    control = world.sample(n_cells=N, seed=0)
    shifted = world.sample(shift={f"gene_{root:02d}": 0.8}, n_cells=N, seed=0)
    assert shifted.mean().iloc[root] / control.mean().iloc[root] == pytest.approx(np.exp(0.8), rel=0.02)
    reached = downstream(world, [root])
    assert 1 < reached.sum() < 20
    pd.testing.assert_frame_equal(shifted.loc[:, ~reached], control.loc[:, ~reached])
    assert (shifted.mean()[reached] != control.mean()[reached]).all()


def test_hard_intervention_cuts_the_target_from_its_parents():
    options = {"likelihood": "normal", "n_genes": 6, "n_drugs": 2, "edges_per_gene": 2}
    world = ScreenSimulator(intervention="hard", **options)
    child = int(np.argmax(world.adjacency.sum(0)))
    parent = int(np.flatnonzero(world.adjacency[:, child])[0])
    both = world.sample(shift={f"gene_{child}": 2.0}, do={f"gene_{parent}": 5.0}, n_cells=N, seed=0)
    assert both[f"gene_{child}"].mean() == pytest.approx(2.0, abs=0.03)
    assert both[f"gene_{child}"].std() == pytest.approx(world._model.noise_sd[child], rel=0.03)
    soft = ScreenSimulator(intervention="shift", **options)
    carried = soft.sample(shift={f"gene_{child}": 2.0}, do={f"gene_{parent}": 5.0}, n_cells=N, seed=0)
    slopes = np.linalg.inv(np.eye(6) - np.where(np.arange(6) == parent, 0, soft.weights))
    assert carried[f"gene_{child}"].mean() == pytest.approx(2.0 + 5.0 * slopes[parent, child], abs=0.05)


@pytest.mark.parametrize("options", [{}, {"likelihood": "normal"}])
def test_do_holds_a_gene_at_its_value_and_moves_its_children(options):
    world = ScreenSimulator(n_genes=10, n_drugs=2, **options)
    source, target = np.argwhere(world.adjacency)[0]
    held = world.sample({"drug_0": 1.0}, do={f"gene_{source}": 3.0}, n_cells=200, seed=0)
    assert (held[f"gene_{source}"] == 3.0).all()
    low, high = (world.sample(do={f"gene_{source}": x}, n_cells=N, seed=0)[f"gene_{target}"].mean() for x in (0.0, 6.0))
    assert np.sign(high - low) == np.sign(world.weights[source, target])


def test_do_on_latent_expression_is_measured_with_noise():
    world = ScreenSimulator(n_genes=5, n_drugs=2, measurement="poisson")
    held = world.sample(do={"gene_2": 4.0, "gene_3": 0.0}, n_cells=N, seed=0)
    assert held["gene_2"].mean() == pytest.approx(4, rel=0.02)
    assert held["gene_2"].var() == pytest.approx(4, rel=0.05)
    assert held["gene_3"].mean() < 0.02


def test_combination_adds_shifts_and_unites_targets():
    world = ScreenSimulator(n_genes=6, n_drugs=3, edges_per_gene=0)
    shift = world.drugs.shift(np.array([0, 1]), np.array([2.0, 2.0])).sum(0)
    fold = np.log(
        world.sample({"drug_0": 2.0, "drug_1": 2.0}, n_cells=N, seed=0).mean() / np.exp(world._model.log_mean_count)
    )
    np.testing.assert_allclose(fold, shift, atol=0.03)


def test_total_effects_are_direct_effects_carried_downstream():
    world = ScreenSimulator(n_genes=12, n_drugs=5)
    total = world.total_effects(n_cells=2000)
    assert total.shape == (12, 5)
    reached = np.array([downstream(world, np.flatnonzero(on).tolist()) for on in world.drugs.targets]).T
    assert (~reached).sum() > 5
    assert (total.to_numpy()[~reached] == 0).all()
    flat = ScreenSimulator(n_genes=12, n_drugs=5, edges_per_gene=0)
    direct = flat.drugs.shift(np.arange(5), np.full(5, 2.0)).T
    np.testing.assert_allclose(flat.total_effects(n_cells=N), direct, atol=0.05)


def test_feedback_changes_ancestors():
    world = ScreenSimulator(n_genes=8, n_drugs=2, likelihood="normal", n_feedback=1, edges_per_gene=1.5, seed=3)
    source, target = np.argwhere(world._model.feedback != 0)[0]
    assert abs(world.weights[source, target]) == pytest.approx(0.4)
    moved = world.sample(do={f"gene_{source}": 3.0}, n_cells=N, seed=0)[f"gene_{target}"].mean()
    assert moved == pytest.approx(3 * world.weights[source, target], abs=0.4)
    assert np.isfinite(world.sample(n_cells=100)).all(axis=None)


def test_deep_graphs_stay_finite():
    world = ScreenSimulator(n_genes=60, edges_per_gene=10, n_drugs=2, effect_size=(3, 5))
    assert world.sample({"drug_0": 100.0, "drug_1": 100.0}, n_cells=500, seed=0).max(axis=None) < 1e4


def test_unknown_names():
    world = ScreenSimulator(n_genes=3, n_drugs=2)
    with pytest.raises(KeyError, match=r"Unknown drugs \['aspirin'\]. This world has 'drug_0' to 'drug_1'"):
        world.sample({"aspirin": 1.0})
    with pytest.raises(KeyError, match="Unknown genes in `do`"):
        world.sample(do={"TP53": 1.0})
