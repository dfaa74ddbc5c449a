"""Plots of stored results, in the conventions of scanpy; none of them needs a model or torch.

Bare numbers in the code of plots are sizes, in inches, points, characters or shares of an axis, chosen by eye.
"""

from __future__ import annotations

from ._calibration import calibration
from ._dose_response import dose_response
from ._drug_map import drug_map
from ._effects import effects
from ._feature_importance import feature_importance
from ._history import history
from ._network import network
from ._predicted_vs_observed import predicted_vs_observed
from ._rank_drugs import rank_drugs
from ._targets import targets

__all__ = [
    "calibration",
    "dose_response",
    "drug_map",
    "effects",
    "feature_importance",
    "history",
    "network",
    "predicted_vs_observed",
    "rank_drugs",
    "targets",
]
