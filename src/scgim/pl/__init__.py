"""Plots of stored results."""

from __future__ import annotations

from ._feature_importance import feature_importance
from ._network import network
from ._targets import targets

__all__ = ["feature_importance", "network", "targets"]
