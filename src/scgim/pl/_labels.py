"""Labels of points that never lie on one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgim.pl._tones import halo, tones

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
    order: Sequence[int] | np.ndarray | None = None,
    offset: float = 4.0,
    fontsize: float = 8.0,
    places: Sequence[tuple[float, float]] = _PLACES,
    radius: float = 0.0,
    gap: float = 0.0,
) -> list[Annotation]:
    """Write labels beside points, the most important ones first, leaving out those for which there is no room.

    Parameters
    ----------
    ax
        Axes, with limits already set and all else drawn: a later change of the layout would move the points.
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
        Radius of the marks at the points, in typographic points; labels do not cover them.
    gap
        Free room around each label, in typographic points, where neither another label nor the mark of another point may lie. From
        `offset - radius` on, the point nearest to a label is its own.

    Returns
    -------
    The labels that were written.
    """
    figure = ax.figure.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    renderer = figure.canvas.get_renderer()  # type: ignore[union-attr]
    frame = ax.get_window_extent()
    dots = ax.transData.transform(np.asarray(points, dtype=float))
    dpi = figure.dpi  # type: ignore[union-attr]
    reach, room = 0.9 * radius * dpi / 72, gap * dpi / 72
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
            color=tones(ax).ink,
            path_effects=halo(ax),
            annotation_clip=False,
            zorder=6,
        )
        others = np.delete(dots, i, axis=0)
        # its own mark it may come nearer to than the others
        marks = [(dots[[i]], reach), (others, reach + room)]
        box = _settle(text, places, offset, renderer, frame, taken, marks)
        if box is None:
            text.remove()
        else:
            taken.append(box.padded(room))
            written.append(text)
    return written


def _settle(
    text, places, offset, renderer, frame: Bbox, taken: list[Bbox], marks: list[tuple[np.ndarray, float]]
) -> Bbox | None:
    """Move `text` to the first place where it covers nothing, within the frame; None where there is no such place."""
    for x, y in places:
        _move(text, x, y, offset)
        box = text.get_window_extent(renderer)
        inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
        covers_mark = any(
            ((dots > box.min - reach) & (dots < box.max + reach)).all(axis=1).any() for dots, reach in marks
        )
        if inside and not covers_mark and not any(box.overlaps(other) for other in taken):
            return box
    return None


def _move(text, x: float, y: float, offset: float) -> None:
    text.set_position((x * offset, y * offset))
    text.set_horizontalalignment(_ANCHORS[int(np.sign(x))][0])
    text.set_verticalalignment(_ANCHORS[int(np.sign(y))][1])
