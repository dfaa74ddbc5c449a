"""Models."""

from __future__ import annotations

from scgim.model._gim import GIM

__all__ = ["GIM"]
