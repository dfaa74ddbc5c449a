"""MAC-seq of MCF10A, 26 drugs at three doses in bulk wells: are doses and drugs that were never measured predicted?

262 wells with a median of some 800 UMI. One drug, MK-2206, has no structure ("NA") and is left out; then 559 of the 1,000 genes have
no counts at all and are left out as well. Size factors are totals over all genes; 100 genes are modelled, chosen by
:func:`scgim.pp.select_genes` on all wells, the same for every method. Drug features are Morgan fingerprints (1,024 bits).

Leave dose out: in each of three folds every drug loses one of its doses, in rotation, so each context is predicted once. Leave drug
out: five folds of drugs. The error is the mean squared error of the mean shift in control standard deviations of log1p expression
divided by size factors; intervals (95 %) are bootstrapped over drugs. Three wells a context are noisy, and no prediction can be better
than that noise: the row `noise` estimates it from the spread of the wells. Correlations are centred on the mean of the training contexts,
and contexts of one fold are told apart by `discrimination`: what all drugs have in common earns 0 and 0.5.

Expected: no worse than the best baseline in both; fingerprints of 26 unlike drugs hold little information, so that on unseen drugs the
best that can be done is to shrink towards the mean effect.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from benchmarks.real._screens import MODEL, NOISE, bootstrap_table, drug_folds

import scgim

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData

FILE = "macseq_mcf10a_drugs.h5ad"
N_GENES = 100
N_FOLDS = 5
BASELINES = ["control", "trainmean", "dosemean", "drugmean", "nearest_dose", "nearest_drug", "ridge", "krr"]
OF_THE_DRUG = ["drugmean", "nearest_dose"]


def load(data: Path, *, quick: bool) -> AnnData:
    """Wells of drugs with a structure, the genes to model, size factors and fingerprints; `quick` takes 8 drugs and 20 genes."""
    adata = ad.read_h5ad(data / FILE)
    adata = adata[adata.obs["smiles"].astype(str) != "NA"].copy()
    if quick:
        drugs = adata.obs["perturbation"].astype(str)
        adata = adata[drugs.isin(["control", *sorted(set(drugs) - {"control"})[:8]])].copy()
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).astype("category")
    sc.pp.filter_genes(adata, min_counts=1)
    chosen = scgim.pp.select_genes(adata, 20 if quick else N_GENES)
    adata = adata[:, chosen].copy()
    scgim.pp.drug_fingerprints("smiles", adata=adata)
    return adata


def dose_folds(adata: AnnData) -> Iterator[pd.Series]:
    """Splits in which every drug loses one of its doses, in rotation."""
    drugs = [name for name in adata.obs["perturbation"].cat.categories if name != "control"]
    doses = np.sort(adata.obs.loc[adata.obs["perturbation"] != "control", "dosage"].unique())
    for fold in range(len(doses)):
        held_out = {drug: doses[(i + fold) % len(doses)] for i, drug in enumerate(drugs)}
        test = adata.obs["dosage"] == adata.obs["perturbation"].astype(str).map(held_out)
        yield pd.Series(np.where(test, "test", "train"), adata.obs_names)


def predict(adata: AnnData, seed: int, max_epochs: int | None) -> tuple[AnnData, float]:
    """Predictions of the contexts marked "test" by a model of the rest, and the CPU seconds of its training."""
    scvi.settings.seed = seed
    train = adata[adata.obs["split"] == "train"].copy()
    train.obs["perturbation"] = train.obs["perturbation"].cat.remove_unused_categories()
    sc.pp.filter_genes(train, min_counts=1)
    scgim.model.GIM.setup_anndata(train, size_factor_key="size_factor")
    model = scgim.model.GIM(train)
    start = time.process_time()
    model.train(max_epochs, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    seconds = time.process_time() - start
    test = adata.obs.loc[adata.obs["split"] == "test", ["perturbation", "dosage"]].drop_duplicates()
    features = adata.uns["drug_embedding"].loc[test["perturbation"].astype(str)]
    return model.predict(features, test["dosage"].to_numpy(), n_samples=2000, seed=seed), seconds


def noise_floor(adata: AnnData) -> pd.DataFrame:
    """Expected error of a perfect prediction: the variance of a context's mean shift, from the spread of its wells."""
    control = (adata.obs["perturbation"] == "control").to_numpy()
    x = np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])
    sd = x[control].std(axis=0)
    x = x / np.where(sd > 1e-8, sd, 1.0)
    rows = []
    for (drug, dose), cells in adata.obs[~control].groupby(["perturbation", "dosage"], observed=True).indices.items():
        own = x[~control][cells]
        error = (own.var(axis=0, ddof=1) / len(cells)).mean() if len(cells) > 1 else np.nan
        rows.append({"method": NOISE, "perturbation": drug, "dosage": dose, "mean_shift_error": error})
    return pd.DataFrame(rows)


def evaluate(
    adata: AnnData, splits: Sequence[pd.Series], seed: int, max_epochs: int | None
) -> tuple[pd.DataFrame, float]:
    """Errors of every method in every held-out context, one row each, and mean CPU seconds of a fit."""
    parts, seconds = [], []
    for split in splits:
        adata.obs["split"] = split
        predicted, cpu = predict(adata, seed, max_epochs)
        seconds.append(cpu)
        train = adata.obs.loc[adata.obs["split"] == "train", "perturbation"]
        known = set(adata.obs.loc[adata.obs["split"] == "test", "perturbation"]) <= set(train)
        methods = [name for name in BASELINES if known or name not in OF_THE_DRUG]
        parts.append(
            scgim.metrics.compare_baselines(
                adata,
                predicted={MODEL: complete(predicted, adata)},
                methods=methods,
                size_factor_key="size_factor",
                per_context=True,
            )
        )
    errors = pd.concat(parts, ignore_index=True)
    noise = noise_floor(adata).merge(errors[["perturbation", "dosage"]].drop_duplicates())
    return pd.concat([errors, noise], ignore_index=True), float(np.mean(seconds))


def complete(predicted: AnnData, adata: AnnData) -> AnnData:
    """Predictions for all genes of the data: a gene without counts in training is predicted to have none."""
    if list(predicted.var_names) == list(adata.var_names):
        return predicted
    missing = adata.var_names.difference(predicted.var_names)
    none = ad.AnnData(np.zeros((predicted.n_obs, len(missing))), predicted.obs, pd.DataFrame(index=missing))
    both = ad.concat([ad.AnnData(predicted.X.toarray(), predicted.obs, predicted.var), none], axis=1, merge="same")
    return both[:, adata.var_names].copy()


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """Tables by name; errors are means over seeds."""
    adata = load(data, quick=quick)
    epochs = 2 if quick else None
    parts: dict[str, list[pd.DataFrame]] = {"macseq-doses": [], "macseq-drugs": []}
    for seed in seeds:
        splits = {"macseq-doses": list(dose_folds(adata)), "macseq-drugs": list(drug_folds(adata, N_FOLDS, seed))}
        for name, folds in splits.items():
            errors, cpu = evaluate(adata, folds[:1] if quick else folds, seed, epochs)
            parts[name].append(errors.assign(cpu=cpu))
    tables = {}
    for name, errors in parts.items():
        together = pd.concat(errors, ignore_index=True)
        tables[name] = bootstrap_table(together)
        tables[name].loc[tables[name]["method"] == MODEL, "CPU seconds a fit"] = together["cpu"].mean()
    return tables
