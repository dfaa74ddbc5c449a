"""A data frame drawn by scanpy's matrix plots, at a size at which its labels can be read."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage

from scgim.pl._area import Area
from scgim.pl._structures import ROW, place_beside
from scgim.pl._tones import tones
from scgim.pl._utils import EditableFigure, axes_inches, finish, font_size, shorten, text_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_ROW, LONGEST_COLUMN = 28, 18
SMALLEST_CELL, LARGEST_CELL = 0.11, 0.26  # inches
LONGEST_SIDE = 24.0  # inches; more rows or columns than fit lose some of their labels
LEGEND_WIDTH = 1.3  # inches
LEAST_WIDTH, LEGEND_SHARE = 6.0, 0.32  # of narrower axes of the user's, legends take this share
LEGEND_GAP = 0.15  # inches between a matrix and its legends in such axes
EDGE, DOT_EDGE = "#D9D9D9", "#8C8C8C"


def similarity_order(values: np.ndarray) -> list[int]:
    """Order of the rows of `values` (rows x columns) in which similar rows are neighbours."""
    if len(values) < 3:
        return list(range(len(values)))
    return [int(i) for i in leaves_list(linkage(np.nan_to_num(values), method="average", optimal_ordering=True))]


def diagonal_order(values: np.ndarray) -> list[int]:
    """Order of the columns of `values` (rows x columns) by the row in which each is largest in absolute value."""
    magnitudes = np.abs(np.nan_to_num(values))
    return [int(i) for i in np.lexsort((-magnitudes.max(axis=0), magnitudes.argmax(axis=0)))]


def _cell(n: int) -> float:
    """Size in inches of each of `n` cells in a row."""
    return float(min(np.clip(9.0 / n, SMALLEST_CELL, LARGEST_CELL), LONGEST_SIDE / n))


def _figure_size(rows: list[str], columns: list[str], *, lowest: float) -> tuple[float, float]:
    """Inches that give every row and column room for its label, and the labels and legends room beside them."""
    width, height = (_cell(len(names)) * len(names) for names in (columns, rows))
    left, bottom = (0.075 * max(len(name) for name in names) + 0.45 for names in (rows, columns))
    return width + left + LEGEND_WIDTH + 0.6, max(height, lowest) + bottom


def _fit_labels(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Tick labels as large as the cells allow; where even small ones would touch, only every so many are kept."""
    width, height = axes_inches(ax)
    for axis, length in ((ax.xaxis, width), (ax.yaxis, height)):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        spacing = length / max(len(labels), 1)
        size = font_size(spacing, largest=8.5, smallest=4.5)
        step = max(1, int(np.ceil(size / (72 * spacing))))
        axis.set_ticks(axis.get_ticklocs()[::step], labels[::step], fontsize=size)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[:].set_linewidth(0.8)


def _fit_grids(axes: dict[str, Axes]) -> None:
    """Grids that the constrained layout accepts, and legends of a fixed size, where scanpy's grow with the figure."""
    for grid in {panel.get_gridspec() for panel in axes.values()}:
        # rows and columns of no size at all would make the constrained layout divide by zero
        grid.set_height_ratios(np.maximum(grid.get_height_ratios(), 1e-3))
        grid.set_width_ratios(np.maximum(grid.get_width_ratios(), 1e-3))
    height = axes_inches(axes["mainplot_ax"])[1]
    grid = axes["color_legend_ax"].get_gridspec()
    if "size_legend_ax" in axes and grid.nrows == 4:
        base = min(height, 2.2)
        grid.set_height_ratios([max(height - 0.73 * base, 1e-3), 0.25 * base, 0.4 * base, 0.08 * base])
        ticks = axes["size_legend_ax"].xaxis
        labels = [label.get_text() for label in ticks.get_ticklabels()]
        ticks.set_ticks(ticks.get_ticklocs()[::2], labels[::2], fontsize="small")
    elif grid.nrows == 2:
        bar = min(0.16, 0.5 * height)
        grid.set_height_ratios([height - bar, bar])


def _write_into(ax: Axes, note: str) -> None:
    """A note in the middle of a matrix, in lines that it has room for."""
    width, _ = axes_inches(ax)
    size = min(10.0, text_size(width))
    lines = textwrap.wrap(note, max(12, int(72 * width / (0.6 * size))))
    tone = tones(ax)
    box = {"boxstyle": "round,pad=0.5", "facecolor": tone.paper, "edgecolor": tone.grey}
    style = {"ha": "center", "va": "center", "fontsize": size, "color": tone.ink, "bbox": box, "zorder": 6}
    ax.text(0.5, 0.5, "\n".join(lines), transform=ax.transAxes, **style)


def _place_in(axes: dict[str, Axes], area: Area) -> None:
    """Matrix and legends in axes of the user's that are too narrow for the shares which scanpy gives to them."""
    figure = axes["mainplot_ax"].figure.figure
    x0, y0, width, height = area.place.bounds
    inch_x, inch_y = width / area.width, height / area.height  # in shares of the figure
    legend = LEGEND_SHARE * width
    right = x0 + width - legend
    axes["mainplot_ax"].set_position((x0, y0, width - legend - LEGEND_GAP * inch_x, height))
    axes["color_legend_ax"].set_position((right, y0, legend, 0.07 * inch_y))
    axes["color_legend_ax"].xaxis.set_major_locator(MaxNLocator(2))
    if "size_legend_ax" in axes:
        axes["size_legend_ax"].set_position((right, y0 + 0.9 * inch_y, legend, 0.2 * inch_y))
    for name in {"color_legend_ax", "size_legend_ax"} & set(axes):  # titles are wider than legends, and begin with them
        text = axes[name].title
        axes[name].set_title(text.get_text(), loc="left", fontsize=text.get_fontsize())
        text.set_text("")
    figure.draw_without_rendering()  # type: ignore[union-attr]


def _plot_object(
    colors: pd.DataFrame,
    sizes: pd.DataFrame | None,
    group: str,
    titles: tuple[str, str | None],
    cell: float,
    cmap: Any,
    **kwargs: Any,
) -> sc.pl.MatrixPlot | sc.pl.DotPlot:
    """The scanpy object for frames whose labels are already short; `cell` is the room for a dot in inches."""
    rows, columns = list(colors.index), list(colors.columns)
    wrapped = AnnData(
        colors.to_numpy(),
        obs=pd.DataFrame({group: pd.Categorical(rows, categories=rows, ordered=True)}, index=rows),
        var=pd.DataFrame(index=columns),
    )
    if sizes is None:
        plot = sc.pl.MatrixPlot(wrapped, columns, group, values_df=colors, **kwargs)
        return plot.style(cmap=cmap, edge_color=EDGE, edge_lw=0.4).legend(title=titles[0], width=LEGEND_WIDTH)
    plot = sc.pl.DotPlot(wrapped, columns, group, dot_color_df=colors, dot_size_df=sizes, **kwargs)
    plot = plot.legend(colorbar_title=titles[0], size_title=titles[1], width=LEGEND_WIDTH)
    return plot.style(
        cmap=cmap,
        dot_min=0,
        dot_max=1,
        largest_dot=(0.85 * 72 * cell) ** 2,
        dot_edge_color=DOT_EDGE,
        dot_edge_lw=0.3,
        grid=True,
    )


def matrix_plot(
    colors: pd.DataFrame,
    *,
    group: str,
    sizes: pd.DataFrame | None = None,
    pictures: list[np.ndarray | None] | None = None,
    color_title: str,
    size_title: str | None = None,
    cmap: Any,
    limits: tuple[float, float],
    vcenter: float | None = None,
    swap_axes: bool = False,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    note: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Any:
    """Draw `colors` (rows x columns) as a :class:`scanpy.pl.MatrixPlot`, or with `sizes` as a :class:`scanpy.pl.DotPlot`.

    `pictures` of the rows, if any, stand between their names and the matrix. `group` names what the rows are; `limits` are those of the colour scale; `note` is written into the matrix. The rest is as in the public plots.
    """
    rows, columns = shorten(colors.index, LONGEST_ROW), shorten(colors.columns, LONGEST_COLUMN)
    # scanpy refuses an index that is named like the groups, hence new frames
    colors = pd.DataFrame(colors.to_numpy(dtype=float), index=rows, columns=columns)
    if sizes is not None:
        sizes = pd.DataFrame(sizes.to_numpy(dtype=float), index=rows, columns=columns)
    vertical, horizontal = (columns, rows) if swap_axes else (rows, columns)
    area = figsize if ax is None else axes_inches(ax)
    if area is None:
        cell = min(_cell(len(vertical)), _cell(len(horizontal)))
        figsize = _figure_size(vertical, horizontal, lowest=0.9 if sizes is None else 1.9)
        if pictures is not None:
            figsize = (figsize[0] + ROW, figsize[1] + (ROW - _cell(len(vertical))) * len(vertical))
    else:
        cell = min(0.6 * area[0] / len(horizontal), 0.7 * area[1] / len(vertical), LARGEST_CELL)
    given = ax is not None
    user_area = None if ax is None else Area(ax)
    if not given and not return_fig:
        ax = plt.subplots(figsize=figsize, layout="constrained", FigureClass=EditableFigure)[1]

    settings = {"vmin": limits[0], "vmax": limits[1], "vcenter": vcenter, **kwargs}
    # scanpy writes the title above axes of no height, of which the layout knows nothing
    settings |= {"title": (title or note) if return_fig else None, "figsize": figsize, "ax": ax}
    plot = _plot_object(colors, sizes, group, (color_title, size_title), cell, cmap, **settings)
    if swap_axes:
        plot = plot.swap_axes()
    if return_fig:
        return plot
    plot.make_figure()
    axes = plot.get_axes()
    _fit_grids(axes)
    if user_area is not None and not user_area.managed and not user_area.holds(1, LEAST_WIDTH):
        _place_in(axes, user_area)
    if title is not None:
        axes["mainplot_ax"].set_title(title, fontsize="medium")
    if pictures is not None:
        main = axes["mainplot_ax"]
        place_beside(main, pictures, main.yaxis.get_ticklocs(), min(ROW, axes_inches(main)[1] / len(pictures)))
    names = (group.capitalize(), "") if swap_axes else ("", group.capitalize())
    _fit_labels(axes["mainplot_ax"], *names)
    if user_area is not None:
        user_area.keep_within()
        _fit_labels(axes["mainplot_ax"], *names)  # in a matrix that may be smaller now
    if note is not None:
        _write_into(axes["mainplot_ax"], note)
    return finish(axes, given=given, show=show)
