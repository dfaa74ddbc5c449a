"""One fit of one world, and its predictions of held-out contexts beside the baselines'."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from benchmarks import common
from benchmarks._worlds import open_world

import scgim

if TYPE_CHECKING:
    from anndata import AnnData
    from benchmarks._worlds import Job, Place

OURS = "scGIM"
# More cells than a context has: the error of a predicted mean should not be that of drawing few cells.
_N_SAMPLES = 500


def measure(job: Job, place: Place, *, check: bool = False) -> list[dict[str, float | str]]:
    """A row for each kind of held-out contexts and each method; with `check`, the energy distance by `score.py` too."""
    adata, data = open_world(job, place)
    model, cost = common.fit(job, adata, place)
    predicted, seconds = common.predict_held_out(model, adata, _N_SAMPLES, job.seed)
    table = scgim.metrics.compare_baselines(
        adata, predicted={OURS: predicted}, log1p=job.view == "count", seed=job.seed
    )
    ours = {"cpu": cost.cpu, "memory_mb": cost.memory_mb, "predict_cpu": seconds, **common.model_scores(model, adata)}
    by_bench = _bench_energy(job, place, model, adata, predicted, data, cost) if check else {}
    rows = []
    for (split, method), scores in table.iterrows():
        row = {"split": split, "method": method, **scores}
        if method == OURS:
            row |= ours | ({"score_energy": by_bench[split]} if check else {})
        rows.append(row)
    return rows


def _bench_energy(
    job: Job, place: Place, model: scgim.model.GIM, adata: AnnData, predicted: AnnData, data: Path, cost: common.Cost
) -> dict[str, float]:
    """Energy distance of our predictions by `score.py`, by split."""
    splits = {"pood": "unseen_dose", "ood": "unseen_drug"}
    of_cell = np.repeat(common.held_out_contexts(adata)["split"].to_numpy(), _N_SAMPLES)
    parts = {name: predicted[of_cell == split] for name, split in splits.items()}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.npz"
        common.write_result(result, data, model, cost=cost, view=job.view, predicted=parts)
        scores = common.bench_scores(place.bench, data, result, job.view)
    return {split: float(scores[f"{name}_energy"]) for name, split in splits.items()}
