"""Dixit et al. 2016: knock-outs of eight of 24 measured transcription factors in dendritic cells; can their targets be told?

Counts of 14,427 cells, 301 to 3,602 of a knock-out and 992 controls. The knock-outs are given to the model as perturbations of unknown target. The 24 genes
are all that is measured, so that depth is what the model makes of them; the tests have totals of these genes.

Expected: a mean reciprocal rank not below that of a t-test. A knock-out acts on the protein, and its transcript need not fall.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from benchmarks.real._knock_outs import by_seed, log_normalised, marginal_rankings, summary_table, target_table

import scgim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

FILE = "dixit_bmdc_24tf.h5ad"


def load(data: Path, *, quick: bool) -> AnnData:
    """Counts of the cells that have any; `quick` takes 60 cells of a knock-out and of controls."""
    read = ad.read_h5ad(data / FILE)
    adata = ad.AnnData(read.layers["counts"].tocsr(), var=read.var)
    adata.obs["perturbation"] = read.obs["target"].astype(str).astype("category").to_numpy()
    sc.pp.filter_cells(adata, min_counts=1)
    adata.obs["size_factor"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["size_factor"] /= adata.obs["size_factor"].mean()
    if quick:
        cells = adata.obs.groupby("perturbation", observed=True).indices.values()
        adata = adata[np.sort(np.concatenate([rows[:60] for rows in cells]))].copy()
    return adata


def fit(adata: AnnData, seed: int, max_epochs: int | None) -> tuple[scgim.model.GIM, float]:
    """Model of the screen, and the CPU seconds of its training."""
    scvi.settings.seed = seed
    scgim.model.GIM.setup_anndata(adata, dosage_key=None, drug_embedding_key=None)
    model = scgim.model.GIM(adata)
    start = time.process_time()
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model, time.process_time() - start


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """Tables by name; ranks of single targets are those of the first seed, the summary has a row for each."""
    adata = load(data, quick=quick)
    marginal, seconds = marginal_rankings(log_normalised(adata))
    fits = list(by_seed(lambda seed: fit(adata, seed, 2 if quick else None), seeds))
    model, rankings, _ = fits[0]
    summary = pd.concat([*(mine for *_, mine in fits), summary_table(marginal, seconds)]).reset_index()
    return {"dixit-summary": summary, "dixit-targets": target_table(model, rankings | marginal).reset_index()}
