"""Korkut et al. 2015, twelve drugs alone and in pairs on SK-MEL-133 cells: are pairs that were left out predicted from the others?

Log2 ratios to the untreated cells of 82 proteins and 5 phenotypes in 89 conditions, as they come with CellBox: 23 of one drug, 66 of two,
each at the dosage at which the drug alone was measured, and one sample a condition. Pairs are left out in five parts; the rest, with
all single drugs, is trained on. `likelihood="normal"`.

There are no controls, the values being ratios to them, and the model needs some for the scale of the noise. Control samples are drawn: of
mean zero, with the standard deviation that is left of each protein in a least-squares fit of the *training* conditions by the sum of
their drugs. What pairs do beside the sum counts as noise there.

Errors are squared errors of log ratios, over proteins and pairs; `centred` is the correlation, over proteins, of what sets a pair apart
from the mean of the training conditions. Baselines: no change; the better member by itself, chosen with the answer known; the sum of
the members measured alone; and sums of effects fitted to single drugs and training pairs together by least squares.

Expected: no worse than the sum of the members, whose noise adds up, and near the least-squares fit.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scvi

import scgim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

FILE = "cellbox/expr.csv"
N_MEASURED, N_CONTROLS, N_FOLDS, N_SAMPLES = (
    87,
    100,
    5,
    4000,
)  # columns beyond are activities of the drugs' targets, inputs
MODEL = "scGIM"


def load(data: Path, *, quick: bool) -> AnnData:
    """Log ratios, conditions x proteins, with drugs and dosages joined by "+"; `quick` takes 12 proteins."""
    folder = (data / FILE).parent
    values = pd.read_csv(data / FILE, header=None).iloc[:, :N_MEASURED]
    names = (folder / "node_Index.csv").read_text().split()[:N_MEASURED]
    lines = (folder / "expr_index.txt").read_text().splitlines()
    parts = [[part.split("|") for part in re.split(r"\s", line)[0].split(",")] for line in lines if line.strip()]
    obs = pd.DataFrame(
        {
            "perturbation": ["+".join(drug for drug, _ in own) for own in parts],
            "dosage": ["+".join(dosage for _, dosage in own) for own in parts],
        },
        index=[f"sample_{k}" for k in range(len(parts))],
    )
    adata = ad.AnnData(values.to_numpy(dtype=np.float32), obs=obs, var=pd.DataFrame(index=names))
    return adata[:, :12].copy() if quick else adata


def members(obs: pd.DataFrame) -> list[dict[str, float]]:
    """Dosage of each drug of each condition."""
    return [
        dict(zip(drugs.split("+"), map(float, dosages.split("+")), strict=True))
        for drugs, dosages in zip(obs["perturbation"], obs["dosage"], strict=True)
    ]


def design(conditions: list[dict[str, float]], columns: Sequence[tuple[str, float]]) -> np.ndarray:
    """Which drugs, at which dosages, each condition holds, 0/1."""
    return np.array([[float(own.get(drug) == dosage) for drug, dosage in columns] for own in conditions])


def with_controls(train: AnnData, seed: int) -> AnnData:
    """Training conditions and control samples drawn with the noise that a fit of sums leaves."""
    conditions = members(train.obs)
    columns = sorted({one for own in conditions for one in own.items()})
    x = design(conditions, columns)
    left = train.X - x @ np.linalg.lstsq(x, train.X, rcond=None)[0]
    sd = np.sqrt((left**2).sum(axis=0) / max(1, len(x) - np.linalg.matrix_rank(x)))
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(N_CONTROLS, train.n_vars)) * sd
    obs = pd.DataFrame({"perturbation": "control", "dosage": "0"}, index=[f"control_{k}" for k in range(N_CONTROLS)])
    return ad.concat([ad.AnnData(drawn.astype(np.float32), obs=obs, var=train.var), train])


def fit(train: AnnData, seed: int, max_epochs: int | None) -> scgim.model.GIM:
    """A model of training conditions and controls."""
    scvi.settings.seed = seed
    scgim.model.GIM.setup_anndata(train, drug_embedding_key=None, combination_separator="+")
    model = scgim.model.GIM(train, likelihood="normal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def predict(model: scgim.model.GIM, pairs: list[dict[str, float]], seed: int) -> np.ndarray:
    """Changes of the means against drawn controls, pairs x proteins."""
    cells = model.predict_combination([*pairs, {}], n_samples=N_SAMPLES, seed=seed)
    means = np.asarray(cells.X).reshape(len(pairs) + 1, N_SAMPLES, -1).mean(axis=1)
    return means[:-1] - means[-1]


def evaluate(adata: AnnData, test: np.ndarray, seed: int, max_epochs: int | None) -> dict[str, np.ndarray]:
    """Predictions of pairs that are left out (positions), by method, pairs x proteins."""
    conditions = members(adata.obs)
    train = np.setdiff1d(np.arange(adata.n_obs), test)
    pairs = [conditions[k] for k in test]
    alone = {next(iter(own.items())): adata.X[k] for k, own in enumerate(conditions) if len(own) == 1}
    columns = sorted({one for own in conditions for one in own.items()})
    coefficients = np.linalg.lstsq(design([conditions[k] for k in train], columns), adata.X[train], rcond=None)[0]
    singles = [[alone[one] for one in pair.items()] for pair in pairs]
    ready = with_controls(adata[train].copy(), seed)
    return {
        "no change": 0 * adata.X[test],
        "better member": np.stack(
            [min(own, key=lambda x: float(((x - adata.X[k]) ** 2).sum())) for k, own in zip(test, singles, strict=True)]
        ),
        "sum of the members": np.stack([np.sum(own, axis=0) for own in singles]),
        "least squares, singles and pairs": design(pairs, columns) @ coefficients,
        MODEL: predict(fit(ready, seed, max_epochs), pairs, seed),
    }


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """Table of errors and correlations of pairs left out, means over pairs and seeds."""
    adata = load(data, quick=quick)
    pairs = np.flatnonzero([len(own) > 1 for own in members(adata.obs)])
    rows = []
    for seed in seeds:
        folds = np.array_split(np.random.default_rng(seed).permutation(pairs), N_FOLDS)
        for test in folds[: 1 if quick else N_FOLDS]:
            reference = adata.X[np.setdiff1d(np.arange(adata.n_obs), test)].mean(axis=0)
            for method, predicted in evaluate(adata, test, seed, 2 if quick else None).items():
                errors = ((predicted - adata.X[test]) ** 2).mean(axis=1)
                centred = scgim.metrics.centred_correlation(adata.X[test], predicted, reference)
                rows += [
                    {"method": method, "error": float(e), "centred": float(c)}
                    for e, c in zip(errors, centred, strict=True)
                ]
    table = pd.DataFrame(rows).groupby("method", sort=False).mean()
    return {"cellbox-pairs": table.reset_index()}
