"""An AnnData as `GIM.annotate` leaves it, made up with numpy: the plots are tested without a model."""

from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgim._constants import Key

matplotlib.use("agg")

import matplotlib.pyplot as plt

DOSES = (0.1, 0.5, 1.0, 10.0)


def _graph(n_genes: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of a random acyclic graph with about 1.3 edges a gene, genes in shuffled order."""
    weights = np.zeros((n_genes, n_genes))
    for j in range(1, n_genes):
        n_parents = min(j, rng.integers(0, 4)) if n_genes > 2 else 1
        parents = rng.choice(j, size=n_parents, replace=False)
        weights[parents, j] = rng.uniform(0.3, 0.9, n_parents) * rng.choice([-1, 1], n_parents)
    shuffle = rng.permutation(n_genes)
    return weights[np.ix_(shuffle, shuffle)]


def _hill(curve: dict[str, np.ndarray], drug: int, dose: float) -> np.ndarray:
    power = dose ** curve["hill"][:, drug]
    return curve["emax"][:, drug] * power / (curve["ec50"][:, drug] ** curve["hill"][:, drug] + power)


def make_history(n_epochs: int = 40, *, seed: int = 0) -> dict[str, pd.DataFrame]:
    """A history as scvi-tools keeps it: a dictionary of one-column frames of dtype object."""
    rng = np.random.default_rng(seed)
    epochs = pd.RangeIndex(n_epochs, name="epoch")
    fall = np.exp(-np.arange(n_epochs) / 8)
    terms = {
        "elbo_train": 900 + 400 * fall + rng.normal(0, 4, n_epochs),
        "elbo_validation": 920 + 400 * fall + rng.normal(0, 8, n_epochs),
        "train_loss_epoch": 950 + 400 * fall,
        "log_likelihood": -(915 + 400 * fall),
        "edges": np.where(np.arange(n_epochs) < 30, 31.0, 28.0),
        "acyclicity": 10.0 ** (1 - np.arange(n_epochs) / 6),
        "sparsity_edges": 30 + 80 * fall,
        "sparsity_shifts": 25 + 40 * fall,
        "learning_rate": np.where(np.arange(n_epochs) < 25, 0.02, 0.002),
    }
    history = {name: pd.DataFrame({name: values}, index=epochs, dtype=object) for name, values in terms.items()}
    steps = pd.RangeIndex(n_epochs * 5, name="step")
    history["train_loss_step"] = pd.DataFrame({"train_loss_step": rng.normal(950, 9, len(steps))}, index=steps)
    return history


def make_annotated(
    n_genes: int = 20,
    n_drugs: int = 6,
    *,
    doses: tuple[float, ...] = DOSES,
    n_cells: int = 25,
    long_names: bool = False,
    n_features: int = 8,
    seed: int = 0,
) -> ad.AnnData:
    """Counts of a screen of `n_drugs` at `doses`, annotated as by a model that had found the truth, nearly."""
    rng = np.random.default_rng(seed)
    genes = [f"GENE{j + 1}" for j in range(n_genes)]
    drugs = [f"Drug{k + 1}" for k in range(n_drugs)]
    if long_names:
        genes = [f"ENSG00000{100000 + j}.{j % 9} (very long symbol)" for j in range(n_genes)]
        drugs = [f"({k + 1}R)-N-[4-(dimethylamino)phenyl]-cyclohexanecarboxamide" for k in range(n_drugs)]

    weights = _graph(n_genes, rng)
    targets = np.zeros((n_genes, n_drugs), dtype=bool)
    for k in range(n_drugs):
        targets[rng.choice(n_genes, size=min(n_genes, rng.integers(1, 4)), replace=False), k] = True
    shape = (n_genes, n_drugs)
    curve = {
        "emax": np.where(
            targets, rng.uniform(0.8, 2.0, shape) * rng.choice([-1, 1], shape), rng.normal(0, 0.03, shape)
        ),
        "ec50": rng.uniform(0.3, 1.5, shape),
        "hill": rng.uniform(1.0, 3.0, shape),
    }
    shifts = np.stack([_hill(curve, k, max(doses)) for k in range(n_drugs)], axis=1)
    propagate = np.linalg.inv(np.eye(n_genes) - weights.T)  # total = shift + W' total
    probs = np.where(targets, rng.beta(12, 1.2, shape), rng.beta(0.6, 12, shape))

    labels, dosage, log_means = ["control"] * 4 * n_cells, [0.0] * 4 * n_cells, [np.zeros((4 * n_cells, n_genes))]
    for k, drug in enumerate(drugs):
        for dose in doses:
            labels += [drug] * n_cells
            dosage += [dose] * n_cells
            log_means.append(np.tile(propagate @ _hill(curve, k, dose), (n_cells, 1)))
    base = rng.uniform(0.5, 3.0, n_genes)
    means = np.exp(np.clip(base + np.concatenate(log_means), -4, 6)) * rng.gamma(6, 1 / 6, (len(labels), n_genes))

    edge_probs = np.where(weights != 0, rng.beta(9, 1.5, weights.shape), rng.beta(0.4, 16, weights.shape))
    np.fill_diagonal(edge_probs, 0)
    adata = ad.AnnData(
        sparse.csr_matrix(rng.poisson(means).astype(np.float32)),
        obs=pd.DataFrame(
            {"perturbation": pd.Categorical(labels), "dosage": dosage}, index=[f"cell{n}" for n in range(len(labels))]
        ),
        var=pd.DataFrame(index=genes),
    )

    key = Key.DEFAULT
    frames = {
        Key.varm.targets(key): probs,
        Key.varm.shifts(key): shifts,
        Key.varm.shift_sds(key): rng.uniform(0.03, 0.12, shape),
        Key.varm.total_effects(key): propagate @ shifts,
        Key.varm.total_effect_errors(key): np.full(shape, 0.002),
        Key.varm.emax(key): curve["emax"] / probs,
        Key.varm.ec50(key): curve["ec50"],
        Key.varm.hill(key): curve["hill"],
    }
    for name, values in frames.items():
        adata.varm[name] = pd.DataFrame(values, index=genes, columns=drugs)
    contexts = pd.DataFrame([(drug, dose) for drug in drugs for dose in doses], columns=["perturbation", "dosage"])
    adata.varm[Key.varm.context_effects(key)] = propagate @ np.stack(
        [_hill(curve, k, dose) for k in range(n_drugs) for dose in doses], axis=1
    )
    adata.varp[Key.varp.edge_probs(key)] = sparse.csr_matrix(edge_probs)
    adata.varp[Key.varp.edge_weights(key)] = sparse.csr_matrix(weights)
    adata.varp["true_adjacency"] = sparse.csr_matrix((weights != 0).astype(float))
    history = make_history(seed=seed)
    adata.uns[key] = {
        Key.uns.PARAMS: {
            "perturbation_key": "perturbation",
            "control": "control",
            "dosage_key": "dosage",
            "layer": None,
            "likelihood": "nb",
            "mechanism": "linear",
            "intervention": "shift",
            "version": "0.1.0",
        },
        Key.uns.PERTURBATIONS: pd.DataFrame(
            {"n_cells": n_cells * len(doses), "n_doses": len(doses), "max_dosage": max(doses)}, index=drugs
        ),
        Key.uns.CONTEXTS: contexts,
        Key.uns.HISTORY: pd.DataFrame(
            {
                **{name: frame[name].astype(float) for name, frame in history.items() if frame.index.name == "epoch"},
                "search_score": pd.Series(-5000 - 900 * np.exp(-np.arange(12.0))),
            }
        ),
        Key.uns.FEATURE_IMPORTANCE: pd.DataFrame(
            rng.normal(size=(n_features, n_genes)) * rng.gamma(1, 1, (n_features, 1)),
            index=[f"feature {f + 1}" for f in range(n_features)],
            columns=genes,
        ),
    }
    return adata


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def adata() -> ad.AnnData:
    """20 genes, 6 drugs at 4 doses."""
    return make_annotated()


@pytest.fixture
def sixty_drugs() -> ad.AnnData:
    """More perturbations than there are colours and dashes."""
    return make_annotated(n_drugs=60, n_cells=5)


@pytest.fixture
def many_genes() -> ad.AnnData:
    """More genes than a network can show."""
    return make_annotated(n_genes=300, n_cells=5)


@pytest.fixture(params=["one_drug", "many_drugs", "many_genes", "long_names"])
def awkward(request: pytest.FixtureRequest) -> ad.AnnData:
    """Screens at the edges of what the plots must bear."""
    variants = {
        "one_drug": {"n_drugs": 1},
        "many_drugs": {"n_drugs": 60, "n_cells": 5},
        "many_genes": {"n_genes": 300, "n_cells": 5},
        "long_names": {"long_names": True},
    }
    return make_annotated(**variants[request.param])


@pytest.fixture
def model() -> SimpleNamespace:
    """All that `history` knows of a model."""
    return SimpleNamespace(history=make_history(), search_trace_=[-5900.0, -5100.0, -5003.0])
