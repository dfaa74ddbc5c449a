"""Direct beside total effects of one perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import norm

from scgim._constants import Key
from scgim._docs import d
from scgim._report import expected_counts, has_few_counts
from scgim._validation import check_interval
from scgim.pl._area import LEAST_LINE, Area
from scgim.pl._tones import NEGATIVE, POSITIVE, tones
from scgim.pl._utils import (
    LEAST_EFFECT,
    axes_inches,
    despine,
    effect_unit,
    finish,
    font_size,
    legend_below,
    new_axes,
    pick,
    pick_one,
    shorten,
    stored,
    without_noise,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes

BELOW = 0.25  # the middle of a row, where the interval of a total effect is


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
    A thin line below the middle of a bar is the interval of the total effect; bars of genes of so few counts that hardly anything
    is known of their change are hollow. What lies between the end of a bar and its point has come through the network. Filled points are direct targets. Total
    effects within the error of their simulation are drawn as 0.

    Parameters
    ----------
    %(adata)s
    %(perturbation)s
    genes
        Genes to show, in this order. By default the `n_top` genes of which the total or the direct effect is largest, from
        the most raised to the most lowered; only targets and genes with a total effect, if there are any.
    n_top
        Largest number of genes to choose when `genes` is not given; fewer where `ax` has no room for so many names.
    min_target_prob
        Target probability from which on a gene counts as a direct target.
    level
        Probability of the intervals, from posterior standard deviations.
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
    check_interval(level)
    frames = [stored(adata, "varm", name(key)) for name in (Key.varm.shifts, Key.varm.shift_sds, Key.varm.targets)]
    perturbation = pick_one(perturbation, frames[0].columns)
    direct, sd, prob = (frame[perturbation] for frame in frames)
    total = without_noise(adata, key)[perturbation]
    area = None if ax is None else Area(ax)
    if genes is None:
        size = np.maximum(direct.abs(), total.abs())
        changed = (total != 0) | (prob >= min_target_prob)
        size = size[changed] if changed.any() else size
        largest = size.nlargest(n_top if area is None else min(n_top, area.lines())).index
        shown = list(total[largest].sort_values(ascending=False, kind="stable").index)
    else:
        shown = pick(genes, total.index, "gene")
    width = norm.ppf(0.5 + level / 2)
    rows = pd.DataFrame(
        {
            "direct": direct,
            "total": total,
            "margin": width * sd,
            "total_margin": width * _total_sds(adata, key, perturbation),
            "few_counts": _few_counts(adata, key, perturbation, total),
            "is_target": prob >= min_target_prob,
        }
    ).loc[shown]

    names = shorten(shown, 24 if area is None else area.longest_name(24))
    height = max(float(np.clip(0.21 * len(shown), 1.2, 11.0)), LEAST_LINE * len(shown))
    default = (3.2 + 0.08 * max(map(len, names)), height + 1.0)
    ax, given = new_axes(ax, figsize or default)
    _draw(ax, rows, given=given)
    unit = effect_unit(adata, key)
    ax.set_xlabel("Log fold change" if unit == "log fold change" else f"Effect ({unit})")
    ax.set_title(shorten([perturbation], 30)[0] if title is None else title, fontsize="medium")
    ax.set_yticks(range(len(shown)), names, fontsize=6)
    if area is not None:
        area.keep_within()
    ax.set_yticks(range(len(shown)), names, fontsize=font_size(axes_inches(ax)[1] / len(shown)))
    if area is not None:
        area.keep_within()
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _total_sds(adata: AnnData, key: str, perturbation: str) -> pd.Series | float:
    """Standard deviation of the total effects; NaN of data that earlier versions have annotated."""
    name = Key.varm.total_effect_sds(key)
    return stored(adata, "varm", name)[perturbation] if name in adata.varm else np.nan


def _few_counts(adata: AnnData, key: str, perturbation: str, total: pd.Series) -> pd.Series | bool:
    """Genes of too few counts to say anything of their change; none where counts are not known."""
    counts = expected_counts(stored(adata, "uns", key), perturbation, adata.var_names)
    return False if counts is None else has_few_counts(counts, total)


def _draw(ax: Axes, genes: pd.DataFrame, *, given: bool) -> None:
    """Bars, lines and points, a row of `genes` each."""
    rows = np.arange(len(genes))
    direct, is_target, few = (genes[name].to_numpy() for name in ("direct", "is_target", "few_counts"))
    tone = tones(ax)
    colors = np.where(is_target, np.where(direct > 0, POSITIVE, NEGATIVE), tone.grey)
    faces = np.where(few, tone.paper, tone.pale)
    ax.barh(
        rows, genes["total"], height=0.72, color=faces, edgecolor=tone.pale, linewidth=np.where(few, 1.0, 0.0), zorder=1
    )
    ax.axvline(0, color=tone.ink, lw=0.8, zorder=2)
    _line(ax, rows, genes["direct"], genes["margin"], colors=colors, lw=1.2, zorder=3)
    faces = np.where(is_target, colors, tone.paper)
    ax.scatter(direct, rows, s=24, c=faces, edgecolors=colors, linewidths=1.2, zorder=4)
    if genes["total_margin"].notna().any():
        _line(ax, rows + BELOW, genes["total"], genes["total_margin"], colors=tone.grey, lw=0.7, zorder=2)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, -LEAST_EFFECT), max(high, LEAST_EFFECT))
    ax.set_ylim(len(direct) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    despine(ax)
    ax.spines["left"].set_visible(False)
    point = {"marker": "o", "ms": 5, "lw": 1.2}
    handles: list[Any] = [Patch(color=tone.pale, label="total")]
    if few.any():
        handles.append(Patch(facecolor=tone.paper, edgecolor=tone.pale, label="total, few counts"))
    for word, color, chosen in (("raised", POSITIVE, direct > 0), ("lowered", NEGATIVE, direct <= 0)):
        if (is_target & chosen).any():
            handles.append(Line2D([], [], label=f"target, {word}", color=color, **point))
    handles.append(Line2D([], [], label="direct, no target", color=tone.grey, mfc=tone.paper, **point))
    legend_below(ax, handles, [str(handle.get_label()) for handle in handles], given=given)


def _line(ax: Axes, rows: np.ndarray, centre: pd.Series, margin: pd.Series, **style: Any) -> None:
    ax.hlines(rows, centre - margin, centre + margin, **style)
