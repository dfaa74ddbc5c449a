"""One fit with one constant changed: recovery of graph and targets, and the error of what is predicted."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from benchmarks import common
from benchmarks._worlds import simulate
from benchmarks.sensitivity.suites import CHANGES
from benchmarks.worlds import gnw, kinetic

import scgim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anndata import AnnData
    from benchmarks._worlds import Job, Place

_N_SAMPLES = 200
_QUICK = {
    "kinetic": {
        "n_genes": 10,
        "n_regulators": 4,
        "n_drugs": 8,
        "n_new_drugs": 2,
        "n_classes": 4,
        "n_cells": 10,
        "n_controls": 100,
    },
    "gnw": {},
    "nonlinear": {"n_genes": 8, "n_drugs": 8, "n_cells": 10, "n_controls": 100, "n_unseen_drugs": 2, "n_features": 5},
}


def measure(job: Job, place: Place, data: Path) -> list[dict[str, float]]:
    """The scores of a fit, in one row; `data` is the folder that has GeneNetWeaver's files."""
    change = CHANGES[str(job.world["maker"])][str(job.labels["constant"])][str(job.labels["value"])]
    with changed(change.attributes):
        adata = open_world(job, place, data)
        model, cost = common.fit(replace(job, seed=job.seed + change.seed), adata, place)
        contexts = common.held_out_contexts(adata)
        drugs = contexts["perturbation"].astype(str)
        features = adata.uns["drug_embedding"].loc[drugs] if "drug_embedding" in adata.uns else drugs.tolist()
        predicted = model.predict(features, contexts["dosage"].to_numpy(), n_samples=_N_SAMPLES, seed=job.seed)
        counts = job.view == "count"
        table = scgim.metrics.compare_baselines(
            adata,
            predicted={"scGIM": predicted},
            methods=["trainmean"],
            drug_embedding_key="drug_embedding" if "drug_embedding" in adata.uns else None,
            size_factor_key="size_factor" if counts else None,
            log1p=counts,
            seed=job.seed,
        )
    errors = table.xs("scGIM", level="method")["energy_distance"].to_dict()
    return [{"cpu": cost.cpu, **common.model_scores(model, adata), **errors}]


@contextmanager
def changed(attributes: Mapping[str, object]) -> Iterator[None]:
    """Give attributes of modules, by their full names, other values for a while."""
    places = [(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in attributes]
    before = [getattr(module, name) for module, name in places]
    try:
        for (module, name), value in zip(places, attributes.values(), strict=True):
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def open_world(job: Job, place: Place, data: Path) -> AnnData:
    """Cells of a job with their truth."""
    maker = job.world["maker"]
    options = {key: value for key, value in job.world.items() if key != "maker"} | (
        _QUICK[maker] if place.quick else {}
    )
    if maker == "gnw":
        return read_gnw(data / "gnw" / f"size10_{job.seed + 1}.h5ad")
    if maker == "nonlinear":
        return simulate("count", seed=job.seed, **options)
    adata = kinetic.make(seed=job.seed, **options)
    sc.pp.filter_cells(adata, min_counts=1)
    return adata


def read_gnw(path: Path) -> AnnData:
    """A screen of GeneNetWeaver; one dose of each drug is held out, in rotation."""
    if not path.exists():
        raise FileNotFoundError(f"No `{path.name}` in `{path.parent}`. Give the folder of the data with --data.")
    adata = gnw.read(path.parent.parent, path.stem)
    doses = np.sort(adata.obs["dosage"].unique())[1:]
    drugs = adata.varm["true_targets"].columns
    missing = pd.Series(doses[np.arange(len(drugs)) % len(doses)], drugs)
    held_out = adata.obs["dosage"].to_numpy() == adata.obs["perturbation"].astype(str).map(missing).to_numpy()
    adata.obs["split"] = pd.Categorical(np.where(held_out, "unseen_dose", "train"))
    return adata
