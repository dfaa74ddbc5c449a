"""Direct beside total effects of one perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import norm

from scgim._constants import Key
from scgim._docs import d
from scgim.pl._utils import (
    INK,
    NEGATIVE,
    PALE,
    POSITIVE,
    axes_inches,
    check_level,
    despine,
    finish,
    font_size,
    legend_below,
    new_axes,
    pick,
    pick_one,
    shorten,
    stored,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes


@d.dedent
def effects(
    adata: AnnData,
    perturbation: str | None = None,
    *,
    genes: str | Iterable[str] | None = None,
    n_top: int = 20,
    min_target_prob: float = 0.5,
    level: float = 0.95,
    key: str = Key.DEFAULT,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Any:
    """Direct beside total effects of one perturbation, a row a gene.

    Bars are total effects: log fold changes of the mean, direct and propagated, at the largest measured dose. Points are
    direct effects with an interval: what the perturbation does to the gene itself, given its parents in the network.
    What lies between the end of a bar and its point has come through the network. Filled points are direct targets.

    Parameters
    ----------
    %(adata)s
    %(perturbation)s
    genes
        Genes to show, in this order. By default the `n_top` genes of which the total or the direct effect is largest, from
        the most raised to the most lowered.
    n_top
        Number of genes to choose when `genes` is not given.
    min_target_prob
        Target probability from which on a gene counts as a direct target.
    level
        Probability of the interval of the direct effect, from its posterior standard deviation.
    %(key)s
    %(figsize)s
    %(title)s By default the name of the perturbation.
    %(ax)s
    %(show)s
    %(return_fig)s

    Returns
    -------
    %(returns)s

    Raises
    ------
    %(raises_missing)s
    ValueError
        If `perturbation` is left out though several are stored, or `n_top` or `level` is out of range.

    Examples
    --------
    >>> scgim.pl.effects(adata, "Trametinib", n_top=15)
    """
    if n_top < 1:
        raise ValueError(f"Expected `n_top` to be at least 1, found {n_top}.")
    check_level(level)
    frames = [
        stored(adata, "varm", name(key))
        for name in (Key.varm.shifts, Key.varm.total_effects, Key.varm.shift_sds, Key.varm.targets)
    ]
    perturbation = pick_one(perturbation, frames[0].columns)
    direct, total, sd, prob = (frame[perturbation] for frame in frames)
    if genes is None:
        largest = np.maximum(direct.abs(), total.abs()).nlargest(n_top).index
        shown = list(total[largest].sort_values(ascending=False, kind="stable").index)
    else:
        shown = pick(genes, total.index, "gene")
    margin = norm.ppf(0.5 + level / 2) * sd[shown].to_numpy(dtype=float)
    is_target = (prob[shown] >= min_target_prob).to_numpy()

    names = shorten(shown, 24)
    default = (3.2 + 0.08 * max(map(len, names)), float(np.clip(0.21 * len(shown), 1.2, 11.0)) + 1.0)
    ax, given = new_axes(ax, figsize or default)
    _draw(ax, direct[shown].to_numpy(dtype=float), total[shown].to_numpy(dtype=float), margin, is_target, given=given)
    ax.set_xlabel("Log fold change")
    ax.set_title(shorten([perturbation], 30)[0] if title is None else title, fontsize="medium")
    spacing = axes_inches(ax)[1] / len(shown)
    ax.set_yticks(range(len(shown)), names, fontsize=font_size(spacing))
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _draw(
    ax: Axes, direct: np.ndarray, total: np.ndarray, margin: np.ndarray, is_target: np.ndarray, *, given: bool
) -> None:
    rows = np.arange(len(direct))
    colors = np.where(direct > 0, POSITIVE, NEGATIVE)
    ax.barh(rows, total, height=0.72, color=PALE, zorder=1)
    ax.axvline(0, color=INK, lw=0.8, zorder=2)
    ax.hlines(rows, direct - margin, direct + margin, colors=colors, lw=1.2, zorder=3)
    ax.scatter(direct, rows, s=24, c=np.where(is_target, colors, "white"), edgecolors=colors, linewidths=1.2, zorder=4)
    ax.set_ylim(len(direct) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    despine(ax)
    ax.spines["left"].set_visible(False)
    point = {"marker": "o", "ms": 5, "mec": INK, "color": INK, "lw": 1.2}
    handles = [
        Patch(color=PALE, label="total"),
        Line2D([], [], label="direct, target", **point),
        Line2D([], [], label="direct, no target", mfc="white", **point),
    ]
    legend_below(ax, handles, [str(handle.get_label()) for handle in handles], given=given)
