"""Kang et al. 2018, interferon beta in five types of blood cells: is a type predicted that was never treated?

1,556 cells of two patients, control or stimulated. Genes are the 80 whose mean log expression responds most, on average over types. Each
type in turn is held out by its *treated* cells; its controls stay in training. `effect_modifier_key` lets effects differ between types,
and carries them to the type left out; with the type as a covariate, all types have the same effects on log means given the parents.
In the row `scGIM, type in no cell` no cell of the type is in training, and its controls are given with the question
(`predict(control_adata=...)`).
Then all types are measured, and the question is whether responses that differ are fitted.

Errors are those of mean shifts of log1p of counts over size factors, squared, averaged over genes; predicted cells are as many as make
their own sampling error negligible. Baselines: no change, and the mean shift of the other types.

Expected: a type that was left out is predicted better than by the mean shift of the others, since a gene that is on already cannot
rise as much, and types that are alike answer alike.
"""

from __future__ import annotations

import time
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

FILE = "kang_ifnb_1556x1267.h5ad"
DRUG = "interferon"
N_GENES, N_CELLS = 80, 3000
SHARED, LEVELS, UNSEEN = "scGIM, types alike", "scGIM", "scGIM, type in no cell"


def load(data: Path, *, quick: bool) -> AnnData:
    """Counts of the genes that respond most, with size factors from all genes; `quick` takes 12 genes and every fourth cell."""
    adata = ad.read_h5ad(data / FILE)[:: 4 if quick else 1]
    counts = sparse.csr_matrix(adata.layers["counts"]).astype(np.float32)
    total = np.asarray(counts.sum(axis=1)).ravel()
    obs = pd.DataFrame(
        {
            "perturbation": np.where(adata.obs["group_id"] == "stim", DRUG, "control"),
            "cell_type": adata.obs["cluster_id"].astype(str),
            "size_factor": total / np.median(total),
        },
        index=adata.obs_names,
    )
    screen = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=adata.var_names))
    response = np.mean([observed_shift(screen, name) for name in obs["cell_type"].unique()], axis=0)
    chosen = np.sort(np.argsort(-np.abs(response))[: 12 if quick else N_GENES])
    return screen[:, chosen].copy()


def log_mean(adata: AnnData) -> np.ndarray:
    """Mean of log1p of counts over size factors, of each gene."""
    return np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None]).mean(axis=0)


def observed_shift(adata: AnnData, cell_type: str) -> np.ndarray:
    """Mean shift of the treated cells of a type against its controls."""
    own = adata[adata.obs["cell_type"] == cell_type]
    treated = own.obs["perturbation"] == DRUG
    return log_mean(own[treated]) - log_mean(own[~treated])


def fit(train: AnnData, method: str, seed: int, max_epochs: int | None) -> tuple[scgim.model.GIM, float]:
    """A model, and the CPU seconds of its training."""
    scvi.settings.seed = seed
    key = {"effect_modifier_key": "cell_type"} if method != SHARED else {"categorical_covariate_keys": ["cell_type"]}
    scgim.model.GIM.setup_anndata(train, dosage_key=None, drug_embedding_key=None, size_factor_key="size_factor", **key)
    model = scgim.model.GIM(train)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of controls that differ, which is beside the point here
        model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model, time.process_time() - start


def predicted_shift(model: scgim.model.GIM, cell_type: str, seed: int) -> np.ndarray:
    """Mean shift of predicted treated cells of a type against predicted controls."""
    options = {"n_samples": N_CELLS, "covariates": {"cell_type": cell_type}, "seed": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return log_mean(model.predict([DRUG], **options)) - log_mean(model.predict_combination({}, **options))


def shift_of_unseen(model: scgim.model.GIM, controls: AnnData, seed: int) -> np.ndarray:
    """The same in cells of which only controls are given, against these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return log_mean(model.predict([DRUG], n_samples=N_CELLS, control_adata=controls, seed=seed)) - log_mean(
            controls
        )


def left_out(adata: AnnData, seed: int, max_epochs: int | None, types: list[str]) -> pd.DataFrame:
    """Errors for each type that was not treated, by method."""
    observed = {name: observed_shift(adata, name) for name in adata.obs["cell_type"].unique()}
    rows = []
    for name in types:
        others = np.mean([shift for other, shift in observed.items() if other != name], axis=0)
        predicted = {"no change": 0 * others, "mean shift of the other types": others}
        treated = (adata.obs["cell_type"] == name) & (adata.obs["perturbation"] == DRUG)
        for method in (SHARED, LEVELS):
            model, seconds = fit(adata[~treated].copy(), method, seed, max_epochs)
            predicted[method] = predicted_shift(model, name, seed)
        own = adata.obs["cell_type"] == name
        unseen, _ = fit(adata[~own].copy(), UNSEEN, seed, max_epochs)
        predicted[UNSEEN] = shift_of_unseen(unseen, adata[own & ~treated].copy(), seed)
        rows += [
            {"method": method, "type": name, "seed": seed, "error": float(((shift - observed[name]) ** 2).mean())}
            for method, shift in predicted.items()
        ]
        rows[-1]["seconds"] = seconds
    return pd.DataFrame(rows)


def measured(adata: AnnData, seed: int, max_epochs: int | None) -> pd.DataFrame:
    """Errors for each type where all were treated, by method."""
    rows = []
    for method in (SHARED, LEVELS):
        model, _ = fit(adata.copy(), method, seed, max_epochs)
        for name in adata.obs["cell_type"].unique():
            error = ((predicted_shift(model, name, seed) - observed_shift(adata, name)) ** 2).mean()
            rows.append({"method": method, "type": name, "seed": seed, "error": float(error)})
    return pd.DataFrame(rows)


def table(errors: pd.DataFrame) -> pd.DataFrame:
    """Types side by side and their mean, over seeds; with several seeds, the standard deviation of the mean over types."""
    by_type = errors.pivot_table("error", "method", "type", aggfunc="mean", sort=False)
    over_seeds = errors.groupby(["method", "seed"], sort=False)["error"].mean().groupby("method", sort=False)
    by_type["mean"] = over_seeds.mean()
    if errors["seed"].nunique() > 1:
        by_type["mean, s.d. over seeds"] = over_seeds.std()
    return by_type.rename_axis(columns=None).reset_index()


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """Tables by name: types left out in turn, and all measured."""
    adata = load(data, quick=quick)
    types, epochs = list(adata.obs["cell_type"].unique())[: 1 if quick else None], 2 if quick else None
    out = pd.concat([left_out(adata, seed, epochs, types) for seed in seeds], ignore_index=True)
    every = pd.concat([measured(adata, seed, epochs) for seed in seeds], ignore_index=True)
    summary = table(out)
    summary.loc[summary["method"] == LEVELS, "CPU seconds a fit"] = out["seconds"].mean()
    return {"kang-left-out": summary, "kang-measured": table(every)}
