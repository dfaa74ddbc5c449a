"""Intervals of predicted means: closed forms where parameters are known, and cover of the truth where they are fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch

from scgim.data import simulate_screen
from scgim.predict._means import cells_without_effect

if TYPE_CHECKING:
    from scgim.model import GIM

INTERCEPT = np.array([2.0, 1.5, 1.0, 2.5])
A, B, C, D = range(4)
Z90 = 1.645


@pytest.fixture(scope="module")
def gim(known) -> GIM:
    return known()


def width(means, prefix: str = "") -> np.ndarray:
    return means.layers[f"{prefix}upper"] - means.layers[f"{prefix}lower"]


def test_baselines_are_uncertain(gim):
    """Effects are differences from the baseline, so its error is in them, and not in the mean under a drug that was measured."""
    drug, control = gim.perturbations[3], {}
    effect = 0.75 * float(gim.module.knowledge.interventions().emax[3, D])
    means = gim.predict_mean([{drug: 3.0}, control], n_draws=400, n_samples=20, seed=0)
    np.testing.assert_allclose(means.X[:, D], np.exp(INTERCEPT[D] + np.array([effect, 0.0])), rtol=0.01)
    relative = 1 / np.sqrt(400 * np.exp(INTERCEPT[D]))  # 400 Poisson controls
    expected = 2 * Z90 * relative * np.array([0.0, np.exp(INTERCEPT[D])])
    np.testing.assert_allclose(width(means)[:, D], expected, rtol=0.15, atol=1e-3)
    for prefix in ("log_fold_change", "direct_effect"):
        np.testing.assert_allclose(means.layers[prefix][:, D], [effect, 0.0], atol=0.005)
        expected = 2 * Z90 * relative * np.array([1.0, 0.0])
        np.testing.assert_allclose(width(means, f"{prefix}_")[:, D], expected, rtol=0.15, atol=1e-4)
    assert list(means.obs["perturbation"]) == [drug, "control"]
    assert list(means.obs["dosage"]) == [3.0, 0.0]


def test_treated_cells_tell_of_baselines_where_genes_are_no_targets(gim):
    noise = np.exp(-INTERCEPT)  # of one Poisson cell
    worth = 12 * 4 / (1 + 2 * 1e-3 / noise)
    found = cells_without_effect(gim.module, gim._drugs, torch.as_tensor(noise)).numpy()
    np.testing.assert_allclose(found, worth * np.array([0.0, 1.0, 1.0, 0.0]), rtol=1e-6)


def test_uncertain_effects(known):
    gim = known()
    gim.module.knowledge.emax_sd[:] = 0.4  # standard deviation at full height
    means = gim.predict_mean(["drug_00", "drug_01"], 3.0, n_draws=600, n_samples=4, seed=0)
    for prefix in ("log_fold_change_", "direct_effect_"):
        np.testing.assert_allclose(width(means, prefix)[:, D], 2 * Z90 * 0.4 * 0.75, rtol=0.15)
        assert (width(means, prefix)[:, D] > width(gim.predict_mean("drug_00", 3.0, level=0.5), prefix)[0, D]).all()
    np.testing.assert_array_equal(width(means, "direct_effect_")[:, B], 0.0)
    assert (width(means, "log_fold_change_")[:, B] > 0.2).all()  # inherited from gene a


def test_uncertain_targets(known):
    gim = known()
    gim.module.knowledge.target_probs[:, D] = 0.5
    emax = float(gim.module.knowledge.interventions().emax[10, D])
    drug = gim.perturbations[10]
    means = gim.predict_mean(drug, 3.0, n_draws=200, n_samples=2, seed=0)
    bounds = sorted([means.layers["direct_effect_lower"][0, D], means.layers["direct_effect_upper"][0, D]])
    np.testing.assert_allclose(bounds, sorted([0.0, 0.75 * emax]), atol=0.04)
    assert means.layers["direct_effect"][0, D] == pytest.approx(0.375 * emax, abs=0.1 * abs(emax))


def test_uncertain_weights(known):
    gim = known()
    drug = gim.perturbations[int(gim.module.knowledge.interventions().emax[:, A].abs().argmax())]
    before = width(gim.predict_mean(drug, 3.0, seed=0), "log_fold_change_")[0]
    gim.module.knowledge.weight_sd[A, B] = 0.2
    means = gim.predict_mean(drug, 3.0, n_draws=300, n_samples=100, seed=0)
    after = width(means, "log_fold_change_")[0]
    cells = gim.predict(drug, 3.0, n_samples=4000, seed=0)
    rest = gim.intervene({"d": 1.0}, n_samples=4000, seed=0)
    moved = (np.log1p(cells.X.toarray()[:, A]).mean() - np.log1p(rest.X.toarray()[:, A]).mean()) / 0.5
    assert after[B] == pytest.approx(2 * Z90 * 0.2 * abs(moved), rel=0.2)
    assert after[C] > 2 * before[C]
    np.testing.assert_allclose(after[[A, D]], before[[A, D]], rtol=0.25)


def test_the_model_is_left_as_it_was(gim):
    state = {name: value.clone() for name, value in gim.module.state_dict().items()}
    first = gim.predict_mean("drug_00", 1.0, n_draws=5, n_samples=5, seed=3)
    for name, value in gim.module.state_dict().items():
        assert (value == state[name]).all(), name
    again = gim.predict_mean("drug_00", 1.0, n_draws=5, n_samples=5, seed=3)
    for layer in first.layers:
        np.testing.assert_array_equal(first.layers[layer], again.layers[layer])


def test_combinations_have_intervals_too(known):
    gim = known()
    gim.module.knowledge.emax_sd[:] = 0.4
    means = gim.predict_mean([{"drug_00": 3.0}, {"drug_00": 3.0, "drug_01": 3.0}, {}], n_draws=500, n_samples=2, seed=0)
    widths = width(means, "direct_effect_")[:, D]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(2), rel=0.15)
    assert widths[2] == 0.0
    assert list(means.obs["perturbation"]) == ["drug_00", "drug_00+drug_01", "control"]


def test_continuous_data(known):
    gim = known(likelihood="normal")
    gim.module.knowledge.emax_sd[:] = 0.4
    means = gim.predict_mean("drug_02", 3.0, n_draws=500, n_samples=20, seed=0)
    effect = 0.75 * float(gim.module.knowledge.interventions().emax[2, D])
    assert means.layers["log_fold_change"][0, D] == pytest.approx(effect, abs=0.05)
    assert means.X[0, D] == pytest.approx(2.0 + 0.4 * (INTERCEPT[D] + effect), abs=0.05)
    assert width(means, "log_fold_change_")[0, D] == pytest.approx(2 * Z90 * 0.3, rel=0.15)


def test_intervals_widen_away_from_the_measured_drugs(clear):
    world, model = clear
    features = model.drug_embedding
    direction = features.iloc[0] - features.mean()
    far = pd.DataFrame([features.mean() + k * direction for k in (0.5, 3.0, 9.0)], ["near", "further", "far"])
    widths = width(model.predict_mean(far, 2.0, n_draws=60, n_samples=20, seed=0), "log_fold_change_").mean(1)
    assert widths[0] < widths[1] < widths[2]


def test_intervals_hold_the_truth(clear):
    """Measured contexts and drugs that were never measured; benchmarks count over many worlds."""
    world, model = clear
    control = world.sample(n_cells=20000, seed=0).mean()
    for rows in (model.perturbations[:8], world.drug_embedding.iloc[-4:]):
        means = model.predict_mean(rows, 2.0, n_draws=100, n_samples=50, seed=0)
        truth = pd.DataFrame(
            {u: world.sample({u: 2.0}, n_cells=20000, seed=0).mean() for u in means.obs["perturbation"]}
        ).T
        change = np.log(truth / control).to_numpy()
        inside = (means.layers["lower"] <= truth) & (truth <= means.layers["upper"])
        assert inside.to_numpy().mean() > 0.75
        lower, upper = (means.layers[f"log_fold_change_{side}"] for side in ("lower", "upper"))
        assert ((lower - 0.01 <= change) & (change <= upper + 0.01)).mean() > 0.75


def test_only_new_drugs_are_doubted(clear):
    world, model = clear
    both = pd.concat([model.drug_embedding.iloc[:1], world.drug_embedding.iloc[-1:]])
    arms = model._drugs.arms(both, 1.0)
    assert arms.is_new[arms.drug].tolist() == [False, True]
    doubt = model._drugs.doubt
    assert doubt.inflation >= 1.0
    assert model._drugs.doubt is doubt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1.0}, "between 0 and 1 .*found 1.0"),
        ({"n_draws": 1}, "`n_draws` must be at least 2"),
        ({"n_samples": 1}, "`n_samples` must be at least 2"),
        ({"dosage": -1.0}, "`dosage` contains -1"),
    ],
)
def test_wrong_options(gim, options, message):
    with pytest.raises(ValueError, match=message):
        gim.predict_mean("drug_00", **options)


def test_intervals_of_drugs_that_do_nothing_hold_zero(fit):
    """Control cells dealt to eight drugs: hardly any interval of 90 % leaves out no change."""
    adata = simulate_screen(n_genes=12, n_drugs=2, n_controls=1200, seed=0)
    adata = adata[(adata.obs["perturbation"] == "control").to_numpy()].copy()
    names = np.full(adata.n_obs, "control", dtype=object)
    names[:400] = np.repeat([f"drug_{k}" for k in range(8)], 50)
    adata.obs["perturbation"], adata.obs["dosage"] = names, (names != "control").astype(float)
    gim = fit(adata, {"drug_embedding_key": None}, epochs=30)
    means = gim.predict_mean(gim.perturbations, seed=0)
    lower, upper = means.layers["log_fold_change_lower"], means.layers["log_fold_change_upper"]
    assert ((lower > 0) | (upper < 0)).mean() < 0.1
    # and they are no wider than means of 50 cells would be by themselves
    x = adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None]
    own = x.std(0) / np.sqrt(50) / x.mean(0)
    assert ((upper - lower) / (2 * Z90) < 1.5 * own).mean() > 0.9
