"""L1000 of a plate of shRNAs: can the target of a knock-down be told from expression alone?

85 shRNAs of four wells each and 32 wells of vector controls; untreated wells are left out. The targets of 78 are measured, so that the answer is
known. Modelled are these 78 genes and those of largest variance, 130 in all, as continuous values: scores of differential expression. shRNAs act on
the transcript, so that the target itself should fall; off-targets and what lies downstream move too.

Expected: by target probability a mean reciprocal rank of at least 0.72, above a t-test, z-scores and the size of the change, with a median of at most
eight genes called.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from benchmarks.real._knock_outs import (
    TESTS,
    Ranking,
    by_seed,
    marginal_rankings,
    measured_targets,
    rank_genes,
    summary_table,
)
from benchmarks.real._known_targets import simple_ranks

import scgim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

FILE = "l1000_shrna_dbj30.h5ad"
N_GENES = 130


def load(data: Path, *, quick: bool) -> AnnData:
    """Wells of shRNAs and vector controls, the genes that are modelled; `quick` takes eight shRNAs and 20 genes."""
    adata = ad.read_h5ad(data / FILE)
    adata = adata[adata.obs["perturbation"] != "untreated"].copy()
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).astype("category")
    if quick:
        some = ["control", *measured_targets(adata)[:8]]
        adata = adata[adata.obs["perturbation"].isin(some)].copy()
        adata.obs["perturbation"] = adata.obs["perturbation"].cat.remove_unused_categories()
    return adata[:, modelled_genes(adata, 20 if quick else N_GENES)].copy()


def modelled_genes(adata: AnnData, n_genes: int) -> pd.Index:
    """The measured targets, and of the others those of largest variance."""
    variance = pd.Series(np.var(adata.X, axis=0), adata.var_names)
    known = measured_targets(adata)
    others = variance.drop(known).nlargest(n_genes - len(known)).index
    return adata.var_names[adata.var_names.isin([*known, *others])]


def fit(adata: AnnData, seed: int, max_epochs: int | None) -> tuple[scgim.model.GIM, float]:
    """Model of the wells, and the CPU seconds of its training."""
    scvi.settings.seed = seed
    scgim.model.GIM.setup_anndata(adata, dosage_key=None, drug_embedding_key=None)
    model = scgim.model.GIM(adata, likelihood="normal")
    start = time.process_time()
    model.train(max_epochs, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    return model, time.process_time() - start


def simple_rankings(adata: AnnData) -> dict[str, Ranking]:
    """Genes by marginal tests, which call them too, by z-scores of the mean, and by the change of the mean."""
    with np.errstate(invalid="ignore"):  # fold changes, which scores do not have
        tests, _ = marginal_rankings(adata)
    means = adata.to_df().groupby(adata.obs["perturbation"].astype(str)).mean()
    change = (means - means.loc["control"]).drop("control").abs()
    return {name: tests[name] for name in TESTS} | {
        "z-score": Ranking(simple_ranks(adata)["z-score"], None),
        "change": Ranking(rank_genes(change), None),
    }


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """One table: mean reciprocal rank of the measured targets by each method, and genes called."""
    adata = load(data, quick=quick)
    ours = [mine for *_, mine in by_seed(lambda seed: fit(adata, seed, 2 if quick else None), seeds)]
    return {"shrna-targets": pd.concat([*ours, summary_table(simple_rankings(adata), {})]).reset_index()}
