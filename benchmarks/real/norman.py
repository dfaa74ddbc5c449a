"""Norman et al. 2019, activated genes alone and in pairs in K562: are pairs predicted from their members?

Of the development subset of PerturBench, 100 cells of each condition at most and the 100 genes of :func:`scgim.pp.select_genes`. Models see controls
and single activations only; pairs of which both members were measured are predicted by :meth:`scgim.model.GIM.predict_combination`. Few
activated genes are among those measured, so that targets are not known beforehand.

Errors are squared errors of mean shifts of log1p of counts over size factors, averaged over genes. Baselines: no change; the better member
by itself, chosen with the answer known; and the additive one, log fold changes of the members' mean counts added up. The row `half` is what
two halves of the cells of a pair are apart, each of half the cells, which no prediction beats by much.

Expected: near the additive baseline, since that is what the model assumes of targets, and better where fold changes of noisy means
add up their errors.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from scipy import sparse

import scgim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

FILE = "perturbench_devel_counts_500genes.h5ad"
N_GENES, N_CELLS = 100, 4000
MODEL = "scGIM"
_LITTLE = 0.02  # counts, so that means of no counts have a logarithm


def load(data: Path, *, quick: bool) -> AnnData:
    """Counts of the chosen genes with size factors from all; `quick` takes 15 genes."""
    adata = ad.read_h5ad(data / FILE)
    adata = adata[adata.obs["dataset"].astype(str).str.startswith("norman")].copy()
    counts = sparse.csr_matrix(adata.X).astype(np.float32)
    obs = pd.DataFrame({"perturbation": adata.obs["perturbation"].astype(str)}, index=adata.obs_names)
    screen = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=adata.var_names))
    chosen = scgim.pp.select_genes(screen, 15 if quick else N_GENES, dosage_key=None)
    return screen[:, chosen].copy()


def pairs_of(adata: AnnData) -> list[str]:
    """Pairs of which both members were measured alone."""
    names = set(adata.obs["perturbation"])
    return sorted(name for name in names if "+" in name and set(name.split("+")) <= names)


def log_mean(adata: AnnData) -> np.ndarray:
    """Mean of log1p of counts over size factors, of each gene."""
    return np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None]).mean(axis=0)


def mean(adata: AnnData) -> np.ndarray:
    """Mean count per unit of size factor, of each gene."""
    return np.asarray(adata.X.sum(axis=0)).ravel() / adata.obs["size_factor"].sum()


def fit(adata: AnnData, seed: int, max_epochs: int | None) -> scgim.model.GIM:
    """A model of controls and single activations."""
    train = adata[~adata.obs["perturbation"].str.contains("+", regex=False)].copy()
    scvi.settings.seed = seed
    scgim.model.GIM.setup_anndata(train, dosage_key=None, drug_embedding_key=None, size_factor_key="size_factor")
    model = scgim.model.GIM(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def evaluate(adata: AnnData, seed: int, max_epochs: int | None) -> pd.DataFrame:
    """Errors of every method for every pair, one row each."""
    model = fit(adata, seed, max_epochs)
    cells = {name: adata[adata.obs["perturbation"] == name] for name in adata.obs["perturbation"].unique()}
    control, rng = cells["control"], np.random.default_rng(seed)
    options = {"n_samples": N_CELLS, "seed": seed}
    reference = log_mean(model.predict_combination({}, **options))
    rows = []
    for pair in pairs_of(adata):
        a, b = pair.split("+")
        observed = log_mean(cells[pair]) - log_mean(control)
        folds = sum(np.log(mean(cells[name]) + _LITTLE) - np.log(mean(control) + _LITTLE) for name in (a, b))
        # of means; log1p of cells differs from it by what their spread adds, which is taken from the controls
        added = np.log1p((mean(control) + _LITTLE) * np.exp(folds)) - np.log1p(mean(control) + _LITTLE)
        added *= observed_slope(control)
        first, second = np.array_split(rng.permutation(cells[pair].n_obs), 2)
        predicted = {
            "no change": 0 * observed,
            "better member": min(
                (log_mean(cells[name]) - log_mean(control) for name in (a, b)),
                key=lambda s: ((s - observed) ** 2).mean(),
            ),
            "additive": added,
            MODEL: log_mean(model.predict_combination({a: 1.0, b: 1.0}, **options)) - reference,
        }
        errors = {name: ((shift - observed) ** 2).mean() for name, shift in predicted.items()}
        errors["half"] = ((log_mean(cells[pair][first]) - log_mean(cells[pair][second])) ** 2).mean()
        rows += [{"method": name, "pair": pair, "seed": seed, "error": float(error)} for name, error in errors.items()]
    return pd.DataFrame(rows)


def observed_slope(control: AnnData) -> np.ndarray:
    """Change of the mean of log1p for one of the log1p of the mean, of each gene, if all cells change by the same factor."""
    rate = control.X.toarray() / control.obs["size_factor"].to_numpy()[:, None]
    of_cells, of_mean = (rate / (1 + rate)).mean(axis=0), rate.mean(axis=0) / (1 + rate.mean(axis=0))
    return np.where(of_mean > 0, of_cells / np.maximum(of_mean, 1e-12), 1.0)


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """Table of errors: pairs side by side and their mean, over seeds."""
    adata = load(data, quick=quick)
    errors = pd.concat([evaluate(adata, seed, 2 if quick else None) for seed in seeds], ignore_index=True)
    by_pair = errors.pivot_table("error", "method", "pair", aggfunc="mean", sort=False)
    by_pair["mean"] = by_pair.mean(axis=1)
    return {"norman-pairs": by_pair.rename_axis(columns=None).reset_index()}
