"""Drawn cells of measured contexts have the means of the observed ones, and nothing is made of chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData

from scgim.model import GIM


def fit(change: np.ndarray, mean: float, n: int, n_levels: int = 1) -> GIM:
    """A model of independent genes of a mean; changes of log means are those of each drug (drugs, genes), n cells of each.

    Cells are dealt out to levels of an effect modifier, if there are several.
    """
    rng = np.random.default_rng(0)
    n_drugs, n_genes = change.shape
    label = np.repeat(["control", *(f"drug_{u:02d}" for u in range(n_drugs))], [20 * n, *[n] * n_drugs])
    every = np.concatenate([np.zeros((20 * n, n_genes)), np.repeat(change, n, axis=0)])
    x = rng.poisson(mean * np.exp(every)).astype(np.float32)
    adata = AnnData(
        x, obs=pd.DataFrame({"perturbation": label, "size": 1.0}, index=[f"cell_{i}" for i in range(len(x))])
    )
    adata.obs["line"] = [f"line_{i % n_levels}" for i in range(len(x))]
    scvi.settings.seed = 0
    modifier = "line" if n_levels > 1 else None
    GIM.setup_anndata(
        adata, dosage_key=None, drug_embedding_key=None, size_factor_key="size", effect_modifier_key=modifier
    )
    model = GIM(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def test_rare_genes_without_effect_have_none():
    """In ten cells a gene of a tenth of a count is often not seen: that is no change, though all ten cells agree."""
    model = fit(np.zeros((12, 30)), mean=0.1, n=10)
    background = model.module.knowledge.background
    assert background.square().mean().sqrt() < 0.12


@pytest.mark.parametrize("n", [10, 60])
def test_where_few_cells_are_drawn_their_chance_is_no_effect(n, monkeypatch):
    """Of many contexts and genes few cells are drawn, in which a gene of a tenth of a count comes up by chance."""
    monkeypatch.setattr("scgim.fit._contexts._N_CELLS", (20, 20))
    background = fit(np.zeros((12, 30)), mean=0.1, n=n).module.knowledge.background
    assert background.square().mean().sqrt() < 0.08


def test_changes_of_most_genes_are_in_drawn_cells():
    """Small changes everywhere, too small and too many for targets."""
    change = np.random.default_rng(1).normal(0, 0.3, (12, 30))
    model = fit(change, mean=5.0, n=80)
    found = model.get_total_effects(n_samples=2000).to_numpy()
    assert ((found - change) ** 2).mean() < 0.1 * (change**2).mean()


def test_intervals_of_measured_drugs_have_the_noise_of_their_cells():
    """Twenty cells of five counts tell a mean to a tenth."""
    change = np.random.default_rng(1).normal(0, 0.3, (12, 30))
    model = fit(change, mean=5.0, n=20)
    found = model.predict_mean(model.perturbations, n_draws=60, n_samples=60)
    lower, upper = (found.layers[f"log_fold_change_{side}"] for side in ("lower", "upper"))
    assert 0.8 < ((lower < change) & (change < upper)).mean() < 0.97


def test_levels_that_agree_share_what_is_seen_of_their_means():
    """Thirty cells of five counts in each of three lines: by themselves lines would differ by a twelfth."""
    change = np.random.default_rng(1).normal(0, 0.3, (12, 30))
    model = fit(change, mean=5.0, n=90, n_levels=3)
    known = model.module.knowledge
    assert known.levels_agree
    spread = known.level_background[:, :, -1].std(1)
    assert spread.square().mean().sqrt() < 0.3 / (5 * 30) ** 0.5
    found, log_dosage = known.interventions(), known.context_log_dosage()[:1].expand(12)
    effects = np.stack([found.at_level(k).mean(log_dosage).numpy() for k in range(3)])
    assert ((effects - change) ** 2).mean() < 0.1 * (change**2).mean()
