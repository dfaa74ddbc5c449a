"""Targets planted in real cells: all that is real of cells is there, and targets are known.

Cells of a screen that had the same treatment, or nearly so, are dealt at random to a control and to drugs. A drug lowers a target by binomial thinning of
its counts, and raises it by Poisson counts in proportion to those there are, so that the mean changes by a known factor. Nothing is passed on to other
genes, as if all drugs acted on transcripts alone: genes that follow a target in the cell stay where they are. Some drugs do nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from benchmarks import common
from benchmarks.worlds.measure import log_values, target_strength
from scipy import optimize, sparse, special, stats

import scgim

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from benchmarks._worlds import Job, Place


class Source(NamedTuple):
    """A file of counts, the columns of `obs` that are covariates, and the column and value of the cells that are taken."""

    file: str
    covariates: list[str]
    column: str = "perturbation"
    value: str = "control"

    def cells(self, data: Path) -> AnnData:
        """The cells."""
        adata = ad.read_h5ad(data / self.file)
        return adata[(adata.obs[self.column] == self.value).to_numpy()].copy()


SOURCES = {
    "papalexi": Source("papalexi2021_eccite_crispr.h5ad", ["replicate"]),
    "zhao": Source("zhao2021_gbm_panobinostat.h5ad", ["patient"]),
    "zhao, treated": Source("zhao2021_gbm_panobinostat.h5ad", ["patient"], value="panobinostat"),
    # three lines, with knock-downs of nine kinases, which change little: too few of these cells are controls
    "mcfaline": Source("perturbench_devel_counts_500genes.h5ad", ["cell_type"], "dataset", "mcfaline23"),
}
N_DRUGS, N_NULL, N_CELLS = 24, 8, 50  # of the drugs so many do nothing; cells of each
_MAX_TARGETS, _EFFECT = 3, (0.5, 1.5)
_N_SIZES = 11  # of effects of either sign that the ceiling is an average over
_LOG_SHAPE = (-3.0, 6.0)  # of negative binomials: bounds
_HALF_A_COUNT = 0.5  # of a gene that controls of a level do not have, so that its mean is not nothing
_N_FEATURES = 8
_QUICK_GENES = 10


def plant(cells: AnnData, covariates: list[str], n_genes: int, kind: str, seed: int) -> AnnData:
    """The world: genes of the largest mean, drugs with targets; `kind` is "planted", "random features" or "nothing to find"."""
    rng = np.random.default_rng(seed)
    totals = np.asarray(cells.X.sum(1), dtype=float).ravel()
    genes = np.sort(np.argsort(-np.asarray(cells.X.mean(0)).ravel(), kind="stable")[:n_genes])
    x = np.asarray(cells.X.todense() if sparse.issparse(cells.X) else cells.X)[:, genes].astype(int)
    drugs = [f"drug_{k}" for k in range(N_DRUGS)]
    label = np.full(len(x), "control", dtype=object)
    label[rng.permutation(len(x))[: N_DRUGS * N_CELLS]] = np.repeat(drugs, N_CELLS)
    effects = np.zeros((N_DRUGS, len(genes)))
    for row in effects[: 0 if kind == "nothing to find" else N_DRUGS - N_NULL]:
        hit = rng.choice(len(genes), rng.integers(1, _MAX_TARGETS + 1), replace=False)
        row[hit] = rng.choice([-1, 1], len(hit)) * rng.uniform(*_EFFECT, len(hit))
    for drug, row in zip(drugs, effects, strict=True):
        own, fold = np.flatnonzero(label == drug), np.exp(row)
        x[own] = rng.binomial(x[own], np.minimum(fold, 1)) + rng.poisson(x[own] * np.maximum(fold - 1, 0))
    obs = pd.DataFrame({name: cells.obs[name].astype(str) for name in covariates}, cells.obs_names)
    obs = obs.assign(perturbation=pd.Categorical(label), dosage=(label != "control").astype(float))
    obs = obs.assign(split="train", size_factor=totals / totals.mean())
    adata = ad.AnnData(sparse.csr_matrix(x.astype(np.float32)), obs, cells.var.iloc[genes][[]].copy())
    adata.varm["true_targets"] = pd.DataFrame(effects.T != 0, adata.var_names, drugs)
    features = rng.normal(size=(N_DRUGS, _N_FEATURES))
    adata.uns["drug_embedding"] = pd.DataFrame(features, drugs, [f"feature_{i}" for i in range(_N_FEATURES)])
    return adata


def measure(job: Job, place: Place, data: Path) -> list[dict[str, float]]:
    """Recovery of the targets, those of a t-test beside, and genes called for drugs that do nothing."""
    source = SOURCES[str(job.world["source"])]
    n_genes = _QUICK_GENES if place.quick else int(str(job.world["n_genes"]))
    adata = plant(source.cells(data), source.covariates, n_genes, str(job.world["kind"]), job.seed)
    model, cost = common.fit(job, adata, place)
    prob = model.get_targets().groupby(level="perturbation").first()
    truth = adata.varm["true_targets"].T.loc[prob.index]
    nothing = ~truth.any(axis=1)
    row = {
        "cpu": cost.cpu,
        "called_of_nothing": float((prob[nothing] > 0.5).sum(axis=1).mean()),
        "mean_prob": float(prob.to_numpy().mean()),
        "true_share": float(truth.to_numpy().mean()),
        "n_states": model.get_states().shape[1],
        "left_out": beyond_zero(model, truth),
    }
    if truth.to_numpy().any():
        row |= common.target_scores(truth.to_numpy(), prob.to_numpy(), prob.to_numpy() > 0.5)
        strength = target_strength(adata, log_values(adata), prob.index.tolist())
        row["target_auprc_ttest"] = scgim.metrics.target_metrics(truth.to_numpy(), strength)["auprc"]
        ceiling = told_sizes(adata, source.covariates, prob.index.tolist())
        row["target_auprc_told_sizes"] = scgim.metrics.target_metrics(truth.to_numpy(), ceiling)["auprc"]
    return [row]


def beyond_zero(model: scgim.model.GIM, truth: pd.DataFrame) -> float:
    """Share of the genes on which drugs do not act whose interval (90 %) of the log fold change leaves out zero."""
    means = model.predict_mean(truth.index.tolist())
    lower, upper = (means.layers[f"log_fold_change_{side}"] for side in ("lower", "upper"))
    return float(((lower > 0) | (upper < 0))[~truth.to_numpy()].mean())


def told_sizes(adata: AnnData, covariates: list[str], drugs: list[str]) -> np.ndarray:
    """Log odds of targets, drugs x genes, of a test that is told what nobody knows of real drugs: how large effects are.

    Genes one by one: the likelihood ratio of negative binomials whose means and shapes are those of controls, averaged over the sizes that were
    planted. What is better than this learns from other genes of the cell.
    """
    x, label = np.asarray(adata.X.todense()), adata.obs["perturbation"].astype(str).to_numpy()
    control, size = label == "control", adata.obs["size_factor"].to_numpy()
    level = adata.obs[covariates].astype(str).agg("+".join, axis=1).to_numpy()
    sizes = np.linspace(*_EFFECT, _N_SIZES)
    factors = np.exp(np.r_[0.0, -sizes, sizes])
    odds = np.zeros((len(drugs), x.shape[1]))
    for j, counts in enumerate(x.T):
        mean = np.zeros(len(size))
        for one in np.unique(level):
            own = level == one
            seen = max(counts[own & control].sum(), _HALF_A_COUNT)
            mean[own] = size[own] * seen / size[own & control].sum()
        shape = _shape(counts[control], mean[control])
        for row, drug in zip(odds, drugs, strict=True):
            own = label == drug
            nothing, *by_size = (_log_pmf(counts[own], mean[own] * factor, shape).sum() for factor in factors)
            row[j] = special.logsumexp(by_size) - nothing
    return odds


def _log_pmf(x: np.ndarray, mean: np.ndarray, shape: float) -> np.ndarray:
    return stats.nbinom.logpmf(x, shape, shape / (shape + mean))


def _shape(x: np.ndarray, mean: np.ndarray) -> float:
    """Shape, or inverse dispersion, under which counts are likeliest."""
    found = optimize.minimize_scalar(
        lambda log: -_log_pmf(x, mean, np.exp(log)).sum(), bounds=_LOG_SHAPE, method="bounded"
    )
    return float(np.exp(found.x))
