from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData

import scgim
from scgim.model import GIM

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def screen() -> AnnData:
    """A screen of 8 genes and 8 drugs, with doses and drugs left out of training."""
    return scgim.data.simulate_screen(
        n_genes=8,
        n_drugs=8,
        doses=(0.5, 1.0, 2.0),
        n_cells=18,
        n_controls=150,
        n_features=4,
        n_unseen_drugs=2,
        unseen_doses=(1.5,),
        n_batches=2,
        seed=1,
    )


@pytest.fixture(scope="session")
def _train_split(screen: AnnData) -> AnnData:
    return screen[screen.obs["split"] == "train"].copy()


@pytest.fixture
def adata(_train_split: AnnData) -> AnnData:
    """Training cells of the screen, a fresh copy."""
    return _train_split.copy()


@pytest.fixture(scope="session")
def fit() -> Callable[..., GIM]:
    """Set up, make and train a model in a few epochs; options of each step go to it."""

    def fit(
        adata: AnnData, setup: dict[str, Any] | None = None, epochs: int = 10, train: dict | None = None, **options
    ) -> GIM:
        GIM.setup_anndata(adata, **(setup or {}))
        scvi.settings.seed = 0
        model = GIM(adata, **options)
        model.train(epochs, **{"enable_progress_bar": False, "accelerator": "cpu", **(train or {})})
        return model

    return fit


@pytest.fixture(scope="session")
def model(_train_split: AnnData, fit: Callable[..., GIM]) -> GIM:
    """A fitted model of the screen; tests must not change it."""
    return fit(_train_split.copy(), {"batch_key": "batch"}, epochs=60)


@pytest.fixture(scope="session")
def known() -> Callable[..., GIM]:
    """Make a model whose parameters are all known, as if they had been found by training.

    Genes a -> b -> c and, apart, d. Drugs "drug_00" to "drug_11" act on a and d for certain, by their first and their second
    feature; half of that at dosage 1 and three quarters at the largest, 3. Batch "two" doubles all genes.
    """
    genes, n_drugs = ["a", "b", "c", "d"], 12
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n_drugs + 2, 3)).round(2)
    drugs = [f"drug_{u:02d}" for u in range(n_drugs)]
    names = np.array(["control"] * 40 + [d for d in drugs for _ in range(4)])
    dosage = np.where(names == "control", 0.0, np.where(np.arange(len(names)) % 2, 1.0, 3.0))

    def make(likelihood: str = "poisson", intervention: str = "shift") -> GIM:
        is_continuous = likelihood == "normal"
        x = rng.poisson(8.0, (len(names), 4)).astype(np.float32) + 0.5 * is_continuous
        obs = {
            "perturbation": names,
            "dosage": dosage,
            "size_factor": 1.0,
            "batch": np.tile(["one", "two"], len(names) // 2),
        }
        obs_names = [f"cell_{i}" for i in range(len(names))]
        adata = AnnData(x, obs=pd.DataFrame(obs, obs_names), var=pd.DataFrame(index=genes))
        adata.uns["drug_embedding"] = pd.DataFrame(features, [*drugs, "new_0", "new_1"], ["f0", "f1", "f2"])
        GIM.setup_anndata(adata, batch_key="batch", size_factor_key=None if is_continuous else "size_factor")
        model = GIM(adata, likelihood=likelihood, intervention=intervention)
        graph = np.zeros((4, 4), dtype=bool)
        graph[0, 1] = graph[1, 2] = True
        module, knowledge = model.module, model.module.knowledge
        module.mechanism.set_graph(graph)
        with torch.no_grad():
            module.mechanism.weight.copy_(torch.tensor(graph * np.array([[0.6], [-0.4], [0.0], [0.0]])))
            module.covariate_effect.copy_(torch.tensor([[0.0], [np.log(2.0)]]).expand(2, 4))
            module.intercept.copy_(torch.tensor([2.0, 1.5, 1.0, 2.5]))
            module.centre.copy_(torch.tensor([2.0, 1.5, 1.0, 2.0]))
            module.spread.copy_(torch.tensor([0.5, 0.8, 0.5, 0.4]))
            knowledge.target_probs[:, [0, 3]] = 1.0
            knowledge.emax[:, [0, 3]] = torch.as_tensor(features[:n_drugs, :2])
            knowledge.hill.fill_(1.0)  # the log EC50 is 0
        treated = module.treated
        effects = knowledge.interventions().rows(module.group[treated]).mean(knowledge.log_dosage[treated])
        knowledge.note_responses(treated, effects, torch.full_like(effects, 1e4))
        model.covariate_scaling_ = (np.zeros(2, np.float32), np.ones(2, np.float32))
        pool = np.tile(np.array([[1.0, 0.0]], np.float32), (400, 1))
        model.control_pool_ = {"covariates": pool, "log_size": np.zeros(400, np.float32)}
        model.mean_total_ = 32.0
        model.n_cells_ = pd.Series(4, pd.Index(model.perturbations, name="perturbation"))
        model.is_trained_ = True
        return model

    return make


@pytest.fixture(scope="session")
def clear(fit: Callable[..., GIM]) -> tuple[scgim.data.ScreenSimulator, GIM]:
    """A world of 8 genes with cells enough to see it clearly, and a model of it."""
    world = scgim.data.ScreenSimulator(
        n_genes=8, n_drugs=20, doses=(0.5, 1.0, 2.0), n_cells=40, n_controls=500, n_features=8, n_unseen_drugs=4, seed=1
    )
    screen = world.screen()
    train = screen[screen.obs["split"] == "train"].copy()
    return world, fit(train, {"size_factor_key": "size_factor"}, epochs=80)
