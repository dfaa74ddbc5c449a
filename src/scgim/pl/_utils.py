"""What all plots share: reading stored results, figures and axes, and text that stays readable."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from scgim._constants import Key, read_name
from scgim._report import number
from scgim._validation import close_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes

LEAST_EFFECT = (
    0.25  # log fold change; a scale never ends below it, so that next to nothing does not look like an effect
)

LONGEST_LABEL = 24  # characters, in legends
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


class EditableFigure(Figure):
    """A figure whose text stays text in PDF and PostScript files, to be edited in a drawing programme."""

    def savefig(self, fname: Any, *, transparent: bool | None = None, **kwargs: Any) -> None:
        with mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
            super().savefig(fname, transparent=transparent, **kwargs)


def dosage_unit(adata: AnnData) -> str | None:
    """The unit of dosages, where `adata.uns` says it."""
    unit = adata.uns.get(Key.DOSAGE_UNIT)
    return None if unit is None else str(unit)


def dose_text(dose: float, unit: str | None, digits: int = 4) -> str:
    """A dose with its unit."""
    return f"{number(dose, digits)}{f' {unit}' if unit else ''}"


def stored(adata: AnnData, slot: Literal["varm", "varp", "uns"], name: str) -> Any:
    """The result stored as `name` in a slot of `adata`."""
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"Expected annotated data, found {type(adata).__name__}. Results are drawn from where `model.annotate(adata)` "
            "stores them: pass `adata`."
        )
    if name not in getattr(adata, slot):
        raise KeyError(f"No `{name}` in `adata.{slot}`. Run `model.annotate(adata)` first.")
    found = getattr(adata, slot)[name]
    return found.rename(columns=read_name) if isinstance(found, pd.DataFrame) else found


def stored_entry(adata: AnnData, key: str, entry: str) -> Any:
    """An entry of the dictionary `adata.uns[key]`."""
    entries = stored(adata, "uns", key)
    if entry not in entries:
        raise KeyError(f"No `{entry}` in `adata.uns[{key!r}]`. Run `model.annotate(adata)` first.")
    found = entries[entry]
    return found.rename(columns=read_name) if isinstance(found, pd.DataFrame) else found


def stored_params(adata: AnnData, key: str) -> dict[str, Any]:
    """Settings of the fitted model."""
    return dict(stored_entry(adata, key, Key.uns.PARAMS))


def effect_unit(adata: AnnData, key: str) -> str:
    """The unit of effects: that of counts, or of continuous values."""
    return "s.d." if stored_params(adata, key).get("likelihood") == "normal" else "log fold change"


def pick(names: str | Iterable[str] | None, available: Iterable[str], what: str) -> list[str]:
    """`names` (one, several, or `None` for all) as a list without repeats, each checked to be among `available`."""
    known = [str(name) for name in available]
    if names is None:
        return known
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(str(name) for name in names))
    if not wanted:
        raise ValueError(f"Expected at least one {what}, found none.")
    missing = [name for name in wanted if name not in set(known)]
    if missing:
        close = close_names(missing[0], known, 3)
        hint = f"Did you mean {close}?" if close else f"The first known ones are {known[:5]}."
        raise KeyError(f"Unknown {what}: {missing[:5]}. {hint}")
    return wanted


def pick_one(perturbation: str | None, available: Sequence[str], argument: str = "perturbation") -> str:
    """One perturbation; it may be left out when there is only one. `argument` is what it is called where it was asked for."""
    if perturbation is None:
        if len(available) != 1:
            found = [str(name) for name in available[:5]]
            raise ValueError(f"`{argument}` is needed: {len(available)} are stored, among them {found}.")
        return str(available[0])
    return pick(perturbation, available, "perturbation")[0]


def new_axes(ax: Axes | None, figsize: tuple[float, float]) -> tuple[Axes, bool]:
    """`ax`, or the axes of a new figure; and whether `ax` was given."""
    if ax is not None:
        return ax, True
    return plt.subplots(figsize=figsize, layout="constrained", FigureClass=EditableFigure)[1], False


def new_panels(
    ax: Axes | None,
    figsize: tuple[float, float],
    shape: tuple[int, int],
    n_panels: int,
    *,
    title: str | None = None,
    width_ratios: Sequence[float] | None = None,
) -> tuple[list[Axes], bool]:
    """Axes of a grid of panels, in a new figure or within the area of `ax`; and whether `ax` was given.

    `shape` counts rows and columns; the first `n_panels` cells are used, by rows.
    """
    n_rows, n_cols = shape
    if ax is None:
        figure, grid = plt.subplots(
            n_rows,
            n_cols,
            figsize=figsize,
            layout="constrained",
            squeeze=False,
            width_ratios=width_ratios,
            FigureClass=EditableFigure,
        )
        for unused in grid.ravel()[n_panels:]:
            figure.delaxes(unused)
        if title is not None:
            figure.suptitle(title, fontsize="medium")
        return list(grid.ravel()[:n_panels]), False

    ax.axis("off")
    if title is not None:
        ax.set_title(title, pad=20, fontsize="medium")
    # no layout engine sees to the labels of panels within axes: each takes a part of its cell
    widths = np.asarray([1.0] * n_cols if width_ratios is None else width_ratios, dtype=float)
    widths /= widths.sum()
    used = (1.0 if n_cols == 1 else 0.66, 1.0 if n_rows == 1 else 0.62)
    panels = []
    for row, col in list(np.ndindex(n_rows, n_cols))[:n_panels]:
        # outermost panels lie at the edges of `ax`
        x = widths[:col].sum() + widths[col] * (1 - used[0]) * col / max(n_cols - 1, 1)
        y = (n_rows - 1 - row + (1 - used[1]) * (1 - row / max(n_rows - 1, 1))) / n_rows
        panels.append(ax.inset_axes((x, y, widths[col] * used[0], used[1] / n_rows)))
    return panels, True


def finish(axes: Any, *, given: bool, show: bool | None, return_fig: bool = False) -> Any:
    """What a plotting function returns, after showing the figure if that is wanted.

    `axes` are one, or a list or dictionary of several; `given` tells that they lie in axes of the user's.
    """
    if return_fig:
        return (axes[0] if isinstance(axes, list) else axes).figure.figure
    if given:
        return axes
    if show if show is not None else sc.settings.autoshow:
        plt.show()
        return None
    return axes


def legend_columns(width: float, labels: Sequence[str]) -> int:
    """Number of columns of a legend of `labels` under a figure `width` inches wide."""
    return int(np.clip(width / (0.07 * max(map(len, labels)) + 0.5), 1, len(labels)))


def legend_height(width: float, labels: Sequence[str]) -> float:
    """Inches that a legend of `labels` takes under a figure `width` inches wide."""
    return 0.2 + 0.2 * -(-len(labels) // legend_columns(width, labels))


def legend_below(
    ax: Axes, handles: Sequence[Any], labels: Sequence[str], *, given: bool, below: Axes | None = None
) -> None:
    """A legend under all panels of a figure of ours; under the labels of `ax` where the figure is the user's.

    There, `below` is a panel whose names of groups may be longer than a number and the name of an axis.
    """
    style: dict[str, Any] = {"frameon": False, "fontsize": "small", "handlelength": 1.6, "columnspacing": 1.2}
    figure = ax.figure.figure
    if given:
        width = axes_inches(ax)[0]
        size = min(8.3, text_size(width))
        style |= {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 0.0, "fontsize": size}
        # under tick labels and the name of the axis
        depth = max(3.6 * size + 2, 0.0 if below is None else _depth(below) + 0.5 * size)
        under = ScaledTranslation(0, -depth / 72, figure.dpi_scale_trans)  # type: ignore[union-attr]
        ncols = legend_columns(1.2 * width * 8.3 / size, labels)
        ax.legend(handles, labels, ncols=ncols, bbox_transform=ax.transAxes + under, **style)
        return
    ncols = legend_columns(figure.get_figwidth(), labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, **style)


def _depth(ax: Axes) -> float:
    """Points from the lower edge of axes to the end of what is written under them."""
    axes_inches(ax)
    box = ax.xaxis.get_tightbbox()
    return 0.0 if box is None else float(ax.get_window_extent().y0 - box.y0) * 72 / ax.figure.figure.dpi


def despine(ax: Axes) -> None:
    """Leave only the left and the lower frame line."""
    ax.spines[["top", "right"]].set_visible(False)


def shorten(names: Iterable[str], longest: int) -> list[str]:
    """Names of at most `longest` characters, cut in the middle by an ellipsis and still distinct.

    Names that would look the same once cut lose what they have in common at the start instead.
    """
    names = [str(name) for name in names]
    short = pd.Series([cut(name, longest, tail=(longest - 1) // 3) for name in names])
    for _, alike in short[short.duplicated(keep=False)].groupby(short):
        common = len(os.path.commonprefix([names[i] for i in alike.index]))
        for i in alike.index:
            short[i] = cut(names[i][:3] + ELLIPSIS + names[i][common:], longest)
    for _, alike in short[short.duplicated(keep=False)].groupby(short):
        for n, i in enumerate(alike.index, start=1):
            mark = f"~{n}"
            short[i] = cut(names[i], longest - len(mark)) + mark
    return short.tolist()


def cut(name: str, longest: int, *, tail: int = 0) -> str:
    """`name` with an ellipsis before its last `tail` characters in place of what is too long."""
    if len(name) <= longest:
        return name
    return name[: longest - 1 - tail].rstrip() + ELLIPSIS + name[len(name) - tail :].lstrip()


def text_size(width: float) -> float:
    """Largest font size in points for axes so many inches wide."""
    return float(np.clip(2.9 * width, 5.5, 12.0))


def font_size(spacing: float, *, largest: float = 9.0, smallest: float = 4.0) -> float:
    """Font size in points for lines of text that lie `spacing` inches apart."""
    return float(np.clip(0.8 * 72 * spacing, smallest, largest))


def axes_inches(ax: Axes) -> tuple[float, float]:
    """Width and height of `ax` in inches, after the figure's layout has been worked out."""
    figure = ax.figure.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    box = ax.get_window_extent().transformed(figure.dpi_scale_trans.inverted())  # type: ignore[union-attr]
    return box.width, box.height


def symmetric_limit(values: Any, least: float = 0.0) -> float:
    """Largest finite absolute value, at least `least`, or 1 where there is none, for a colour scale centred on 0."""
    magnitudes = np.abs(np.asarray(values, dtype=float))
    magnitudes = magnitudes[np.isfinite(magnitudes)]
    return max(float(magnitudes.max()), least) if magnitudes.size and magnitudes.max() > 0 else least or 1.0


def without_noise(adata: AnnData, key: str) -> pd.DataFrame:
    """Total effects, genes x perturbations; 0 where they are within two standard errors of their simulation.

    Data annotated by earlier versions hold no such errors: their effects are taken as they are.
    """
    total = stored(adata, "varm", Key.varm.total_effects(key))
    name = Key.varm.total_effect_errors(key)
    if name not in adata.varm:
        return total
    errors = stored(adata, "varm", name)
    return total.where(total.abs() > 2 * errors, 0.0)
