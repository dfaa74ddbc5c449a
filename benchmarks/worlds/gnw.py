"""Drug screens simulated by GeneNetWeaver on networks of the DREAM4 challenge: thermodynamic regulation, protein dynamics, feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
from benchmarks import common
from benchmarks.worlds.measure import simple_structure
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from benchmarks._worlds import Job, Place

_QUICK = {"drugs": 6, "controls": 100}


def read(data: Path, name: str) -> AnnData:
    """Cells of a world, all to train on, with the truth where the other worlds have it."""
    adata = ad.read_h5ad(data / "gnw" / f"{name}.h5ad")
    adata.obs["split"], adata.obs["size_factor"] = "train", 1.0
    adata.obs["perturbation"] = adata.obs["perturbation"].astype("category")
    adata.varp["true_adjacency"] = sparse.csr_matrix(np.asarray(adata.varp["adjacency"]) != 0)
    adata.varm["true_targets"] = (adata.uns["target_shift"] != 0).T
    return adata


def fewer(adata: AnnData) -> AnnData:
    """A few drugs and controls, to see that all runs."""
    drugs = adata.varm["true_targets"].columns[: _QUICK["drugs"]]
    control = np.flatnonzero(adata.obs["perturbation"] == "control")[: _QUICK["controls"]]
    small = adata[np.r_[control, np.flatnonzero(adata.obs["perturbation"].isin(drugs))]].copy()
    small.obs["perturbation"] = small.obs["perturbation"].cat.remove_unused_categories()
    small.varm["true_targets"] = small.varm["true_targets"][drugs]
    return small


def measure(job: Job, place: Place, data: Path) -> list[dict[str, float]]:
    """Scores of graph and targets, those of simple statistics beside."""
    return evaluate(read(data, str(job.world["name"])), job, place)


def evaluate(adata: AnnData, job: Job, place: Place) -> list[dict[str, float]]:
    """Scores of one fit of continuous values."""
    if place.quick:
        adata = fewer(adata)
    model, cost = common.fit(job, adata, place)
    return [{"cpu": cost.cpu, **common.model_scores(model, adata), **simple_structure(adata, np.asarray(adata.X))}]
