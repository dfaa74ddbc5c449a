"""Modules: what torch and Pyro see of a model."""

from __future__ import annotations

from scgim.module._gim import GIMModule

__all__ = ["GIMModule"]
