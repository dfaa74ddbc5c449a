"""How far a better prediction is trusted, by what it gained on drugs that were left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgim.interventions._curves import groups_of

if TYPE_CHECKING:
    from torch import Tensor

_MIN_DRUGS = 4  # fewer tell nothing of how a drug differs from others: convention
_CLEAR = 3.0  # standard errors: a gain without doubt: convention
_TINY = 1e-12  # guard of a quotient


def trust(gain: Tensor, group: Tensor) -> float:
    """Share by which to go from one prediction to a better one, by its gain in each context, in standard errors over drugs, t.

    In proportion to 1 - 1 / t^2, the factor of James and Stein's positive part: 0 up to one standard error, 1 from three.
    """
    by_drug = torch.stack([gain[rows].sum() for rows in groups_of(group)])
    if len(by_drug) < _MIN_DRUGS:
        return 0.0
    error = by_drug.std() / len(by_drug) ** 0.5
    ratio = float(by_drug.mean() / error.clamp_min(_TINY))
    return min(1.0, (1 - ratio**-2) / (1 - _CLEAR**-2)) if ratio > 1 else 0.0
