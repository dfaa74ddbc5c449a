"""Results stored in an AnnData, put together for reading."""

from __future__ import annotations

from scgim._report import Report
from scgim.tl._report import report

__all__ = ["Report", "report"]
