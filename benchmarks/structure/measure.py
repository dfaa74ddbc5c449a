"""One fit of one world and how well it recovers the graph and the targets."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from benchmarks import common
from benchmarks._worlds import open_world

import scgim

if TYPE_CHECKING:
    from benchmarks._worlds import Job, Place

_N_SAMPLES = 200


def measure(job: Job, place: Place) -> list[dict[str, float]]:
    """Scores and cost of one fit."""
    adata, data = open_world(job, place)
    model, cost = common.fit(job, adata, place)
    row = {"cpu": cost.cpu, "wall": cost.wall, "memory_mb": cost.memory_mb, **common.model_scores(model, adata)}
    controls = model.control_check_
    row["variance_ratio"] = float(np.median(controls["simulated_variance"] / controls["variance"]))
    if "size_factor" in adata.obs:
        row["depth_error"] = float(np.std(np.log(model.get_size_factors() / adata.obs["size_factor"])))
    row["n_states"] = model.get_states().shape[1]
    if "predict" in job.labels:
        row |= _unseen_drugs(job, model, adata)
    if data is not None:
        _check_agreement(row, _bench_scores(job, place, model, data, cost))
    return [row]


def _unseen_drugs(job: Job, model: scgim.model.GIM, adata) -> dict[str, float]:
    """Energy distance to the cells of drugs never measured, beside that of the better regression."""
    adata = adata[adata.obs["split"] != "unseen_dose"].copy()
    predicted, _ = common.predict_held_out(model, adata, _N_SAMPLES, job.seed)
    methods = ["trainmean", "ridge", "krr"]
    table = scgim.metrics.compare_baselines(adata, predicted=predicted, methods=methods, log1p=job.view == "count")
    energy = table.loc["unseen_drug", "energy_distance"]
    return {"new_energy": energy["model"], "new_energy_ratio": energy["model"] / energy[["ridge", "krr"]].min()} | {
        f"new_energy_{name}": energy[name] for name in methods
    }


def _bench_scores(job: Job, place: Place, model: scgim.model.GIM, data: Path, cost: common.Cost) -> dict[str, float]:
    """Scores of graph and targets by `score.py`."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.npz"
        common.write_result(result, data, model, cost=cost, view=job.view)
        return common.bench_scores(place.bench, data, result, job.view)


def _check_agreement(mine: dict[str, float], theirs: dict[str, float]) -> None:
    """RuntimeError where `scgim.metrics` and `score.py` disagree."""
    pairs = {"edge_auroc": "e_auroc", "edge_auprc": "e_auprc", "edge_f1": "e_f1", "shd": "shd"}
    pairs |= {"target_auroc": "t_auroc", "target_auprc": "t_auprc", "target_f1": "t_f1"}
    for name, other in pairs.items():
        if not np.isclose(mine[name], theirs[other], equal_nan=True):
            raise RuntimeError(f"{name} is {mine[name]:.6g} by scgim.metrics and {theirs[other]:.6g} by score.py.")
