"""Choice of the genes to model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse, stats
from threadpoolctl import threadpool_limits

from scgim._validation import (
    check_counts,
    check_dosage,
    check_key,
    check_matrix_type,
    check_perturbations,
    in_combinations,
    matrix_name,
    separate_combinations,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgim._validation import Members

_LEVEL = 0.05  # of the false discovery rate: convention
_MIN_CONTROLS = 10  # of a batch, for a variance of its own: convention
_ROUNDING, _TINY = 1e-12, 1e-300  # relative error of a sum of squares, and a guard where that is zero


def select_genes(
    adata: AnnData,
    n_genes: int,
    *,
    perturbation_key: str = "perturbation",
    control: str = "control",
    dosage_key: str | None = "dosage",
    batch_key: str | None = None,
    combination_separator: str | None = None,
    layer: str | None = None,
    keep: Sequence[str] = (),
    min_cells: int = 10,
) -> pd.Series:
    """Choose genes that respond to perturbations or vary among control cells.

    Two rankings are merged, each gene counting by the better of its two ranks. The first is the F statistic of log
    expression between contexts (each drug at each dose, and control; within batches), where it is significant at 5 %
    false discovery: what drugs move. The second is the variance of scanpy's Pearson residuals *among control cells*:
    what varies without any drug, and so tells about the network. Genes with neither say nothing to a causal model.

    Parameters
    ----------
    adata
        Raw counts of all genes.
    n_genes
        Number of genes to choose, those in `keep` included.
    perturbation_key
        Column of `adata.obs` with the perturbations.
    control
        Label of the controls.
    dosage_key
        Column of `adata.obs` with the doses; None for one dose.
    batch_key
        Column of `adata.obs` within whose levels contexts are compared.
    combination_separator
        Sign between the drugs of a combination, as in :meth:`scgim.model.GIM.setup_anndata`; needed where dosages are given as "1+10".
    layer
        Layer with the counts, in place of `adata.X`.
    keep
        Genes to choose in any case, such as known targets.
    min_cells
        Genes found in fewer cells are not chosen, unless in `keep`.

    Returns
    -------
    Series of bool, one a gene: `adata[:, result].copy()` has the chosen genes. It is stored as `adata.var["selected"]`
    beside `adata.var["response_f"]` and `adata.var["response_pval_adj"]` (F test between contexts, Benjamini-Hochberg)
    and `adata.var["control_variance"]` (variance of Pearson residuals). `adata.obs["size_factor"]` gets the total
    counts of *all* genes over their mean: give it to `setup_anndata(..., size_factor_key="size_factor")`, since the
    totals over the chosen genes alone move with the response.

    Raises
    ------
    KeyError
        A key or a gene of `keep` is missing.
    ValueError
        Counts, labels or doses are wrong, or `n_genes` is larger than the number of genes to choose from, smaller than
        that of `keep`, or below 2.
    """
    X, size_factors = _raw_counts(adata, layer)
    of_cells = separate_combinations(adata.obs, perturbation_key, control, dosage_key, combination_separator)
    is_control, context, batch = _design(adata, *of_cells, perturbation_key, control, dosage_key, batch_key)
    for gene in keep:
        check_key(gene, adata.var_names, where="adata.var_names", argument="keep")
    f, p = _response(sparse.csr_matrix(X.multiply(1 / size_factors[:, None])).log1p(), context, batch)
    variance = _control_variance(X[is_control], batch[is_control])
    n_cells = np.asarray((X > 0).sum(axis=0)).ravel()
    p_adj = stats.false_discovery_control(p)
    response = np.where(p_adj < _LEVEL, f, -np.inf)
    chosen = _merge(response, variance, n_cells >= min_cells, adata.var_names.isin(keep), n_genes)
    adata.var["response_f"] = f
    adata.var["response_pval_adj"] = p_adj
    adata.var["control_variance"] = variance
    adata.var["selected"] = chosen
    adata.obs["size_factor"] = size_factors
    return adata.var["selected"].copy()


def _raw_counts(adata: AnnData, layer: str | None) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts (cells x genes) and size factors, after their checks."""
    check_matrix_type(adata, layer)
    X = adata.X if layer is None else adata.layers[layer]
    check_counts(X, where=matrix_name(layer))
    X = sparse.csr_matrix(X, dtype=np.float64)
    totals = np.asarray(X.sum(axis=1)).ravel()
    if (totals == 0).any():
        raise ValueError(
            f"{int((totals == 0).sum())} cells have no counts at all in `{matrix_name(layer)}`. Remove them: "
            "`sc.pp.filter_cells(adata, min_counts=1)`."
        )
    return X, totals / totals.mean()


def _design(
    adata: AnnData,
    obs: pd.DataFrame,
    combinations: dict[str, Members],
    perturbation_key: str,
    control: str,
    dosage_key: str | None,
    batch_key: str | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each cell: whether it is a control, the code of its context, the code of its batch."""
    labels = check_perturbations(obs, perturbation_key, control, in_combinations(combinations))
    dosage = check_dosage(obs, dosage_key, perturbation_key, control)
    context = pd.MultiIndex.from_arrays([labels, dosage]).factorize()[0]
    batch = np.zeros(adata.n_obs, dtype=np.int64)
    if batch_key is not None:
        check_key(batch_key, adata.obs.columns, where="adata.obs", argument="batch_key")
        batch = pd.factorize(adata.obs[batch_key], use_na_sentinel=False)[0]
    return np.asarray(labels == control), context, batch


def _response(log_expr: sparse.csr_matrix, context: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F statistic and p-value of each gene between contexts within batches: an analysis of variance in closed form."""
    group, pairs = pd.MultiIndex.from_arrays([batch, context]).factorize()
    in_batch = pairs.get_level_values(0).to_numpy()
    n, n_batches = len(group), len(np.unique(in_batch))
    members = sparse.csr_matrix((np.ones(n), (group, np.arange(n))), shape=(len(pairs), n))
    pooled = sparse.csr_matrix((np.ones(len(pairs)), (in_batch, np.arange(len(pairs)))))
    sizes = np.bincount(group)[:, None]
    sums = (members @ log_expr).toarray()
    explained = (sums**2 / sizes).sum(axis=0)
    between = explained - ((pooled @ sums) ** 2 / (pooled @ sizes)).sum(axis=0)
    within = np.asarray(log_expr.power(2).sum(axis=0)).ravel() - explained
    df_between, df_within = len(pairs) - n_batches, n - len(pairs)
    if df_between == 0 or df_within == 0:
        raise ValueError("No batch has two contexts with several cells, so that no response can be told from batches.")
    # Rounding leaves a constant gene with a tiny residue of either sign: it has no response.
    floor = _ROUNDING * np.maximum(explained, _TINY)
    f = np.where(within > floor, (between / df_between) / (np.maximum(within, floor) / df_within), 0.0)
    return np.maximum(f, 0.0), stats.f.sf(np.maximum(f, 0.0), df_between, df_within)


def _control_variance(X: sparse.csr_matrix, batch: np.ndarray) -> np.ndarray:
    """Variance of Pearson residuals of each gene among control cells; 1 for Poisson noise and 0 for absent genes."""
    obs = pd.DataFrame({"batch": pd.Categorical(batch.astype(str))}, index=np.arange(len(batch)).astype(str))
    controls = AnnData(X, obs=obs)
    # A variance needs cells: batches with hardly any control are pooled with the others.
    enough = obs["batch"].value_counts().min() >= _MIN_CONTROLS
    with threadpool_limits():  # numba sets the threads of libraries that share its pool; here they are set back
        sc.experimental.pp.highly_variable_genes(
            controls, n_top_genes=X.shape[1], batch_key="batch" if enough else None, check_values=False
        )
    return controls.var["residual_variances"].to_numpy(dtype=np.float64)


def _merge(
    response: np.ndarray, variance: np.ndarray, usable: np.ndarray, kept: np.ndarray, n_genes: int
) -> np.ndarray:
    """Mask of `n_genes` genes: those kept, then usable ones by the better of their two ranks."""
    candidates = usable | kept
    if not max(2, int(kept.sum())) <= n_genes <= int(candidates.sum()):
        raise ValueError(
            f"`n_genes={n_genes}` is out of range: {int(candidates.sum())} genes are found in enough cells and "
            f"{int(kept.sum())} are in `keep`. Choose between {max(2, int(kept.sum()))} and {int(candidates.sum())}, "
            "or lower `min_cells`."
        )
    ranks = np.stack([stats.rankdata(-response), stats.rankdata(-variance)])
    order = np.lexsort([ranks.sum(axis=0), ranks.min(axis=0), ~kept, ~candidates])
    chosen = np.zeros(len(response), dtype=bool)
    chosen[order[:n_genes]] = True
    return chosen
