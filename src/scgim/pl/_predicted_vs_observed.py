"""Predicted beside measured cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from scipy.stats import gaussian_kde, pearsonr

from scgim._constants import Key
from scgim._docs import d
from scgim._size_factors import known_size_factors
from scgim._validation import match_doses
from scgim.pl._area import Area
from scgim.pl._cells import (
    ControlScale,
    contexts,
    expression,
    has_cells,
    is_count_data,
    of_covariates,
    of_level,
    size_factors,
)
from scgim.pl._labels import place_labels
from scgim.pl._tones import OKABE_ITO, palette, tones
from scgim.pl._utils import (
    LONGEST_LABEL,
    despine,
    dosage_unit,
    dose_text,
    finish,
    legend_below,
    legend_height,
    new_panels,
    pick,
    shorten,
    stored_params,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes

OBSERVED, PREDICTED = OKABE_ITO[0], OKABE_ITO[1]
MAX_LABELS, MAX_CELLS = 8, 2000
FEWEST_CELLS = 20  # that a density is drawn of; fewer are drawn as points
MANY_POINTS = 20_000  # files of more are pictures in this part, for their size
LEAST_WIDTH = 2.6  # inches of a panel in axes of the user's that has room for its labels
NO_DOSE = -1.0


@dataclass
class _Cells:
    """Where the cells of one side are, and how they are read."""

    adata: AnnData
    contexts: pd.DataFrame  # perturbation and dosage of each cell
    layer: str | None
    size_factors: np.ndarray | None
    typical: float = 1.0  # size factor of a control cell, by which they are divided

    def values(self, rows: np.ndarray, genes: list[str]) -> np.ndarray:
        return expression(
            self.adata,
            rows,
            genes,
            layer=self.layer,
            is_count=self.size_factors is not None,
            size_factors=self.size_factors,
        )


def _observed_cells(adata: AnnData, params: dict[str, Any], layer: str | None) -> _Cells:
    layer = layer or params.get("layer")
    if not has_cells(adata, {**params, "layer": layer}):
        raise ValueError("`adata` no longer holds the measured cells, so there is nothing to compare with.")
    table = contexts(adata, params["perturbation_key"], params.get("dosage_key"), params["control"])
    is_control = (table["perturbation"] == params["control"]).to_numpy()
    if not is_control.any():
        raise ValueError(f"`adata` holds no control cells ({params['control']!r}), on which the scale is standardised.")
    if params["likelihood"] == "normal":
        return _Cells(adata, table, layer, None)
    if not is_count_data(adata, layer):
        raise ValueError("`adata` no longer holds counts. Name the layer with the counts: `layer=...`.")
    return _Cells(adata, table, layer, *size_factors(adata, params, layer, is_control))


def _predicted_cells(predicted: AnnData, params: dict[str, Any], typical: float) -> _Cells:
    # predictions carry the names of the fitted data or the default ones
    keys = []
    for key, default in (("perturbation_key", "perturbation"), ("dosage_key", "dosage")):
        keys.append(params[key] if params.get(key) in predicted.obs else default)
    if keys[0] not in predicted.obs:
        raise KeyError(f"No `{keys[0]}` in `predicted.obs`. Pass the AnnData that `model.predict(...)` returns.")
    table = contexts(predicted, keys[0], keys[1] if params.get("dosage_key") else None, params["control"])
    factors = None
    if params["likelihood"] != "normal":  # predictions say what size factors they have
        column = "size_factor" if "size_factor" in predicted.obs else None
        factors = known_size_factors(predicted.obs, column, None, None) / (typical if column else 1.0)
    return _Cells(predicted, table, None, factors)


def _match(observed: _Cells, predicted: _Cells, control: str, wanted: list[str] | None) -> pd.DataFrame:
    """Contexts that both sides have: perturbation, dosage, and the rows of their cells on either side."""
    tables = [cells.contexts.fillna({"dosage": NO_DOSE}) for cells in (observed, predicted)]
    tables[1]["dosage"] = match_doses(tables[1]["dosage"].to_numpy(), tables[0]["dosage"].to_numpy())
    rows = [table.groupby(["perturbation", "dosage"]).indices for table in tables]
    both = pd.DataFrame(
        [(*context, rows[0][context], rows[1][context]) for context in sorted(rows[0].keys() & rows[1].keys())],
        columns=["perturbation", "dosage", "observed", "predicted"],
    )
    both = both[both["perturbation"] != control]
    if wanted is not None:
        both = both[both["perturbation"].isin(wanted)]
    if both.empty:
        found = [[f"{name!r} at {dose:g}" for name, dose in sorted(side) if name != control][:3] for side in rows]
        raise ValueError(
            "No perturbation at the same dose is both measured and predicted. Measured are, for example, "
            f"{', '.join(found[0])}; predicted are {', '.join(found[1])}. Predict at measured doses: `model.predict(..., dosage=...)`."
        )
    return both.reset_index(drop=True)


@d.dedent
def predicted_vs_observed(
    adata: AnnData,
    predicted: AnnData,
    perturbations: str | Iterable[str] | None = None,
    *,
    genes: str | Iterable[str] | None = None,
    n_genes: int = 6,
    layer: str | None = None,
    key: str = Key.DEFAULT,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Any:
    """Predicted against measured mean shifts of all genes, and distributions of some.

    Both sides are log1p of size-normalised counts, standardised on the measured control cells. On the left, a point is one
    gene in one context (a perturbation at a dose): the shift of the mean from control, and Pearson's r over all points.
    Of more than seven perturbations, the seven of largest measured shift have colours. On the right, the distributions
    of single genes in the context of largest measured shift; fewer than 20 cells are drawn as points. Shifts are compared
    and not means, because means of genes agree well even for a prediction of no effect. In an `ax` too narrow for both,
    only the shifts are drawn.

    Parameters
    ----------
    %(adata)s It must still hold the measured cells, controls among them.
    predicted
        Cells that :meth:`scgim.model.GIM.predict` has returned. Only contexts that `adata` has too are shown. Cells predicted for one
        value of a covariate, such as one cell line, are compared with measured ones of that value.
    %(perturbations)s
    genes
        Genes whose distributions are shown. By default the `n_genes` that are most shifted.
    n_genes
        Number of genes to choose when `genes` is not given.
    %(layer)s
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
        If `adata` has no cells, controls or counts any more, if no gene varies among controls, or if no context or gene is
        on both sides.

    Examples
    --------
    >>> predicted = model.predict(drug_features, dosage=1.0)
    >>> scgim.pl.predicted_vs_observed(adata, predicted, "Trametinib")
    """
    if n_genes < 1:
        raise ValueError(f"Expected `n_genes` to be at least 1, found {n_genes}.")
    params = stored_params(adata, key)
    shared = [gene for gene in predicted.var_names if gene in adata.var_names]
    if not shared:
        raise ValueError(
            f"`predicted` and `adata` share no gene; they begin with {[*predicted.var_names[:3]]} and {[*adata.var_names[:3]]}."
        )
    alike = of_covariates(of_level(adata, params), predicted, params["perturbation_key"])
    observed_cells = _observed_cells(alike, params, layer)
    predicted_cells = _predicted_cells(predicted, params, observed_cells.typical)
    measured = observed_cells.contexts["perturbation"]
    wanted = None if perturbations is None else pick(perturbations, measured.unique(), "perturbation")
    pairs = _match(observed_cells, predicted_cells, params["control"], wanted)

    control = observed_cells.values(np.flatnonzero(measured == params["control"]), shared)
    scale = ControlScale(control.mean(axis=0), control.std(axis=0))
    shifts = [
        np.stack([scale(cells.values(rows, shared)).mean(axis=0) for rows in pairs[side]])
        for side, cells in (("observed", observed_cells), ("predicted", predicted_cells))
    ]  # contexts x genes each
    if not np.isfinite(shifts[0]).any():
        raise ValueError("No gene varies among the control cells of `adata`, so shifts have no scale.")
    strongest = int(np.nanargmax(np.nansum(shifts[0] ** 2, axis=1)))
    order = np.argsort(-np.abs(np.nan_to_num(shifts[0][strongest])), kind="stable")[:n_genes]
    shown = [shared[i] for i in order] if genes is None else pick(genes, shared, "gene")

    colored = _colored(pairs, shifts[0])
    n_others = pairs["perturbation"].nunique() - len(colored) if colored else 0
    names = shorten(colored, LONGEST_LABEL) + ([f"{n_others} other{'s' * (n_others > 1)}"] if n_others else [])
    width = 3.6 + 0.62 * len(shown) + 0.8
    size = (width, 3.4 + (legend_height(width, names) if names else 0))
    ratios = (3.2, max(0.62 * len(shown) + 0.8, 1.6))
    area = None if ax is None else Area(ax)
    n_panels = 2 if area is None or area.holds(2, LEAST_WIDTH) else 1
    panels, given = new_panels(
        ax, figsize or size, (1, n_panels), n_panels, width_ratios=ratios[:n_panels], title=title
    )
    _draw_means(panels[0], shifts[0], shifts[1], pairs, colored)
    if n_panels == 2:
        columns = [shared.index(gene) for gene in shown]
        sides = [
            scale(cells.values(pairs.at[strongest, side], shared))[:, columns]
            for side, cells in (("observed", observed_cells), ("predicted", predicted_cells))
        ]
        _draw_distributions(panels[1], sides[0], sides[1], shown)
        panels[1].set_title(_context_name(pairs.loc[strongest], dosage_unit(adata)), fontsize="small", pad=18)
    if names:
        colors = [*palette(panels[0])[: len(colored)], tones(panels[0]).grey][: len(names)]
        handles = [Line2D([], [], ls="", marker="o", ms=5, alpha=0.6, color=color) for color in colors]
        if n_panels == 1:  # a square in axes that are wider than high
            panels[0].set_anchor("W")
            beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "handletextpad": 0.2}
            panels[0].legend(handles, names, frameon=False, fontsize="x-small", **beside)
        else:
            legend_below(ax or panels[0], handles, names, given=given, below=panels[-1])
    if area is not None:
        area.keep_within()
    if len(pairs) == 1:
        _label_points(panels[0], shifts[0][0], shifts[1][0], shared)
    return finish(panels, given=given, show=show, return_fig=return_fig)


def _context_name(context: pd.Series, unit: str | None) -> str:
    name = shorten([context["perturbation"]], 26)[0]
    return name if context["dosage"] == NO_DOSE else f"{name} at {dose_text(context['dosage'], unit)}"


def _colored(pairs: pd.DataFrame, observed: np.ndarray) -> list[str]:
    """Perturbations that have a colour of their own: several, of too many those of largest `observed` shift."""
    names = pairs["perturbation"].unique()
    if len(names) < 2:
        return []
    size = pd.Series(np.nansum(observed**2, axis=1)).groupby(pairs["perturbation"].to_numpy()).max()
    chosen = set(size.nlargest(len(OKABE_ITO)).index)
    return [name for name in names if name in chosen]


def _draw_means(ax: Axes, observed: np.ndarray, predicted: np.ndarray, pairs: pd.DataFrame, colored: list[str]) -> None:
    usable = np.isfinite(observed) & np.isfinite(predicted)
    x, y = observed[usable], predicted[usable]
    size = float(np.clip(4000 / max(x.size, 1), 5, 22))
    tone = tones(ax)
    drug = pairs["perturbation"]
    style = {"s": size, "alpha": 0.6, "lw": 0, "rasterized": x.size > MANY_POINTS}
    others = usable & ~drug.isin(colored).to_numpy()[:, None]
    if others.any():
        color = tone.grey if colored else palette(ax)[0]
        ax.scatter(observed[others], predicted[others], color=color, zorder=2, **style)
    if colored:  # in any order: points of the last drug would hide those of the others
        shown = np.argwhere(usable & ~others)
        shown = shown[np.random.default_rng(0).permutation(len(shown))]
        of_drug = dict(zip(colored, palette(ax), strict=False))
        colors = [of_drug[name] for name in drug.iloc[shown[:, 0]]]
        ax.scatter(observed[tuple(shown.T)], predicted[tuple(shown.T)], color=colors, zorder=3, **style)
    low, high = min(x.min(), y.min(), 0.0), max(x.max(), y.max(), 0.0)
    pad = 0.07 * (high - low) or 1.0
    limits = (low - pad, high + pad)
    ax.plot(limits, limits, color=tone.grey, lw=0.8, ls=(0, (4, 2)), zorder=1)
    for line in (ax.axhline, ax.axvline):
        line(0, color=tone.pale, lw=0.8, zorder=0)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.set_xlabel("Measured shift (control s.d.)", fontsize="small")
    ax.set_ylabel("Predicted shift (control s.d.)", fontsize="small")
    ax.tick_params(labelsize="small")
    varies = x.size > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    ax.set_title(f"Pearson r = {pearsonr(x, y).statistic:.2f}" if varies else "Pearson r not defined", fontsize="small")
    despine(ax)


def _label_points(ax: Axes, observed: np.ndarray, predicted: np.ndarray, genes: list[str]) -> None:
    """Names of the most shifted genes of one context."""
    points = np.column_stack([observed, predicted])
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    order = np.argsort(-np.abs(points[known]).max(axis=1), kind="stable")
    chosen = known[order[:MAX_LABELS]]
    labels = dict(zip(chosen, shorten([genes[i] for i in chosen], 14), strict=True))
    place_labels(ax, points[known], [labels.get(i, "") for i in known], order=order, fontsize=7, radius=2)


def _draw_distributions(ax: Axes, observed: np.ndarray, predicted: np.ndarray, genes: list[str]) -> None:
    """Half a violin for either side (cells x genes), or points of few cells, back to back, with the median."""
    tone = tones(ax)
    ax.axhspan(-1, 1, color=tone.pale, alpha=0.5, lw=0, zorder=0, label="control, mean and s.d.")
    ax.axhline(0, color=tone.grey, lw=0.8, zorder=0)
    for values, color, side, label in ((observed, OBSERVED, -1, "measured"), (predicted, PREDICTED, 1, "predicted")):
        for i in range(len(genes)):
            own = values[np.isfinite(values[:, i]), i]
            if not own.size:
                continue
            if len(own) < FEWEST_CELLS:
                x = i + side * np.linspace(0.08, 0.38, len(own)) if len(own) > 1 else [i + side * 0.15]
                ax.scatter(x, own, s=9, color=color, alpha=0.8, lw=0, zorder=2)
            else:
                heights, widths = _density(own)
                ax.fill_betweenx(heights, i, i + side * 0.42 * widths, color=color, alpha=0.65, lw=0, zorder=2)
            ax.hlines(np.median(own), *sorted((i, i + side * 0.3)), color=tone.ink, lw=1.4, zorder=3)
        ax.fill_between([], [], color=color, alpha=0.65, lw=0, label=label)
    ax.set_xticks(range(len(genes)), shorten(genes, 14), rotation=90, fontsize=8)
    ax.set_xlim(-0.6, len(genes) - 0.4)
    ax.set_ylabel("Expression (control s.d.)", fontsize="small")
    ax.tick_params(axis="y", labelsize="small")
    style = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.0, "handlelength": 1.2}
    ax.legend(frameon=False, fontsize=7, ncols=3, columnspacing=1.0, **style)
    despine(ax)


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights and the density there, relative to its maximum; a thin bar where all values are the same."""
    if np.ptp(values) < 1e-9:
        return values[0] + np.array([-0.02, 0.02]), np.ones(2)
    # thinned evenly: a density needs no more
    kde = gaussian_kde(np.sort(values)[:: -(-len(values) // MAX_CELLS)])
    heights = np.linspace(values.min(), values.max(), 120)
    density = kde(heights)
    return heights, density / density.max()
