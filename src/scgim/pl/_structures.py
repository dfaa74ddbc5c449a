"""Substructures that bits of fingerprints stand for, drawn by RDKit."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ROW = 0.7  # inches of a row with a picture
PIXELS = 500  # of a picture, for print at that size
LARGEST_SCALE = 0.25  # points a pixel: an atom alone is not to be drawn as large as a ring


def can_draw() -> bool:
    """Whether RDKit is installed."""
    return find_spec("rdkit") is not None


def picture(substructure: pd.Series) -> np.ndarray:
    """The substructure as RDKit draws it, its central atom marked, as an image of rows x columns x colours."""
    from rdkit import Chem
    from rdkit.Chem import Draw

    options: Any = Draw.rdMolDraw2D.MolDrawOptions()  # typed wrongly
    options.bondLineWidth, options.minFontSize = 7, 48
    molecule = Chem.MolFromSmiles(substructure["smiles"])
    centre = int(substructure["atom"]), int(substructure["radius"])
    png = Draw.DrawMorganEnv(molecule, *centre, (PIXELS, PIXELS), useSVG=False, drawOptions=options)
    image = plt.imread(io.BytesIO(png))[..., :3]
    # what is drawn is small amid white: cut to it
    inked = np.argwhere((image < 0.98).any(axis=2))
    (top, left), (bottom, right) = inked.min(axis=0), inked.max(axis=0) + 1
    return image[top:bottom, left:right]


def place_beside(ax: Axes, pictures: list[np.ndarray | None], heights: np.ndarray, row: float) -> None:
    """Put pictures left of `ax`, at `heights` in data units, with the tick labels at their left; `row` in inches."""
    points = 72 * 0.92 * row
    for image, height in zip(pictures, heights, strict=True):
        if image is not None:
            zoom = min(points / max(image.shape[:2]), LARGEST_SCALE)
            box = OffsetImage(image, zoom=zoom, interpolation="hanning", resample=True)
            frame = {"frameon": False, "pad": 0, "box_alignment": (0.5, 0.5), "annotation_clip": False}
            where = {"xycoords": ax.get_yaxis_transform(), "boxcoords": "offset points"}
            ax.add_artist(AnnotationBbox(box, (0, height), xybox=(-points / 2 - 4, 0), **where, **frame))
    ax.tick_params(axis="y", pad=points + 8, length=0)
