"""Screens of very many genes of which few regulate: counts drawn gene by gene, without the options of the simulator of the package."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

_DOSES = (0.25, 0.5, 1.0, 2.0)
_EC50, _HILL = (0.3, 1.0), 2.0
_WEIGHT = (0.25, 0.5)  # of a parent's standardised log1p, on the log mean
_EFFECT = (0.7, 1.6)  # of a drug on a target's log mean
_MEAN = (1.0, 8.0)  # counts of a gene in controls
_DISPERSION, _DEPTH_SD = 0.1, 0.2
_PARENTS, _TARGETS = (1, 3), (1, 3)
_SHARE_ON_REGULATORS = 0.5  # of the targets, so that directions can be told
_FEATURE_NOISE, _N_FEATURES = 0.1, 16
_LINES_DIFFER = 0.3  # standard deviation of log means between lines
_ONE_LINE = 3  # one drug in so many acts in one line only


def simulate_regulated(
    *,
    n_genes: int,
    n_regulators: int,
    n_drugs: int,
    n_cells: int,
    n_controls: int = 1000,
    n_lines: int = 1,
    seed: int = 0,
) -> ad.AnnData:
    """Screen of drugs at four doses, `n_cells` cells a context, in each of some cell lines.

    Regulators have up to three parents among the regulators before them, other genes one to three among all of them, and act on none.
    The truth is in `varp["true_adjacency"]` (sparse) and `varm["true_targets"]`, who may regulate in `var["regulator"]`. Of several
    lines, in `obs["line"]`, baselines differ, and a third of the drugs act in one of them only.
    """
    rng = np.random.default_rng(seed)
    weights = _draw_network(n_genes, n_regulators, rng)
    effects = _draw_effects(n_drugs, n_genes, n_regulators, rng)
    drug = np.concatenate([np.full(n_controls, -1), np.repeat(np.arange(n_drugs), len(_DOSES) * n_cells)])
    dose = np.concatenate([np.zeros(n_controls), np.tile(np.repeat(_DOSES, n_cells), n_drugs)])
    line, drug, dose = np.repeat(np.arange(n_lines), len(drug)), np.tile(drug, n_lines), np.tile(dose, n_lines)
    of_lines, active = _draw_lines(n_lines, n_drugs, n_genes, seed)
    half = rng.uniform(*_EC50, n_drugs)
    height = np.where(drug < 0, 0.0, dose**_HILL / (dose**_HILL + half[drug] ** _HILL)) * active[drug, line]
    shift = sparse.csc_matrix(sparse.diags(height) @ sparse.csr_matrix(np.pad(effects, ((0, 1), (0, 0))))[drug])
    depth = np.exp(rng.normal(0, _DEPTH_SD, len(drug)))
    base = np.log(rng.uniform(*_MEAN, n_genes))
    h = np.zeros((len(drug), n_regulators), dtype=np.float32)
    columns = []
    for j in range(n_genes):
        parents = weights[:, j].nonzero()[0]
        own = base[j] + of_lines[line, j]
        log_mean = own + h[:, parents] @ weights[parents, j].toarray()[:, 0] + shift[:, j].toarray()[:, 0]
        rate = depth * np.exp(np.clip(log_mean, None, 8.0))
        counts = rng.poisson(rng.gamma(1 / _DISPERSION, _DISPERSION * rate)).astype(np.float32)
        columns.append(sparse.csc_matrix(counts[:, None]))
        if j < n_regulators:
            log = np.log1p(counts / depth)
            h[:, j] = (log - log[drug < 0].mean()) / log[drug < 0].std()
    genes, drugs = pd.Index([f"gene_{j}" for j in range(n_genes)]), [f"drug_{u}" for u in range(n_drugs)]
    obs = pd.DataFrame({"perturbation": np.where(drug < 0, "control", np.char.add("drug_", drug.astype(str)))})
    obs["perturbation"] = obs["perturbation"].astype("category")
    obs["dosage"], obs["size_factor"] = dose, depth
    if n_lines > 1:
        obs["line"] = pd.Categorical(np.char.add("line_", line.astype(str)))
    adata = ad.AnnData(sparse.hstack(columns, format="csr"), obs=obs.set_index(obs.index.astype(str)))
    adata.var_names = genes
    adata.var["regulator"] = np.arange(n_genes) < n_regulators
    adata.varp["true_adjacency"] = sparse.csr_matrix(weights != 0)
    adata.varm["true_targets"] = pd.DataFrame((effects != 0).T, genes, drugs)
    features = effects @ rng.normal(size=(n_genes, _N_FEATURES))
    features += _FEATURE_NOISE * features.std() * rng.normal(size=features.shape)
    adata.uns["drug_embedding"] = pd.DataFrame(features, drugs, [f"feature_{i}" for i in range(_N_FEATURES)])
    return adata


def _draw_network(n_genes: int, n_regulators: int, rng: np.random.Generator) -> sparse.csc_matrix:
    """Weights of edges, genes x genes."""
    weights = sparse.lil_matrix((n_genes, n_genes))
    for j in range(1, n_genes):
        first = 0 if j < n_regulators else _PARENTS[0]
        pool = min(j, n_regulators)
        parents = rng.choice(pool, min(pool, rng.integers(first, _PARENTS[1] + 1)), replace=False)
        weights[parents, j] = rng.uniform(*_WEIGHT, len(parents)) * rng.choice([-1, 1], len(parents))
    return weights.tocsc()


def _draw_lines(n_lines: int, n_drugs: int, n_genes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What lines add to log means, lines x genes, and whether each drug acts in each, drugs x lines."""
    rng = np.random.default_rng([seed, 1])
    of_lines = _LINES_DIFFER * rng.normal(size=(n_lines, n_genes)) * (n_lines > 1)
    active = np.ones((n_drugs, n_lines))
    in_one = np.arange(0, n_drugs, _ONE_LINE)
    active[in_one] = np.eye(n_lines)[rng.integers(n_lines, size=len(in_one))]
    return of_lines, active


def _draw_effects(n_drugs: int, n_genes: int, n_regulators: int, rng: np.random.Generator) -> np.ndarray:
    """Largest direct effects, drugs x genes."""
    effects = np.zeros((n_drugs, n_genes))
    for own in effects:
        n = rng.integers(_TARGETS[0], _TARGETS[1] + 1)
        targets = np.where(
            rng.random(n) < _SHARE_ON_REGULATORS, rng.integers(n_regulators, size=n), rng.integers(n_genes, size=n)
        )
        own[targets] = rng.uniform(*_EFFECT, n) * rng.choice([-1, 1], n)
    return effects
