"""Colours and shades that can be seen on light and on dark ground."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from matplotlib import patheffects
from matplotlib.colors import to_hex, to_rgba

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart with any common colour blindness; yellow is left out because it is too pale for lines
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
POSITIVE, NEGATIVE = "#D55E00", "#0072B2"


class Tones(NamedTuple):
    """Shades that can be seen on the background of some axes."""

    ink: str
    grey: str
    pale: str
    paper: str


def tones(ax: Axes) -> Tones:
    """The shades for `ax`: dark on light, or light on dark."""
    red, green, blue, alpha = to_rgba(ax.get_facecolor())
    if alpha < 0.5:
        red, green, blue, alpha = to_rgba(ax.figure.figure.get_facecolor())  # type: ignore[union-attr]
    if alpha < 0.5 or 0.3 * red + 0.59 * green + 0.11 * blue > 0.5:
        return Tones("#222222", "#8C8C8C", "#D9D9D9", "#FFFFFF")
    return Tones("#EEEEEE", "#A0A0A0", "#4D4D4D", to_hex((red, green, blue)))


def palette(ax: Axes) -> tuple[str, ...]:
    """Okabe and Ito's colours as they can be seen in `ax`: black is white on dark ground."""
    return (*OKABE_ITO[:-1], tones(ax).ink)


def halo(ax: Axes, width: float = 2.0) -> list[patheffects.AbstractPathEffect]:
    """An outline in the colour of the ground that keeps text readable on lines."""
    return [patheffects.withStroke(linewidth=width, foreground=tones(ax).paper)]
