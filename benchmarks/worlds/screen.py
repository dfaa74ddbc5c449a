"""One fit of the stand-in for sciPlex, and its predictions beside the baselines', line by line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from benchmarks import common
from benchmarks.worlds import sciplex_like

import scgim

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from benchmarks._worlds import Job, Place

OURS = "scGIM"
BASELINES = ["control", "trainmean", "dosemean", "nearest_dose", "drugmean", "nearest_drug", "ridge", "krr"]
# Means of n drawn cells are off by 1/n of the variance between cells. Of 300 that is more than all that sets methods apart on new drugs.
_N_SAMPLES = 5000
_QUICK = {"n_genes": 12, "n_programmes": 3, "n_drugs": 12, "n_components": 5, "cells": (5, 15), "n_controls": 100}


def measure(job: Job, place: Place, data: Path | None = None) -> list[dict[str, float | str]]:
    """A row for each kind of held-out contexts and each method: means over lines, each line compared with its own controls."""
    options = {key: value for key, value in job.world.items() if key != "maker"} | (_QUICK if place.quick else {})
    adata = sciplex_like.make(data, seed=job.seed, **options)
    sc.pp.filter_cells(adata, min_counts=1)
    model, cost = common.fit(job, adata, place)
    tables = []
    for line in adata.obs["cell_line"].cat.categories:
        own = adata[adata.obs["cell_line"] == line].copy()
        predicted = predict(model, own, line, 60 if place.quick else _N_SAMPLES, job.seed)
        tables.append(
            scgim.metrics.compare_baselines(
                own, predicted={OURS: predicted}, methods=BASELINES, size_factor_key="size_factor", seed=job.seed
            )
        )
    mean = pd.concat(tables).groupby(level=["split", "method"], sort=False).mean()
    ours = {"cpu": cost.cpu, "memory_mb": cost.memory_mb, "n_cells": int((adata.obs["split"] == "train").sum())}
    return [
        {"split": split, "method": method, **scores, **(ours if method == OURS else {})}
        for (split, method), scores in mean.iterrows()
    ]


def predict(model: scgim.model.GIM, adata: AnnData, line: str, n_samples: int, seed: int) -> AnnData:
    """Cells of the held-out contexts in one line, as many from each plate."""
    contexts = common.held_out_contexts(adata)
    features = adata.uns["drug_embedding"].loc[contexts["perturbation"].astype(str)]
    plates = adata.obs["batch"].cat.categories
    parts = []
    for i, plate in enumerate(plates):
        cells = model.predict(
            features,
            contexts["dosage"].to_numpy(),
            n_samples=int(np.ceil(n_samples / len(plates))),
            covariates={"cell_line": line, "batch": plate},
            seed=seed + i,
        )
        del cells.layers["expected"]  # not compared, and dense
        parts.append(cells)
    return ad.concat(parts, keys=list(plates), index_unique=", ")
