"""When the loss of a fit is lost, and why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

MAX_GRADIENT = 10.0  # of the loss per cell; ordinary gradients stay below one
MIN_LOG_SCALE, MAX_LOG_SCALE = -10.0, 14.0  # beyond it the likelihood no longer depends on the scale, or overflows
MAX_INTERCEPT = 20.0  # log means beyond this are cut off by the likelihood
_FACTOR = 10.0  # of the first loss that is far above it: a fit that converges stays below, convention
_MIN_STEPS = 5  # of an epoch, so that single batches of extreme cells do not count
_EXTREME_COUNT, _EXTREME_SIZE = 1e5, 1e-2  # that are worth a mention, none that a sound screen has: conventions


class LossWatch:
    """Tells a loss that diverges from one that a few extreme cells make large.

    The loss diverges where it is not finite, or where it is far above that of the first step in all steps of an epoch.

    Parameters
    ----------
    n_batches
        Steps of an epoch.
    """

    def __init__(self, n_batches: int):
        self.window = max(_MIN_STEPS, n_batches)
        self.start: float | None = None
        self.n_above = 0

    @property
    def is_high(self) -> bool:
        """Whether the last loss was far above the first."""
        return self.n_above > 0

    def diverges(self, loss: float) -> bool:
        """Take note of the loss of a step."""
        if not math.isfinite(loss):
            return True
        if self.start is None:
            self.start = loss
        self.n_above = self.n_above + 1 if loss > _FACTOR * (1 + abs(self.start)) else 0
        return self.n_above >= self.window


@torch.no_grad()
def likely_cause(module: Any, batch: dict[str, Tensor], lr: float) -> str:
    """What may have made the loss diverge, and what to do."""
    broken = [name for name, value in module.named_parameters() if not torch.isfinite(value).all()]
    if broken:
        return f"The parameters {broken} are no longer finite: lower `lr` (it is {lr:g})."
    largest, smallest = float(batch["x"].abs().max()), float(batch["log_size"].exp().min())
    if module.likelihood == "normal":
        return f"Lower `lr` (it is {lr:g}), and look for outliers: the batch has values up to {largest:g}."
    if largest > _EXTREME_COUNT or smallest < _EXTREME_SIZE:
        return (
            f"The batch has counts up to {largest:g} and size factors from {smallest:.2g}: remove such cells or genes, or "
            f"lower `lr` (it is {lr:g})."
        )
    return f"Lower `lr` (it is {lr:g})."
