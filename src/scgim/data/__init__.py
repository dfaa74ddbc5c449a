"""Simulated drug screens with known answers."""

from __future__ import annotations

import warnings
from typing import Any

from ._simulate import simulate_screen
from ._simulator import ScreenSimulator

__all__ = ["ScreenSimulator", "simulate_screen"]


def __getattr__(name: str) -> Any:
    if name != "split_by_context":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scgim.pp import split_by_context

    warnings.warn("`scgim.data.split_by_context` is now `scgim.pp.split_by_context`.", FutureWarning, stacklevel=2)
    return split_by_context
