"""Labels of points that never lie on one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgim.pl._utils import INK, halo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# where a label may sit around its point, as (x, y) in units of the offset, best first
_PLACES = ((1, 0), (0, 1), (0, -1), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8))
_ANCHORS = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}


def place_labels(
    ax: Axes,
    points: np.ndarray,
    labels: Sequence[str],
    *,
    order: Sequence[int] | None = None,
    offset: float = 4.0,
    fontsize: float = 8.0,
    places: Sequence[tuple[float, float]] = _PLACES,
    radius: float = 0.0,
) -> list[Annotation]:
    """Write labels beside points, the most important ones first, leaving out those for which there is no room.

    Parameters
    ----------
    ax
        Axes, with limits already set.
    points
        Positions in data units, points x 2.
    labels
        A text for each point; an empty one is skipped.
    order
        Indices of points, the most important first. By default as they come.
    offset
        Distance between point and label in typographic points.
    fontsize
        Font size in points.
    places
        Directions in which a label may lie from its point, best first.
    radius
        Radius of the marks at the points, in typographic points; labels avoid the marks as far as possible.

    Returns
    -------
    The labels that were written.
    """
    figure = ax.figure.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    renderer = figure.canvas.get_renderer()  # type: ignore[union-attr]
    frame = ax.get_window_extent()
    dots = ax.transData.transform(np.asarray(points, dtype=float))
    reach = 0.9 * radius * figure.dpi / 72
    written: list[Annotation] = []
    taken: list[Bbox] = []
    for i in range(len(labels)) if order is None else order:
        if not labels[i]:
            continue
        text = ax.annotate(
            labels[i],
            tuple(points[i]),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=fontsize,
            color=INK,
            path_effects=halo(),
            annotation_clip=False,
            zorder=6,
        )
        box = _settle(text, places, offset, renderer, frame, taken, dots, reach)
        if box is None:
            text.remove()
        else:
            taken.append(box)
            written.append(text)
    return written


def _settle(
    text, places, offset, renderer, frame: Bbox, taken: list[Bbox], dots: np.ndarray, reach: float
) -> Bbox | None:
    """Move `text` to the free place that covers the fewest dots; None when every place is taken."""
    best: tuple[int, tuple[float, float], Bbox] | None = None
    for x, y in places:
        _move(text, x, y, offset)
        box = text.get_window_extent(renderer)
        if box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
            continue
        if any(box.overlaps(other) for other in taken):
            continue
        covered = int(((dots > box.min - reach) & (dots < box.max + reach)).all(axis=1).sum())
        if best is None or covered < best[0]:
            best = covered, (x, y), box
        if covered == 0:
            break
    if best is None:
        return None
    _move(text, *best[1], offset)
    return best[2]


def _move(text, x: float, y: float, offset: float) -> None:
    text.set_position((x * offset, y * offset))
    text.set_horizontalalignment(_ANCHORS[int(np.sign(x))][0])
    text.set_verticalalignment(_ANCHORS[int(np.sign(y))][1])
