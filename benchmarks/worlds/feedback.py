"""Feedback: is it found where it is, and not where it is not? `python benchmarks/worlds/feedback.py --seeds 0 1 2`.

Worlds with loops and without: linear ones that are made here, of 8 genes of which two and three act on each other in a circle, or of which none do;
the kinetic world (:mod:`benchmarks.worlds.kinetic`) with 15 genes and six regulators; and GeneNetWeaver's networks, which have loops and thermodynamic
regulation. Seeds are those of the world and of the fit; GeneNetWeaver's worlds are fitted once.

A loop that is found is true if all its genes lie in one circle of the true network (a strongly connected component), and a circle is found if
any loop lies in it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: CPU seconds are then those of one core
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import anndata as ad  # noqa: E402
import networkx as nx  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import scvi  # noqa: E402
from benchmarks import _report  # noqa: E402
from benchmarks.worlds import gnw, kinetic  # noqa: E402
from scipy import sparse  # noqa: E402

import scgim  # noqa: E402
from scgim.structure import _feedback  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

_GENES, _DRUGS, _DOSES, _CELLS, _CONTROLS = 8, 20, 2, 40, 300
_LOOPS = {(0, 1): 0.7, (1, 0): 0.5, (2, 3): 0.8, (3, 4): 0.7, (4, 2): 0.5, (0, 5): -0.8, (5, 6): 0.7, (3, 7): 0.9}
_KINETIC = {"n_genes": 15, "n_regulators": 6, "n_drugs": 20, "n_new_drugs": 2, "n_classes": None, "doses": (0.5, 5.0)}
_KINETIC |= {"n_cells": 30, "n_controls": 300, "mean_count": 10.0}
_CLEAR = 10.0  # nats, from which the model warns


def linear(seed: int, *, loops: bool) -> ad.AnnData:
    """Cells at rest: x = W' x + effect + noise."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((_GENES, _GENES))
    if loops:
        for edge, weight in _LOOPS.items():
            weights[edge] = weight
    else:
        size = rng.choice([-1, 1], weights.shape) * rng.uniform(0.5, 1.0, weights.shape)
        order = rng.permutation(_GENES)
        weights = np.triu(size * (rng.random(weights.shape) < 0.3), 1)[np.ix_(order, order)]
    x, perturbation, dosage = [rng.normal(size=(_CONTROLS, _GENES))], ["control"] * _CONTROLS, [0.0] * _CONTROLS
    for drug in range(_DRUGS):
        targets, effect = rng.choice(_GENES, rng.integers(1, 3), replace=False), np.zeros(_GENES)
        effect[targets] = rng.choice([-1, 1], len(targets)) * rng.uniform(2, 5, len(targets))
        for dose in range(1, _DOSES + 1):
            x.append(rng.normal(size=(_CELLS, _GENES)) + effect * dose / _DOSES)
            perturbation += [f"drug_{drug}"] * _CELLS
            dosage += [float(dose)] * _CELLS
    obs = pd.DataFrame({"perturbation": pd.Categorical(perturbation), "dosage": dosage})
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(np.concatenate(x) @ np.linalg.inv(np.eye(_GENES) - weights), obs=obs)
    adata.varp["true_adjacency"] = sparse.csr_matrix(weights != 0)
    return adata


def kinetic_cells(seed: int, n_feedback: int) -> ad.AnnData:
    adata = kinetic.make(seed=seed, n_feedback=n_feedback, **_KINETIC)
    adata = adata[(adata.obs["split"] == "train").to_numpy() & (np.asarray(adata.X.sum(1)).ravel() > 0)].copy()
    adata.obs["perturbation"] = adata.obs["perturbation"].cat.remove_unused_categories()
    return adata


def worlds(seeds: list[int], data: Path) -> Iterator[tuple[str, int, ad.AnnData, str]]:
    """Name, seed, cells and likelihood."""
    for seed in seeds:
        yield "linear, loops", seed, linear(seed, loops=True), "normal"
        yield "linear, acyclic", seed, linear(seed, loops=False), "normal"
        yield "kinetic, 3 feedback edges", seed, kinetic_cells(seed, 3), "nb"
        yield "kinetic, acyclic", seed, kinetic_cells(seed, 0), "nb"
    for name in ("size10_1", "size10_2", "size100_1"):
        yield name, seeds[0], gnw.read(data / "shared" / "data", name), "normal"


class Timer:
    """CPU seconds of the search for feedback."""

    def __init__(self) -> None:
        self.seconds, self.find = 0.0, _feedback.Feedback.find
        timer = self

        def timed(feedback: _feedback.Feedback) -> list:
            start = time.process_time()
            try:
                return timer.find(feedback)
            finally:
                timer.seconds = time.process_time() - start

        _feedback.Feedback.find = timed  # type: ignore[method-assign]


def evaluate(adata: ad.AnnData, likelihood: str, seed: int, timer: Timer, epochs: int | None) -> dict[str, float]:
    """What is found, and how much of it is true."""
    scvi.settings.seed = seed
    start = time.process_time()
    size = "size_factor" if likelihood == "nb" else None
    scgim.model.GIM.setup_anndata(adata, drug_embedding_key=None, size_factor_key=size)
    model = scgim.model.GIM(adata, likelihood=likelihood)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    truth = adata.varp["true_adjacency"].toarray().astype(bool)
    components = [c for c in nx.strongly_connected_components(nx.DiGraph(truth)) if len(c) > 1]
    table = model.get_feedback()
    clear = table[table[["evidence", "forward_evidence"]].min(axis=1) > _CLEAR]
    index = pd.Index(model.gene_names_)
    genes = [set(index.get_indexer(loop.split(" -> ")).tolist()) for loop in clear["loop"]]
    edges = [truth[index.get_loc(s), index.get_loc(t)] for s, t in zip(clear["source"], clear["target"], strict=True)]
    return {
        "circles": len(components),
        "circles found": sum(any(own <= c for own in genes) for c in components),
        "loops warned of": len(clear),
        "of these true": sum(any(own <= c for c in components) for own in genes),
        "edges back that are true": int(sum(edges)),
        "loops listed beside": len(table) - len(clear),
        "edge AUPRC": scgim.metrics.edge_metrics(truth, model.get_adjacency().to_numpy())["auprc"],
        "CPU s of the fit": time.process_time() - start,
        "of these for feedback": timer.seconds,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Worlds with loops and without.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=ROOT.parent, help="folder that `shared/data` lies in")
    parser.add_argument("--quick", action="store_true", help="two epochs, to see that all runs; docs are left alone")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    timer, rows = Timer(), []
    for name, seed, adata, likelihood in worlds(options.seeds, options.data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = evaluate(adata, likelihood, seed, timer, 2 if options.quick else None)
        rows.append({"world": name, **found})
        print(rows[-1], flush=True)
    frame = pd.DataFrame(rows).groupby("world", sort=False)
    means = ["edge AUPRC", "CPU s of the fit", "of these for feedback"]
    table = pd.concat([frame.size().rename("fits"), frame.sum().drop(columns=means), frame[means].mean()], axis=1)
    table = table.reset_index()
    print(_report.to_markdown(table))
    if not options.quick:
        seeds = " ".join(map(str, options.seeds))
        command = f"python benchmarks/worlds/feedback.py --seeds {seeds}"
        _report.write_tables({"worlds-feedback": table}, _report.Provenance(command, options.seeds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
