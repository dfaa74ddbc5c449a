"""Zhao et al. 2021, panobinostat in glioblastoma slices of five patients: is a patient predicted who was never treated?

5,000 cells, 300 genes, control or 0.2 uM panobinostat. A patient is a categorical covariate, and a covariate value that no training
cell has cannot be predicted. So each patient in turn is held out by its *treated* cells: its control cells stay in training, which
is what one has before treating a patient, and its treated cells are predicted with its covariate and with size factors drawn from
its controls. `effect_modifier_key` lets effects differ between patients, and carries them to the one left out; the row `patients alike` is
a model in which the patient is a covariate alone. Genes are those of :func:`scgim.pp.select_genes`, the same for every method; size factors are totals over all 300.

Errors are in log1p space standardised on the patient's own control cells. Baselines: its control cells, and its control cells moved by
the mean shift of the other patients (each against its own controls). The row `half` is what two halves of the patient's own treated
cells are apart, which no prediction can beat.

Expected: better than control and no worse than the mean shift of the others. With one drug there is nothing to learn about drugs; what
the network may add is how the shift depends on the state of the patient's cells.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi

import scgim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

FILE = "zhao2021_gbm_panobinostat.h5ad"
DRUG = "panobinostat"
N_GENES = 100
MODEL, ALIKE = "scGIM", "scGIM, patients alike"
METRICS = ["mean_shift_error", "energy_distance", "mean_shift_correlation"]


def load(data: Path, *, quick: bool) -> AnnData:
    """Counts with size factors and the genes to model; `quick` takes 100 cells of each patient and arm and 20 genes."""
    adata = ad.read_h5ad(data / FILE)
    sc.pp.filter_cells(adata, min_counts=1)
    if quick:
        rng = np.random.default_rng(0)
        arms = adata.obs.groupby(["patient", "perturbation"], observed=True).indices.values()
        adata = adata[np.sort(np.concatenate([rng.choice(cells, 100, replace=False) for cells in arms]))].copy()
    chosen = scgim.pp.select_genes(adata, 20 if quick else N_GENES, batch_key="patient")
    adata = adata[:, chosen].copy()
    sc.pp.filter_cells(adata, min_counts=1)
    return adata


def predict(adata: AnnData, patient: str, seed: int, max_epochs: int | None, setup: dict) -> tuple[AnnData, float]:
    """Treated cells of a patient, predicted by a model of all other cells, and the CPU seconds of its training."""
    scvi.settings.seed = seed
    own = adata.obs["patient"] == patient
    train = adata[~(own & (adata.obs["perturbation"] == DRUG))].copy()
    scgim.model.GIM.setup_anndata(train, drug_embedding_key=None, size_factor_key="size_factor", **setup)
    model = scgim.model.GIM(train)
    start = time.process_time()
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    seconds = time.process_time() - start
    sizes = adata.obs.loc[own & (adata.obs["perturbation"] == "control"), "size_factor"].to_numpy()
    dose = adata.obs.loc[adata.obs["perturbation"] == DRUG, "dosage"].max()
    predicted = model.predict(
        [DRUG],
        dose,
        n_samples=len(sizes),
        seed=seed,
        covariates={"patient": patient},
        size_factor=sizes,
    )
    return predicted, seconds


class Patient:
    """Normalised log expression of one patient, on the scale of its control cells."""

    def __init__(self, adata: AnnData, patient: str):
        arms = {
            arm: adata[(adata.obs["patient"] == patient) & (adata.obs["perturbation"] == arm)]
            for arm in ("control", DRUG)
        }
        log = {arm: log_expression(cells) for arm, cells in arms.items()}
        self.centre = log["control"].mean(axis=0)
        spread = log["control"].std(axis=0)
        self.scale = np.where(spread > 1e-8, spread, 1.0)
        self.control, self.treated = (self.standardise(log[arm]) for arm in ("control", DRUG))

    def standardise(self, log: np.ndarray) -> np.ndarray:
        """Log expression on the scale of the control cells."""
        return (log - self.centre) / self.scale

    @property
    def shift(self) -> np.ndarray:
        """Mean shift in log1p expression, not standardised: patients are averaged in it."""
        return (self.treated.mean(axis=0) - self.control.mean(axis=0)) * self.scale


def log_expression(adata: AnnData) -> np.ndarray:
    """log1p of counts over size factors, dense, cells x genes."""
    return np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])


def score(treated: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Errors of predicted cells; both are on the scale of the patient's controls, whose mean is 0."""
    observed, mean = treated.mean(axis=0), predicted.mean(axis=0)
    correlation = scgim.metrics.r2_scores(observed, mean)["pearson_r"]
    distance = scgim.metrics.energy_distance(treated, predicted)
    return dict(zip(METRICS, [float(((observed - mean) ** 2).mean()), distance, correlation], strict=True))


def evaluate(adata: AnnData, patient: str, seed: int, max_epochs: int | None) -> pd.DataFrame:
    """Errors of every method for one patient, one row each."""
    patients = {name: Patient(adata, name) for name in adata.obs["patient"].unique()}
    own = patients.pop(patient)
    predicted, seconds = predict(adata, patient, seed, max_epochs, {"effect_modifier_key": "patient"})
    alike, _ = predict(adata, patient, seed, max_epochs, {"categorical_covariate_keys": ["patient"]})
    others = np.mean([other.shift for other in patients.values()], axis=0) / own.scale
    order = np.random.default_rng(seed).permutation(len(own.treated))
    first, second = np.array_split(order, 2)
    candidates = {
        "control": own.control,
        "mean shift of the others": own.control + others,
        ALIKE: own.standardise(log_expression(alike)),
        MODEL: own.standardise(log_expression(predicted)),
    }
    rows = [{"method": name, **score(own.treated, cells)} for name, cells in candidates.items()]
    rows.append({"method": "half", **score(own.treated[first], own.treated[second])})
    return pd.DataFrame(rows).assign(patient=patient, cpu=seconds)


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """Tables by name: mean over patients (and seeds) with its standard error over patients, and each patient by itself."""
    adata = load(data, quick=quick)
    patients = list(adata.obs["patient"].unique())[: 1 if quick else None]
    parts = [evaluate(adata, patient, seed, 2 if quick else None) for seed in seeds for patient in patients]
    errors = pd.concat(parts, ignore_index=True)
    by_patient = errors.groupby(["method", "patient"], sort=False)[METRICS].mean()
    mean = by_patient.groupby("method", sort=False).mean()
    error = by_patient.groupby("method", sort=False).sem()
    summary = pd.concat(
        {name: pd.concat([mean[name], error[name]], axis=1, keys=["mean", "sem"]) for name in METRICS}, axis=1
    )
    summary.columns = [
        metric.replace("_", " ") + ("" if kind == "mean" else ", s.e.") for metric, kind in summary.columns
    ]
    summary.loc[MODEL, "CPU seconds a fit"] = errors["cpu"].mean()
    each = by_patient["mean_shift_error"].unstack("method")[mean.index]
    return {"zhao-summary": summary.reset_index(), "zhao-patients": each.reset_index()}
