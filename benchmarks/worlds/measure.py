"""One fit of a kinetic world: its graph and targets, and its predictions beside the baselines'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scanpy as sc
from benchmarks import common
from benchmarks.worlds import kinetic
from scipy import stats

import scgim

if TYPE_CHECKING:
    from anndata import AnnData
    from benchmarks._worlds import Job, Place

OURS = "scGIM"
BASELINES = ["control", "trainmean", "dosemean", "nearest_dose", "drugmean", "nearest_drug", "ridge", "krr"]
_N_SAMPLES = 300
_QUICK = {"n_genes": 12, "n_regulators": 4, "n_drugs": 8, "n_new_drugs": 2, "n_classes": 4, "n_cells": 15}
_QUICK |= {"n_controls": 150, "n_features": 5}


def measure(job: Job, place: Place) -> list[dict[str, float | str]]:
    """A row for each kind of held-out contexts and each method; those of the model hold the scores of graph and targets too."""
    adata = make(job, place)
    model, cost = common.fit(job, adata, place)
    predicted, seconds = common.predict_held_out(model, adata, _N_SAMPLES, job.seed)
    table = scgim.metrics.compare_baselines(
        adata, predicted={OURS: predicted}, methods=BASELINES, size_factor_key="size_factor", seed=job.seed
    )
    ours = {"cpu": cost.cpu, "memory_mb": cost.memory_mb, "predict_cpu": seconds}
    ours |= common.model_scores(model, adata) | simple_structure(adata)
    rows = []
    for (split, method), scores in table.iterrows():
        rows.append({"split": split, "method": method, **scores, **(ours if method == OURS else {})})
    return rows


def make(job: Job, place: Place) -> AnnData:
    """Cells of a kinetic world."""
    options = {key: value for key, value in job.world.items() if key != "maker"}
    small = {key: value for key, value in _QUICK.items() if place.quick and options.get(key, 0) is not None}
    adata = kinetic.make(seed=job.seed, **{**options, **small})
    sc.pp.filter_cells(adata, min_counts=1)
    adata.var["regulator"] = adata.varp["true_adjacency"].toarray().any(1)  # used where the set-up asks for it
    return adata


def log_values(adata: AnnData) -> np.ndarray:
    """log1p of counts over size factors, dense."""
    return np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])


def target_strength(adata: AnnData, x: np.ndarray, drugs: list[str]) -> np.ndarray:
    """Largest t statistic of each drug and gene over doses, drugs x genes."""
    control = x[(adata.obs["perturbation"] == "control").to_numpy()]
    strength = np.zeros((len(drugs), adata.n_vars))
    for (drug, _), cells in adata.obs.groupby(["perturbation", "dosage"], observed=True).indices.items():
        if drug != "control":
            t = np.abs(np.nan_to_num(stats.ttest_ind(x[cells], control, equal_var=False).statistic))
            row = strength[drugs.index(drug)]
            np.maximum(row, t, out=row)
    return strength


def simple_structure(adata: AnnData, values: np.ndarray | None = None) -> dict[str, float]:
    """Average precision of edges by absolute correlation in controls, and of targets by the largest t statistic over doses.

    `values` are those of the training cells to take in place of counts.
    """
    train = adata[adata.obs["split"] == "train"]
    x = log_values(train) if values is None else values
    control = x[(train.obs["perturbation"] == "control").to_numpy()]
    correlation = np.nan_to_num(np.abs(np.corrcoef(control.T)))
    drugs = [name for name in train.obs["perturbation"].cat.categories if (train.obs["perturbation"] == name).any()]
    drugs.remove("control")
    strength = target_strength(train, x, drugs)
    truth = adata.varm["true_targets"][drugs].T.to_numpy()
    adjacency = adata.varp["true_adjacency"].toarray()
    told = correlation * adjacency.any(1)[:, None]  # as if the regulators were known
    return {
        "edge_auprc_correlation": scgim.metrics.edge_metrics(adjacency, correlation)["auprc"],
        "edge_auprc_correlation_told": scgim.metrics.edge_metrics(adjacency, told)["auprc"],
        "target_auprc_ttest": scgim.metrics.target_metrics(truth, strength)["auprc"],
    }
