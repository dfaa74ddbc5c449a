"""L1000 of A375: 58 kinase inhibitors and other drugs at six doses, one well each: predicted, and their targets told?

Plate LJP005, 24 hours: 351 treated wells and 26 of DMSO, log2 expression (level 3), so the likelihood is normal. One drug without a structure is
left out. 100 genes are modelled: those with the largest spread over all wells divided by that over controls, the same for every
method. Drug features are 40 principal components of Morgan fingerprints. Doses run along the columns of the plate: effects of dose and of
the edge of the plate cannot be told apart, and `dosemean` learns both.

Leave drug out: three folds of drugs. Leave dose out: in each of three folds every drug loses two of its six doses, three apart, in rotation, so
that each context is predicted once: the lowest, the highest, and those between. The error is the mean squared error of the mean shift in control
standard deviations; intervals (95 %) are bootstrapped over drugs. A prediction of a well that was never measured should not lie far outside all
that was measured: the largest excess of a predicted mean over the range of the training wells is shown, in control standard deviations.

Targets: the kinases that these drugs bind are known, some are among the measured genes, and those join the modelled ones for one fit of all wells. A
drug acts on the protein, so that the transcript of its target need not move at all; the test asks only whether the model does better than a
t-test and a z-score at what may be impossible.

Expected: no worse than the best baseline with drugs or doses left out, and nothing far outside the range. Targets: little above chance.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from benchmarks.real import _known_targets
from benchmarks.real._screens import MODEL, bootstrap_table, drug_folds

import scgim

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData

FILE = "l1000_ljp005_a375_24h.h5ad"
N_GENES = 100
N_COMPONENTS = 40
N_FOLDS = 3
BASELINES = ["control", "trainmean", "dosemean", "nearest_dose", "drugmean", "nearest_drug", "ridge", "krr"]
EMBEDDING = "drug_embedding_pca"
EXCESS = "largest excess over the data's range, in control sd"
# Contexts whose errors are shown by themselves where doses are left out.
DOSES = {"lowest": "error, lowest dose", "between": "error, doses between", "highest": "error, highest dose"}


def load(data: Path, *, quick: bool) -> AnnData:
    """All genes of the wells of drugs with a structure, and their features; `quick` takes 9 drugs with known targets."""
    adata = ad.read_h5ad(data / FILE)
    known = (adata.obs["smiles"].astype(str) != "") | (adata.obs["perturbation"] == "control")
    adata = adata[known].copy()
    if quick:
        drugs = adata.obs["perturbation"].astype(str)
        adata = adata[drugs.isin(["control", *list(_known_targets.read(adata))[:9]])].copy()
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).astype("category")
    scgim.pp.drug_fingerprints("smiles", adata=adata)
    n_drugs = len(adata.uns["drug_embedding"])
    scgim.pp.pca_features(adata, min(N_COMPONENTS, n_drugs - 1), key_added=EMBEDDING)
    return adata


def varying_genes(adata: AnnData, n_genes: int) -> pd.Index:
    """Genes with the largest spread over all wells, divided by that over control wells."""
    control = (adata.obs["perturbation"] == "control").to_numpy()
    ratio = adata.X.std(axis=0) / np.maximum(adata.X[control].std(axis=0), 1e-8)
    return adata.var_names[np.sort(np.argsort(-ratio, kind="stable")[:n_genes])]


def dose_folds(adata: AnnData) -> Iterator[pd.Series]:
    """Splits in which every drug loses two of its six doses, three apart, in rotation."""
    drugs = [name for name in adata.obs["perturbation"].cat.categories if name != "control"]
    rank = {dose: i for i, dose in enumerate(doses_of(adata))}
    position = adata.obs["perturbation"].astype(str).map({drug: i for i, drug in enumerate(drugs)})
    for fold in range(N_FOLDS):
        test = adata.obs["dosage"].map(rank) % N_FOLDS == (position + fold) % N_FOLDS
        yield pd.Series(np.where(test & position.notna(), "test", "train"), adata.obs_names)


def doses_of(adata: AnnData) -> np.ndarray:
    """Doses of the screen, in order."""
    return np.sort(adata.obs.loc[adata.obs["perturbation"] != "control", "dosage"].unique())


def fit(adata: AnnData, seed: int, max_epochs: int | None) -> tuple[scgim.model.GIM, float]:
    """Model of wells, and the CPU seconds of its training."""
    scvi.settings.seed = seed
    start = time.process_time()
    scgim.model.GIM.setup_anndata(adata, drug_embedding_key=EMBEDDING)
    model = scgim.model.GIM(adata, likelihood="normal")
    model.train(max_epochs, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    return model, time.process_time() - start


def predict(adata: AnnData, seed: int, max_epochs: int | None) -> tuple[AnnData, float]:
    """Predictions of the contexts marked "test" by a model of the rest, and the CPU seconds of its training."""
    train = adata[adata.obs["split"] == "train"].copy()
    train.obs["perturbation"] = train.obs["perturbation"].cat.remove_unused_categories()
    model, seconds = fit(train, seed, max_epochs)
    test = adata.obs.loc[adata.obs["split"] == "test", ["perturbation", "dosage"]].drop_duplicates()
    features = adata.uns[EMBEDDING].loc[test["perturbation"].astype(str)]
    return model.predict(features, test["dosage"].to_numpy(), n_samples=1000, seed=seed), seconds


def excess(adata: AnnData, predicted: AnnData) -> float:
    """How far the mean of a predicted context lies outside what the training wells have of that gene, at most; in control sd."""
    train = adata[adata.obs["split"] == "train"]
    sd = train[train.obs["perturbation"] == "control"].X.std(axis=0)
    cells = predicted.obs.groupby(["perturbation", "dosage"], observed=True, sort=False).indices.values()
    means = np.stack([predicted.X[rows].mean(axis=0) for rows in cells])
    beyond = np.maximum(means - train.X.max(axis=0), train.X.min(axis=0) - means)
    return float(np.maximum(beyond / np.where(sd > 1e-8, sd, 1.0), 0.0).max())


def evaluate(adata: AnnData, splits: Sequence[pd.Series], seed: int, max_epochs: int | None) -> pd.DataFrame:
    """Errors of every method in every held-out context, one row each."""
    parts = []
    for split in splits:
        adata.obs["split"] = split
        predicted, cpu = predict(adata, seed, max_epochs)
        errors = scgim.metrics.compare_baselines(
            adata,
            predicted={MODEL: predicted},
            methods=BASELINES,
            drug_embedding_key=EMBEDDING,
            log1p=False,
            per_context=True,
        )
        mine = errors["method"] == MODEL
        parts.append(
            errors.assign(cpu=np.where(mine, cpu, np.nan), excess=np.where(mine, excess(adata, predicted), np.nan))
        )
    return pd.concat(parts, ignore_index=True)


def error_table(errors: pd.DataFrame, doses: np.ndarray | None) -> pd.DataFrame:
    """Table of errors; with `doses`, of those at the lowest, the highest and those between too."""
    shown = {}
    if doses is not None:
        where = np.select(
            [errors["dosage"] == doses[0], errors["dosage"] == doses[-1]], ["lowest", "highest"], "between"
        )
        for name, heading in DOSES.items():
            errors = errors.assign(**{name: errors["mean_shift_error"].where(where == name)})
            shown[name] = heading
    table = bootstrap_table(errors, shown)
    ours = table["method"] == MODEL
    table.loc[ours, EXCESS] = errors["excess"].max()
    table.loc[ours, "CPU seconds a fit"] = errors["cpu"].mean()
    return table


def target_tables(adata: AnnData, seed: int, max_epochs: int | None) -> dict[str, pd.DataFrame]:
    """Ranks of known targets by a fit of all wells, on the modelled genes and the known targets."""
    known = _known_targets.read(adata)
    chosen = {
        *varying_genes(adata, N_GENES if max_epochs is None else 20),
        *(gene for genes in known.values() for gene in genes),
    }
    part = adata[:, adata.var_names.isin(chosen)].copy()
    model, cpu = fit(part, seed, max_epochs)
    ranks = {**_known_targets.model_ranks(model), **_known_targets.simple_ranks(part)}
    table = _known_targets.rank_table(ranks, known)
    return {
        "l1000-targets": _known_targets.summary(
            table, part.n_vars, known, {name: cpu for name in ranks if MODEL in name}
        ),
        "l1000-target-ranks": table.reset_index(),
    }


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """Tables by name; errors are means over seeds, ranks of targets those of the first."""
    whole = load(data, quick=quick)
    adata = whole[:, varying_genes(whole, 20 if quick else N_GENES)].copy()
    epochs = 2 if quick else None
    parts: dict[str, list[pd.DataFrame]] = {"l1000-drugs": [], "l1000-doses": []}
    for seed in seeds:
        splits = {"l1000-drugs": list(drug_folds(adata, N_FOLDS, seed)), "l1000-doses": list(dose_folds(adata))}
        for name, folds in splits.items():
            parts[name].append(evaluate(adata, folds[:1] if quick else folds, seed, epochs))
    tables = {
        name: error_table(pd.concat(errors, ignore_index=True), doses_of(adata) if name == "l1000-doses" else None)
        for name, errors in parts.items()
    }
    return tables | target_tables(whole, seeds[0], epochs)
