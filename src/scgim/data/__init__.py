"""Simulated drug screens with known answers, and splits by context."""

from __future__ import annotations

from ._simulate import simulate_screen
from ._simulator import ScreenSimulator
from ._split import split_by_context

__all__ = ["ScreenSimulator", "simulate_screen", "split_by_context"]
