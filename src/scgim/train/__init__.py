"""Training plan and minibatches."""

from __future__ import annotations

from scgim.train._data import BatchLoader, Cells, CellsDataModule
from scgim.train._plan import GIMTrainingPlan

__all__ = ["BatchLoader", "Cells", "CellsDataModule", "GIMTrainingPlan"]
