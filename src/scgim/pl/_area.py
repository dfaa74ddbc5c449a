"""Plots in axes of the user's lie on no neighbour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from scgim.pl._utils import axes_inches, text_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

NARROW = 3.5  # inches; in wider axes text keeps its size
LEAST_LINE = 0.11  # inches from a line of text to the next


class Area:
    """The part of a user's figure that a plot may fill: the axes given, with the tick labels that they came with.

    Where no layout engine sees to it, :meth:`keep_within` shrinks the axes until all that was drawn around them lies in
    this part, so that nothing lies on the neighbours.
    """

    def __init__(self, ax: Axes):
        self.ax = ax
        figure: Any = ax.figure.figure
        self.width, self.height = axes_inches(ax)
        self.place = ax.get_position()
        self.managed = figure.get_layout_engine() is not None
        self.others = [other for other in figure.axes if other is not ax]
        if not self.managed:
            box = ax.get_tightbbox()
            self.box = _freed(
                ax.get_window_extent() if box is None else box, [other.get_tightbbox() for other in self.others]
            )

    def holds(self, n: int, width: float) -> bool:
        """Whether so many panels, each at least `width` inches wide, go side by side."""
        return self.width >= n * width

    def panels(self, side: float) -> tuple[int, int]:
        """Number of columns and rows of panels, each at least `side` inches wide and high, and at least one."""
        return max(1, int(self.width / side)), max(1, int(self.height / side))

    def lines(self) -> int:
        """Number of lines of text that can be read below one another, beside all else."""
        return max(1, int(0.7 * self.height / LEAST_LINE))

    def longest_name(self, longest: int) -> int:
        """Characters of names at the side of the axes, at most `longest`."""
        return int(np.clip(7 * self.width, 8, longest))

    def keep_within(self) -> None:
        """Make text smaller in narrow axes, and shrink them so that labels, legends and colour bars lie in the area too."""
        figure: Any = self.ax.figure.figure
        new = [other for other in figure.axes if other not in self.others]
        if self.width < NARROW:
            for text in (text for ax in new for text in ax.findobj(Text)):
                text.set_fontsize(min(text.get_fontsize(), text_size(self.width)))
        for _ in range(0 if self.managed else 5):  # labels do not shrink with the axes: the excess goes in a few steps
            figure.draw_without_rendering()
            places = [ax.get_position(original=True).transformed(figure.transFigure) for ax in new]
            frame = Bbox.union(places)
            drawn = Bbox.union([frame, *(box for ax in new if (box := ax.get_tightbbox()) is not None)])
            low = frame.min + np.maximum(self.box.min - drawn.min, 0)
            high = frame.max - np.maximum(drawn.max - self.box.max, 0)
            high = np.maximum(high, low + 0.15 * frame.size)  # never to nothing
            for ax, place in zip(new, places, strict=True):
                points = low + (place.get_points() - frame.min) * (high - low) / frame.size
                ax.set_position(Bbox(points).transformed(figure.transFigure.inverted()))
                ax.set_in_layout(True)  # `set_position` takes axes out of a later `tight_layout`


def _freed(box: Bbox, others: Sequence[Bbox | None]) -> Bbox:
    """The part of `box` that lies on none of the boxes around it."""
    x0, y0, x1, y1 = box.extents
    for other in others:
        if other is None:
            continue
        if other.x0 < x1 and other.x1 > x0:  # above or below
            if other.y1 < (y0 + y1) / 2:
                y0 = max(y0, other.y1 + 1)
            elif other.y0 > (y0 + y1) / 2:
                y1 = min(y1, other.y0 - 1)
        if other.y0 < y1 and other.y1 > y0:
            if other.x1 < (x0 + x1) / 2:
                x0 = max(x0, other.x1 + 1)
            elif other.x0 > (x0 + x1) / 2:
                x1 = min(x1, other.x0 - 1)
    return Bbox.from_extents(x0, y0, x1, y1)
