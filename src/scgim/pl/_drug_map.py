"""Perturbations placed by the likeness of their effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.decomposition import PCA

from scgim._constants import Key
from scgim._docs import d
from scgim.pl._area import Area
from scgim.pl._labels import place_labels
from scgim.pl._tones import OKABE_ITO, palette, tones
from scgim.pl._utils import LEAST_EFFECT, despine, finish, new_axes, pick, shorten, stored, stored_entry, without_noise

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes

MARKERS = "osD^v<>"  # of one size to the eye, also where they are small
MISSING = "not known"
GAP = 2.0  # points that labels leave to each other and to the points of other perturbations


def embed(values: np.ndarray, basis: str, seed: int) -> tuple[np.ndarray, list[str]]:
    """Two coordinates of each row of `values` (rows x columns), and the names of the axes."""
    if basis == "umap":
        wrapped = AnnData(values.astype(np.float32))
        sc.pp.neighbors(wrapped, n_neighbors=min(15, len(values) - 1), use_rep="X", random_state=seed)
        sc.tl.umap(wrapped, random_state=seed, init_pos="spectral" if len(values) > 10 else "random")
        return wrapped.obsm["X_umap"], ["UMAP1", "UMAP2"]
    with np.errstate(invalid="ignore"):
        pca = PCA(n_components=2, svd_solver="full").fit(values) if min(values.shape) > 1 else None
    if pca is None:  # one gene: its effect is all there is
        return np.column_stack([values[:, 0], np.zeros(len(values))]), ["Effect", ""]
    shares = 100 * np.nan_to_num(pca.explained_variance_ratio_)  # not defined where nothing differs
    return pca.transform(values), [
        f"PC{i + 1} ({share:.0f}\N{PERCENT SIGN} of variance)" for i, share in enumerate(shares)
    ]


def _color_values(
    adata: AnnData, color: str | pd.Series, annotation: pd.DataFrame | None, drugs: list[str], key: str
) -> pd.Series:
    """The annotation of each drug that is to be coloured."""
    if isinstance(color, pd.Series):
        return _aligned(color, drugs)
    table = stored_entry(adata, key, Key.uns.PERTURBATIONS)
    for frame in (annotation, table):
        if frame is not None and color in frame.columns:
            return _aligned(frame[color], drugs)
    perturbation_key = stored_entry(adata, key, Key.uns.PARAMS)["perturbation_key"]
    if color in adata.obs and perturbation_key in adata.obs:
        cells = pd.DataFrame({"drug": adata.obs[perturbation_key].astype(str), color: adata.obs[color]})
        cells = cells[cells["drug"].isin(drugs)].dropna().drop_duplicates()
        if cells["drug"].is_unique:
            return _aligned(cells.set_index("drug")[color], drugs)
        raise ValueError(f"`adata.obs[{color!r}]` differs between cells of one perturbation, so it cannot colour them.")
    found = [*([] if annotation is None else annotation.columns), *table.columns]
    raise KeyError(
        f"No column {color!r} among {found} or in `adata.obs`. Pass a table as `annotation` or a Series as `color`."
    )


def _aligned(values: pd.Series, drugs: list[str]) -> pd.Series:
    values = values.set_axis(values.index.astype(str))
    if not values.index.is_unique:
        raise ValueError("The index of the annotation holds a perturbation more than once.")
    if not values.index.isin(drugs).any():
        raise ValueError(
            f"The index of the annotation names no perturbation that is shown. Expected names such as {drugs[:3]}."
        )
    return values.reindex(drugs)


def _palette(ax: Axes, adata: AnnData, name: Any, categories: list[str]) -> list[str]:
    """A colour for each category: those of scanpy in `adata.uns` where there are any."""
    known = adata.uns.get(f"{name}_colors")
    if known is not None and len(known) >= len(categories):
        return [str(color) for color in known[: len(categories)]]
    if len(categories) <= len(OKABE_ITO):
        return list(palette(ax)[: len(categories)])
    longer = (sc.pl.palettes.default_20, sc.pl.palettes.default_28, sc.pl.palettes.default_102)
    return next(
        (list(p[: len(categories)]) for p in longer if len(p) >= len(categories)), [tones(ax).grey] * len(categories)
    )


@d.dedent
def drug_map(
    adata: AnnData,
    color: str | pd.Series | None = None,
    *,
    annotation: pd.DataFrame | None = None,
    perturbations: str | Iterable[str] | None = None,
    basis: Literal["pca", "umap"] = "pca",
    effect: Literal["total", "direct"] = "total",
    n_labels: int = 30,
    seed: int = 0,
    key: str = Key.DEFAULT,
    cmap: Any = "viridis",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Any:
    """A map of the perturbations: near one another where their effects on all genes are alike.

    Parameters
    ----------
    %(adata)s
    color
        What the colour shows: a column of `annotation`, of the stored table of perturbations (`"n_cells"`, `"n_doses"`,
        `"max_dosage"`) or of `adata.obs` (where it is the same for all cells of a perturbation); or a Series indexed by
        perturbation. Text or categories get a legend, with a shape of their own too; numbers get a colour bar. Colours of
        categories are taken from `adata.uns[f"{color}_colors"]` when they are there.
    annotation
        Table of perturbations (index) and what is known of them, such as their pathway.
    %(perturbations)s
    basis
        `"pca"`: the two directions of largest variance, where distances can be read. `"umap"`: neighbourhoods only.
    effect
        Effects at the largest measured dose of each perturbation: `"total"`, direct and propagated, or `"direct"`. Total
        effects within the error of their simulation count as 0, and axes are not narrower than half a log fold change:
        perturbations without an effect lie on one another.
    n_labels
        Label at most so many perturbations, those of largest effect. Labels without room are left out.
    seed
        Seed of the UMAP.
    %(key)s
    cmap
        Colour map of numbers, by name or as an object.
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
    %(raises_missing)s
    ValueError
        If there are fewer than three perturbations, or the annotation does not fit them.

    Examples
    --------
    >>> scgim.pl.drug_map(adata, "pathway", annotation=drugs)
    """
    for name, value, choices in (("basis", basis, ("pca", "umap")), ("effect", effect, ("total", "direct"))):
        if value not in choices:
            raise ValueError(f"Expected `{name}` to be one of {choices}, found {value!r}.")
    frame = without_noise(adata, key) if effect == "total" else stored(adata, "varm", Key.varm.shifts(key))
    drugs = pick(perturbations, frame.columns, "perturbation")
    if len(drugs) < 3:
        raise ValueError(f"A map needs at least three perturbations, found {len(drugs)}: {drugs}.")
    values = frame[drugs].T.to_numpy(dtype=float)
    xy, names = embed(values, basis, seed)

    area = None if ax is None else Area(ax)
    ax, given = new_axes(ax, figsize or ((4.2, 3.4) if color is None else (5.6, 3.6)))
    _draw_points(ax, xy, adata, None if color is None else _color_values(adata, color, annotation, drugs, key), cmap)
    ax.set(xlabel=names[0], ylabel=names[1], title=title, xticks=[], yticks=[])
    ax.margins(0.12)
    _widen(ax)
    despine(ax)
    size = 7.5 if len(drugs) <= 60 and area is None else 6.0
    if area is not None:
        area.keep_within()
    strength = np.abs(values).sum(axis=1)
    order = np.argsort(-strength, kind="stable")[: min(n_labels, int((strength > 0).sum()))]
    place_labels(ax, xy, shorten(drugs, 18), order=order, offset=4, fontsize=size, radius=3, gap=GAP)
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _widen(ax: Axes) -> None:
    """Limits not so narrow that next to nothing would fill the map."""
    for limits, widen in ((ax.get_xlim(), ax.set_xlim), (ax.get_ylim(), ax.set_ylim)):
        centre, half = np.mean(limits), max(np.ptp(limits) / 2, LEAST_EFFECT)
        widen(centre - half, centre + half)


def _draw_points(ax: Axes, xy: np.ndarray, adata: AnnData, values: pd.Series | None, cmap: Any) -> None:
    size = float(np.clip(1800 / len(xy), 14, 42))
    tone = tones(ax)
    style = {"s": size, "linewidths": 0.5, "edgecolors": tone.paper, "zorder": 3}
    if values is None:
        ax.scatter(*xy.T, color=OKABE_ITO[0], **style)
        return
    missing = values.isna().to_numpy()
    if missing.any():
        ax.scatter(*xy[missing].T, color=tone.pale, label=MISSING, **{**style, "edgecolors": tone.grey})
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        points = ax.scatter(*xy[~missing].T, c=values[~missing].astype(float), cmap=cmap, **style)
        bar = ax.figure.colorbar(points, ax=ax, shrink=0.7, aspect=18)
        bar.set_label(str(values.name or ""), fontsize="small")
        bar.ax.tick_params(labelsize="small")
        return
    groups = values.astype("category").cat.remove_unused_categories()
    categories = [str(category) for category in groups.cat.categories]
    codes = groups.cat.codes.to_numpy()
    for code, (label, color) in enumerate(
        zip(shorten(categories, 30), _palette(ax, adata, values.name, categories), strict=True)
    ):
        ax.scatter(*xy[codes == code].T, color=color, marker=MARKERS[code % len(MARKERS)], label=label, **style)
    ax.legend(
        title=None if values.name is None else str(values.name),
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize="small" if len(categories) <= 14 else 6,
        title_fontsize="small",
        ncols=1 if len(categories) <= 24 else 2,
        labelcolor=tone.ink,
    )
