"""What one fit costs: seconds of its parts, peak memory, and prediction."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from unittest import mock

import anndata
import numpy as np
import scvi
from benchmarks import common
from benchmarks._worlds import _QUICK_SIMULATOR, simulate
from benchmarks.scale import arithmetic
from benchmarks.scale.regulated import simulate_regulated
from scipy import sparse
from sklearn.metrics import average_precision_score

import scgim
from scgim.fit._fit import Fit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anndata import AnnData
    from benchmarks._worlds import Job, Place

_PARTS = {(Fit, "_search"): "search", (scgim.model.GIM, "_descend"): "descent", (Fit, "_conclude"): "inference"}
_STORED_CELLS = 100_000  # of them a stored screen is made, written again and again
_STORED_EPOCHS = 1
_N_PREDICTED = 5


def screen_file(job: Job, place: Place) -> Path:
    """File of the screen of a job, made if it is not there yet, without compression."""
    options = {**job.world, **(_QUICK_SIMULATOR if place.quick else {})}
    if place.quick and "n_regulators" in options:
        options = {**options, "n_regulators": 3}
        del options["n_features"]
    copies = max(1, int(job.labels.get("cells", 0)) // _STORED_CELLS) if "counts" in job.labels else 1
    name = "-".join(f"{key}={value}" for key, value in sorted({**options, "seed": job.seed, "copies": copies}.items()))
    path = place.work / "data" / f"{name}.h5ad"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        if "n_regulators" in options:
            adata = simulate_regulated(seed=job.seed, **options)
        else:
            adata = simulate("count", seed=job.seed, **options)
        adata.X = sparse.csr_matrix(adata.X)
        if copies > 1:
            adata = anndata.concat([adata] * copies, uns_merge="first", index_unique="-")
        unfinished = path.with_suffix(".part")
        adata.write_h5ad(unfinished)
        unfinished.replace(path)
    return path


def measure(job: Job, place: Place) -> list[dict[str, float]]:
    """Cost of one fit."""
    path = screen_file(job, place)
    in_file = job.labels.get("counts") == "in the file"
    adata = anndata.read_h5ad(path, backed="r" if in_file else None)
    return [fit_cost(job, adata, place)]


def measure_steps(job: Job, place: Place) -> list[dict[str, float]]:
    """Seconds of a step of training, of its bare arithmetic, and of epochs of scGIM and SCVI."""
    return [arithmetic.compare(anndata.read_h5ad(screen_file(job, place)), job.seed, quick=place.quick)]


def fit_cost(job: Job, adata: AnnData, place: Place) -> dict[str, float]:
    """Seconds of a fit and its parts, its peak memory beyond what was in use before it, and seconds of prediction."""
    train = adata
    if "split" in adata.obs and not (adata.obs["split"] == "train").all():
        train = adata[adata.obs["split"] == "train"].copy()
    start_memory = common.peak_memory_mb()
    scvi.settings.seed = job.seed
    cpu, wall = time.process_time(), time.perf_counter()
    scgim.model.GIM.setup_anndata(train, size_factor_key="size_factor", **job.setup)
    model = scgim.model.GIM(train)
    epochs = _STORED_EPOCHS if "counts" in job.labels or place.quick else None
    with timed_parts() as parts:
        model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    row = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, **parts}
    row |= {"memory_mb": common.peak_memory_mb(), "memory_before_mb": start_memory, "n_cells": train.n_obs}
    if "n_regulators" in job.world:
        row |= accuracy(model, train)
    if "n_lines" in job.world:
        row |= use_cost(model, train)
    new = adata.uns["drug_embedding"].drop(index=model.perturbations)
    if len(new):
        start = time.process_time()
        model.predict_mean(new)
        row["first_prediction"] = time.process_time() - start
        start = time.process_time()
        model.predict(new, n_samples=100, seed=0)
        row["prediction"] = time.process_time() - start
    return row


def use_cost(model: scgim.model.GIM, adata: AnnData) -> dict[str, float]:
    """CPU seconds of `annotate`, and of `predict_mean` of five drugs, by name and by the features alone."""
    by_name = adata.uns["drug_embedding"].iloc[:_N_PREDICTED]
    steps = {
        "annotate": model.annotate,
        "prediction_measured": lambda: model.predict_mean(by_name.index.tolist(), 1.0),
        "first_prediction": lambda: model.predict_mean(by_name.rename(index="new {}".format), 1.0),
    }
    row = {}
    for name, step in steps.items():
        start = time.process_time()
        step()
        row[name] = time.process_time() - start
    return row


def accuracy(model: scgim.model.GIM, adata: AnnData) -> dict[str, float]:
    """Areas under the precision-recall curves of edges, among those from regulators, and of targets."""
    sources, genes = adata.var["regulator"].to_numpy(), np.arange(adata.n_vars)
    pairs = (genes[sources][:, None] != genes).ravel()
    edges = adata.varp["true_adjacency"][sources].toarray().ravel()[pairs]
    probs = model.get_adjacency().to_numpy()[sources].ravel()[pairs]
    targets = model.get_targets().groupby(level="perturbation").max()  # over lines, if there are several
    truth = adata.varm["true_targets"][targets.index].to_numpy().T
    return {
        "edge_auprc": average_precision_score(edges, probs),
        "target_auprc": average_precision_score(truth.ravel(), targets.to_numpy().ravel()),
    }


@contextmanager
def timed_parts(clock: Callable[[], float] = time.process_time) -> Iterator[dict[str, float]]:
    """Seconds of the parts of training, by default of the CPU."""
    parts = dict.fromkeys(_PARTS.values(), 0.0)

    def timed(method: Callable, part: str) -> Callable:
        def call(*args, **kwargs):
            start = clock()
            try:
                return method(*args, **kwargs)
            finally:
                parts[part] += clock() - start

        return call

    with ExitStack() as stack:
        for (owner, name), part in _PARTS.items():
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), part)))
        yield parts
