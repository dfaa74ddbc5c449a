"""The space in which distributions are compared: log1p of counts, standardised on control cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scgim._validation import iterate_blocks

_MIN_SD = 1e-8  # below it a gene is constant, but for rounding, and keeps its scale


def as_matrix(cells: Any, name: str) -> Any:
    """Cells as a two-dimensional array or sparse matrix, checked."""
    if isinstance(cells, pd.DataFrame):
        cells = cells.to_numpy()
    if not sparse.issparse(cells):
        cells = np.asarray(cells)
    if len(cells.shape) != 2 or cells.shape[0] == 0:
        raise ValueError(f"Expected `{name}` as cells x genes with at least one cell, found shape {cells.shape}.")
    return cells


def dense(cells: Any) -> np.ndarray:
    """Cells as an array of floats."""
    return np.asarray(cells.toarray() if sparse.issparse(cells) else cells, dtype=float)


def subsample(cells: Any, max_cells: int, rng: np.random.Generator) -> Any:
    """At most `max_cells` random cells, in their order."""
    if cells.shape[0] <= max_cells:
        return cells
    rows = np.sort(rng.choice(cells.shape[0], max_cells, replace=False))
    return cells[rows]


class ControlScale:
    """Standardises cells by the mean and standard deviation of log1p of control cells, gene by gene.

    A gene that does not vary in controls is centred only. Control cells are read in blocks and never densified as a whole.

    Parameters
    ----------
    control
        Control cells, cells x genes, dense or sparse.
    log1p
        Whether to take log1p first; not for continuous data.
    """

    def __init__(self, control: Any, *, log1p: bool = True):
        self.log1p = log1p
        self._centre = np.zeros(control.shape[1])
        self._scale = np.ones(control.shape[1])
        self._centre = self._mean(control)
        sd = np.sqrt(self._mean(control, squared=True))
        self._scale = np.where(sd > _MIN_SD, sd, 1.0)

    def transform(self, cells: Any) -> np.ndarray:
        """Standardised cells, dense, cells x genes."""
        return (self._log(dense(cells)) - self._centre) / self._scale

    def mean(self, cells: Any) -> np.ndarray:
        """Mean of the standardised cells: the mean shift from control, in control standard deviations. One number a gene."""
        return self._mean(cells) / self._scale

    def noise(self, cells: Any) -> float:
        """Variance of :meth:`mean` by the finite number of cells, averaged over genes."""
        square = self._mean(cells, squared=True) / self._scale**2
        return float((square - self.mean(cells) ** 2).clip(min=0).mean() / cells.shape[0])

    def _log(self, values: np.ndarray) -> np.ndarray:
        return np.log1p(values) if self.log1p else values

    def _mean(self, cells: Any, *, squared: bool = False) -> np.ndarray:
        total = np.zeros(cells.shape[1])
        for _, columns, block in iterate_blocks(cells):
            centred = self._log(dense(block)) - self._centre[columns]
            total[columns] += (centred**2 if squared else centred).sum(0)
        return total / cells.shape[0]
