"""Nodes, edges, labels and legends of a layered network."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path

from scgim.pl._area import Area
from scgim.pl._labels import place_labels
from scgim.pl._layout import layered_layout
from scgim.pl._tones import NEGATIVE, POSITIVE, Tones, tones
from scgim.pl._utils import LEAST_EFFECT, axes_inches, new_axes, shorten, symmetric_limit, text_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    import networkx as nx
    import pandas as pd
    from matplotlib.axes import Axes

# the perturbation itself as a node; a tuple cannot be mistaken for a gene
DRUG = ("perturbation",)
LONGEST_DRUG = 20
NOTE_LETTERS = 14  # of a note above the network, an inch of its width
LEAST_WIDTH = 3.0  # inches of axes that have room for a whole legend
LEGEND_STYLE = {"frameon": False, "handlelength": 1.8, "columnspacing": 1.4}


@dataclass
class _Way:
    """The way of an edge through its waypoints, for a :class:`~matplotlib.patches.FancyArrowPatch`.

    It leaves and meets the nodes at the heights `ports`, in radii, so that the tips of many edges do not lie on one
    another; matplotlib calls it at each drawing, so it follows every change of the figure's size.
    """

    ax: Axes
    points: np.ndarray  # (points, 2), data units
    ports: tuple[float, float]

    def __call__(self, posA, posB, shrinkA=0.0, shrinkB=0.0, patchA=None, patchB=None) -> Path:
        points = self.ax.transData.transform(self.points)
        for end, side, radius in ((0, 1, shrinkA), (-1, -1, shrinkB)):
            port = self.ports[end]
            points[end] += radius * np.array([side * np.sqrt(1 - port**2), port])
        reach = 0.45 * np.diff(points[:, 0])[:, None] * np.array([1.0, 0.0])
        bends = np.stack([points[:-1] + reach, points[1:] - reach, points[1:]], axis=1)
        return Path(
            np.concatenate([points[:1], bends.reshape(-1, 2)]), [Path.MOVETO] + [Path.CURVE4] * 3 * (len(points) - 1)
        )


def _ports(ways: Mapping[tuple[Any, Any], np.ndarray]) -> dict[tuple[Any, Any], tuple[float, float]]:
    """Heights, in radii, at which each edge leaves its source and meets its target, in the order of arrival."""
    heights: list[dict[tuple[Any, Any], float]] = [{}, {}]
    for end, next_to_end in ((0, 1), (1, -2)):
        at_node: dict[Any, list[tuple[Any, Any]]] = {}
        for edge in ways:
            at_node.setdefault(edge[end], []).append(edge)
        for edges in at_node.values():
            edges.sort(key=lambda edge: ways[edge][next_to_end, 1])
            spread = 0.75 * min(1.0, (len(edges) - 1) / 3)
            heights[end].update(zip(edges, np.linspace(-spread, spread, len(edges)), strict=True))
    return {edge: (heights[0][edge], heights[1][edge]) for edge in ways}


def _line_width(probability: float, thickness: float = 2.2) -> float:
    return thickness * probability**2


def _draw_edges(
    ax: Axes, graph: nx.DiGraph, ways: dict[tuple[Any, Any], np.ndarray], diameter: float, thickness: float
) -> None:
    ports = _ports(ways)
    for edge, points in ways.items():
        weight, probability = graph.edges[edge]["weight"], graph.edges[edge]["probability"]
        from_drug, raises = edge[0] == DRUG, weight > 0
        ax.add_patch(
            FancyArrowPatch(
                tuple(points[0]),
                tuple(points[-1]),
                connectionstyle=_Way(ax, points, ports[edge]),
                arrowstyle="-|>,head_length=0.6,head_width=0.3" if raises else "-[,widthB=0.45,lengthB=0",
                mutation_scale=max(3.0, 0.5 * diameter),
                shrinkA=2.0 if from_drug else diameter / 2,
                shrinkB=diameter / 2 + (0.5 if raises else 0.12 * diameter),
                linewidth=_line_width(probability, thickness),
                color=POSITIVE if raises else NEGATIVE,
                alpha=0.8,
                joinstyle="miter",
                capstyle="butt",
                zorder=1,
            )
        )


def _legend_handles(thickness: float, tone: Tones, *, has_drug: bool, short: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=POSITIVE, lw=1.5, marker=">", ms=5, markevery=[1], label="raises"),
        Line2D([], [], color=NEGATIVE, lw=1.5, marker="|", ms=7, mew=1.5, label="lowers"),
    ]
    if not short:
        for p in (0.5, 1.0):
            handles.append(Line2D([], [], color=tone.grey, lw=_line_width(p, thickness), label=f"probability {p:g}"))
    if has_drug:
        square = {"marker": "s", "ms": 7, "mfc": tone.paper, "mec": tone.ink, "mew": 1.6, "ls": ""}
        handles.append(Line2D([], [], label="direct target", **square))
    return handles


def _scale(
    colors: pd.Series | None, nodes: list[str], pale: str, *, by_effect: bool, cmap: Any
) -> tuple[np.ndarray, Any]:
    """Face colours of the nodes, and what a colour bar needs (None when colours mean nothing)."""
    if colors is None:
        return np.array([pale] * len(nodes)), None
    limit = symmetric_limit(colors[nodes], LEAST_EFFECT)
    norm = TwoSlopeNorm(0.0, -limit, limit) if by_effect else Normalize(0.0, 1.0)
    mappable = ScalarMappable(norm, colormaps.get_cmap(cmap or ("RdBu_r" if by_effect else "Reds")))
    return mappable.to_rgba(colors[nodes].to_numpy(dtype=float)), mappable


def _draw_nodes(
    ax: Axes, xy: np.ndarray, face: np.ndarray, is_target: np.ndarray, is_centre: np.ndarray, diameter: float
) -> None:
    tone = tones(ax)
    for marker, chosen in (("o", ~is_target), ("s", is_target)):
        size = (diameter if marker == "o" else 0.95 * diameter) ** 2
        strong = (is_target | is_centre)[chosen]
        edges, widths = np.where(strong, tone.ink, tone.grey), np.where(strong, 1.6, 0.6)
        ax.scatter(*xy[chosen].T, s=size, c=face[chosen], marker=marker, edgecolors=edges, linewidths=widths, zorder=3)


def _draw_drug(ax: Axes, n_layers: float, drug: str | None, place: np.ndarray | None, width: float) -> None:
    """Limits from left to right, with room for the box of the perturbation, and that box; `width` in inches."""
    ax.set_xlim(-0.5, n_layers - 0.4)
    if drug is None or place is None:
        return
    size = min(9.0, text_size(width))
    name = shorten([drug], LONGEST_DRUG if width >= LEAST_WIDTH else LONGEST_DRUG // 2)[0]
    inches = 0.01 * size * len(name) + 0.15
    share = min(inches / width, 0.5)
    ax.set_xlim(-0.1 - n_layers * share / (1 - share), n_layers - 0.4)
    ax.text(
        *place,
        name,
        ha="right",
        va="center",
        fontsize=size,
        color=tones(ax).paper,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": tones(ax).ink, "edgecolor": "none"},
        zorder=5,
    )


def _draw_labels(
    ax: Axes, genes: list[str], xy: np.ndarray, order: np.ndarray, diameter: float, unit: tuple[float, float]
) -> None:
    """Names under the nodes, or beside them where the nodes of a layer are close.

    `diameter` of a node, and `unit`, the distance of layers and of neighbours in a layer, in points.
    """
    fontsize = float(np.clip(0.6 * diameter, 5.5, 9.0))
    under = unit[1] > diameter + 1.35 * fontsize + 2
    room = unit[0] - (0 if under else diameter)
    place_labels(
        ax,
        xy,
        shorten(genes, max(6, int(room / (0.6 * fontsize)))),
        order=order,
        offset=diameter / 2 + 1.5,
        fontsize=fontsize,
        places=((0, -1), (0, 1), (1, 0), (-1, 0)) if under else ((1, 0), (-1, 0)),
        radius=diameter / 2,
    )


def write_instead(
    text: str, *, figsize: tuple[float, float] | None, title: str | None, ax: Axes | None
) -> tuple[Axes, bool]:
    """Axes with a sentence in place of a network; returns them, and whether they were given."""
    ax, given = new_axes(ax, figsize or (4.5, 2.0))
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)
    width = axes_inches(ax)[0]
    size = min(9.0, text_size(width))
    lines = "\n".join(textwrap.wrap(text, max(12, int(72 * width / (0.6 * size)))))
    ax.text(0.5, 0.5, lines, transform=ax.transAxes, ha="center", va="center", fontsize=size, color=tones(ax).ink)
    return ax, given


def draw_network(
    graph: nx.DiGraph,
    *,
    perturbation: str | None,
    drug_edges: pd.DataFrame | None,
    colors: pd.Series | None,
    by_effect: bool,
    color_label: str,
    importance: pd.Series,
    centres: list[str],
    note: str,
    n_labels: int,
    cmap: Any,
    figsize: tuple[float, float] | None,
    title: str | None,
    ax: Axes | None,
) -> tuple[Axes, bool]:
    """Draw an acyclic `graph` of genes (edges with `weight` and `probability`), and a perturbation with its targets.

    `colors` and `importance` are indexed by gene; `drug_edges` by the direct targets, with their probability ("prob") and
    the sign of the direct effect ("sign"). `color_label` stands beside the colour bar, `centres` are outlined, `note` stands above the network. Returns the axes, and
    whether they were given.
    """
    genes = list(graph)
    for target, edge in () if drug_edges is None else drug_edges.iterrows():
        graph.add_edge(DRUG, target, weight=float(edge["sign"]), probability=float(edge["prob"]))
    places, ways = layered_layout(graph)
    xy = np.stack([places[gene] for gene in genes])
    heights = np.concatenate([xy[:, 1], *(way[:, 1] for way in ways.values())])
    low, high, n_layers = heights.min() - 0.8, heights.max() + 0.8, xy[:, 0].max() + 1
    if figsize is None:
        figsize = (np.clip(1.1 * n_layers, 3.5, 11.0) + 1.0, np.clip(0.42 * (high - low), 2.2, 7.5) + 0.6)
    area = None if ax is None else Area(ax)
    ax, given = new_axes(ax, figsize)

    face, mappable = _scale(colors, genes, tones(ax).pale, by_effect=by_effect, cmap=cmap)
    if mappable is not None:
        bar = ax.figure.colorbar(mappable, ax=ax, shrink=0.7, aspect=18, pad=0.01)
        bar.set_label(color_label, fontsize="small")
        bar.ax.tick_params(labelsize="small")
    lines = textwrap.wrap(note, max(24, int(NOTE_LETTERS * axes_inches(ax)[0])))
    if title is not None:
        ax.set_title(title, pad=6 + 12 * len(lines))
    if lines:
        place = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        ax.annotate(
            "\n".join(lines), (0.5, 1.0), xycoords="axes fraction", fontsize="small", color=tones(ax).grey, **place
        )
    ax.set_axis_off()
    ax.set_ylim(low, high)
    width, _ = axes_inches(ax)
    size = min(8.3, text_size(width))
    # many genes call for small nodes and thin edges, and narrow axes for a short legend
    diameter = float(np.clip(0.45 * 72 * axes_inches(ax)[1] / (high - low), 4.0, 14.0))
    thickness = max(0.9, 2.2 * diameter / 14)
    handles = _legend_handles(thickness, tones(ax), has_drug=graph.has_node(DRUG), short=width < LEAST_WIDTH)
    ncols = int(np.clip(width / (0.15 * size), 1, len(handles)))
    ax.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=ncols, fontsize=size, **LEGEND_STYLE
    )
    if area is not None:
        area.keep_within()
    width, height = axes_inches(ax)
    _draw_drug(ax, n_layers, perturbation, places.get(DRUG), width)
    unit = (72 * width / float(np.diff(ax.get_xlim())[0]), 72 * height / (high - low))
    diameter = float(np.clip(min(0.45 * unit[1], 0.35 * unit[0]), 4.0, 14.0))
    _draw_edges(ax, graph, ways, diameter, thickness)
    is_target, is_centre = (
        np.array(mark) for mark in ([graph.has_edge(DRUG, g) for g in genes], [g in centres for g in genes])
    )
    _draw_nodes(ax, xy, face, is_target, is_centre, diameter)
    _draw_labels(ax, genes, xy, np.argsort(-importance[genes].to_numpy(), kind="stable")[:n_labels], diameter, unit)
    return ax, given
