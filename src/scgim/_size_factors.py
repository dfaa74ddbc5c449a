"""Size factors: how deeply each cell was sequenced, relative to the average training cell. One rule, for model and plots.

They are, in this order: the column that the user names; where control cells differ in depth, what is estimated together with a network
(:mod:`scgim.structure._depth`), or else totals over the genes of the AnnData divided by the mean total of the training cells; ones. Totals over a
small panel are mostly biology, so name a column with totals over all genes of the cell where these are known (:func:`scgim.pp.select_genes`
makes one).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scgim._validation import check_size_factors

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from scgim._backed import StoredMatrix

logger = logging.getLogger(__name__)

# A spread of library sizes of about 10 %, below which totals hold more biology than depth: convention.
_MIN_COMMON_VARIANCE = 0.01
# Of the most counts, that the variance is estimated on: 45,000 pairs are enough for a median.
_MAX_CELLS, _MAX_GENES = 4000, 300
_MIN_CELLS, _MIN_GENES = 10, 3  # with fewer there is nothing to estimate from: three genes make three pairs
_MIN_RATIO = 1e-3  # so that pairs never seen together have a logarithm; the median hardly depends on it


def common_variance(counts: NDArray | sparse.spmatrix | StoredMatrix) -> float:
    """Variance of the log library size that the counts of control cells betray.

    Any two genes of a cell share its library size, so log(E[x_i x_j] / (E x_i E x_j)) holds its variance for each pair;
    what the network adds has either sign and few pairs, so the median over pairs leaves it out.
    """
    x = np.asarray(counts.toarray() if sparse.issparse(counts) else counts, dtype=np.float64)  # type: ignore[union-attr]
    mean = x.mean(0)
    best = np.argsort(-mean)[:_MAX_GENES]
    best = best[mean[best] > 0]
    if len(best) < _MIN_GENES or len(x) < _MIN_CELLS:
        return 0.0
    x, mean = x[:, best], mean[best]
    ratio = (x.T @ x / len(x)) / np.outer(mean, mean)
    pairs = ratio[np.triu_indices(len(best), 1)]
    return float(np.median(np.log(np.maximum(pairs, _MIN_RATIO))))


def total_counts(counts: NDArray | sparse.csr_matrix | StoredMatrix) -> NDArray[np.float64]:
    """Counts of each cell over the given genes, at least 1."""
    return np.maximum(np.asarray(counts.sum(1), dtype=np.float64).ravel(), 1.0)


def estimate_size_factors(
    counts: NDArray | sparse.csr_matrix | StoredMatrix, controls: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Totals over genes relative to their mean, or ones where cells do not differ in depth.

    Totals over a small panel hold biology too, so they are used only where control cells show a common scale.
    """
    variance = common_variance(counts[np.flatnonzero(controls)[:_MAX_CELLS]])
    if variance < _MIN_COMMON_VARIANCE:
        logger.info("Cells do not differ in depth (common variance %.4f): size factors are 1.", variance)
        return np.ones(counts.shape[0])
    totals = total_counts(counts)
    logger.info(
        "Cells differ in depth (common variance %.3f). Size factors are totals over the %d genes given, unless they can be estimated. Pass "
        "`size_factor_key` with totals over all genes of the cell where they are known.",
        variance,
        counts.shape[1],
    )
    return totals / totals.mean()


def known_size_factors(
    obs: pd.DataFrame, key: str | None, counts: Any, mean_total: float | None
) -> NDArray[np.float64]:
    """Size factors of any cells, on the scale of the training cells.

    Parameters
    ----------
    obs
        Annotation of the cells.
    key
        Column with their size factors; None to read them off the counts.
    counts
        Counts of the cells, cells x genes.
    mean_total
        Mean total of the training cells; None where their depth did not differ.
    """
    if key is not None:
        return check_size_factors(obs, key)
    return np.ones(len(obs)) if mean_total is None else total_counts(counts) / mean_total
