"""Dose-response curves: direct effects, predicted total effects, and measured changes, all in one unit."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.stats import norm

from scgim._constants import Key
from scgim._docs import d
from scgim._validation import check_interval
from scgim.pl._area import Area
from scgim.pl._cells import has_cells, is_count_data, of_level
from scgim.pl._measured import measured_changes
from scgim.pl._tones import OKABE_ITO, palette, tones
from scgim.pl._utils import (
    LEAST_EFFECT,
    LONGEST_LABEL,
    axes_inches,
    despine,
    dosage_unit,
    dose_text,
    finish,
    legend_below,
    legend_height,
    new_panels,
    number,
    pick,
    pick_one,
    shorten,
    stored,
    stored_entry,
    stored_params,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes

MAX_CURVES = len(OKABE_ITO)  # can be told apart
LEAST_WIDTH = 1.7  # inches of a panel in axes of the user's
LEAST_PROB = 0.5  # of a target, that its EC50 is told
_Y_LABELS = {"normal": "Effect\n(s.d.)"}
DIRECT, TOTAL, MEASURED = "direct effect", "predicted total", "measured"


def hill_curve(doses: Any, emax: float, ec50: float, hill: float) -> Any:
    """Direct log fold change at each dose (a number or an array)."""
    # written with a ratio so that steep curves do not overflow
    with np.errstate(divide="ignore", over="ignore"):
        return emax / (1 + (ec50 / doses) ** hill)


def _find_points(
    adata: AnnData, perturbations: list[str], genes: list[str], key: str, layer: str | None
) -> pd.DataFrame:
    """Measured changes, or an empty frame where `adata` has no cells to tell them from."""
    params, unit = stored_params(adata, key), adata.var.get(Key.var.standard_deviation(key))
    layer = layer or params.get("layer")
    adata = of_level(adata, params)
    if not has_cells(adata, {**params, "layer": layer}):
        return pd.DataFrame()
    if params["likelihood"] != "normal" and not is_count_data(adata, layer):
        where = f"`adata.layers[{layer!r}]`" if layer else "`adata.X`"
        warnings.warn(
            f"{where} no longer holds counts, so the measured points are left out. Name the layer with the counts "
            "(`layer=...`), or pass `points=False`.",
            UserWarning,
            stacklevel=3,
        )
        return pd.DataFrame()
    return measured_changes(adata, perturbations, genes, params, layer, unit)


@d.dedent
def dose_response(
    adata: AnnData,
    perturbations: str | Iterable[str] | None = None,
    genes: str | Iterable[str] | None = None,
    *,
    n_top: int = 3,
    points: bool = True,
    level: float = 0.95,
    layer: str | None = None,
    n_cols: int = 3,
    key: str = Key.DEFAULT,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Any:
    r"""Dose-response curves of direct effects, a panel a gene, a colour a perturbation.

    The curve is the direct log fold change

    .. math:: \psi(c) = E_{max} \frac{c^n}{EC_{50}^n + c^n}

    with a band for the uncertainty of :math:`E_{max}`: the posterior standard deviation at the largest measured dose, in
    proportion to the curve elsewhere. A diamond marks the EC50, where half of :math:`E_{max}` is reached; it is not drawn
    where it lies outside the measured doses, nor for genes that are not likely to be targets.

    Dashed is the predicted total effect at the measured doses: with what comes through the network. Points are what was
    measured of it, the log fold change of the mean of size-normalised counts (with half a count added at the mean of
    controls), with an interval from its standard error. All are read on one axis: points belong on the dashed line,
    and away from the solid one as far as the network carries effects. After a fit of `likelihood="normal"` all are
    differences in standard deviations (`var["gim_sd"]`).

    Of more than seven perturbations, the seven of largest effect have colours, total effects and points, the others are
    grey. The unit of the doses is taken from `adata.uns["dosage_unit"]`, such as "nM".

    Parameters
    ----------
    %(adata)s With its cells, the measured points are drawn too.
    perturbations
        One perturbation or several, by name. May be left out when only one is stored.
    genes
        Genes to show, a panel each. By default the `n_top` most probable direct targets of `perturbations`.
    n_top
        Number of genes to choose when `genes` is not given; fewer where `ax` has no room for so many panels.
    points
        Whether to draw measured points, if `adata` has cells.
    level
        Probability of bands and intervals.
    %(layer)s
    n_cols
        Number of panels in a row.
    %(key)s
    %(figsize)s
    %(title)s
    %(ax)s
    %(show)s
    %(return_fig)s

    Returns
    -------
    %(returns_panels)s

    Raises
    ------
    %(raises_missing)s
    ValueError
        If the model was fitted without doses, if `perturbations` is left out though several are stored, or if a number is
        out of range.

    Warns
    -----
    UserWarning
        If the cells no longer hold counts; points are then left out.

    Examples
    --------
    >>> scgim.pl.dose_response(adata, "Trametinib")
    >>> scgim.pl.dose_response(adata, ["Trametinib", "Dabrafenib"], ["DUSP6", "SPRY2"])
    """
    check_interval(level)
    if n_top < 1 or n_cols < 1:
        raise ValueError(f"Expected `n_top` and `n_cols` to be at least 1, found {n_top} and {n_cols}.")
    params = stored_params(adata, key)
    if params.get("dosage_key") is None:
        raise ValueError("The model was fitted without doses, so there is no curve. Set up with a `dosage_key`.")
    probs = stored(adata, "varm", Key.varm.targets(key))
    if perturbations is None:
        perturbations = [pick_one(None, probs.columns, "perturbations")]
    drugs = pick(perturbations, probs.columns, "perturbation")
    area = None if ax is None else Area(ax)
    if area is not None:
        columns, rows = area.panels(LEAST_WIDTH)
        n_cols, n_top = min(n_cols, columns), min(n_top, min(n_cols, columns) * rows)
    shown = pick(probs[drugs].sum(axis=1).nlargest(n_top).index if genes is None else genes, probs.index, "gene")

    curves = _curve_table(adata, drugs, shown, key)
    named = _choose_named(curves, drugs)
    measured = _find_points(adata, named, shown, key, layer) if points else pd.DataFrame()
    totals = _total_table(adata, named, shown, key)
    grid = _grid(measured, totals, curves["largest"].max())

    n_cols = min(n_cols, len(shown))
    shape = (-(-len(shown) // n_cols), n_cols)
    width = 2.5 * n_cols + 0.8
    kinds = [DIRECT, *([TOTAL] if len(totals) else []), *([MEASURED] if len(measured) else [])]
    labels = shorten(named, LONGEST_LABEL) if len(drugs) > 1 else []
    n_others = len(drugs) - len(named)
    handles = partial(_handles, n_named=len(labels), kinds=kinds, others=n_others > 0)
    labels += [f"{n_others} other{'s' * (n_others > 1)}"] if n_others else []
    size = (width, 2.3 * shape[0] + 0.1 + legend_height(width, labels + kinds))
    axes, given = new_panels(ax, figsize or size, shape, len(shown), title=title)
    z, unit = norm.ppf(0.5 + level / 2), dosage_unit(adata)
    names = shorten(shown, 20)
    for i, (panel, gene) in enumerate(zip(axes, shown, strict=True)):
        of_gene = curves.xs(gene, level="gene")
        _draw_panel(panel, of_gene.loc[named], _of(totals, gene), _of(measured, gene), grid, z)
        _draw_others(panel, of_gene.drop(index=named), grid)
        _dress(panel, grid)
        panel.set_title(names[i], fontsize="medium", pad=16 if len(drugs) == 1 else None)
        if i % n_cols == 0:
            panel.set_ylabel(_Y_LABELS.get(params["likelihood"], "Log fold change"), fontsize="small")
        if i + n_cols >= len(shown):
            panel.set_xlabel(f"Dose ({unit})" if unit else "Dose", fontsize="small")
    if len(drugs) == 1:
        width = axes_inches(axes[0])[0]
        for panel, gene in zip(axes, shown, strict=True):
            _note(panel, curves.loc[(drugs[0], gene)], unit, width)
    legend_below(ax or axes[0], handles(axes[0]), labels + kinds, given=given)
    if area is not None:
        area.keep_within()
    return finish(axes, given=given, show=show, return_fig=return_fig)


def _grid(measured: pd.DataFrame, totals: pd.DataFrame, largest: float) -> np.ndarray:
    """Doses at which curves are drawn: somewhat more than the measured range."""
    doses = [dose for table in (measured, totals) for dose in table.get("dosage", ()) if dose > 0]
    doses = doses or [largest / 100, largest]
    return np.geomspace(min(doses) / 2, max(doses) * 1.25, 200)


def _of(table: pd.DataFrame, gene: str) -> pd.DataFrame:
    return table[table["gene"] == gene] if len(table) else table


def _handles(ax: Axes, n_named: int, kinds: list[str], *, others: bool) -> list[Line2D]:
    """Samples for the legend: colours of perturbations where there are several, and what lines and points are."""
    tone = tones(ax)
    colors = [*palette(ax)[:n_named], *([tone.pale] if others else [])]
    styles: dict[str, dict[str, Any]] = {
        DIRECT: {"lw": 1.6, "color": tone.ink if n_named else palette(ax)[0]},
        TOTAL: {"lw": 1.2, "ls": "--", "color": tone.ink},
        MEASURED: {"ls": "", "marker": "o", "ms": 3.5, "color": tone.ink},
    }
    return [Line2D([], [], color=color, lw=2.4) for color in colors] + [
        Line2D([], [], **styles[kind]) for kind in kinds
    ]


def _total_table(adata: AnnData, drugs: list[str], genes: list[str], key: str) -> pd.DataFrame:
    """Predicted total effects at the measured doses, a row each; empty for data that an earlier version annotated."""
    name = Key.varm.context_effects(key)
    if name not in adata.varm:
        return pd.DataFrame()
    known = stored_entry(adata, key, Key.uns.CONTEXTS)
    rows = np.flatnonzero(known["perturbation"].isin(drugs))
    values = np.asarray(adata.varm[name])[np.ix_(adata.var_names.get_indexer(genes), rows)]
    at = known.iloc[np.tile(rows, len(genes))].reset_index(drop=True)
    return at.assign(gene=np.repeat(genes, len(rows)), total=values.ravel())


def _curve_table(adata: AnnData, drugs: list[str], genes: list[str], key: str) -> pd.DataFrame:
    """Hill parameters, standard deviation of the effect at the largest dose, that dose, and the smallest, by perturbation and gene."""
    names = {"emax": Key.varm.emax, "ec50": Key.varm.ec50, "hill": Key.varm.hill}
    names |= {"sd": Key.varm.shift_sds, "prob": Key.varm.targets}
    table = pd.DataFrame(
        {what: stored(adata, "varm", name(key)).loc[genes, drugs].T.stack() for what, name in names.items()}
    )
    table = table.rename_axis(["perturbation", "gene"]).astype(float)
    table["emax"] *= table["prob"]  # expected effects, as the stored shifts are
    largest = stored_entry(adata, key, Key.uns.PERTURBATIONS)["max_dosage"].astype(float)
    known = stored_entry(adata, key, Key.uns.CONTEXTS) if Key.uns.CONTEXTS in stored(adata, "uns", key) else None
    smallest = 0 * largest if known is None else known.groupby("perturbation", observed=True)["dosage"].min()
    each = table.index.get_level_values("perturbation")
    return table.assign(largest=largest.loc[each].to_numpy(), smallest=smallest.loc[each].to_numpy(dtype=float))


def _choose_named(curves: pd.DataFrame, drugs: list[str]) -> list[str]:
    """The perturbations that get a colour: all, or those of largest effect where there are too many to be told apart."""
    if len(drugs) <= MAX_CURVES:
        return drugs
    effect = hill_curve(curves["largest"], curves["emax"], curves["ec50"], curves["hill"]).abs()
    return list(effect.groupby(level="perturbation").max().nlargest(len(OKABE_ITO)).index)


def _draw_others(ax: Axes, curves: pd.DataFrame, grid: np.ndarray) -> None:
    for _, row in curves.iterrows():
        effect = hill_curve(grid, row["emax"], row["ec50"], row["hill"])
        ax.plot(grid, effect, color=tones(ax).pale, lw=0.8, zorder=0.5)


def _draw_panel(
    ax: Axes, curves: pd.DataFrame, totals: pd.DataFrame, measured: pd.DataFrame, grid: np.ndarray, z: float
) -> None:
    """Draw one gene; `curves` has a row a perturbation."""
    for i, (drug, row) in enumerate(curves.iterrows()):
        color = palette(ax)[i]
        # beside a single curve, what was measured and predicted of the whole has a colour of its own
        whole = color if len(curves) > 1 else tones(ax).ink
        curve = hill_curve(grid, row["emax"], row["ec50"], row["hill"])
        at_largest = abs(hill_curve(row["largest"], row["emax"], row["ec50"], row["hill"]))
        band = z * row["sd"] * np.abs(curve) / at_largest if at_largest > 0 else np.zeros_like(curve)
        ax.fill_between(grid, curve - band, curve + band, color=color, alpha=0.2, lw=0, zorder=1)
        ax.plot(grid, curve, color=color, lw=1.6, zorder=3)
        if row["prob"] >= LEAST_PROB and row["smallest"] <= row["ec50"] <= row["largest"]:
            marker = {"marker": "D", "ms": 5.5, "mfc": tones(ax).paper, "mec": color, "mew": 1.3}
            ax.plot(row["ec50"], row["emax"] / 2, ls="", zorder=5, **marker)
        if len(totals):
            own = totals[totals["perturbation"] == drug].sort_values("dosage")
            ax.plot(own["dosage"], own["total"], color=whole, lw=1.2, ls="--", zorder=2.5)
        if len(measured):
            own = measured[measured["perturbation"] == drug]
            # points of several perturbations lie beside one another
            beside = (grid[-1] / grid[0]) ** (0.008 * (i - (len(curves) - 1) / 2))
            style = {"fmt": "o", "ms": 3.5, "color": whole, "alpha": 0.8, "lw": 0.9}
            ax.errorbar(own["dosage"] * beside, own["mean"], z * own["error"], zorder=2, **style)
    if len(measured):
        # long intervals of rare genes may leave the panel; what is drawn beside them is not to become flat
        drawn = [line.get_ydata() for line in ax.lines] + [measured["mean"]]
        largest = np.nanmax(np.abs(np.concatenate([np.asarray(y, dtype=float) for y in drawn])))
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, -1.8 * largest), min(high, 1.8 * largest))


def _dress(ax: Axes, grid: np.ndarray) -> None:
    ax.set(xscale="log", xlim=(grid[0], grid[-1]))
    # doses are read as numbers; a short axis has no power of ten on it, or one
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if grid[-1] < 40 * grid[0] else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda dose, _: number(dose)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    low, high = ax.get_ylim()
    if high - low < 2 * LEAST_EFFECT:
        ax.set_ylim(min(low, -LEAST_EFFECT), max(high, LEAST_EFFECT))
    ax.axhline(0, color=tones(ax).grey, lw=0.7, zorder=0)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.tick_params(labelsize="small")
    despine(ax)


def _ec50_text(row: pd.Series, unit: str | None) -> str:
    """The EC50, as far as the doses tell it; nothing where there is one dose."""
    if row["smallest"] == row["largest"]:
        return ""
    if row["ec50"] < row["smallest"]:
        return f"EC50 below {dose_text(row['smallest'], unit, 2)}, "
    if row["ec50"] > row["largest"]:
        return f"EC50 above {dose_text(row['largest'], unit, 2)}, "
    return f"EC50 {dose_text(row['ec50'], unit, 2)}, "


def _note(ax: Axes, row: pd.Series, unit: str | None, width: float) -> None:
    """Numbers of the only curve of a panel, not wider than its `width` in inches if that can be read."""
    known = _ec50_text(row, unit) if row["prob"] >= LEAST_PROB else ""
    text = f"{known}target probability {row['prob']:.2f}"
    size = float(np.clip(72 * width / (0.5 * len(text)), 5.5, 7.5))
    if 0.5 * size * len(text) > 72 * width:
        text = text.replace(", ", ",\n").replace("target probability", "target: p =")
    ax.annotate(
        text, (0.5, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", ha="center", fontsize=size
    )
