"""How well a graph and drug targets are recovered. An adjacency has A[i, j] = 1 for the edge i -> j."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

Matrix: TypeAlias = np.ndarray | pd.DataFrame | sparse.spmatrix | sparse.sparray


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)


def _pair(true: Matrix, found: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Truth as booleans and the estimate as floats, of one shape; two data frames are matched by their labels."""
    if isinstance(true, pd.DataFrame) and isinstance(found, pd.DataFrame):
        for axis, name in enumerate(("index", "columns")):
            if set(true.axes[axis]) != set(found.axes[axis]):
                raise ValueError(f"`true` and the estimate have different labels in their {name}. Give both the same.")
        found = found.loc[true.index, true.columns]
    labels, values = _dense(true).astype(bool), _dense(found).astype(float)
    if labels.shape != values.shape:
        raise ValueError(f"`true` has shape {labels.shape} and the estimate {values.shape}. Expected the same shape.")
    if np.isnan(values).any():
        raise ValueError("The estimate contains NaN. Fill it, with 0 where nothing was estimated.")
    return labels, values


def _square_pair(true: Matrix, found: Matrix) -> tuple[np.ndarray, np.ndarray]:
    labels, values = _pair(true, found)
    if labels.ndim != 2 or labels.shape[0] != labels.shape[1]:
        raise ValueError(f"Expected adjacency matrices, genes x genes, found shape {labels.shape}.")
    return labels, values


def _ranking(labels: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Metrics that need no threshold; NaN where all labels are the same."""
    if labels.all() or not labels.any():
        return {"auroc": float("nan"), "auprc": float("nan")}
    return {
        "auroc": float(roc_auc_score(labels, values)),
        "auprc": float(average_precision_score(labels, values)),
    }


def _decisions(labels: np.ndarray, called: np.ndarray) -> dict[str, float]:
    precision, recall, f1, _ = precision_recall_fscore_support(labels, called, average="binary", zero_division=0)
    return {"f1": float(f1), "precision": float(precision), "recall": float(recall)}


def _calibration(labels: np.ndarray, values: np.ndarray) -> float:
    if values.size == 0 or values.min() < 0 or values.max() > 1:
        return float("nan")
    return expected_calibration_error(labels, values)


def structural_hamming_distance(true: Matrix, predicted: Matrix) -> int:
    """Number of pairs of genes between which two graphs differ: an edge missing, an edge too many, or an edge reversed.

    A reversed edge counts once.

    Parameters
    ----------
    true, predicted
        Adjacency matrices, genes x genes; non-zero entries are edges. The diagonal is ignored.

    Examples
    --------
    >>> structural_hamming_distance([[0, 1], [0, 0]], [[0, 0], [1, 0]])
    1
    """
    labels, values = _square_pair(true, predicted)
    differs = labels != (values != 0)
    return int(np.triu(differs | differs.T, 1).sum())


def expected_calibration_error(labels: Matrix, probs: Matrix, *, n_bins: int = 10) -> float:
    r"""Mean gap between stated probability and observed frequency, 0 at best.

    .. math:: \sum_b \frac{n_b}{n} \left| \bar{p}_b - \bar{y}_b \right|

    over bins :math:`b` of equal width on [0, 1], with :math:`n_b` entries, mean probability :math:`\bar{p}_b` and share of
    true labels :math:`\bar{y}_b`. Where nearly all labels are false a probability of 0 everywhere has a small error too, so look at
    precision and recall beside it.

    Parameters
    ----------
    labels
        True or false (or 1 and 0), any shape.
    probs
        Probabilities, of the same shape.
    n_bins
        Number of bins.
    """
    y, p = (values.ravel() for values in _pair(labels, probs))
    if p.size == 0:
        raise ValueError("`probs` is empty.")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"Expected probabilities between 0 and 1, found values from {p.min():.3g} to {p.max():.3g}.")
    bins = np.minimum((p * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, weights=p - y, minlength=n_bins)
    return float(np.abs(gaps).sum() / p.size)


def edge_metrics(true: Matrix, prob: Matrix, *, threshold: float = 0.5) -> dict[str, float]:
    """Recovery of a directed graph from edge probabilities, or from any score that is larger for likelier edges.

    Parameters
    ----------
    true
        True adjacency, genes x genes; non-zero entries are edges.
    prob
        Probability or score of each edge, genes x genes. Two data frames are matched by gene name. The diagonal is ignored.
    threshold
        An edge is called where `prob` is above it.

    Returns
    -------
    dict
        Without threshold: `auroc`, `auprc` (average precision) over ordered pairs of genes; `skeleton_auprc`, the same for pairs with an edge
        in either direction, scored by the larger of the two; `orientation_accuracy`, the share of true edges that score higher
        than their reversal (ties count one half). With it: `f1`, `precision`, `recall`, `shd` (see
        :func:`structural_hamming_distance`) and `n_edges`, the number called. `ece`: expected calibration error, NaN if
        `prob` has values outside [0, 1]. Where there are no edges or all of them, rankings and orientation are NaN as far as
        they are not defined; precision, recall and f1 are 0 where they would divide by 0.
    """
    labels, values = _square_pair(true, prob)
    off_diagonal = ~np.eye(len(labels), dtype=bool)
    upper = np.triu_indices(len(labels), 1)
    skeleton = _ranking((labels | labels.T)[upper], np.maximum(values, values.T)[upper])
    called = (values > threshold) & off_diagonal
    forward, backward = values[labels & off_diagonal], values.T[labels & off_diagonal]
    wins = (forward > backward) + 0.5 * (forward == backward)
    return {
        **_ranking(labels[off_diagonal], values[off_diagonal]),
        **_decisions(labels[off_diagonal], called[off_diagonal]),
        "shd": structural_hamming_distance(labels, called),
        "skeleton_auprc": skeleton["auprc"],
        "orientation_accuracy": float(wins.mean()) if wins.size else float("nan"),
        "ece": _calibration(labels[off_diagonal], values[off_diagonal]),
        "n_edges": int(called.sum()),
    }


def target_metrics(true: Matrix, prob: Matrix, *, threshold: float = 0.5) -> dict[str, float]:
    """Recovery of direct drug targets, over all entries of both arrays.

    Parameters
    ----------
    true
        True targets, such as genes x drugs or contexts x genes; non-zero entries are targets.
    prob
        Probability or score of each entry, of the same shape. Two data frames are matched by their labels.
    threshold
        A target is called where `prob` is above it.

    Returns
    -------
    dict
        `auroc`, `auprc` (average precision), `f1`, `precision`, `recall`, `ece` (expected calibration error, NaN if `prob`
        has values outside [0, 1]) and `n_targets`, the number called.
    """
    labels, values = (array.ravel() for array in _pair(true, prob))
    called = values > threshold
    return {
        **_ranking(labels, values),
        **_decisions(labels, called),
        "ece": _calibration(labels, values),
        "n_targets": int(called.sum()),
    }
