"""Whether stated probabilities come true."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.stats import binomtest

from scgim._constants import Key
from scgim._docs import d
from scgim._validation import check_interval
from scgim.pl._area import Area
from scgim.pl._tones import palette, tones
from scgim.pl._utils import despine, finish, new_axes, stored

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=float)


def _stored_pairs(adata: AnnData, key: str, true_edges: str, true_targets: str) -> dict[str, tuple[Any, Any]]:
    """Labels and probabilities of edges and of targets, as far as the truth is known."""
    pairs: dict[str, tuple[Any, Any]] = {}
    if true_edges in adata.varp:
        off_diagonal = ~np.eye(adata.n_vars, dtype=bool)
        probs = stored(adata, "varp", Key.varp.edge_probs(key))
        pairs["edges"] = _dense(adata.varp[true_edges])[off_diagonal], _dense(probs)[off_diagonal]
    if true_targets in adata.varm:
        probs = stored(adata, "varm", Key.varm.targets(key))
        truth = adata.varm[true_targets]
        both = [drug for drug in probs.columns if drug in truth.columns]
        pairs["targets"] = _dense(truth[both]).ravel(), _dense(probs[both]).ravel()
    if not pairs:
        raise KeyError(
            f"No truth to compare with: neither `adata.varp[{true_edges!r}]` (genes x genes) nor "
            f"`adata.varm[{true_targets!r}]` (genes x perturbations). Pass labels and probabilities as arrays instead."
        )
    return pairs


def _check_pair(labels: ArrayLike, probs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, p = _dense(labels).ravel(), _dense(probs).ravel()
    if y.shape != p.shape or not y.size:
        raise ValueError(f"Expected as many probabilities as labels, found {p.size} and {y.size}.")
    if np.isnan(p).any() or p.min() < 0 or p.max() > 1:
        raise ValueError("Expected probabilities between 0 and 1, found other values.")
    return y != 0, p


def reliability(labels: np.ndarray, probs: np.ndarray, *, n_bins: int, level: float) -> pd.DataFrame:
    """Mean probability, observed frequency, its Wilson interval and the count, for each bin that is not empty."""
    bins = np.minimum((probs * n_bins).astype(int), n_bins - 1)
    counts, hits, sums = (np.bincount(bins, weights, n_bins) for weights in (None, labels, probs))
    rows = []
    for b in np.flatnonzero(counts):
        n, k = int(counts[b]), int(hits[b])
        interval = binomtest(k, n).proportion_ci(level, method="wilson")
        rows.append((sums[b] / n, k / n, interval.low, interval.high, n))
    return pd.DataFrame(rows, columns=["probability", "frequency", "low", "high", "n"])


@d.dedent
def calibration(
    data: AnnData | ArrayLike,
    probs: ArrayLike | None = None,
    *,
    n_bins: int = 10,
    level: float = 0.95,
    true_edges: str = "true_adjacency",
    true_targets: str = "true_targets",
    key: str = Key.DEFAULT,
    label: str | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Any:
    """Whether stated probabilities come true: the observed frequency against the probability.

    A curve on the diagonal is calibrated, below it too sure. Probabilities are put in bins of equal width; a point lies
    at the mean of its bin, with a Wilson interval, and its area grows with the number of entries. ECE is the expected
    calibration error: the mean distance from the diagonal, weighted by the number of entries.

    Parameters
    ----------
    data
        Annotated data with stored results and a known truth, as :func:`scgim.data.simulate_screen` makes it: edges and
        targets are shown as far as their truth is there. Or an array of labels (true or false), with `probs`.
    probs
        Probabilities of the labels, of the same shape as `data`, when that is an array.
    n_bins
        Number of bins on [0, 1].
    level
        Probability of the intervals.
    true_edges
        Entry of `adata.varp` with the true graph, genes x genes, where [i, j] is not 0 for an edge from i to j.
    true_targets
        Entry of `adata.varm` with the true targets, a data frame genes x perturbations.
    %(key)s
    label
        Name in the legend of the curve of an array.
    %(figsize)s
    %(title)s
    %(ax)s
    %(show)s
    %(return_fig)s

    Returns
    -------
    %(returns)s

    Raises
    ------
    KeyError
        If results or the truth are not stored in `data`.
    TypeError
        If `data` are labels and `probs` is missing.
    ValueError
        If labels and probabilities are of different length, or probabilities lie outside [0, 1].

    Examples
    --------
    >>> scgim.pl.calibration(adata)
    >>> scgim.pl.calibration(is_edge, edge_probs)
    """
    check_interval(level)
    if n_bins < 1:
        raise ValueError(f"Expected `n_bins` to be at least 1, found {n_bins}.")
    if isinstance(data, AnnData):
        pairs: dict[str, tuple[Any, Any]] = _stored_pairs(data, key, true_edges, true_targets)
    elif probs is None:
        raise TypeError("Expected annotated data, or an array of labels: then `probs` is needed too.")
    else:
        pairs = {label or "": (data, probs)}

    area = None if ax is None else Area(ax)
    ax, given = new_axes(ax, figsize or (3.4, 3.6))
    drawn = len(ax.get_legend_handles_labels()[1])  # curves of earlier calls in the same axes
    ax.plot([0, 1], [0, 1], color=tones(ax).grey, lw=0.8, ls=(0, (4, 2)), zorder=1)
    for i, (name, pair) in enumerate(pairs.items()):
        y, p = _check_pair(*pair)
        curve = reliability(y, p, n_bins=n_bins, level=level)
        error = np.average((curve["probability"] - curve["frequency"]).abs(), weights=curve["n"])
        _draw(
            ax,
            curve,
            palette(ax)[(drawn + i) % len(palette(ax))],
            "os"[(drawn + i) % 2],
            (f"{name}: " if name else "") + f"ECE {error:.3f}, n = {y.size:,}",
        )
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    ax.set(xlabel="Stated probability", ylabel="Observed frequency")
    n_curves = drawn + len(pairs)
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2)
    if title is not None:
        ax.set_title(title, pad=8 + 13 * n_curves)
    despine(ax)
    if area is not None:
        area.keep_within()
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _draw(ax: Axes, curve: pd.DataFrame, color: str, marker: str, label: str) -> None:
    x, y = curve["probability"], curve["frequency"]
    ax.vlines(x, curve["low"], curve["high"], colors=color, lw=1.0, alpha=0.6, zorder=2)
    ax.plot(x, y, color=color, lw=0.8, alpha=0.5, zorder=2)
    ax.plot([], [], color=color, lw=0.8, marker=marker, ms=5, label=label)
    style = {"edgecolors": tones(ax).paper, "lw": 0.6, "zorder": 4}
    ax.scatter(x, y, s=12 + 14 * np.log10(curve["n"]), color=color, marker=marker, **style)
