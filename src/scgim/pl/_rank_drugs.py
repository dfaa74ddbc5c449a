"""A ranked library: scores of drugs with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from scgim._constants import Key
from scgim._docs import d
from scgim.pl._area import LEAST_LINE, Area
from scgim.pl._tones import OKABE_ITO, Tones, tones
from scgim.pl._utils import axes_inches, cut, despine, dose_text, finish, font_size, legend_below, new_axes, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST_TARGETS = 30  # characters
LEAST_WIDTH = 3.5  # inches of axes of the user's that have room for names on either side
_NEEDED = ("score", "lower", "upper")
_LABELS = {"cells": "measured", "features": "by its features", "mean": "nothing known: mean of measured drugs"}
_AXIS = {"change": "Wanted change achieved ({unit})", "distance": "Minus distance to what is wanted"}


@d.dedent
def rank_drugs(
    ranked: pd.DataFrame,
    *,
    n_top: int = 20,
    targets: bool = True,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Any:
    """The best drugs of a library, a row a drug: score and its interval.

    Where intervals overlap the order of two drugs is open. The colour tells what is known of a drug: cells that were treated with it,
    its features, or neither.

    Parameters
    ----------
    ranked
        Table from :meth:`scgim.model.GIM.rank_drugs`.
    n_top
        Number of drugs, from the best; fewer where `ax` has no room for so many names.
    targets
        Whether the likeliest direct targets are named at the right, if there is room.
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
        If `ranked` lacks a column of such a table.
    ValueError
        If it has no rows, or `n_top` is below 1.

    Examples
    --------
    >>> ranked = model.rank_drugs(library, toward={"up": ["gene_01"], "down": ["gene_05"]})
    >>> scgim.pl.rank_drugs(ranked, n_top=15)
    """
    if not isinstance(ranked, pd.DataFrame):
        raise TypeError(f"Expected the table that `model.rank_drugs(...)` returns, found {type(ranked).__name__}.")
    missing = [name for name in _NEEDED if name not in ranked]
    if missing:
        raise KeyError(f"`ranked` has no columns {missing}. Pass the table that `model.rank_drugs(...)` returns.")
    if n_top < 1 or not len(ranked):
        raise ValueError(f"Expected `n_top` of at least 1 and a table with rows, found {n_top} and {len(ranked)} rows.")
    area = None if ax is None else Area(ax)
    shown = ranked.head(n_top if area is None else min(n_top, area.lines()))
    names = shorten(_names(shown), 30 if area is None else area.longest_name(30))
    height = max(float(np.clip(0.21 * len(shown), 1.2, 11.0)), LEAST_LINE * len(shown))
    default = (3.6 + 0.08 * max(map(len, names)), height + 1.1)
    ax, given = new_axes(ax, figsize or default)
    known = shown["known_by"].tolist() if "known_by" in shown else ["cells"] * len(shown)
    colors = _colors(tones(ax))
    _draw(ax, shown, [colors[kind] for kind in known])
    metric = str(ranked.attrs.get("metric", "score"))
    unit = ranked.attrs.get("effect_unit", "log fold change")
    ax.set_xlabel(_AXIS.get(metric, metric.capitalize()).format(unit=unit))
    if title is not None:
        ax.set_title(title, fontsize="medium")
    if len(set(known)) > 1:
        kinds = [kind for kind in colors if kind in known]
        handles = [Line2D([], [], marker="o", ms=5, lw=1.2, color=colors[kind]) for kind in kinds]
        legend_below(ax, handles, [_LABELS[kind] for kind in kinds], given=given)
    right = (
        _name_targets(ax, shown)
        if targets and "top_targets" in shown and (area is None or area.holds(1, LEAST_WIDTH))
        else None
    )
    for size in (6.0, None):  # what room there is for names shows once they are there
        size = size or font_size(axes_inches(ax)[1] / len(shown))
        ax.set_yticks(range(len(shown)), names, fontsize=size)
        if right is not None:
            right.tick_params(labelsize=size)
        if area is not None:
            area.keep_within()
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _colors(tone: Tones) -> dict[str, str]:
    return {"cells": tone.ink, "features": OKABE_ITO[0], "mean": tone.grey}


def _name_targets(ax: Axes, shown: pd.DataFrame) -> Any:
    """The likeliest targets at the right of each row; the axis that names them."""
    right = ax.secondary_yaxis("right")
    right.set_yticks(range(len(shown)), [cut(names, _LONGEST_TARGETS) for names in shown["top_targets"]])
    right.tick_params(length=0, labelcolor=tones(ax).grey)
    right.spines["right"].set_visible(False)
    return right


def _names(shown: pd.DataFrame) -> list[str]:
    """Names of the drugs, with dosages where these differ."""
    names = [str(name) for name in shown.index]
    column, unit = "dosages" if "dosages" in shown else "dosage", shown.attrs.get(Key.DOSAGE_UNIT)
    if column not in shown or shown[column].nunique() < 2:
        return names
    doses = shown[column] if column == "dosages" else [dose_text(dose, unit) for dose in shown[column]]
    return [f"{name} at {dose}" for name, dose in zip(names, doses, strict=True)]


def _draw(ax: Axes, shown: pd.DataFrame, colors: list[str]) -> None:
    rows = np.arange(len(shown))
    ax.axvline(0, color=tones(ax).grey, lw=0.7, zorder=0)
    ax.hlines(rows, shown["lower"], shown["upper"], colors=colors, lw=1.4, zorder=2)
    ax.scatter(shown["score"], rows, s=24, c=colors, zorder=3)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    despine(ax)
    ax.spines["left"].set_visible(False)
