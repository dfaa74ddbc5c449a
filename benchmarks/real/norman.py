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
MODEL, WITH_PAIRS = "scGIM", "scGIM, other pairs measured"
_LITTLE, _LEAST = 0.02, 0.1  # counts, so that means of no counts have a logarithm; and the least spread of a gene


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


def mean(adata: AnnData) -> np.ndarray:
    """Mean count per unit of size factor, of each gene."""
    return np.asarray(adata.X.sum(axis=0)).ravel() / adata.obs["size_factor"].sum()


def fit(train: AnnData, seed: int, max_epochs: int | None) -> scgim.model.GIM:
    """A model of controls and activations, single ones and pairs if there are any."""
    train, separator = train.copy(), "+" if train.obs["perturbation"].str.contains("+", regex=False).any() else None
    scvi.settings.seed = seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scgim.model.GIM.setup_anndata(
            train,
            dosage_key=None,
            drug_embedding_key=None,
            size_factor_key="size_factor",
            combination_separator=separator,
        )
        model = scgim.model.GIM(train)
        model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def additive(cells: dict[str, AnnData], members: list[str]) -> np.ndarray:
    """Shift of log1p if log fold changes of mean counts add up."""
    base = mean(cells["control"]) + _LITTLE
    folds = sum(np.log(mean(cells[name]) + _LITTLE) - np.log(base) for name in members)
    # of means; log1p of cells differs from it by what their spread adds, which is taken from the controls
    return (np.log1p(base * np.exp(folds)) - np.log1p(base)) * observed_slope(cells["control"])


def per_size(cells: AnnData) -> np.ndarray:
    """Log1p of counts over size factors, cells x genes."""
    return np.log1p(cells.X.toarray() / cells.obs["size_factor"].to_numpy()[:, None])


def predicted_of(model: scgim.model.GIM, members: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shift of log1p of predicted cells against predicted controls, and the former."""
    options = {"n_samples": N_CELLS, "seed": seed}
    cells = per_size(model.predict_combination(dict.fromkeys(members, 1.0), **options))
    return cells.mean(axis=0) - per_size(model.predict_combination({}, **options)).mean(axis=0), cells


def evaluate(adata: AnnData, seed: int, max_epochs: int | None) -> pd.DataFrame:
    """Scores of every method for every pair, one row each."""
    labels = adata.obs["perturbation"]
    alone = fit(adata[~labels.str.contains("+", regex=False)], seed, max_epochs)
    cells = {name: adata[labels == name] for name in labels.unique()}
    control, rng = per_size(cells["control"]), np.random.default_rng(seed)
    shift = {name: per_size(own).mean(axis=0) - control.mean(axis=0) for name, own in cells.items()}
    reference = np.mean([shift[name] for name in shift if "+" not in name and name != "control"], axis=0)
    spread = np.maximum(control.std(axis=0), _LEAST)
    rows = []
    for pair in pairs_of(adata):
        members, own = pair.split("+"), per_size(cells[pair])
        observed, first = shift[pair], rng.permutation(len(own)) < len(own) // 2
        better = min(members, key=lambda name: float(((shift[name] - observed) ** 2).mean()))
        added = additive(cells, members)
        others = fit(adata[labels != pair], seed, max_epochs)
        predicted = {
            "no change": (0 * observed, control),
            "better member": (shift[better], per_size(cells[better])),
            "additive": (added, control + added),
            MODEL: predicted_of(alone, members, seed),
            WITH_PAIRS: predicted_of(others, members, seed),
            "half": (observed + own[first].mean(axis=0) - own[~first].mean(axis=0), None),
        }
        for method, (change, drawn) in predicted.items():
            rows.append({"method": method, "pair": pair, "error": float(((change - observed) ** 2).mean())})
            if drawn is not None:
                rows[-1]["energy"] = scgim.metrics.energy_distance(own / spread, drawn / spread)
                rows[-1]["centred"] = scgim.metrics.centred_correlation([observed], [change], reference)[0]
    return pd.DataFrame(rows)


def observed_slope(control: AnnData) -> np.ndarray:
    """Change of the mean of log1p for one of the log1p of the mean, of each gene, if all cells change by the same factor."""
    rate = control.X.toarray() / control.obs["size_factor"].to_numpy()[:, None]
    of_cells, of_mean = (rate / (1 + rate)).mean(axis=0), rate.mean(axis=0) / (1 + rate.mean(axis=0))
    return np.where(of_mean > 0, of_cells / np.maximum(of_mean, 1e-12), 1.0)


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """Table of errors, pairs side by side, and of means over pairs; means over seeds."""
    adata = load(data, quick=quick)
    scores = pd.concat([evaluate(adata, seed, 2 if quick else None) for seed in seeds], ignore_index=True)
    table = scores.pivot_table("error", "method", "pair", aggfunc="mean", sort=False)
    means = scores.groupby("method", sort=False)[["error", "energy", "centred"]].mean()
    means.columns = ["mean error", "energy distance", "centred"]
    return {"norman-pairs": table.join(means).reset_index()}
