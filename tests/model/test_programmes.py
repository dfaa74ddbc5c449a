"""Programmes from cells to cells: what drugs share through a receptor that was not measured, at each dose."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData

from scgim._priors import ShiftPrior
from scgim.interventions._curves import CurveGrid
from scgim.interventions._effects import estimate_interventions
from scgim.model import GIM

DOSES = np.array([0.3, 1.0, 3.0])
N_GENES, MOVED = 20, 12  # the receptor moves the first 12 genes, own targets are among the others
STRENGTH = np.array(
    [1.2, -1.0, 0.8, 1.0, -0.7, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
)  # by drug; the last two do nothing at all
N_DRUGS, N_BINDING = len(STRENGTH), 6


class Screen(NamedTuple):
    """Cells, log fold changes of all drugs at all doses (U, m, d), and the target of each drug."""

    adata: AnnData
    effects: np.ndarray
    target: np.ndarray


def curve(dose: float | np.ndarray) -> float | np.ndarray:
    return dose**1.5 / (1 + dose**1.5)


def simulate(strength: np.ndarray, n_cells: int = 40, n_controls: int = 400) -> Screen:
    """Genes that do not act on each other; drugs that bind the receptor and act on one gene each, with dose."""
    rng, n = np.random.default_rng(0), len(strength)
    loading = rng.choice([-1, 1], MOVED) * rng.uniform(0.7, 1.2, MOVED)
    target, own = MOVED + np.arange(n) % (N_GENES - MOVED), rng.choice([-1.5, 1.5], n) * (np.arange(n) < n - 2)
    effects = np.zeros((n, len(DOSES), N_GENES))
    effects[..., :MOVED] = strength[:, None, None] * curve(DOSES)[:, None] * loading
    effects[np.arange(n), :, target] += own[:, None] * curve(DOSES)
    drugs = [f"drug_{u:02d}" for u in range(n)]
    contexts = [("control", 0.0)] + [(drug, dose) for drug in drugs for dose in DOSES]
    size = np.array([n_controls] + [n_cells] * (n * len(DOSES)))
    shift = np.vstack([np.zeros((1, N_GENES)), effects.reshape(-1, N_GENES)]).repeat(size, axis=0)
    rate = rng.uniform(4, 12, N_GENES) * np.exp(shift) * rng.gamma(5.0, 0.2, shift.shape)
    obs = pd.DataFrame(contexts, columns=["perturbation", "dosage"]).loc[np.repeat(np.arange(len(size)), size)]
    obs.index = [f"cell_{i}" for i in range(len(obs))]
    obs["size_factor"] = 1.0
    var = pd.DataFrame(index=[f"gene_{j:02d}" for j in range(N_GENES)])
    adata = AnnData(rng.poisson(rate).astype(np.float32), obs=obs, var=var)
    features = np.column_stack([strength, own, rng.normal(size=(n, 2))])
    adata.uns["drug_embedding"] = pd.DataFrame(features, drugs, ["binding", "own", "a", "b"])
    return Screen(adata, effects, target)


def fitted(screen: Screen) -> GIM:
    GIM.setup_anndata(screen.adata, size_factor_key="size_factor")
    scvi.settings.seed = 0
    model = GIM(screen.adata)
    model.train(30, accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def screen() -> Screen:
    return simulate(STRENGTH)


@pytest.fixture(scope="module")
def model(screen) -> GIM:
    return fitted(screen)


@pytest.fixture(scope="module")
def nothing() -> GIM:
    """A model of a screen in which no drug does anything."""
    screen = simulate(np.zeros(6), n_controls=100)
    mixed = np.random.default_rng(1).permutation(screen.adata.n_obs)
    screen.adata.X = screen.adata.X[mixed]
    return fitted(screen)


def changes(model: GIM, dosage: float, drugs: pd.DataFrame | None = None) -> np.ndarray:
    """Log fold changes of the means of predicted cells, (Q, d)."""
    drugs = model.perturbations if drugs is None else drugs
    mean = [
        model.predict(drugs, at, n_samples=400, seed=0).X.toarray().reshape(len(drugs), 400, -1).mean(1)
        for at in (dosage, 0.0)
    ]
    return np.log(mean[0] + 0.01) - np.log(mean[1] + 0.01)


def slopes(found: np.ndarray, screen: Screen) -> np.ndarray:
    """Size of the programme in each drug that binds the receptor, relative to that at full dose, (6,)."""
    whole = screen.effects[:N_BINDING, -1, :MOVED] / curve(DOSES[-1])
    return (found[:N_BINDING, :MOVED] * whole).sum(1) / (whole**2).sum(1)


def test_programme_and_targets_are_told_apart(model, screen):
    found = model.module.knowledge.interventions()
    called = found.target_probs.numpy() > 0.5
    truth = np.zeros_like(called)
    truth[np.arange(N_DRUGS - 2), screen.target[: N_DRUGS - 2]] = True
    assert called[truth].mean() > 0.8
    assert called[~truth].sum() <= 4
    background = found.background.numpy()
    np.testing.assert_allclose(background[:N_BINDING, :, :MOVED], screen.effects[:N_BINDING, :, :MOVED], atol=0.3)
    assert np.abs(background[N_BINDING:]).mean() < 0.03  # drugs that do not bind
    assert np.abs(background[:, :, MOVED:]).mean() < 0.05  # genes that the receptor does not move


@pytest.mark.parametrize("k", range(3))
def test_predicted_cells_show_the_programme_at_measured_doses(model, screen, k):
    found, truth = changes(model, DOSES[k]), screen.effects[:, k]
    size = slopes(found, screen)
    np.testing.assert_allclose(size, curve(DOSES[k]), atol=0.12)
    np.testing.assert_allclose(size.mean(), curve(DOSES[k]), atol=0.04)
    error = found[:N_BINDING, :MOVED] - truth[:N_BINDING, :MOVED]
    assert np.sqrt((error**2).mean()) < 0.12
    assert np.sqrt((found[N_BINDING:, :MOVED] ** 2).mean()) < 0.12


@pytest.mark.parametrize(("low", "between", "high"), [(0.3, 0.55, 1.0), (1.0, 1.8, 3.0)])
def test_between_measured_doses_it_lies_between(model, screen, low, between, high):
    below, at, above = (slopes(changes(model, dose), screen) for dose in (low, between, high))
    assert (at > below + 0.2 * (above - below)).all()
    assert (at < below + 0.8 * (above - below)).all()
    np.testing.assert_allclose(at.mean(), curve(between), atol=0.06)


def test_beyond_measured_doses_it_shrinks_and_holds(model, screen):
    lowest, top = (slopes(changes(model, dose), screen) for dose in (DOSES[0], DOSES[-1]))
    for share in (0.5, 0.1):
        np.testing.assert_allclose(slopes(changes(model, share * DOSES[0]), screen), share * lowest, atol=0.03)
    np.testing.assert_allclose(slopes(changes(model, 10 * DOSES[-1]), screen), top, atol=0.06)


def test_means_of_draws_show_it_too(model, screen):
    """Means with their uncertainty are drawn by another way than cells."""
    drugs = model.perturbations[:N_BINDING]
    for dose in (0.3, 1.8, 3.0):
        table = model.predict_mean(drugs, dose, n_draws=10, n_samples=200, seed=0)
        found = np.asarray(table.layers["log_fold_change"])
        size = slopes(found, screen)
        np.testing.assert_allclose(size, curve(dose), atol=0.15)
        np.testing.assert_allclose(size.mean(), curve(dose), atol=0.06)


def test_a_screen_of_noise_has_no_programme(nothing):
    background = nothing.module.knowledge.background  # what means of drawn cells are off by, and no programme
    assert background.square().mean().sqrt() < 0.08
    found = changes(nothing, DOSES[-1])
    assert np.sqrt((found[:, :MOVED] ** 2).mean()) < 0.12


@pytest.mark.parametrize("seed", range(10))
def test_errors_of_shared_controls_are_no_programme(seed):
    """Contexts of one screen are compared with the same controls, whose errors are a weak change that all of them share."""
    rng, n_drugs = np.random.default_rng(seed), 6
    own, shared = rng.normal(size=(3 * n_drugs, N_GENES)), rng.normal(size=N_GENES)
    shift = torch.as_tensor(0.1 * (own + 0.2**0.5 * shared))  # five times as many controls as cells in a context
    log_dosage = torch.as_tensor(np.log(DOSES)).repeat(n_drugs)
    group = torch.arange(n_drugs).repeat_interleave(3)
    grid = CurveGrid.over(float(log_dosage.min()), float(log_dosage.max()))
    information = torch.full_like(shift, 100.0)
    programme = estimate_interventions(
        shift, information, group, log_dosage, grid, ShiftPrior(0.1, 1.0, 1e-3)
    ).programme
    assert not programme.any()
    # one that is clear is found against the same noise
    receptor = torch.as_tensor(np.outer(np.repeat(rng.normal(size=n_drugs), 3), rng.normal(size=N_GENES)))
    programme = estimate_interventions(
        shift + receptor, information, group, log_dosage, grid, ShiftPrior(0.1, 1.0, 1e-3)
    ).programme
    assert (programme - receptor).square().mean() < 0.1 * receptor.square().mean()


@pytest.mark.parametrize("measurement", ["direct", "latent"])
def test_a_dose_whose_cells_are_held_out_lies_between_its_neighbours(measurement):
    screen = simulate(STRENGTH)
    screen.adata.obs["fold"] = np.where(screen.adata.obs["dosage"] == DOSES[1], "test", "train")
    GIM.setup_anndata(screen.adata, size_factor_key="size_factor")
    scvi.settings.seed = 0
    model = GIM(screen.adata, measurement=measurement)
    model.train(30, accelerator="cpu", enable_progress_bar=False, split_key="fold")
    assert len(model.module.responses().group) == 2 * N_DRUGS
    below, at, above = (slopes(changes(model, dose), screen) for dose in DOSES)
    assert (at > below + 0.2 * (above - below)).all()
    assert (at < below + 0.8 * (above - below)).all()
    np.testing.assert_allclose(at.mean(), curve(DOSES[1]), atol=0.15)
    new = screen.adata.uns["drug_embedding"].iloc[:N_BINDING].rename(index="new {}".format)
    by_dose = [slopes(changes(model, dose, new), screen).mean() for dose in DOSES]
    atol = {"direct": 0.15, "latent": 0.3}[measurement]  # moments are less sure, so that features are trusted less
    np.testing.assert_allclose(by_dose, [size.mean() for size in (below, at, above)], atol=atol)


def test_new_drugs_do_no_more_than_measured_ones_did(model, screen):
    table = screen.adata.uns["drug_embedding"]
    new = pd.concat([table.iloc[[0, 1, 8]], table.iloc[[0, 1]] * 50, table.iloc[[2]] * 0])
    new.index = [f"new_{i}" for i in range(len(new))]
    found, known = model._drugs.interventions(new), model.module.knowledge.interventions()
    responses, leeway = model.module.responses(), model._drugs.generator.of_sparse
    fitted = known.rows(responses.group).mean(responses.log_dosage)
    measured = torch.cat([responses.effects, fitted]) @ responses.carry
    low, high = measured.amin(0).clamp_max(0.0), measured.amax(0).clamp_min(0.0)
    beyond = leeway * (high - low) + 1e-9
    for log_dosage in np.log(DOSES):
        totals = found.mean(torch.full((len(new),), log_dosage, dtype=torch.float64)) @ responses.carry
        assert ((totals >= low - beyond) & (totals <= high + beyond)).all()
    # by its binding alone a new drug is known to have the programme, or its opposite
    shown = changes(model, DOSES[-1], new.iloc[:2])[:, :MOVED]
    assert [np.corrcoef(shown[u], screen.effects[u, -1, :MOVED])[0, 1] > 0.9 for u in (0, 1)] == [True, True]
