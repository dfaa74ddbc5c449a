"""Fits of worlds with known answers, and their scores: what the benchmarks on simulated data share.

Scores are those of :mod:`scgim.metrics`; :func:`bench_scores` computes the same by the `score.py` that lies beside the common
generator, from a result file as it wants it.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scvi
from benchmarks._worlds import drug_names
from scipy import sparse

import scgim

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    from anndata import AnnData
    from benchmarks._worlds import Job, Place

_BYTES_PER_RSS = 1 if sys.platform == "darwin" else 1024
_QUICK_EPOCHS = 3


class Cost(NamedTuple):
    """What a fit took: its CPU and wall-clock seconds, and the largest memory of its process up to then."""

    cpu: float
    wall: float
    memory_mb: float


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_RSS / 1e6


def load_script(path: Path) -> ModuleType:
    """A Python file as a module."""
    if not path.exists():
        raise FileNotFoundError(f"No `{path.name}` in `{path.parent}`. Give its folder with --bench.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fit(job: Job, adata: AnnData, place: Place) -> tuple[scgim.model.GIM, Cost]:
    """Model of the training cells of a world, and what it took."""
    train = adata[adata.obs["split"] == "train"].copy()
    train.obs["perturbation"] = train.obs["perturbation"].cat.remove_unused_categories()
    counts = job.view == "count" and job.world.get("likelihood") != "normal"
    setup = {"size_factor_key": "size_factor" if counts else None, **job.setup}
    if setup["size_factor_key"] is None:
        del train.obs["size_factor"]
    options = {"likelihood": "nb" if counts else "normal", **job.model}
    scvi.settings.seed = job.seed
    cpu, wall = time.process_time(), time.perf_counter()
    scgim.model.GIM.setup_anndata(train, **setup)
    model = scgim.model.GIM(train, **options)
    model.train(_QUICK_EPOCHS if place.quick else None, accelerator="cpu", enable_progress_bar=False)
    return model, Cost(time.process_time() - cpu, time.perf_counter() - wall, peak_memory_mb())


def structure_scores(adjacency: np.ndarray, edge: np.ndarray, graph: np.ndarray) -> dict[str, float]:
    """Recovery of the graph: ranking and calibration by the edge scores, errors of the one graph returned."""
    ranked, called = scgim.metrics.edge_metrics(adjacency, edge), scgim.metrics.edge_metrics(adjacency, graph)
    scores = {f"edge_{name}": ranked[name] for name in ("auroc", "auprc", "orientation_accuracy", "ece")}
    scores |= {f"edge_{name}": called[name] for name in ("f1", "precision", "recall")}
    return scores | {"shd": called["shd"], "n_edges": called["n_edges"], "n_true_edges": int(adjacency.sum())}


def target_scores(true: np.ndarray, prob: np.ndarray, called: np.ndarray, prefix: str = "target") -> dict[str, float]:
    """Recovery of targets: ranking and calibration by their scores, errors of those called."""
    ranked, decided = scgim.metrics.target_metrics(true, prob), scgim.metrics.target_metrics(true, called)
    scores = {f"{prefix}_{name}": ranked[name] for name in ("auroc", "auprc", "ece")}
    return scores | {f"{prefix}_{name}": decided[name] for name in ("f1", "precision", "recall")}


def model_scores(model: scgim.model.GIM, adata: AnnData) -> dict[str, float]:
    """Recovery of graph and targets by a fitted model; of new drugs' targets too, where there are any."""
    adjacency = adata.varp["true_adjacency"].toarray()
    scores = structure_scores(adjacency, model.get_adjacency().to_numpy(), fitted_graph(model))
    truth = adata.varm["true_targets"].T
    prob = model.get_targets().groupby(level="perturbation").first()
    scores |= target_scores(truth.loc[prob.index].to_numpy(), prob.to_numpy(), prob.to_numpy() > 0.5)
    new = truth.index.difference(prob.index)
    if len(new):
        prob = model.get_targets(adata.uns["drug_embedding"].loc[new]).to_numpy()
        scores |= target_scores(truth.loc[new].to_numpy(), prob, prob > 0.5, "new_target")
    return scores


def fitted_graph(model: scgim.model.GIM) -> np.ndarray:
    """Adjacency of the graph that the model returns, boolean, genes x genes."""
    names = pd.Index(model.gene_names_)
    graph, edges = np.zeros((len(names), len(names)), dtype=bool), model.get_graph()
    graph[names.get_indexer(edges["source"]), names.get_indexer(edges["target"])] = True
    return graph


def held_out_contexts(adata: AnnData) -> pd.DataFrame:
    """Perturbation, dosage and split of the contexts to predict, in the order of the cells."""
    held_out = adata.obs.loc[adata.obs["split"] != "train", ["perturbation", "dosage", "split"]]
    return held_out.drop_duplicates().reset_index(drop=True)


def predict_held_out(model: scgim.model.GIM, adata: AnnData, n_samples: int, seed: int) -> tuple[AnnData, float]:
    """Predicted cells of the held-out contexts, and the CPU seconds it took."""
    contexts = held_out_contexts(adata)
    features = adata.uns["drug_embedding"].loc[contexts["perturbation"].astype(str)]
    start = time.process_time()
    predicted = model.predict(features, contexts["dosage"].to_numpy(), n_samples=n_samples, seed=seed)
    return predicted, time.process_time() - start


def write_result(
    path: Path,
    data: Path,
    model: scgim.model.GIM,
    *,
    cost: Cost,
    view: str,
    predicted: Mapping[str, AnnData] | None = None,
) -> None:
    """Result file as `score.py` reads it: edges, graph and targets of the training contexts, and predicted cells if given.

    `predicted` maps `"pood"` (unseen doses) and `"ood"` (unseen drugs) to the cells of these contexts, in the order of the data.
    """
    z = np.load(data)
    contexts = pd.MultiIndex.from_arrays([drug_names(z["ctx_drug"][1:]), z["ctx_dose"][1:].astype(float)])
    target = model.get_targets().loc[contexts].to_numpy()
    cells = {}
    for name, part in (predicted or {}).items():
        values = part.X.toarray() if sparse.issparse(part.X) else np.asarray(part.X)
        cells[f"pred_{name}"] = values.reshape(len(z[f"{name}_ctx_drug"]), -1, part.n_vars)
    versions = {name: version(name) for name in ("scgim", "scvi-tools", "torch")}
    meta = {"wall": cost.wall, "cpu": cost.cpu, "rss_mb": cost.memory_mb, "versions": versions}
    meta["pred_space"] = "count" if view == "count" else "float"
    np.savez(
        path,
        edge=model.get_adjacency().to_numpy(),
        adj=fitted_graph(model).astype(int),
        target=target,
        target_bin=(target > 0.5).astype(int),
        meta=json.dumps(meta),
        **cells,
    )


def bench_scores(bench: Path, data: Path, result: Path, view: str) -> dict[str, float]:
    """Scores of a result file by the functions of `score.py`."""
    score = load_script(bench / "score.py")
    z, r = np.load(data), dict(np.load(result))
    space = "float" if view == "float" else "log1p"
    scores = {**score.edges(z["A"], r), **score.targets(z["ctx_targets"], r)}
    return scores | score.dist(z, r, "pood", space) | score.dist(z, r, "ood", space)
