"""Dose-response curves of direct effects."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from scipy.stats import norm

from scgim._constants import Key
from scgim._docs import d
from scgim.pl._cells import ControlScale, contexts, expression, has_cells, is_count_data, size_factors
from scgim.pl._utils import (
    GREY,
    LONGEST_LABEL,
    OKABE_ITO,
    PALE,
    axes_inches,
    check_level,
    despine,
    finish,
    legend_below,
    legend_height,
    new_panels,
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

# smallest half height of a panel, in the units of effects: noise around zero is not to look like an effect; by eye
LEAST_EFFECT, LEAST_SHIFT = 0.25, 0.25
# so many curves can be told apart, each with a colour and a dash of its own
DASHES = ("-", "--", ":", "-.")
MAX_CURVES = len(OKABE_ITO) * len(DASHES)


def hill_curve(doses: Any, emax: float, ec50: float, hill: float) -> Any:
    """Direct log fold change at each dose (a number or an array)."""
    # written with a ratio so that steep curves do not overflow
    with np.errstate(divide="ignore", over="ignore"):
        return emax / (1 + (ec50 / doses) ** hill)


def measured_shifts(
    adata: AnnData, perturbations: list[str], genes: list[str], params: dict[str, Any], layer: str | None
) -> pd.DataFrame:
    """Shift of the mean from control at each measured dose.

    Columns `perturbation`, `gene`, `dosage`, `mean` (mean of log1p, standardised on control cells) and `error` (standard
    error of that mean).
    """
    is_count = params["likelihood"] != "normal"
    cells = contexts(adata, params["perturbation_key"], params.get("dosage_key"), params["control"])
    is_control = (cells["perturbation"] == params["control"]).to_numpy()
    factors = None
    if is_count:
        factors, _ = size_factors(adata, params, layer, is_control)

    def values(rows: np.ndarray) -> np.ndarray:
        return expression(adata, rows, genes, layer=layer, is_count=is_count, size_factors=factors)

    control = values(np.flatnonzero(is_control))
    scale = ControlScale(control.mean(axis=0), control.std(axis=0))
    chosen = cells[cells["perturbation"].isin(perturbations)]
    tables = []
    for (perturbation, dose), group in chosen.groupby(["perturbation", "dosage"], sort=True):
        shifts = scale(values(group.index.to_numpy()))
        error = shifts.std(axis=0, ddof=1) / np.sqrt(len(shifts)) if len(shifts) > 1 else np.nan
        columns = {"perturbation": perturbation, "gene": genes, "dosage": dose}
        tables.append(pd.DataFrame({**columns, "mean": shifts.mean(axis=0), "error": error}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _find_points(
    adata: AnnData, perturbations: list[str], genes: list[str], params: dict[str, Any], layer: str | None
) -> pd.DataFrame:
    """Measured shifts, or an empty frame where `adata` has no cells to tell them from."""
    layer = layer or params.get("layer")
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
    return measured_shifts(adata, perturbations, genes, params, layer)


def _half_height(values: np.ndarray, least: float) -> float:
    """Largest absolute value, but not so small that noise would fill a panel."""
    return float(max(np.abs(values[np.isfinite(values)]).max(initial=0.0), least))


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
    where it lies outside the measured doses. Of more than 28 perturbations, the seven of largest effect have colours and points, the
    others are grey.

    Points belong to the axis on the right: the mean of log1p of size-normalised counts at each measured dose, standardised
    on control cells, with an interval from its standard error. The two axes share their zero but not their unit, and
    points contain what comes through the network, curves do not: compare where they rise, not their heights.

    Parameters
    ----------
    %(adata)s With its cells, the measured points are drawn too.
    perturbations
        One perturbation or several, by name. May be left out when only one is stored.
    genes
        Genes to show, a panel each. By default the `n_top` most probable direct targets of `perturbations`.
    n_top
        Number of genes to choose when `genes` is not given.
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
    check_level(level)
    if n_top < 1 or n_cols < 1:
        raise ValueError(f"Expected `n_top` and `n_cols` to be at least 1, found {n_top} and {n_cols}.")
    params = stored_params(adata, key)
    if params.get("dosage_key") is None:
        raise ValueError("The model was fitted without doses, so there is no curve. Set up with a `dosage_key`.")
    probs = stored(adata, "varm", Key.varm.targets(key))
    if perturbations is None:
        perturbations = [pick_one(None, probs.columns)]
    drugs = pick(perturbations, probs.columns, "perturbation")
    shown = pick(probs[drugs].sum(axis=1).nlargest(n_top).index if genes is None else genes, probs.index, "gene")

    curves = _curve_table(adata, drugs, shown, key)
    named = _choose_named(curves, drugs)
    measured = _find_points(adata, named, shown, params, layer) if points else pd.DataFrame()
    largest = curves["largest"].max()
    doses = [dose for dose in measured.get("dosage", ()) if dose > 0] or [largest / 100, largest]
    grid = np.geomspace(min(doses) / 2, max(doses) * 1.25, 200)

    n_cols = min(n_cols, len(shown))
    shape = (-(-len(shown) // n_cols), n_cols)
    width = 2.5 * n_cols + 0.8
    size = (
        width,
        2.3 * shape[0] + 0.1 + (legend_height(width, shorten(named, LONGEST_LABEL)) if len(drugs) > 1 else 0),
    )
    axes, given = new_panels(ax, figsize or size, shape, len(shown), title=title)
    z = norm.ppf(0.5 + level / 2)
    names = shorten(shown, 20)
    for i, (panel, gene) in enumerate(zip(axes, shown, strict=True)):
        own = measured[measured["gene"] == gene] if len(measured) else measured
        outer = (i % n_cols == 0, i % n_cols == n_cols - 1 or i == len(shown) - 1, i + n_cols >= len(shown))
        of_gene = curves.xs(gene, level="gene")
        _draw_panel(panel, of_gene.loc[named], own, grid, z, outer)
        _draw_others(panel, of_gene.drop(index=named), grid)
        panel.set_title(names[i], fontsize="medium", pad=16 if len(drugs) == 1 else None)
    if len(drugs) == 1:
        width = axes_inches(axes[0])[0]
        for panel, gene in zip(axes, shown, strict=True):
            _note(panel, curves.loc[(drugs[0], gene)], width)
    else:
        legend_below(axes[0], *axes[0].get_legend_handles_labels(), given=given)
    return finish(axes, given=given, show=show, return_fig=return_fig)


def _curve_table(adata: AnnData, drugs: list[str], genes: list[str], key: str) -> pd.DataFrame:
    """Hill parameters, standard deviation of the effect at the largest dose, and that dose, by perturbation and gene."""
    names = {"emax": Key.varm.emax, "ec50": Key.varm.ec50, "hill": Key.varm.hill}
    names |= {"sd": Key.varm.shift_sds, "prob": Key.varm.targets}
    table = pd.DataFrame(
        {what: stored(adata, "varm", name(key)).loc[genes, drugs].T.stack() for what, name in names.items()}
    )
    table = table.rename_axis(["perturbation", "gene"]).astype(float)
    table["emax"] *= table["prob"]  # expected effects, as the stored shifts are
    largest = stored_entry(adata, key, Key.uns.PERTURBATIONS)["max_dosage"].astype(float)
    return table.assign(largest=largest.loc[table.index.get_level_values("perturbation")].to_numpy())


def _choose_named(curves: pd.DataFrame, drugs: list[str]) -> list[str]:
    """The perturbations that get a colour: all, or those of largest effect where there are too many to be told apart."""
    if len(drugs) <= MAX_CURVES:
        return drugs
    effect = hill_curve(curves["largest"], curves["emax"], curves["ec50"], curves["hill"]).abs()
    return list(effect.groupby(level="perturbation").max().nlargest(len(OKABE_ITO)).index)


def _draw_others(ax: Axes, curves: pd.DataFrame, grid: np.ndarray) -> None:
    for i, (_, row) in enumerate(curves.iterrows()):
        label = None if i else f"{len(curves)} others"
        ax.plot(
            grid, hill_curve(grid, row["emax"], row["ec50"], row["hill"]), color=PALE, lw=0.8, zorder=0.5, label=label
        )


def _draw_panel(
    ax: Axes, curves: pd.DataFrame, measured: pd.DataFrame, grid: np.ndarray, z: float, outer: tuple[bool, bool, bool]
) -> None:
    """Draw one gene; `curves` has a row a perturbation, `outer` tells whether the panel is leftmost, rightmost, lowest."""
    labels = shorten(curves.index, LONGEST_LABEL)
    heights = []
    for i, (_, row) in enumerate(curves.iterrows()):
        color, dash = OKABE_ITO[i % len(OKABE_ITO)], DASHES[i // len(OKABE_ITO)]
        curve = hill_curve(grid, row["emax"], row["ec50"], row["hill"])
        at_largest = abs(hill_curve(row["largest"], row["emax"], row["ec50"], row["hill"]))
        band = z * row["sd"] * np.abs(curve) / at_largest if at_largest > 0 else np.zeros_like(curve)
        heights.append(np.abs(curve) + band)
        ax.fill_between(grid, curve - band, curve + band, color=color, alpha=0.18, lw=0, zorder=1)
        ax.plot(grid, curve, color=color, ls=dash, lw=1.6, zorder=3, label=labels[i])
        if grid[0] <= row["ec50"] <= grid[-1]:
            ax.plot(row["ec50"], row["emax"] / 2, marker="D", ms=5.5, mfc="white", mec=color, mew=1.3, ls="", zorder=5)
    if len(measured):
        _draw_points(ax, curves, measured, z, _half_height(np.concatenate(heights), LEAST_EFFECT), label=outer[1])
    _dress(ax, grid, outer)


def _draw_points(
    ax: Axes, curves: pd.DataFrame, measured: pd.DataFrame, z: float, half_height: float, *, label: bool
) -> None:
    """Measured shifts, scaled to the height of the curves, and the axis on which they are read."""
    margin = z * measured["error"].fillna(0.0)
    scale = _half_height((measured["mean"].abs() + margin).to_numpy(), LEAST_SHIFT) / half_height
    for i, drug in enumerate(curves.index):
        own = (measured["perturbation"] == drug).to_numpy()
        x, y = measured["dosage"][own], measured["mean"][own] / scale
        style = {"fmt": "o", "ms": 3.5, "color": OKABE_ITO[i % len(OKABE_ITO)], "alpha": 0.75, "lw": 0.9}
        ax.errorbar(x, y, margin[own] / scale, zorder=2, **style)
    axis = ax.secondary_yaxis("right", functions=(lambda y: y * scale, lambda y: y / scale))
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.tick_params(labelsize="small", colors=GREY)
    axis.spines["right"].set_color(GREY)
    if label:
        axis.set_ylabel("Measured shift\n(control s.d.)", fontsize="small", color=GREY)


def _dress(ax: Axes, grid: np.ndarray, outer: tuple[bool, bool, bool]) -> None:
    ax.set(xscale="log", xlim=(grid[0], grid[-1]))
    # doses are read as numbers; a short axis has no power of ten on it, or one
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if grid[-1] < 40 * grid[0] else (1,)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    low, high = ax.get_ylim()
    if high - low < LEAST_EFFECT:
        ax.set_ylim(min(low, -LEAST_EFFECT), max(high, LEAST_EFFECT))
    ax.axhline(0, color=GREY, lw=0.7, zorder=0)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.tick_params(labelsize="small")
    despine(ax)
    if outer[0]:
        ax.set_ylabel("Direct effect\n(log fold change)", fontsize="small")
    if outer[2]:
        ax.set_xlabel("Dose", fontsize="small")


def _note(ax: Axes, row: pd.Series, width: float) -> None:
    """Numbers of the only curve of a panel, not wider than its `width` in inches if that can be read."""
    text = f"EC50 {row['ec50']:.2g}, target probability {row['prob']:.2f}"
    size = float(np.clip(72 * width / (0.5 * len(text)), 4.5, 7.5))
    ax.annotate(
        text, (0.5, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", ha="center", fontsize=size
    )
