"""Simple baselines that benchmarks show, for versions of the package that do not have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgim.metrics._baselines import BASELINES

if TYPE_CHECKING:
    from scgim.metrics._baselines import Contexts


def dosemean(train: Contexts, test: Contexts) -> np.ndarray:
    """Mean of the training shifts at the same dose, or at the nearest on the log scale."""
    known = np.unique(train.dosage)
    distance = np.abs(np.log(test.dosage)[:, None] - np.log(known)[None])
    return np.stack([train.shift[train.dosage == dose].mean(0) for dose in known[distance.argmin(1)]])


def drugmean(train: Contexts, test: Contexts) -> np.ndarray:
    """Mean of the training shifts of the same drug over doses; NaN for drugs that were never measured."""
    shift = np.full((len(test.drug), train.shift.shape[1]), np.nan)
    for drug in np.unique(test.drug):
        if (train.drug == drug).any():
            shift[test.drug == drug] = train.shift[train.drug == drug].mean(0)
    return shift


def add_baselines() -> None:
    """Make both known to :func:`scgim.metrics.compare_baselines`, unless it has its own of that name."""
    for baseline in (dosemean, drugmean):
        BASELINES.setdefault(baseline.__name__, baseline)
