"""How far predicted cells are from observed ones: distances between two samples of cells, cells x genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.distance import cdist

from scgim.metrics._scale import ControlScale, as_matrix, dense, subsample

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK_VALUES = 2**22  # distances at a time, 32 MB: for memory, results do not depend on it
_CONSTANT = 1e-9  # spread below which values are constant, but for rounding


def _cells(observed: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    X, Y = dense(as_matrix(observed, "observed")), dense(as_matrix(predicted, "predicted"))
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"`observed` has {X.shape[1]} genes and `predicted` {Y.shape[1]}. Give both the same genes.")
    return X, Y


def _pair_sum(X: np.ndarray, Y: np.ndarray, metric: str, kernel: Callable[[np.ndarray], np.ndarray]) -> float:
    """Sum of a function of the distance over all pairs, in blocks of rows."""
    step = max(1, _BLOCK_VALUES // len(Y))
    return sum(float(kernel(cdist(X[i : i + step], Y, metric)).sum()) for i in range(0, len(X), step))


def _pair_means(
    observed: Any, predicted: Any, metric: str, kernel: Callable[[np.ndarray], np.ndarray], *, unbiased: bool
) -> tuple[float, float, float]:
    """Mean of a function of the distance between the samples and within each of them."""
    X, Y = _cells(observed, predicted)
    if unbiased and min(len(X), len(Y)) < 2:
        raise ValueError(f"Expected at least two cells on either side, found {len(X)} and {len(Y)}.")
    between = _pair_sum(X, Y, metric, kernel) / (len(X) * len(Y))
    of_self = float(kernel(np.zeros(1))[0])
    within = []
    for Z in (X, Y):
        n, total = len(Z), _pair_sum(Z, Z, metric, kernel)
        within.append((total - n * of_self) / (n * (n - 1)) if unbiased else total / n**2)
    return between, within[0], within[1]


def energy_distance(observed: Any, predicted: Any, *, unbiased: bool = True) -> float:
    r"""Energy distance between two samples of cells, 0 when they follow one distribution.

    .. math:: 2 \, E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|

    with Euclidean norms over genes. Some libraries return its square root (:func:`scipy.stats.energy_distance` does, in one dimension).

    Parameters
    ----------
    observed, predicted
        Cells, cells x genes, with the same genes; array, data frame or sparse matrix. The cost is that of all pairs of cells.
    unbiased
        Leave the pairs of a cell with itself out, so that the expectation does not depend on the number of cells; the value may then
        be slightly negative.
    """
    between, x, y = _pair_means(observed, predicted, "euclidean", lambda distance: distance, unbiased=unbiased)
    return 2 * between - x - y


def mmd(observed: Any, predicted: Any, *, gamma: float | None = None, unbiased: bool = True) -> float:
    r"""Squared maximum mean discrepancy between two samples of cells, with the kernel :math:`\exp(-\gamma \|x - y\|^2)`.

    Parameters
    ----------
    observed, predicted
        Cells, cells x genes, with the same genes; array, data frame or sparse matrix.
    gamma
        Inverse squared width of the kernel; one over twice the number of genes by default.
    unbiased
        Leave the pairs of a cell with itself out; the value may then be slightly negative.
    """
    gamma = 1 / (2 * np.shape(observed)[1]) if gamma is None else gamma
    between, x, y = _pair_means(
        observed, predicted, "sqeuclidean", lambda squared: np.exp(-gamma * squared), unbiased=unbiased
    )
    return x + y - 2 * between


def wasserstein1(observed: Any, predicted: Any) -> np.ndarray:
    """Wasserstein-1 distance of every gene between two samples of cells, one number a gene; samples may differ in size.

    The area between the quantile functions, as :func:`scipy.stats.wasserstein_distance` has it for one gene.

    Parameters
    ----------
    observed, predicted
        Cells, cells x genes, with the same genes; array, data frame or sparse matrix.
    """
    X, Y = (np.sort(cells, axis=0) for cells in _cells(observed, predicted))
    n, m = len(X), len(Y)
    # Both quantile functions are constant between neighbouring multiples of 1/n and 1/m; whole numbers keep them exact.
    steps = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    widths, left = np.diff(steps) / (n * m), steps[:-1]
    return widths @ np.abs(X[left // m] - Y[left // n])


def mean_shift_error(observed: Any, predicted: Any) -> float:
    """Mean squared error of the predicted mean, averaged over genes.

    The means of control cells cancel, so this is the error of the mean shift.

    Parameters
    ----------
    observed, predicted
        Cells, cells x genes, with the same genes; array, data frame or sparse matrix.
    """
    X, Y = _cells(observed, predicted)
    return float(((X.mean(0) - Y.mean(0)) ** 2).mean())


def mean_shift_correlation(observed: Any, predicted: Any, control: Any) -> float:
    """Pearson correlation r, over genes, of the observed and the predicted shift of the mean from control cells.

    It is r and not its square, and blind to the size of the shift. 0 where one of the shifts is the same for all genes, as
    when control cells themselves are the prediction. A response that all perturbations have in common earns it, and so does the noise of
    the control mean, which is in both shifts: see :func:`centred_correlation`.

    Parameters
    ----------
    observed, predicted, control
        Cells, cells x genes, with the same genes; array, data frame or sparse matrix.
    """
    X, Y = _cells(observed, predicted)
    reference = _cells(control, predicted)[0].mean(0)
    return r2_scores(X.mean(0) - reference, Y.mean(0) - reference)["pearson_r"]


def r2_scores(true: Any, predicted: Any) -> dict[str, float]:
    """The three numbers that papers call R2, by their names.

    Parameters
    ----------
    true, predicted
        Two vectors, such as the observed and the predicted mean shift of every gene.

    Returns
    -------
    dict
        `pearson_r`; `pearson_r_squared`; `coefficient_of_determination`, one minus the residual over the total sum of squares, which
        is negative for predictions worse than the mean of `true`. A constant vector has correlation 0; where `true` is constant the last is NaN.
    """
    x, y = np.asarray(true, dtype=float).ravel(), np.asarray(predicted, dtype=float).ravel()
    if x.shape != y.shape:
        raise ValueError(f"`true` has {x.size} values and `predicted` {y.size}. Expected as many.")
    constant = min(x.std(), y.std()) < _CONSTANT
    r = 0.0 if constant else float(np.corrcoef(x, y)[0, 1])
    total = ((x - x.mean()) ** 2).sum()
    determination = float(1 - ((x - y) ** 2).sum() / total) if x.std() >= _CONSTANT else float("nan")
    return {"pearson_r": r, "pearson_r_squared": r**2, "coefficient_of_determination": determination}


def scaled_metrics(
    observed: np.ndarray, predicted: np.ndarray, observed_shift: np.ndarray, predicted_shift: np.ndarray
) -> dict[str, float]:
    """All metrics of standardised cells and of their mean shifts; NaN where a sample has fewer cells than a metric needs."""
    several = min(len(observed), len(predicted)) > 1
    scores = r2_scores(observed_shift, predicted_shift)
    return {
        "energy_distance": energy_distance(observed, predicted) if several else float("nan"),
        "mmd": mmd(observed, predicted) if several else float("nan"),
        "wasserstein1": float(wasserstein1(observed, predicted).mean()),
        "mean_shift_error": float(((observed_shift - predicted_shift) ** 2).mean()),
        "mean_shift_correlation": scores["pearson_r"],
        "mean_shift_determination": scores["coefficient_of_determination"],
    }


def distribution_metrics(
    observed: Any, predicted: Any, control: Any, *, log1p: bool = True, max_cells: int = 200, seed: int = 0
) -> dict[str, float]:
    """All distances between observed and predicted cells, in log1p space standardised on control cells.

    Every gene is put on the scale of its standard deviation in control cells (of log1p counts), so that genes count alike and a
    mean shift is in control standard deviations.

    Parameters
    ----------
    observed, predicted, control
        Raw counts, cells x genes, with the same genes; array, data frame or sparse matrix. They are read in blocks; only the cells
        drawn for the pairwise distances are made dense.
    log1p
        Take log1p first; switch off for continuous data.
    max_cells
        Cells drawn at random from either side for energy distance, MMD and Wasserstein distance. Means use all cells.
    seed
        Seed of that draw.

    Returns
    -------
    dict
        `energy_distance`; `mmd` (squared); `wasserstein1` (mean over genes); `mean_shift_error` (mean squared, over genes);
        `mean_shift_correlation` (Pearson r over genes); `mean_shift_determination` (coefficient of determination over genes).
    """
    X, Y, Z = as_matrix(observed, "observed"), as_matrix(predicted, "predicted"), as_matrix(control, "control")
    if not X.shape[1] == Y.shape[1] == Z.shape[1]:
        found = f"{X.shape[1]}, {Y.shape[1]} and {Z.shape[1]}"
        raise ValueError(f"`observed`, `predicted` and `control` have {found} genes. Give all the same genes.")
    scale, rng = ControlScale(Z, log1p=log1p), np.random.default_rng(seed)
    x, y = (scale.transform(subsample(cells, max_cells, rng)) for cells in (X, Y))
    return scaled_metrics(x, y, scale.mean(X), scale.mean(Y))
